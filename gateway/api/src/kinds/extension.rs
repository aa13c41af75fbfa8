//! How the API itself is extended and guarded: aggregation, admission, flow control.

use super::{ROW, part};
use crate::kind::{Kind, Scope};

pub(super) static ROWS: &[Kind] = &[
    Kind {
        group: "apiregistration.k8s.io",
        kind: "APIService",
        plural: "apiservices",
        singular: "apiservice",
        categories: &["api-extensions"],
        scope: Scope::Cluster,
        subresources: &[part("status", ("apiregistration.k8s.io", "v1", "APIService"))],
        schema: "io.k8s.kube-aggregator.pkg.apis.apiregistration.v1.APIService",
        ..ROW
    },
    Kind {
        group: "admissionregistration.k8s.io",
        kind: "MutatingWebhookConfiguration",
        plural: "mutatingwebhookconfigurations",
        singular: "mutatingwebhookconfiguration",
        categories: &["api-extensions"],
        scope: Scope::Cluster,
        schema: "io.k8s.api.admissionregistration.v1.MutatingWebhookConfiguration",
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
        schema: "io.k8s.api.admissionregistration.v1.ValidatingAdmissionPolicy",
        ..ROW
    },
    Kind {
        group: "admissionregistration.k8s.io",
        kind: "ValidatingAdmissionPolicyBinding",
        plural: "validatingadmissionpolicybindings",
        singular: "validatingadmissionpolicybinding",
        categories: &["api-extensions"],
        scope: Scope::Cluster,
        schema: "io.k8s.api.admissionregistration.v1.ValidatingAdmissionPolicyBinding",
        ..ROW
    },
    Kind {
        group: "admissionregistration.k8s.io",
        kind: "ValidatingWebhookConfiguration",
        plural: "validatingwebhookconfigurations",
        singular: "validatingwebhookconfiguration",
        categories: &["api-extensions"],
        scope: Scope::Cluster,
        schema: "io.k8s.api.admissionregistration.v1.ValidatingWebhookConfiguration",
        ..ROW
    },
    Kind {
        group: "flowcontrol.apiserver.k8s.io",
        kind: "FlowSchema",
        plural: "flowschemas",
        singular: "flowschema",
        scope: Scope::Cluster,
        subresources: &[part("status", ("flowcontrol.apiserver.k8s.io", "v1", "FlowSchema"))],
        schema: "io.k8s.api.flowcontrol.v1.FlowSchema",
        ..ROW
    },
    Kind {
        group: "flowcontrol.apiserver.k8s.io",
        kind: "PriorityLevelConfiguration",
        plural: "prioritylevelconfigurations",
        singular: "prioritylevelconfiguration",
        scope: Scope::Cluster,
        subresources: &[part("status", ("flowcontrol.apiserver.k8s.io", "v1", "PriorityLevelConfiguration"))],
        schema: "io.k8s.api.flowcontrol.v1.PriorityLevelConfiguration",
        ..ROW
    },
];
