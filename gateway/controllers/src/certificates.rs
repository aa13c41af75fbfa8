//! Requests for certificates: those of nodes are approved if they may have them, approved ones are signed with the
//! cluster's authority, old ones go.
//!
//! A worker that joins over the network gets its certificate in this way, as kubelets do.

pub(crate) mod approver;
mod asked;
pub(crate) mod cleaner;
mod issue;
pub(crate) mod signer;

use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestCondition};

/// Signs what workers show the API server.
const NODE_CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";
/// Signs what clients show the API server.
const CLIENT: &str = "kubernetes.io/kube-apiserver-client";
/// Signs what workers show to who asks them for logs.
const NODE_SERVING: &str = "kubernetes.io/kubelet-serving";
/// Signs anything, for clients of an old version of this API.
const LEGACY: &str = "kubernetes.io/legacy-unknown";

fn conditions(request: &CertificateSigningRequest) -> &[CertificateSigningRequestCondition] {
    request.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default()
}

fn has(request: &CertificateSigningRequest, condition: &str) -> bool {
    conditions(request).iter().any(|one| one.type_ == condition)
}

/// PEM; none before it is signed.
fn certificate(request: &CertificateSigningRequest) -> Option<&[u8]> {
    let certificate = &request.status.as_ref()?.certificate.as_ref()?.0;
    (!certificate.is_empty()).then_some(certificate.as_slice())
}

/// Who joins by a token is in this group.
const BOOTSTRAPPERS: &str = "system:bootstrappers";

/// Whether somebody wants to be let in as a node by a token.
fn joins(request: &CertificateSigningRequest) -> bool {
    request.spec.signer_name == NODE_CLIENT && request.spec.groups.iter().flatten().any(|group| group == BOOTSTRAPPERS)
}

/// Adds a condition that is true from now on.
fn add_condition(request: &mut CertificateSigningRequest, condition: &str, reason: &str, message: String) {
    let conditions = request.status.get_or_insert_default().conditions.get_or_insert_default();
    conditions.push(CertificateSigningRequestCondition {
        type_: condition.to_owned(),
        status: "True".to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message),
        last_update_time: Some(crate::status::now()),
        last_transition_time: None,
    });
}
