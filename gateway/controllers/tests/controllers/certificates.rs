//! Requests for certificates, from a node's and from a person's.

use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use kube::api::{Api, Patch, PatchParams, PostParams};
use rcgen::{CertificateParams, DnType, KeyPair};
use serde_json::json;

use crate::cluster::{object, start, start_with, until};

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

/// A request of somebody for these names, made as a user in a group; with the usages of its signer.
async fn ask_as(client: &kube::Client, user: &str, group: &str, name: &str, node: &str, names: Option<&[&str]>) {
    let mut params =
        CertificateParams::new(names.unwrap_or_default().iter().map(ToString::to_string).collect::<Vec<_>>()).unwrap();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, format!("system:node:{node}"));
    params.distinguished_name.push(DnType::OrganizationName, "system:nodes");
    let pem = params.serialize_request(&KeyPair::generate().unwrap()).unwrap().pem().unwrap();
    let (signer, auth) = match names {
        Some(_) => ("kubelet-serving", "server auth"),
        None => ("kube-apiserver-client-kubelet", "client auth"),
    };
    let body = request(name, ByteString(pem.into_bytes()), signer, &["digital signature", auth]);
    let request = http::Request::post("/apis/certificates.k8s.io/v1/certificatesigningrequests")
        .header("content-type", "application/json")
        .header("impersonate-user", user)
        .header("impersonate-group", group)
        .body(serde_json::to_vec(&body).unwrap())
        .unwrap();
    client.request::<CertificateSigningRequest>(request).await.unwrap();
}

/// Controllers for which the API server is at 192.0.2.1, and is called so.
async fn with_reserved_names() -> crate::cluster::Cluster {
    let what = |name: &str| ["192.0.2.1", "kubernetes"].contains(&name).then(|| "the API server's".to_owned());
    start_with(carob_controllers::Options { reserved: std::sync::Arc::new(what), ..Default::default() }).await
}

#[tokio::test]
async fn a_node_answers_at_its_own_addresses_and_nobody_elses() {
    let cluster = with_reserved_names().await;
    let nodes: Api<k8s_openapi::api::core::v1::Node> = Api::all(cluster.client.clone());
    for (name, addresses) in [("n1", vec!["192.0.2.7", "192.0.2.1", "192.0.2.9"]), ("n2", vec!["192.0.2.9"])] {
        nodes.create(&PostParams::default(), &object(json!({"metadata": {"name": name}}))).await.unwrap();
        let mut all: Vec<_> =
            addresses.iter().map(|address| json!({"type": "InternalIP", "address": address})).collect();
        all.extend([name, "web.default.svc"].map(|name| json!({"type": "Hostname", "address": name})));
        let status = json!({"status": {"addresses": all}});
        nodes.patch_status(name, &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
    }
    let api: Api<CertificateSigningRequest> = Api::all(cluster.client.clone());
    let ask = async |name: &str, names: &[&str]| {
        ask_as(&cluster.client, "system:node:n1", "system:nodes", name, "n1", Some(names)).await;
    };
    let foreign: [(&str, &[&str]); 5] = [
        ("the-gateway", &["n1", "192.0.2.1"]),
        ("a-neighbour", &["n1", "192.0.2.9"]),
        ("a-service", &["n1", "web.default.svc"]),
        ("a-stranger", &["n1", "192.0.2.66"]),
        ("the-name", &["n2"]),
    ];
    for (name, names) in foreign {
        ask(name, names).await;
    }
    for name in ["good", "again"] {
        ask(name, &["n1", "192.0.2.7"]).await;
        until(&api, |all| state(all, name) == (vec!["Approved=AutoApproved".to_owned()], true)).await;
    }
    let all = api.list(&kube::api::ListParams::default()).await.unwrap().items;
    for (name, _) in foreign {
        assert_eq!(state(&all, name), (vec![], false), "{name}");
    }
}

#[tokio::test]
async fn of_two_that_join_with_one_name_one_is_let_in_and_some_names_are_nobodys() {
    let cluster = with_reserved_names().await;
    let api: Api<CertificateSigningRequest> = Api::all(cluster.client.clone());
    let join = async |name: &str, node: &str| {
        ask_as(&cluster.client, "system:bootstrap:abcdef", "system:bootstrappers", name, node, None).await;
    };
    let names = ["one", "two", "three", "four"];
    futures::future::join_all(names.map(|name| join(name, "n1"))).await;
    until(&api, |all| names.iter().all(|name| !state(all, name).0.is_empty())).await;
    let all = api.list(&kube::api::ListParams::default()).await.unwrap().items;
    let told = |wanted: &str| names.iter().filter(|name| state(&all, name).0 == [wanted]).count();
    assert_eq!((told("Approved=AutoApproved"), told("Denied=NodeJoins")), (1, 3));
    // Who was let in isn't there yet, and the name is its own nonetheless; until somebody takes it back.
    let first = names.into_iter().find(|name| state(&all, name).0 == ["Approved=AutoApproved"]).unwrap();
    until(&api, |all| state(all, first).1).await;
    join("late", "n1").await;
    until(&api, |all| state(all, "late").0 == ["Denied=NodeJoins"]).await;
    api.delete(first, &kube::api::DeleteParams::default()).await.unwrap();
    until(&api, |all| state(all, first).0.is_empty()).await;
    join("later", "n1").await;
    until(&api, |all| state(all, "later") == (vec!["Approved=AutoApproved".to_owned()], true)).await;
    join("other", "kubernetes").await;
    until(&api, |all| state(all, "other").0 == ["Denied=NodeNameReserved"]).await;
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
