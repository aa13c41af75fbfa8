//! Classes that give objects what they don't say themselves, requests for certificates, and what a cluster has from its
//! first start.

mod support;

use http::{Method, Request};
use kube::client::Body;
use serde_json::{Value, json};
use support::Cluster;

const CSRS: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
const PODS: &str = "/api/v1/namespaces/default/pods";
const PRIORITIES: &str = "/apis/scheduling.k8s.io/v1/priorityclasses";

/// Sends a request; gives the code and the answer.
async fn send(client: &kube::Client, method: Method, path: &str, body: &Value) -> (u16, Value) {
    let mut request = Request::builder().method(method.clone()).uri(path);
    if method == Method::PATCH {
        request = request.header("content-type", "application/merge-patch+json");
    }
    let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
    let answer = client.send(request.body(Body::from(body)).expect("a request")).await.expect("an answer");
    let code = answer.status().as_u16();
    let body = answer.into_body().collect_bytes().await.expect("a body");
    (code, serde_json::from_slice(&body).unwrap_or(Value::Null))
}

async fn make(cluster: &Cluster, path: &str, body: &Value) -> Value {
    let (code, made) = send(&cluster.admin(), Method::POST, path, body).await;
    assert_eq!(code, 201, "{path}: {made}");
    made
}

async fn get(cluster: &Cluster, path: &str) -> Value {
    send(&cluster.admin(), Method::GET, path, &Value::Null).await.1
}

async fn cluster_with_account() -> Cluster {
    let cluster = Cluster::new().await;
    make(&cluster, "/api/v1/namespaces/default/serviceaccounts", &json!({"metadata": {"name": "default"}})).await;
    cluster
}

fn pod(name: &str, spec: &Value) -> Value {
    let mut pod = json!({"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    for (field, value) in spec.as_object().expect("fields") {
        pod["spec"][field] = value.clone();
    }
    pod
}

#[tokio::test]
async fn a_pod_gets_the_priority_of_its_class_or_of_the_default_one() {
    let cluster = cluster_with_account().await;
    let plain = make(&cluster, PODS, &pod("plain", &json!({}))).await;
    assert_eq!(
        (&plain["spec"]["priority"], &plain["spec"]["preemptionPolicy"]),
        (&json!(0), &json!("PreemptLowerPriority"))
    );

    make(&cluster, PRIORITIES, &json!({"metadata": {"name": "low"}, "value": -5, "globalDefault": true})).await;
    let class = json!({"metadata": {"name": "high"}, "value": 70, "preemptionPolicy": "Never"});
    make(&cluster, PRIORITIES, &class).await;
    let default = make(&cluster, PODS, &pod("default", &json!({}))).await;
    assert_eq!((&default["spec"]["priority"], &default["spec"]["priorityClassName"]), (&json!(-5), &json!("low")));
    let high = make(&cluster, PODS, &pod("high", &json!({"priorityClassName": "high"}))).await;
    assert_eq!((&high["spec"]["priority"], &high["spec"]["preemptionPolicy"]), (&json!(70), &json!("Never")));

    let admin = cluster.admin();
    let (code, refused) = send(&admin, Method::POST, PODS, &pod("no", &json!({"priorityClassName": "nope"}))).await;
    assert_eq!(
        (code, &refused["message"]),
        (403, &json!("pods \"no\" is forbidden: no PriorityClass with name nope was found"))
    );
    let second = json!({"metadata": {"name": "other"}, "value": 1, "globalDefault": true});
    let (code, refused) = send(&admin, Method::POST, PRIORITIES, &second).await;
    assert_eq!(code, 403);
    assert!(
        refused["message"].as_str().is_some_and(|text| text.contains("PriorityClass low is already marked as default"))
    );
    let path = format!("{PRIORITIES}/high");
    assert_eq!(send(&admin, Method::PATCH, &path, &json!({"value": 71})).await.0, 422);
}

#[tokio::test]
async fn a_pod_gets_what_its_runtime_class_says() {
    let cluster = cluster_with_account().await;
    let class = json!({"metadata": {"name": "sandbox"}, "handler": "runc", "overhead": {"podFixed": {"memory": "10Mi"}},
        "scheduling": {"nodeSelector": {"sandbox": "yes"}}});
    make(&cluster, "/apis/node.k8s.io/v1/runtimeclasses", &class).await;
    let made = make(&cluster, PODS, &pod("p", &json!({"runtimeClassName": "sandbox"}))).await;
    assert_eq!(made["spec"]["overhead"], json!({"memory": "10Mi"}));
    assert_eq!(made["spec"]["nodeSelector"], json!({"sandbox": "yes"}));
    let other = pod("q", &json!({"runtimeClassName": "sandbox", "overhead": {"memory": "1Mi"}}));
    assert_eq!(send(&cluster.admin(), Method::POST, PODS, &other).await.0, 403);
}

#[tokio::test]
async fn ingresses_and_claims_get_the_newest_default_class() {
    let cluster = Cluster::new().await;
    let mark = |group: &str| json!({format!("{group}.kubernetes.io/is-default-class"): "true"});
    let class = json!({"metadata": {"name": "nginx", "annotations": mark("ingressclass")}, "spec": {"controller": "a.example/c"}});
    make(&cluster, "/apis/networking.k8s.io/v1/ingressclasses", &class).await;
    let class = json!({"metadata": {"name": "disk", "annotations": mark("storageclass")}, "provisioner": "p"});
    make(&cluster, "/apis/storage.k8s.io/v1/storageclasses", &class).await;

    let ingresses = "/apis/networking.k8s.io/v1/namespaces/default/ingresses";
    let ingress = |name: &str| json!({"metadata": {"name": name}, "spec": {"rules": [{"host": "a.example"}]}});
    assert_eq!(make(&cluster, ingresses, &ingress("a")).await["spec"]["ingressClassName"], "nginx");
    let mut old = ingress("b");
    old["metadata"]["annotations"] = json!({"kubernetes.io/ingress.class": "x"});
    assert_eq!(make(&cluster, ingresses, &old).await["spec"].get("ingressClassName"), None);

    let claims = "/api/v1/namespaces/default/persistentvolumeclaims";
    let claim = |name: &str| json!({"metadata": {"name": name}, "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}});
    assert_eq!(make(&cluster, claims, &claim("a")).await["spec"]["storageClassName"], "disk");
    let mut none = claim("b");
    none["spec"]["storageClassName"] = json!("");
    assert_eq!(make(&cluster, claims, &none).await["spec"]["storageClassName"], "");
}

/// A PKCS#10 request, in base64 of PEM, for a name in a group.
fn request(name: &str, group: &str) -> String {
    use base64::Engine as _;
    let mut parameters = rcgen::CertificateParams::default();
    parameters.distinguished_name.push(rcgen::DnType::CommonName, name);
    parameters.distinguished_name.push(rcgen::DnType::OrganizationName, group);
    let key = rcgen::KeyPair::generate().expect("a key");
    let pem = parameters.serialize_request(&key).and_then(|request| request.pem()).expect("a request");
    base64::engine::general_purpose::STANDARD.encode(pem)
}

fn signing_request(name: &str, signer: &str, group: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"request": request("ann", group), "signerName": signer,
        "usages": ["client auth"], "username": "somebody-else"}})
}

