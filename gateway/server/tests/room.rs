//! Room that is shared: quotas and limits of namespaces, seats for requests; and what is written down of all that.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::future::join_all;
use http::{Method, Request};
use kube::client::Body;
use serde_json::{Value, json};
use support::Cluster;

async fn send(client: &kube::Client, method: Method, path: &str, body: &Value) -> (u16, Value) {
    let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
    let request = Request::builder().method(method).uri(path).header("content-type", "application/json");
    let answer = client.send(request.body(Body::from(body)).expect("a request")).await.expect("an answer");
    let code = answer.status().as_u16();
    let body = answer.into_body().collect_bytes().await.expect("a body");
    (code, serde_json::from_slice(&body).unwrap_or(Value::Null))
}

#[tokio::test(flavor = "multi_thread")]
async fn many_at_once_take_no_more_than_the_quota() {
    let cluster = Cluster::new().await;
    let admin = cluster.admin();
    let quota = json!({"metadata": {"name": "q"}, "spec": {"hard": {"configmaps": "5", "count/secrets": "3"}}});
    let here = |rest: &str| format!("/api/v1/namespaces/default/{rest}");
    assert_eq!(send(&admin, Method::POST, &here("resourcequotas"), &quota).await.0, 201);
    let create = async |index: usize| {
        let map = json!({"metadata": {"name": format!("m{index}")}});
        send(&admin, Method::POST, &here("configmaps"), &map).await
    };
    let answers = join_all((0..40).map(create)).await;
    let made = answers.iter().filter(|(code, _)| *code == 201).count();
    assert_eq!(made, 5, "{answers:?}");
    let refusal = answers.iter().find(|(code, _)| *code == 403).expect("a refusal");
    let text = refusal.1["message"].as_str().expect("a text");
    assert!(
        text.ends_with(
            "is forbidden: exceeded quota: q, requested: configmaps=1, used: configmaps=5, limited: configmaps=5"
        ),
        "{text}"
    );
    let (_, quota) = send(&admin, Method::GET, &here("resourcequotas/q"), &Value::Null).await;
    assert_eq!(quota["status"]["used"], json!({"configmaps": "5", "count/secrets": "0"}));
    let (code, _) =
        send(&admin, Method::POST, &here("configmaps?dryRun=All"), &json!({"metadata": {"name": "d"}})).await;
    assert_eq!(code, 403, "a rehearsal is charged too");
}

