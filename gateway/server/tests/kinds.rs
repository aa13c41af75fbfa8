//! Kinds with rules that cross objects: Services share addresses and ports, evictions take from budgets, autoscalers have
//! two versions, bindings are done to pods.

mod support;

use std::collections::HashSet;

use futures::future::try_join_all;
use k8s_openapi::api::autoscaling::{v1, v2};
use k8s_openapi::api::core::v1::{Node, PersistentVolumeClaim, Pod, Service, ServiceAccount};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::storage::v1::StorageClass;
use kube::Api;
use kube::api::{DeleteParams, EvictParams, Patch, PatchParams, PostParams};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use support::Cluster;

fn object<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).expect("an object of the kind")
}

fn service(name: &str, spec: &Value) -> Service {
    object(json!({ "metadata": { "name": name }, "spec": spec }))
}

fn refusal(error: kube::Error) -> (u16, String) {
    match error {
        kube::Error::Api(status) => (status.code, status.message.clone()),
        other => panic!("{other}"),
    }
}

fn address(service: &Service) -> String {
    service.spec.as_ref().and_then(|spec| spec.cluster_ip.clone()).unwrap_or_default()
}

#[tokio::test]
async fn services_made_at_once_get_different_addresses_and_ports() {
    let cluster = Cluster::new().await;
    let services: Api<Service> = Api::namespaced(cluster.admin(), "default");
    let params = PostParams::default();
    let spec = json!({ "type": "NodePort", "ports": [{ "port": 80 }] });
    let wanted: Vec<Service> = (0..64).map(|index| service(&format!("s{index}"), &spec)).collect();
    let made = try_join_all(wanted.iter().map(|wanted| services.create(&params, wanted))).await.expect("made");
    let addresses: HashSet<String> = made.iter().map(address).collect();
    let ports: HashSet<i32> =
        made.iter().filter_map(|service| service.spec.as_ref()?.ports.as_ref()?.first()?.node_port).collect();
    assert_eq!((addresses.len(), ports.len()), (64, 64));
}

#[tokio::test]
async fn an_address_is_free_again_when_its_service_is_gone_or_has_no_use_for_it() {
    let cluster = Cluster::new().await;
    let services: Api<Service> = Api::namespaced(cluster.admin(), "default");
    let params = PostParams::default();
    let one = json!({ "clusterIP": "10.96.7.7", "ports": [{ "port": 80 }] });
    services.create(&params, &service("a", &one)).await.expect("free");
    let (code, message) = refusal(services.create(&params, &service("b", &one)).await.expect_err("taken"));
    assert_eq!(code, 422);
    assert!(message.ends_with("failed to allocate IP 10.96.7.7: provided IP is already allocated"), "{message}");
    let named = Patch::Merge(json!({ "spec": { "type": "ExternalName", "externalName": "a.example", "clusterIP": null,
        "clusterIPs": null } }));
    let patched = services.patch("a", &PatchParams::default(), &named).await.expect("patched");
    assert_eq!(address(&patched), "");
    services.create(&params, &service("b", &one)).await.expect("free again");
    services.delete("b", &DeleteParams::default()).await.expect("deleted");
    let back = Patch::Merge(json!({ "spec": { "type": "ClusterIP", "externalName": null, "clusterIP": "10.96.7.7" } }));
    let patched = services.patch("a", &PatchParams::default(), &back).await.expect("free once more");
    assert_eq!(address(&patched), "10.96.7.7");
}

