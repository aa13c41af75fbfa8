//! Requests for certificates, from a node's and from a person's.

use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use kube::api::{Api, Patch, PatchParams, PostParams};
use rcgen::{CertificateParams, DnType, KeyPair};
use serde_json::json;

use crate::cluster::{object, start, until};

/// A request of somebody in a group, PEM.
fn asked(name: &str, group: &str) -> ByteString {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.distinguished_name.push(DnType::OrganizationName, group);
    ByteString(params.serialize_request(&KeyPair::generate().unwrap()).unwrap().pem().unwrap().into_bytes())
}

fn request(name: &str, pem: ByteString, signer: &str, usages: &[&str]) -> CertificateSigningRequest {
    object(json!({"metadata": {"name": name}, "spec": {"request": pem, "usages": usages,
        "signerName": format!("kubernetes.io/{signer}"), "expirationSeconds": 3600}}))
}

/// The name that a request has, its conditions, and whether there is a certificate.
fn state(requests: &[CertificateSigningRequest], name: &str) -> (Vec<String>, bool) {
    let request = requests.iter().find(|request| request.metadata.name.as_deref() == Some(name));
    let status = request.and_then(|request| request.status.clone()).unwrap_or_default();
    let conditions = status.conditions.unwrap_or_default().into_iter();
    let conditions =
        conditions.map(|condition| format!("{}={}", condition.type_, condition.reason.unwrap_or_default()));
    (conditions.collect(), status.certificate.is_some_and(|pem| pem.0.starts_with(b"-----BEGIN CERTIFICATE")))
}

#[tokio::test]
async fn a_nodes_certificate_is_approved_and_signed_and_a_persons_waits_for_a_person() {
    let cluster = start().await;
    let api: Api<CertificateSigningRequest> = Api::all(cluster.client.clone());
    let node = asked("system:node:n1", "system:nodes");
    let usages = ["client auth", "digital signature"];
    for wanted in [
        request("node", node.clone(), "kube-apiserver-client-kubelet", &usages),
        request("person", asked("ann", "team"), "kube-apiserver-client", &usages),
        request("wrong", asked("ann", "team"), "kube-apiserver-client", &["client auth", "server auth"]),
        request("serving", node, "kubelet-serving", &["digital signature", "server auth"]),
    ] {
        api.create(&PostParams::default(), &wanted).await.unwrap();
    }
    until(&api, |all| state(all, "node") == (vec!["Approved=AutoApproved".to_owned()], true)).await;
    let all = api.list(&kube::api::ListParams::default()).await.unwrap().items;
    for name in ["person", "wrong", "serving"] {
        assert_eq!(state(&all, name), (vec![], false), "{name}");
        let approved = json!({"status": {"conditions": [{"type": "Approved", "status": "True", "reason": "Me"}]}});
        api.patch_subresource("approval", name, &PatchParams::default(), &Patch::Merge(approved)).await.unwrap();
    }
    until(&api, |all| state(all, "person") == (vec!["Approved=Me".to_owned()], true)).await;
    let failed = vec!["Approved=Me".to_owned(), "Failed=SignerValidationFailure".to_owned()];
    for name in ["wrong", "serving"] {
        until(&api, |all| state(all, name) == (failed.clone(), false)).await;
    }
}
