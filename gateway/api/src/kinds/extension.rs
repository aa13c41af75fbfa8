//! How the API itself is extended and guarded: aggregation, admission, flow control.

use super::{ROW, part};
use crate::kind::{Kind, Scope};
use crate::{strategy, table};

pub(super) static ROWS: &[Kind] = &[
    Kind {
        group: "apiregistration.k8s.io",
        kind: "APIService",
        plural: "apiservices",
        singular: "apiservice",
        categories: &["api-extensions"],
        scope: Scope::Cluster,
        subresources: &[part("status", ("apiregistration.k8s.io", "v1", "APIService"))],
        columns: table::admission::API_SERVICE,
        schema: "io.k8s.kube-aggregator.pkg.apis.apiregistration.v1.APIService",
        strategy: strategy::api_service::STRATEGY,
        ..ROW
    },
    Kind {
        group: "admissionregistration.k8s.io",
        kind: "MutatingWebhookConfiguration",
        plural: "mutatingwebhookconfigurations",
        singular: "mutatingwebhookconfiguration",
        categories: &["api-extensions"],
        scope: Scope::Cluster,
        columns: table::admission::WEBHOOKS,
        schema: "io.k8s.api.admissionregistration.v1.MutatingWebhookConfiguration",
        strategy: strategy::webhook_configuration::MUTATING,
        ..ROW
    },
    Kind {
        group: "admissionregistration.k8s.io",
        kind: "ValidatingAdmissionPolicy",
        plural: "validatingadmissionpolicies",
        singular: "validatingadmissionpolicy",
        categories: &["api-extensions"],
        scope: Scope::Cluster,
        subresources: &[part("status", ("admissionregistration.k8s.io", "v1", "ValidatingAdmissionPolicy"))],
        columns: table::admission::POLICY,
        schema: "io.k8s.api.admissionregistration.v1.ValidatingAdmissionPolicy",
        strategy: strategy::admission_policy::POLICY,
        ..ROW
    },
    Kind {
        group: "admissionregistration.k8s.io",
        kind: "ValidatingAdmissionPolicyBinding",
        plural: "validatingadmissionpolicybindings",
        singular: "validatingadmissionpolicybinding",
        categories: &["api-extensions"],
        scope: Scope::Cluster,
        columns: table::admission::BINDING,
        schema: "io.k8s.api.admissionregistration.v1.ValidatingAdmissionPolicyBinding",
        strategy: strategy::admission_policy::BINDING,
        ..ROW
    },
    Kind {
        group: "admissionregistration.k8s.io",
        kind: "ValidatingWebhookConfiguration",
        plural: "validatingwebhookconfigurations",
        singular: "validatingwebhookconfiguration",
        categories: &["api-extensions"],
        scope: Scope::Cluster,
        columns: table::admission::WEBHOOKS,
        schema: "io.k8s.api.admissionregistration.v1.ValidatingWebhookConfiguration",
        strategy: strategy::webhook_configuration::VALIDATING,
        ..ROW
    },
    Kind {
        group: "apiextensions.k8s.io",
        kind: "CustomResourceDefinition",
        plural: "customresourcedefinitions",
        singular: "customresourcedefinition",
        short_names: &["crd", "crds"],
        categories: &["api-extensions"],
        scope: Scope::Cluster,
        subresources: &[part("status", ("apiextensions.k8s.io", "v1", "CustomResourceDefinition"))],
        schema: "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.CustomResourceDefinition",
        strategy: strategy::custom_resource_definition::STRATEGY,
        ..ROW
    },
    Kind {
        group: "flowcontrol.apiserver.k8s.io",
        kind: "FlowSchema",
        plural: "flowschemas",
        singular: "flowschema",
        scope: Scope::Cluster,
        subresources: &[part("status", ("flowcontrol.apiserver.k8s.io", "v1", "FlowSchema"))],
        columns: table::flow_control::FLOW_SCHEMA,
        schema: "io.k8s.api.flowcontrol.v1.FlowSchema",
        strategy: strategy::flow_control::SCHEMA,
        ..ROW
    },
    Kind {
        group: "flowcontrol.apiserver.k8s.io",
        kind: "PriorityLevelConfiguration",
        plural: "prioritylevelconfigurations",
        singular: "prioritylevelconfiguration",
        scope: Scope::Cluster,
        subresources: &[part("status", ("flowcontrol.apiserver.k8s.io", "v1", "PriorityLevelConfiguration"))],
        columns: table::flow_control::PRIORITY_LEVEL,
        schema: "io.k8s.api.flowcontrol.v1.PriorityLevelConfiguration",
        strategy: strategy::flow_control::LEVEL,
        ..ROW
    },
];

/// Served where the cluster's owner says so: Kubernetes leaves these out by default as well.
pub(super) static OPTIONAL: &[Kind] = &[
    Kind {
        group: "admissionregistration.k8s.io",
        version: "v1beta1",
        kind: "MutatingAdmissionPolicy",
        plural: "mutatingadmissionpolicies",
        singular: "mutatingadmissionpolicy",
        categories: &["api-extensions"],
        scope: Scope::Cluster,
        columns: table::admission::MUTATING_POLICY,
        schema: "io.k8s.api.admissionregistration.v1beta1.MutatingAdmissionPolicy",
        strategy: strategy::mutating_policy::POLICY,
        ..ROW
    },
    Kind {
        group: "admissionregistration.k8s.io",
        version: "v1beta1",
        kind: "MutatingAdmissionPolicyBinding",
        plural: "mutatingadmissionpolicybindings",
        singular: "mutatingadmissionpolicybinding",
        categories: &["api-extensions"],
        scope: Scope::Cluster,
        columns: table::admission::BINDING,
        schema: "io.k8s.api.admissionregistration.v1beta1.MutatingAdmissionPolicyBinding",
        strategy: strategy::mutating_policy::BINDING,
        ..ROW
    },
];