#[tokio::test]
async fn an_eviction_takes_a_disruption_from_the_budget() {
    let cluster = Cluster::new().await;
    let pods: Api<Pod> = Api::namespaced(cluster.admin(), "default");
    let budgets: Api<PodDisruptionBudget> = Api::namespaced(cluster.admin(), "default");
    let params = PostParams::default();
    let pod = json!({ "metadata": { "name": "p", "labels": { "app": "a" } },
        "spec": { "automountServiceAccountToken": false, "containers": [{ "name": "c", "image": "x" }] } });
    let account = json!({ "metadata": { "name": "default" } });
    let accounts: Api<k8s_openapi::api::core::v1::ServiceAccount> = Api::namespaced(cluster.admin(), "default");
    accounts.create(&params, &object(account)).await.expect("made");
    pods.create(&params, &object(pod)).await.expect("made");
    let running = json!({ "status": { "phase": "Running", "conditions": [{ "type": "Ready", "status": "True" }] } });
    pods.patch_status("p", &PatchParams::default(), &Patch::Merge(running)).await.expect("running");
    let budget = json!({ "metadata": { "name": "b" },
        "spec": { "minAvailable": 1, "selector": { "matchLabels": { "app": "a" } } } });
    budgets.create(&params, &object(budget)).await.expect("made");
    let (code, _) = refusal(pods.evict("p", &EvictParams::default()).await.expect_err("nobody has looked at it"));
    assert_eq!(code, 429);
    let allow = |count: i64| {
        Patch::Merge(json!({ "status": { "observedGeneration": 1, "disruptionsAllowed": count, "currentHealthy": 1,
            "desiredHealthy": 1, "expectedPods": 1 } }))
    };
    budgets.patch_status("b", &PatchParams::default(), &allow(0)).await.expect("patched");
    let (code, message) = refusal(pods.evict("p", &EvictParams::default()).await.expect_err("refused"));
    assert_eq!((code, &*message), (429, "Cannot evict pod as it would violate the pod's disruption budget."));
    budgets.patch_status("b", &PatchParams::default(), &allow(1)).await.expect("patched");
    pods.evict("p", &EvictParams::default()).await.expect("allowed");
    let status = budgets.get("b").await.expect("there").status.expect("a status");
    assert_eq!(status.disruptions_allowed, 0);
    assert!(status.disrupted_pods.is_some_and(|pods| pods.contains_key("p")));
}

#[tokio::test]
async fn an_autoscaler_is_one_object_in_two_versions() {
    let cluster = Cluster::new().await;
    let old: Api<v1::HorizontalPodAutoscaler> = Api::namespaced(cluster.admin(), "default");
    let new: Api<v2::HorizontalPodAutoscaler> = Api::namespaced(cluster.admin(), "default");
    let wanted = json!({ "metadata": { "name": "h" }, "spec": { "maxReplicas": 3, "targetCPUUtilizationPercentage": 50,
        "scaleTargetRef": { "kind": "Deployment", "name": "d", "apiVersion": "apps/v1" } } });
    old.create(&PostParams::default(), &object(wanted)).await.expect("made");
    let seen = new.get("h").await.expect("the same").spec.expect("a spec");
    let metrics = seen.metrics.expect("metrics");
    assert_eq!(metrics[0].resource.as_ref().and_then(|cpu| cpu.target.average_utilization), Some(50));
    let pods = json!({ "type": "Pods", "pods": { "metric": { "name": "rps" },
        "target": { "type": "AverageValue", "averageValue": "10" } } });
    let patch = Patch::Merge(json!({ "spec": { "metrics": [pods] } }));
    new.patch("h", &PatchParams::default(), &patch).await.expect("patched");
    let seen = old.get("h").await.expect("the same");
    assert_eq!(seen.spec.and_then(|spec| spec.target_cpu_utilization_percentage), None);
    let annotations = seen.metadata.annotations.expect("what the older version has no field for");
    assert!(annotations["autoscaling.alpha.kubernetes.io/metrics"].contains("rps"));
}

