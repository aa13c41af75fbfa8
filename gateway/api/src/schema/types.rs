//! The named types whose schemas are built: those that the rows of [`crate::kinds`] take and give.
//! What they refer to comes along by itself.

use k8s_openapi::api::{
    admissionregistration, apps, authentication, authorization, autoscaling, batch, certificates, coordination, core,
    discovery, events, flowcontrol, networking, node, policy, rbac, resource, scheduling, storage,
};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions;
use k8s_openapi::apimachinery::pkg::apis::meta;
use k8s_openapi::kube_aggregator::pkg::apis::apiregistration;
use schemars::{JsonSchema, SchemaGenerator};

/// Adds a type and all that it refers to to a generator.
pub(super) type SchemaType = fn(&mut SchemaGenerator);

fn add<T: JsonSchema>(generator: &mut SchemaGenerator) {
    generator.subschema_for::<T>();
}

/// By OpenAPI name.
pub(super) const TYPES: &[(&str, SchemaType)] = &[
    (
        "io.k8s.api.admissionregistration.v1.MutatingWebhookConfiguration",
        add::<admissionregistration::v1::MutatingWebhookConfiguration>,
    ),
    (
        "io.k8s.api.admissionregistration.v1.ValidatingAdmissionPolicy",
        add::<admissionregistration::v1::ValidatingAdmissionPolicy>,
    ),
    (
        "io.k8s.api.admissionregistration.v1.ValidatingAdmissionPolicyBinding",
        add::<admissionregistration::v1::ValidatingAdmissionPolicyBinding>,
    ),
    (
        "io.k8s.api.admissionregistration.v1.ValidatingWebhookConfiguration",
        add::<admissionregistration::v1::ValidatingWebhookConfiguration>,
    ),
    (
        "io.k8s.api.admissionregistration.v1beta1.MutatingAdmissionPolicy",
        add::<admissionregistration::v1beta1::MutatingAdmissionPolicy>,
    ),
    (
        "io.k8s.api.admissionregistration.v1beta1.MutatingAdmissionPolicyBinding",
        add::<admissionregistration::v1beta1::MutatingAdmissionPolicyBinding>,
    ),
    ("io.k8s.api.apps.v1.ControllerRevision", add::<apps::v1::ControllerRevision>),
    ("io.k8s.api.apps.v1.DaemonSet", add::<apps::v1::DaemonSet>),
    ("io.k8s.api.apps.v1.Deployment", add::<apps::v1::Deployment>),
    ("io.k8s.api.apps.v1.ReplicaSet", add::<apps::v1::ReplicaSet>),
    ("io.k8s.api.apps.v1.StatefulSet", add::<apps::v1::StatefulSet>),
    ("io.k8s.api.authentication.v1.SelfSubjectReview", add::<authentication::v1::SelfSubjectReview>),
    ("io.k8s.api.authentication.v1.TokenRequest", add::<authentication::v1::TokenRequest>),
    ("io.k8s.api.authentication.v1.TokenReview", add::<authentication::v1::TokenReview>),
    ("io.k8s.api.authorization.v1.LocalSubjectAccessReview", add::<authorization::v1::LocalSubjectAccessReview>),
    ("io.k8s.api.authorization.v1.SelfSubjectAccessReview", add::<authorization::v1::SelfSubjectAccessReview>),
    ("io.k8s.api.authorization.v1.SelfSubjectRulesReview", add::<authorization::v1::SelfSubjectRulesReview>),
    ("io.k8s.api.authorization.v1.SubjectAccessReview", add::<authorization::v1::SubjectAccessReview>),
    ("io.k8s.api.autoscaling.v1.HorizontalPodAutoscaler", add::<autoscaling::v1::HorizontalPodAutoscaler>),
    ("io.k8s.api.autoscaling.v1.Scale", add::<autoscaling::v1::Scale>),
    ("io.k8s.api.autoscaling.v2.HorizontalPodAutoscaler", add::<autoscaling::v2::HorizontalPodAutoscaler>),
    ("io.k8s.api.batch.v1.CronJob", add::<batch::v1::CronJob>),
    ("io.k8s.api.batch.v1.Job", add::<batch::v1::Job>),
    ("io.k8s.api.certificates.v1.CertificateSigningRequest", add::<certificates::v1::CertificateSigningRequest>),
    ("io.k8s.api.coordination.v1.Lease", add::<coordination::v1::Lease>),
    ("io.k8s.api.core.v1.Binding", add::<core::v1::Binding>),
    ("io.k8s.api.core.v1.ComponentStatus", add::<core::v1::ComponentStatus>),
    ("io.k8s.api.core.v1.ConfigMap", add::<core::v1::ConfigMap>),
    ("io.k8s.api.core.v1.Endpoints", add::<core::v1::Endpoints>),
    ("io.k8s.api.core.v1.Event", add::<core::v1::Event>),
    ("io.k8s.api.core.v1.LimitRange", add::<core::v1::LimitRange>),
    ("io.k8s.api.core.v1.Namespace", add::<core::v1::Namespace>),
    ("io.k8s.api.core.v1.Node", add::<core::v1::Node>),
    ("io.k8s.api.core.v1.PersistentVolume", add::<core::v1::PersistentVolume>),
    ("io.k8s.api.core.v1.PersistentVolumeClaim", add::<core::v1::PersistentVolumeClaim>),
    ("io.k8s.api.core.v1.Pod", add::<core::v1::Pod>),
    ("io.k8s.api.core.v1.PodTemplate", add::<core::v1::PodTemplate>),
    ("io.k8s.api.core.v1.ReplicationController", add::<core::v1::ReplicationController>),
    ("io.k8s.api.core.v1.ResourceQuota", add::<core::v1::ResourceQuota>),
    ("io.k8s.api.core.v1.Secret", add::<core::v1::Secret>),
    ("io.k8s.api.core.v1.Service", add::<core::v1::Service>),
    ("io.k8s.api.core.v1.ServiceAccount", add::<core::v1::ServiceAccount>),
    ("io.k8s.api.discovery.v1.EndpointSlice", add::<discovery::v1::EndpointSlice>),
    ("io.k8s.api.events.v1.Event", add::<events::v1::Event>),
    ("io.k8s.api.flowcontrol.v1.FlowSchema", add::<flowcontrol::v1::FlowSchema>),
    ("io.k8s.api.flowcontrol.v1.PriorityLevelConfiguration", add::<flowcontrol::v1::PriorityLevelConfiguration>),
    ("io.k8s.api.networking.v1.IPAddress", add::<networking::v1::IPAddress>),
    ("io.k8s.api.networking.v1.Ingress", add::<networking::v1::Ingress>),
    ("io.k8s.api.networking.v1.IngressClass", add::<networking::v1::IngressClass>),
    ("io.k8s.api.networking.v1.NetworkPolicy", add::<networking::v1::NetworkPolicy>),
    ("io.k8s.api.networking.v1.ServiceCIDR", add::<networking::v1::ServiceCIDR>),
    ("io.k8s.api.node.v1.RuntimeClass", add::<node::v1::RuntimeClass>),
    ("io.k8s.api.policy.v1.Eviction", add::<policy::v1::Eviction>),
    ("io.k8s.api.policy.v1.PodDisruptionBudget", add::<policy::v1::PodDisruptionBudget>),
    ("io.k8s.api.rbac.v1.ClusterRole", add::<rbac::v1::ClusterRole>),
    ("io.k8s.api.rbac.v1.ClusterRoleBinding", add::<rbac::v1::ClusterRoleBinding>),
    ("io.k8s.api.rbac.v1.Role", add::<rbac::v1::Role>),
    ("io.k8s.api.rbac.v1.RoleBinding", add::<rbac::v1::RoleBinding>),
    ("io.k8s.api.resource.v1.DeviceClass", add::<resource::v1::DeviceClass>),
    ("io.k8s.api.resource.v1.ResourceClaim", add::<resource::v1::ResourceClaim>),
    ("io.k8s.api.resource.v1.ResourceClaimTemplate", add::<resource::v1::ResourceClaimTemplate>),
    ("io.k8s.api.resource.v1.ResourceSlice", add::<resource::v1::ResourceSlice>),
    ("io.k8s.api.scheduling.v1.PriorityClass", add::<scheduling::v1::PriorityClass>),
    ("io.k8s.api.storage.v1.CSIDriver", add::<storage::v1::CSIDriver>),
    ("io.k8s.api.storage.v1.CSINode", add::<storage::v1::CSINode>),
    ("io.k8s.api.storage.v1.CSIStorageCapacity", add::<storage::v1::CSIStorageCapacity>),
    ("io.k8s.api.storage.v1.StorageClass", add::<storage::v1::StorageClass>),
    ("io.k8s.api.storage.v1.VolumeAttachment", add::<storage::v1::VolumeAttachment>),
    ("io.k8s.api.storage.v1.VolumeAttributesClass", add::<storage::v1::VolumeAttributesClass>),
    (
        "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.CustomResourceDefinition",
        add::<apiextensions::v1::CustomResourceDefinition>,
    ),
    ("io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions", add::<meta::v1::DeleteOptions>),
    ("io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta", add::<meta::v1::ListMeta>),
    ("io.k8s.apimachinery.pkg.apis.meta.v1.Status", add::<meta::v1::Status>),
    ("io.k8s.kube-aggregator.pkg.apis.apiregistration.v1.APIService", add::<apiregistration::v1::APIService>),
];
