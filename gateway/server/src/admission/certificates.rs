//! Requests for certificates: who asked is written down by the server; who may approve and sign depends on the signer.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use carob_api::status::Status;
use serde_json::{Value, json};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::pem::parse_x509_pem;
use x509_parser::prelude::FromDer as _;

use super::request::Request;
use crate::authn::{Identity, MASTERS, common_name};
use crate::authz::Attributes;
use crate::objects::text;

const GROUP: &str = "certificates.k8s.io";
/// Its certificates are taken for who they say they are.
const CLIENT_SIGNER: &str = "kubernetes.io/kube-apiserver-client";

/// Nobody asks in another's name.
pub(super) fn name_requester(identity: &Identity, object: &mut Value) {
    let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) else { return };
    let groups = (!identity.groups.is_empty()).then(|| json!(identity.groups));
    let extra = (!identity.extra.is_empty()).then(|| json!(identity.extra));
    let fields = [
        ("username", (!identity.user.is_empty()).then(|| json!(identity.user))),
        ("uid", (!identity.uid.is_empty()).then(|| json!(identity.uid))),
        ("groups", groups),
        ("extra", extra),
    ];
    for (field, value) in fields {
        match value {
            Some(value) => spec.insert(field.to_owned(), value),
            None => spec.shift_remove(field),
        };
    }
}

/// Nobody becomes an administrator by asking the signer of clients.
pub(super) fn restrict_subject(request: &Request<'_>) -> Result<(), Status> {
    let object = &request.object;
    let organizations = || subject(object).unwrap_or_default().organizations;
    if text(object, "/spec/signerName") == CLIENT_SIGNER && organizations().iter().any(|name| name == MASTERS) {
        let why = format!("use of {CLIENT_SIGNER} signer with {MASTERS} group is not allowed");
        return Err(Status::forbidden(&request.call.resource(), text(object, "/metadata/name"), why));
    }
    Ok(())
}

/// Whom a certificate is requested for.
#[derive(Debug, Default)]
pub(super) struct Subject {
    /// Empty if there isn't exactly one that can be read.
    pub(super) common_name: String,
    organizations: Vec<String>,
}

/// Whom the requested certificate would be for; or why the request cannot be read.
pub(super) fn subject(object: &Value) -> Result<Subject, &'static str> {
    const NO_REQUEST: &str = "PEM block type must be CERTIFICATE REQUEST";
    let decoded = STANDARD.decode(text(object, "/spec/request")).map_err(|_| NO_REQUEST)?;
    let (_, pem) = parse_x509_pem(&decoded).map_err(|_| NO_REQUEST)?;
    if pem.label != "CERTIFICATE REQUEST" {
        return Err(NO_REQUEST);
    }
    let (_, request) = X509CertificationRequest::from_der(&pem.contents).map_err(|_| "not a certificate request")?;
    let subject = &request.certification_request_info.subject;
    let common_name = common_name(subject).unwrap_or_default();
    let organizations = subject.iter_organization().filter_map(|name| name.as_str().ok()).map(str::to_owned);
    Ok(Subject { common_name: common_name.to_owned(), organizations: organizations.collect() })
}

/// 403 for who may not approve or deny what this signer signs.
pub(super) fn may_approve(request: &Request<'_>) -> Result<(), Status> {
    let signer = text(request.old.unwrap_or(&request.object), "/spec/signerName");
    if may(request, "approve", signer) {
        return Ok(());
    }
    let why = format!("user not permitted to approve requests with signerName {signer:?}");
    Err(Status::forbidden(&request.call.resource(), request.call.name(), why))
}

/// 403 for who may not sign for this signer. A status without a new certificate or failure is anybody's who may write it.
pub(super) fn may_sign(request: &Request<'_>) -> Result<(), Status> {
    let Some(old) = request.old else { return Ok(()) };
    let certificate = |object: &Value| text(object, "/status/certificate").to_owned();
    let failures = |object: &Value| {
        let conditions = object.pointer("/status/conditions").and_then(Value::as_array).cloned().unwrap_or_default();
        conditions.into_iter().filter(|condition| condition["type"] == "Failed").collect::<Vec<_>>()
    };
    if certificate(old) == certificate(&request.object) && failures(old) == failures(&request.object) {
        return Ok(());
    }
    let signer = text(old, "/spec/signerName");
    if may(request, "sign", signer) {
        return Ok(());
    }
    let why = format!("user not permitted to sign requests with signerName {signer:?}");
    Err(Status::forbidden(&request.call.resource(), request.call.name(), why))
}

/// By the signer's name, or by all names of its domain.
fn may(request: &Request<'_>, verb: &str, signer: &str) -> bool {
    let domain = signer.split_once('/').map(|(domain, _)| format!("{domain}/*"));
    let names = [Some(signer.to_owned()), domain];
    names.into_iter().flatten().any(|name| {
        let wanted = Attributes {
            verb: verb.to_owned(),
            group: GROUP.to_owned(),
            version: "*".to_owned(),
            resource: "signers".to_owned(),
            name,
            ..Attributes::default()
        };
        request.call.server.authorizer.allows(&request.call.identity, &wanted)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_says_who_asks_whatever_it_said() {
        let identity = Identity::authenticated("ann", ["team".to_owned()]);
        let mut object = json!({"spec": {"username": "bob", "uid": "7", "groups": ["system:masters"]}});
        name_requester(&identity, &mut object);
        assert_eq!(object["spec"]["username"], "ann");
        assert_eq!(object["spec"].get("uid"), None);
        let groups = object["spec"]["groups"].as_array().expect("groups");
        assert!(groups.contains(&json!("team")) && !groups.contains(&json!("system:masters")));
    }
}