#[tokio::test]
async fn a_binding_without_the_path_of_a_pod_binds_it_too() {
    let cluster = Cluster::new().await;
    let client = cluster.admin();
    let pods: Api<Pod> = Api::namespaced(client.clone(), "default");
    let nodes: Api<Node> = Api::all(client.clone());
    let params = PostParams::default();
    nodes.create(&params, &object(json!({ "metadata": { "name": "n" } }))).await.expect("made");
    let account = json!({ "metadata": { "name": "default" } });
    let accounts: Api<k8s_openapi::api::core::v1::ServiceAccount> = Api::namespaced(client.clone(), "default");
    accounts.create(&params, &object(account)).await.expect("made");
    let pod = json!({ "metadata": { "name": "p" }, "spec": { "containers": [{ "name": "c", "image": "x" }] } });
    pods.create(&params, &object(pod)).await.expect("made");
    let binding = json!({ "apiVersion": "v1", "kind": "Binding", "metadata": { "name": "p" },
        "target": { "kind": "Node", "name": "n" } });
    let request = http::Request::post("/api/v1/namespaces/default/bindings")
        .header("content-type", "application/json")
        .body(serde_json::to_vec(&binding).expect("JSON"))
        .expect("a request");
    let answer: Value = client.request(request).await.expect("bound");
    assert_eq!(answer["status"], "Success");
    let bound = pods.get("p").await.expect("there").spec.expect("a spec");
    assert_eq!(bound.node_name.as_deref(), Some("n"));
}

#[tokio::test]
async fn a_running_pod_takes_ephemeral_containers_and_other_resources() {
    let cluster = Cluster::new().await;
    let accounts: Api<ServiceAccount> = Api::namespaced(cluster.admin(), "default");
    accounts.create(&PostParams::default(), &object(json!({ "metadata": { "name": "default" } }))).await.expect("made");
    let pods: Api<Pod> = Api::namespaced(cluster.admin(), "default");
    let resources = |cpu: &str| json!({ "requests": { "cpu": cpu } });
    let pod = json!({ "metadata": { "name": "p" }, "spec": { "automountServiceAccountToken": false,
        "containers": [{ "name": "c", "image": "i", "resources": resources("1") }] } });
    pods.create(&PostParams::default(), &object(pod)).await.expect("made");
    let parts = [
        ("ephemeralcontainers", json!({ "ephemeralContainers": [{ "name": "d", "image": "i" }] })),
        ("resize", json!({ "containers": [{ "name": "c", "resources": resources("2") }] })),
    ];
    for (part, spec) in parts {
        let request = http::Request::patch(format!("/api/v1/namespaces/default/pods/p/{part}"))
            .header("content-type", "application/strategic-merge-patch+json")
            .body(kube::client::Body::from(json!({ "spec": spec }).to_string().into_bytes()))
            .expect("a request");
        let answer = cluster.admin().send(request).await.expect("an answer");
        let warning = answer.headers().get("warning");
        assert_eq!((answer.status().as_u16(), warning), (200, None), "{part}: both are carried out");
    }
    let pod = pods.get("p").await.expect("there").spec.expect("a spec");
    assert_eq!(pod.ephemeral_containers.map(|all| all.len()), Some(1));
    let asked = pod.containers[0].resources.as_ref().and_then(|resources| resources.requests.as_ref());
    assert_eq!(asked.map(|requests| requests["cpu"].0.as_str()), Some("2"));
}

#[tokio::test]
async fn a_new_node_takes_no_pods_before_it_is_ready() {
    let cluster = Cluster::new().await;
    let nodes: Api<Node> = Api::all(cluster.admin());
    let node: Node = object(json!({ "metadata": { "name": "n" } }));
    let made = nodes.create(&PostParams::default(), &node).await.expect("made");
    let taints = made.spec.and_then(|spec| spec.taints).unwrap_or_default();
    let taints: Vec<(&str, &str)> = taints.iter().map(|taint| (taint.key.as_str(), taint.effect.as_str())).collect();
    assert_eq!(taints, [("node.kubernetes.io/not-ready", "NoSchedule")]);
}