#[tokio::test]
async fn limits_are_given_and_kept() {
    let cluster = Cluster::new().await;
    let admin = cluster.admin();
    let here = |rest: &str| format!("/api/v1/namespaces/default/{rest}");
    let range = json!({"metadata": {"name": "l"}, "spec": {"limits": [{"type": "Container",
        "default": {"cpu": "500m"}, "defaultRequest": {"cpu": "100m"}, "max": {"cpu": "1"}}]}});
    assert_eq!(send(&admin, Method::POST, &here("limitranges"), &range).await.0, 201);
    assert_eq!(
        send(&admin, Method::POST, &here("serviceaccounts"), &json!({"metadata": {"name": "default"}})).await.0,
        201
    );
    let pod = |name: &str, resources: &Value| json!({"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "i", "resources": resources}]}});
    let (code, made) = send(&admin, Method::POST, &here("pods"), &pod("a", &json!({}))).await;
    assert_eq!(code, 201, "{made}");
    assert_eq!(
        made["spec"]["containers"][0]["resources"],
        json!({"limits": {"cpu": "500m"}, "requests": {"cpu": "100m"}})
    );
    let (code, refusal) = send(&admin, Method::POST, &here("pods"), &pod("b", &json!({"limits": {"cpu": "2"}}))).await;
    assert_eq!(code, 403);
    assert_eq!(refusal["message"], "pods \"b\" is forbidden: maximum cpu usage per Container is 1, but limit is 2");
}

/// Pods of a namespace without its default account take a second each to be refused, and a seat all the while.
#[tokio::test(flavor = "multi_thread")]
async fn one_noisy_client_does_not_starve_another() {
    let cluster = Cluster::with_settings(json!({"concurrency": 20})).await;
    let binding = json!({"metadata": {"name": "noisy"}, "subjects": [{"kind": "User", "name": "noisy"}],
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "edit"}});
    let bindings = "/apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings";
    assert_eq!(send(&cluster.admin(), Method::POST, bindings, &binding).await.0, 201);
    let noisy = cluster.gateway.client("noisy", &[]);
    let quiet = cluster.gateway.client("quiet", &[]);
    let (refused, served) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let mut crowd = tokio::task::JoinSet::new();
    for _ in 0..400 {
        let (client, refused, served) = (noisy.clone(), Arc::clone(&refused), Arc::clone(&served));
        crowd.spawn(async move {
            let pod = json!({"metadata": {"generateName": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
            match send(&client, Method::POST, "/api/v1/namespaces/default/pods", &pod).await.0 {
                429 => refused.fetch_add(1, Ordering::SeqCst),
                _ => served.fetch_add(1, Ordering::SeqCst),
            };
        });
    }
    // Its queues are full: what comes now is refused at once.
    let full = async {
        while refused.load(Ordering::SeqCst) < 50 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), full).await.expect("soon");
    let review = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
    assert_eq!(send(&quiet, Method::POST, review, &json!({})).await.0, 201);
    let before = served.load(Ordering::SeqCst);
    assert!(before < 150, "{before} of the noisy client's requests came first");
    let administrators = send(&cluster.admin(), Method::GET, "/api/v1/namespaces/default", &Value::Null).await.0;
    assert_eq!(administrators, 200, "who is exempt waits for nobody");
    crowd.abort_all();
}

#[tokio::test]
async fn what_the_policy_asks_for_is_written_down() {
    let folder = tempfile::tempdir().expect("a directory");
    let log = folder.path().join("audit.log");
    let cluster = Cluster::with_settings(json!({"audit": {"logPath": log, "policy": {
        "apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived"], "rules": [
            {"level": "Metadata", "resources": [{"group": "", "resources": ["secrets"]}]},
            {"level": "RequestResponse", "verbs": ["create"], "resources": [{"group": "", "resources": ["configmaps"]}]},
            {"level": "None"}]}}}))
    .await;
    let here = |rest: &str| format!("/api/v1/namespaces/default/{rest}");
    let admin = cluster.admin();
    let map = json!({"metadata": {"name": "m"}, "data": {"k": "v"}});
    assert_eq!(send(&admin, Method::POST, &here("configmaps"), &map).await.0, 201);
    let secret = json!({"metadata": {"name": "s"}, "stringData": {"k": "hidden"}});
    assert_eq!(send(&admin, Method::POST, &here("secrets"), &secret).await.0, 201);
    assert_eq!(send(&admin, Method::GET, &here("configmaps/m"), &Value::Null).await.0, 200);
    let stranger = cluster.gateway.client("eve", &[]);
    assert_eq!(send(&stranger, Method::GET, &here("secrets/s"), &Value::Null).await.0, 403);
    let written = async {
        loop {
            let text = std::fs::read_to_string(&log).unwrap_or_default();
            if text.lines().count() >= 3 {
                return text;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let text = tokio::time::timeout(Duration::from_secs(5), written).await.expect("soon");
    assert!(!text.contains("hidden"), "secrets are at level Metadata");
    let events: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(events.len(), 3);
    let (create, refused) = (&events[0], &events[2]);
    assert_eq!((&create["stage"], &create["level"]), (&json!("ResponseComplete"), &json!("RequestResponse")));
    assert_eq!(create["objectRef"], json!({"resource": "configmaps", "namespace": "default", "apiVersion": "v1"}));
    assert_eq!(create["requestObject"]["data"], json!({"k": "v"}));
    assert_eq!(create["responseObject"]["metadata"]["name"], "m");
    assert_eq!((&refused["user"]["username"], &refused["responseStatus"]["code"]), (&json!("eve"), &json!(403)));
    assert_eq!(refused["annotations"]["authorization.k8s.io/decision"], "forbid");
    assert_eq!(refused["responseStatus"]["reason"], "Forbidden");
}
