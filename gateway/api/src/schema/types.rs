//! The named types whose schemas are built: those that the rows of [`crate::kinds`] take and give.
//! What they refer to comes along by itself.

use k8s_openapi::api::{apps, authentication, autoscaling, batch, coordination, core, events, policy};
use k8s_openapi::apimachinery::pkg::apis::meta;
use schemars::{JsonSchema, SchemaGenerator};

/// Adds a type and all that it refers to to a generator.
pub(super) type SchemaType = fn(&mut SchemaGenerator);

fn add<T: JsonSchema>(generator: &mut SchemaGenerator) {
    generator.subschema_for::<T>();
}

/// By OpenAPI name.
pub(super) const TYPES: &[(&str, SchemaType)] = &[
    ("io.k8s.api.apps.v1.Deployment", add::<apps::v1::Deployment>),
    ("io.k8s.api.apps.v1.ReplicaSet", add::<apps::v1::ReplicaSet>),
    ("io.k8s.api.authentication.v1.TokenRequest", add::<authentication::v1::TokenRequest>),
    ("io.k8s.api.autoscaling.v1.Scale", add::<autoscaling::v1::Scale>),
    ("io.k8s.api.batch.v1.Job", add::<batch::v1::Job>),
    ("io.k8s.api.coordination.v1.Lease", add::<coordination::v1::Lease>),
    ("io.k8s.api.core.v1.Binding", add::<core::v1::Binding>),
    ("io.k8s.api.core.v1.ConfigMap", add::<core::v1::ConfigMap>),
    ("io.k8s.api.core.v1.Event", add::<core::v1::Event>),
    ("io.k8s.api.core.v1.Namespace", add::<core::v1::Namespace>),
    ("io.k8s.api.core.v1.Node", add::<core::v1::Node>),
    ("io.k8s.api.core.v1.Pod", add::<core::v1::Pod>),
    ("io.k8s.api.core.v1.Secret", add::<core::v1::Secret>),
    ("io.k8s.api.core.v1.Service", add::<core::v1::Service>),
    ("io.k8s.api.core.v1.ServiceAccount", add::<core::v1::ServiceAccount>),
    ("io.k8s.api.events.v1.Event", add::<events::v1::Event>),
    ("io.k8s.api.policy.v1.Eviction", add::<policy::v1::Eviction>),
    ("io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions", add::<meta::v1::DeleteOptions>),
    ("io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta", add::<meta::v1::ListMeta>),
    ("io.k8s.apimachinery.pkg.apis.meta.v1.Status", add::<meta::v1::Status>),
];