#[tokio::test]
async fn a_pod_says_in_which_zone_its_node_is() {
    let cluster = Cluster::new().await;
    let (nodes, pods): (Api<Node>, Api<Pod>) = (Api::all(cluster.admin()), Api::namespaced(cluster.admin(), "default"));
    let accounts: Api<ServiceAccount> = Api::namespaced(cluster.admin(), "default");
    accounts
        .create(&PostParams::default(), &object(json!({ "metadata": { "name": "default" } })))
        .await
        .expect("an account");
    let zone = "topology.kubernetes.io/zone";
    let node = json!({ "metadata": { "name": "n", "labels": { zone: "z1", "kubernetes.io/os": "linux" } } });
    nodes.create(&PostParams::default(), &object(node)).await.expect("a node");
    let pod = |name: &str, node: Option<&str>| -> Pod {
        object(json!({ "metadata": { "name": name },
            "spec": { "nodeName": node, "containers": [{ "name": "c", "image": "i" }] } }))
    };
    let placed = pods.create(&PostParams::default(), &pod("placed", Some("n"))).await.expect("made");
    assert_eq!(placed.metadata.labels.and_then(|labels| labels.get(zone).cloned()).as_deref(), Some("z1"));
    pods.create(&PostParams::default(), &pod("bound", None)).await.expect("made");
    let binding = json!({ "apiVersion": "v1", "kind": "Binding", "metadata": { "name": "bound" },
        "target": { "kind": "Node", "name": "n" } });
    let bound: Result<Value, _> = pods.create_subresource("binding", "bound", &PostParams::default(), &binding).await;
    bound.expect("bound");
    let labels = pods.get("bound").await.expect("there").metadata.labels.unwrap_or_default();
    assert_eq!(labels.into_iter().collect::<Vec<_>>(), [(zone.to_owned(), "z1".to_owned())]);
}

#[tokio::test]
async fn a_claim_grows_when_it_is_bound_and_its_class_lets_it() {
    let cluster = Cluster::new().await;
    let client = cluster.admin();
    let classes: Api<StorageClass> = Api::all(client.clone());
    for (name, grows) in [("grows", true), ("stays", false)] {
        let class = json!({ "metadata": { "name": name }, "provisioner": "p", "allowVolumeExpansion": grows });
        classes.create(&PostParams::default(), &object(class)).await.expect("a class");
    }
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(client, "default");
    let bigger = Patch::Merge(json!({ "spec": { "resources": { "requests": { "storage": "2Gi" } } } }));
    let bound = Patch::Merge(json!({ "status": { "phase": "Bound" } }));
    let params = PatchParams::default();
    for class in ["grows", "stays"] {
        let claim = json!({ "metadata": { "name": class }, "spec": { "accessModes": ["ReadWriteOnce"], "volumeName": "v",
            "storageClassName": class, "resources": { "requests": { "storage": "1Gi" } } } });
        claims.create(&PostParams::default(), &object(claim)).await.expect("a claim");
        let (code, _) = refusal(claims.patch(class, &params, &bigger).await.expect_err("not bound"));
        assert!(code == 403 || code == 422, "{code}");
        claims.patch_status(class, &params, &bound).await.expect("bound");
    }
    claims.patch("grows", &params, &bigger).await.expect("its class lets it");
    let (code, why) = refusal(claims.patch("stays", &params, &bigger).await.expect_err("its class doesn't"));
    assert_eq!(code, 403);
    assert!(why.ends_with("the storageclass that provisions the pvc must support resize"), "{why}");
}