#[tokio::test]
async fn whoever_asks_for_a_certificate_is_named_and_approval_depends_on_the_signer() {
    let cluster = Cluster::new().await;
    let signer = "a.example/signer";
    let made = make(&cluster, CSRS, &signing_request("one", signer, "team")).await;
    assert_eq!(made["spec"]["username"], "admin");

    let admin = cluster.admin();
    let masters = signing_request("two", "kubernetes.io/kube-apiserver-client", "system:masters");
    assert_eq!(send(&admin, Method::POST, CSRS, &masters).await.0, 403);

    let rules = json!([{"apiGroups": ["certificates.k8s.io"], "resources": ["certificatesigningrequests/approval"],
        "verbs": ["update", "patch"]}]);
    let role = |name: &str, rules: &Value| json!({"metadata": {"name": name}, "rules": rules});
    let binding = |name: &str| {
        json!({"metadata": {"name": name}, "subjects": [{"kind": "User", "name": "bob"}],
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name}})
    };
    let rbac = "/apis/rbac.authorization.k8s.io/v1";
    make(&cluster, &format!("{rbac}/clusterroles"), &role("approvers", &rules)).await;
    make(&cluster, &format!("{rbac}/clusterrolebindings"), &binding("approvers")).await;
    let bob = cluster.gateway.client("bob", &[]);
    let path = format!("{CSRS}/one/approval");
    let approved = json!({"status": {"conditions": [{"type": "Approved", "status": "True", "reason": "r"}]}});
    let (code, refused) = send(&bob, Method::PATCH, &path, &approved).await;
    assert_eq!(code, 403);
    assert!(
        refused["message"].as_str().is_some_and(|text| text.contains("not permitted to approve requests")),
        "{refused}"
    );

    let rules = json!([{"apiGroups": ["certificates.k8s.io"], "resources": ["signers"], "verbs": ["approve"],
        "resourceNames": ["a.example/*"]}]);
    make(&cluster, &format!("{rbac}/clusterroles"), &role("signers", &rules)).await;
    make(&cluster, &format!("{rbac}/clusterrolebindings"), &binding("signers")).await;
    let mut last = (0, Value::Null);
    // What somebody may do is heard of a moment after it is written.
    for _ in 0..100 {
        last = send(&bob, Method::PATCH, &path, &approved).await;
        if last.0 == 200 {
            break;
        }
        tokio::task::yield_now().await;
    }
    assert_eq!(last.0, 200, "{}", last.1);
    assert!(last.1["status"]["conditions"][0]["lastTransitionTime"].is_string());
    let denied = json!({"status": {"conditions": [{"type": "Denied", "status": "True"}]}});
    assert_eq!(send(&admin, Method::PATCH, &path, &denied).await.0, 422);
    let spec = json!({"spec": {"signerName": "b.example/x"}});
    assert_eq!(send(&admin, Method::PATCH, &format!("{CSRS}/one"), &spec).await.1["spec"]["signerName"], signer);
}

#[tokio::test]
async fn a_fresh_cluster_has_the_systems_classes_levels_and_apis() {
    let cluster = Cluster::new().await;
    let count = |list: &Value| list["items"].as_array().map_or(0, Vec::len);
    assert_eq!(count(&get(&cluster, PRIORITIES).await), 2);
    let flow = "/apis/flowcontrol.apiserver.k8s.io/v1";
    assert_eq!(count(&get(&cluster, &format!("{flow}/flowschemas")).await), 11);
    assert_eq!(count(&get(&cluster, &format!("{flow}/prioritylevelconfigurations")).await), 8);
    let apis = get(&cluster, "/apis/apiregistration.k8s.io/v1/apiservices").await;
    let available = |api: &Value| api["status"]["conditions"][0]["reason"] == "Local";
    assert!(count(&apis) >= 21 && apis["items"].as_array().is_some_and(|all| all.iter().all(available)));
    let range = get(&cluster, "/apis/networking.k8s.io/v1/servicecidrs/kubernetes").await;
    assert_eq!(range["spec"]["cidrs"], json!(["10.96.0.0/16"]));
}