#[tokio::test]
async fn a_revisions_data_is_compared_as_it_was_written() {
    let cluster = Cluster::new().await;
    let client = cluster.admin();
    let path = "/apis/apps/v1/namespaces/default/controllerrevisions";
    let send = async |method: &str, path: &str, content: &str, body: &str| {
        let request = http::Request::builder().method(method).uri(path).header("content-type", content);
        client.request::<Value>(request.body(body.as_bytes().to_vec()).expect("a request")).await
    };
    let (json, merge) = ("application/json", "application/merge-patch+json");
    for (name, data) in [("spaced", r#"{"a": 1}"#), ("dense", r#"{"a":1}"#)] {
        let body = format!(r#"{{"metadata": {{"name": "{name}"}}, "revision": 1, "data": {data}}}"#);
        send("POST", path, json, &body).await.expect("made");
        let again = body.replace("\"revision\": 1", "\"revision\": 2");
        send("PUT", &format!("{path}/{name}"), json, &again).await.expect("the same text");
    }
    let label = r#"{"metadata": {"labels": {"x": "y"}}}"#;
    send("PATCH", &format!("{path}/dense"), merge, label).await.expect("nothing about its data");
    let (code, why) = refusal(send("PATCH", &format!("{path}/spaced"), merge, label).await.expect_err("other text"));
    assert_eq!(code, 422);
    assert!(why.ends_with(r#"data: Invalid value: {"a":1}: field is immutable"#), "{why}");
}

/// Sends a request with a JSON body; gives the code and the answer.
async fn ask(cluster: &Cluster, method: &str, path: &str, body: Value) -> (u16, Value) {
    let request = http::Request::builder().method(method).uri(path).header("content-type", "application/json");
    let request = request.body(kube::client::Body::from(body.to_string().into_bytes())).expect("a request");
    let answer = cluster.admin().send(request).await.expect("an answer");
    let code = answer.status().as_u16();
    let bytes = axum::body::to_bytes(axum::body::Body::new(answer.into_body()), 1 << 20).await.expect("a body");
    (code, serde_json::from_slice(&bytes).unwrap_or_default())
}

#[tokio::test]
async fn what_a_request_says_of_identity_is_settled_as_in_kubernetes() {
    let cluster = Cluster::new().await;
    let owner = json!({"apiVersion": "v1", "kind": "Pod", "name": "x", "uid": "1"});
    let map = json!({"metadata": {"name": "m", "generation": 4, "ownerReferences": [owner, owner]}});
    let (code, made) = ask(&cluster, "POST", "/api/v1/namespaces/default/configmaps", map).await;
    assert_eq!((code, &made["metadata"]["generation"]), (201, &json!(4)), "nobody counts a map's generations");
    assert_eq!(made["metadata"]["ownerReferences"], json!([owner]), "one of equal owners is kept");
    let class =
        json!({"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": "c"}, "handler": "h"});
    assert_eq!(ask(&cluster, "PUT", "/apis/node.k8s.io/v1/runtimeclasses/c", class).await.0, 201, "a PUT makes it");
    let one = "/api/v1/namespaces/default/configmaps/m";
    for (query, expected) in
        [("?resourceVersion=99999999", 504), ("?resourceVersion=x", 500), ("?export=true", 400), ("", 200)]
    {
        assert_eq!(ask(&cluster, "GET", &format!("{one}{query}"), Value::Null).await.0, expected, "{query}");
    }
    let (_, found) = ask(&cluster, "GET", "/api/v1/componentstatuses/etcd-0", Value::Null).await;
    assert_eq!(found["conditions"][0]["status"], "True");
}

#[tokio::test]
async fn schemas_that_kubernetes_refuses_are_refused() {
    let cluster = Cluster::new().await;
    for (schema, why) in [
        (
            json!({"type": "object", "additionalProperties": true}),
            "additionalProperties: Forbidden: must not be used at the root",
        ),
        (
            json!({"type": "object", "properties": {"kind": {"type": "integer"}}}),
            "properties[kind].type: Invalid value: \"integer\": must be string",
        ),
        (
            json!({"type": "object", "anyOf": [{"properties": {"z": {"minimum": 1}}}]}),
            "properties[z]: Required value: because it is defined in spec.validation.openAPIV3Schema.anyOf[0].properties[z]",
        ),
        (
            json!({"type": "object", "properties": {"a": {"type": "array", "items": {"type": "object"}, "x-kubernetes-list-type": "set"}}}),
            "must be atomic as item of a list with x-kubernetes-list-type=set",
        ),
    ] {
        let definition = json!({"metadata": {"name": "ws.example.com"}, "spec": {"group": "example.com", "scope": "Namespaced",
            "names": {"plural": "ws", "kind": "W"}, "versions": [
                {"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}}]}});
        let path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
        let (code, answer) = ask(&cluster, "POST", path, definition).await;
        assert_eq!(code, 422, "{answer}");
        assert!(answer["message"].as_str().is_some_and(|told| told.contains(why)), "{why}: {answer}");
    }
}
