//! The server through its in-memory client: the verbs, watches and identities that controllers and workers rely on.

mod support;

use std::time::Duration;

use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod, ServiceAccount};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams};
use kube::{Api, ResourceExt as _};
use serde_json::json;
use support::Cluster;

fn config_map(name: &str, labels: &serde_json::Value) -> ConfigMap {
    serde_json::from_value(json!({ "metadata": { "name": name, "labels": labels }, "data": { "k": "v" } }))
        .expect("a ConfigMap")
}

fn code(error: kube::Error) -> u16 {
    match error {
        kube::Error::Api(status) => status.code,
        other => panic!("{other}"),
    }
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(10), future).await.expect("in time")
}

#[tokio::test]
async fn an_object_is_made_changed_and_deleted() {
    let cluster = Cluster::new().await;
    let maps: Api<ConfigMap> = Api::namespaced(cluster.admin(), "default");
    let made = maps.create(&PostParams::default(), &config_map("a", &json!({}))).await.expect("made");
    assert!(made.uid().is_some() && made.resource_version().is_some());
    assert_eq!(code(maps.create(&PostParams::default(), &config_map("a", &json!({}))).await.expect_err("twice")), 409);
    let patch = Patch::Merge(json!({ "data": { "k": "w" } }));
    let patched = maps.patch("a", &PatchParams::default(), &patch).await.expect("patched");
    assert_eq!(patched.data.as_ref().and_then(|data| data.get("k")).map(String::as_str), Some("w"));
    assert_ne!(patched.resource_version(), made.resource_version());
    let stale = maps.replace("a", &PostParams::default(), &made).await.expect_err("stale");
    assert_eq!(code(stale), 409);
    maps.delete("a", &DeleteParams::default()).await.expect("deleted");
    assert_eq!(code(maps.get("a").await.expect_err("gone")), 404);
}

#[tokio::test]
async fn a_list_is_paged_and_every_page_shows_the_same_state() {
    let cluster = Cluster::new().await;
    let maps: Api<ConfigMap> = Api::namespaced(cluster.admin(), "default");
    for name in ["a", "b", "c", "d", "e"] {
        maps.create(&PostParams::default(), &config_map(name, &json!({ "x": "y" }))).await.expect("made");
    }
    let page = maps.list(&ListParams::default().labels("x=y").limit(2)).await.expect("a page");
    assert_eq!(page.items.len(), 2);
    maps.delete("e", &DeleteParams::default()).await.expect("deleted");
    let token = page.metadata.continue_.clone().expect("more");
    let rest = maps.list(&ListParams::default().labels("x=y").continue_token(&token)).await.expect("the rest");
    assert_eq!(rest.items.iter().map(kube::ResourceExt::name_any).collect::<Vec<_>>(), ["c", "d", "e"]);
    assert_eq!(rest.metadata.resource_version, page.metadata.resource_version);
}

#[tokio::test]
async fn a_watch_streams_and_follows_objects_into_and_out_of_its_selector() {
    let cluster = Cluster::new().await;
    let maps: Api<ConfigMap> = Api::namespaced(cluster.admin(), "default");
    let params = WatchParams::default().labels("w=1");
    let mut events = maps.watch(&params, "0").await.expect("a watch").boxed();
    maps.create(&PostParams::default(), &config_map("a", &json!({ "w": "2" }))).await.expect("made");
    let label = |value: &str| Patch::Merge(json!({ "metadata": { "labels": { "w": value } } }));
    let to = PatchParams::default();
    maps.patch("a", &to, &label("1")).await.expect("in");
    maps.patch("a", &to, &Patch::Merge(json!({ "data": { "k": "2" } }))).await.expect("changed");
    maps.patch("a", &to, &label("3")).await.expect("out");
    let mut seen = Vec::new();
    while seen.len() < 3 {
        match soon(events.try_next()).await.expect("no error").expect("no end") {
            WatchEvent::Added(_) => seen.push("ADDED"),
            WatchEvent::Modified(_) => seen.push("MODIFIED"),
            WatchEvent::Deleted(object) => {
                assert_eq!(object.labels()["w"], "1", "the object as the watcher last knew it");
                seen.push("DELETED");
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(seen, ["ADDED", "MODIFIED", "DELETED"]);
}

#[tokio::test]
async fn a_streamed_list_ends_with_its_bookmark() {
    let cluster = Cluster::new().await;
    let maps: Api<ConfigMap> = Api::namespaced(cluster.admin(), "default");
    maps.create(&PostParams::default(), &config_map("a", &json!({}))).await.expect("made");
    let params = WatchParams::default().initial_events();
    let mut events = maps.watch(&params, "0").await.expect("a watch").boxed();
    let first = soon(events.try_next()).await.expect("no error").expect("no end");
    assert!(matches!(first, WatchEvent::Added(object) if object.name_any() == "a"));
    let second = soon(events.try_next()).await.expect("no error").expect("no end");
    let WatchEvent::Bookmark(bookmark) = second else { panic!("{second:?}") };
    assert_eq!(bookmark.metadata.annotations["k8s.io/initial-events-end"], "true");
}

#[tokio::test]
async fn finalizers_hold_a_deleted_object_until_the_last_is_gone() {
    let cluster = Cluster::new().await;
    let maps: Api<ConfigMap> = Api::namespaced(cluster.admin(), "default");
    let mut map = config_map("a", &json!({}));
    map.metadata.finalizers = Some(vec!["example.com/f".to_owned()]);
    maps.create(&PostParams::default(), &map).await.expect("made");
    maps.delete("a", &DeleteParams::default()).await.expect("marked");
    assert!(maps.get("a").await.expect("still there").metadata.deletion_timestamp.is_some());
    let none = Patch::Merge(json!({ "metadata": { "finalizers": null } }));
    maps.patch("a", &PatchParams::default(), &none).await.expect("released");
    assert_eq!(code(maps.get("a").await.expect_err("gone")), 404);
}

#[tokio::test]
async fn a_terminating_namespace_takes_nothing_new_and_goes_when_it_is_finalized() {
    let cluster = Cluster::new().await;
    let client = cluster.admin();
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let namespace = serde_json::from_value(json!({ "metadata": { "name": "n" } })).expect("a Namespace");
    namespaces.create(&PostParams::default(), &namespace).await.expect("made");
    namespaces.delete("n", &DeleteParams::default()).await.expect("marked");
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "n");
    let refused = maps.create(&PostParams::default(), &config_map("a", &json!({}))).await.expect_err("refused");
    assert!(refused.to_string().contains("because it is being terminated"), "{refused}");
    let body = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "n" },
        "spec": { "finalizers": [] } });
    let request = http::Request::put("/api/v1/namespaces/n/finalize")
        .header("content-type", "application/json")
        .body(body.to_string().into_bytes())
        .expect("a request");
    client.request::<Namespace>(request).await.expect("finalized");
    assert_eq!(code(namespaces.get("n").await.expect_err("gone")), 404);
    assert_eq!(
        code(maps.create(&PostParams::default(), &config_map("a", &json!({}))).await.expect_err("nowhere")),
        404
    );
    let immortal = namespaces.delete("default", &DeleteParams::default()).await.expect_err("refused");
    assert_eq!(code(immortal), 403);
}

fn pod(name: &str) -> Pod {
    serde_json::from_value(json!({ "metadata": { "name": name },
        "spec": { "containers": [{ "name": "c", "image": "x" }], "terminationGracePeriodSeconds": 7 } }))
    .expect("a Pod")
}

async fn make_account(client: kube::Client) {
    let accounts: Api<ServiceAccount> = Api::namespaced(client, "default");
    let account = serde_json::from_value(json!({ "metadata": { "name": "default" } })).expect("a ServiceAccount");
    accounts.create(&PostParams::default(), &account).await.expect("made");
}

#[tokio::test]
async fn a_pod_on_a_node_is_given_its_grace_and_one_without_goes_at_once() {
    let cluster = Cluster::new().await;
    let client = cluster.admin();
    make_account(client.clone()).await;
    let pods: Api<Pod> = Api::namespaced(client.clone(), "default");
    pods.create(&PostParams::default(), &pod("free")).await.expect("made");
    pods.delete("free", &DeleteParams::default()).await.expect("deleted");
    assert_eq!(code(pods.get("free").await.expect_err("gone")), 404);

    pods.create(&PostParams::default(), &pod("bound")).await.expect("made");
    let binding = json!({ "apiVersion": "v1", "kind": "Binding", "metadata": { "name": "bound" },
        "target": { "kind": "Node", "name": "n1" } });
    let request = http::Request::post("/api/v1/namespaces/default/pods/bound/binding")
        .header("content-type", "application/json")
        .body(binding.to_string().into_bytes())
        .expect("a request");
    client.request_text(request).await.expect("bound");
    pods.delete("bound", &DeleteParams::default()).await.expect("marked");
    let going = pods.get("bound").await.expect("still there");
    assert_eq!(going.metadata.deletion_grace_period_seconds, Some(7));
    assert_eq!(going.spec.expect("a spec").node_name.as_deref(), Some("n1"));
    let now = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
    pods.delete("bound", &now).await.expect("deleted");
    assert_eq!(code(pods.get("bound").await.expect_err("gone")), 404);
}

#[tokio::test]
async fn a_pod_runs_as_its_account_which_must_exist() {
    let cluster = Cluster::new().await;
    let client = cluster.admin();
    make_account(client.clone()).await;
    let pods: Api<Pod> = Api::namespaced(client, "default");
    let made = pods.create(&PostParams::default(), &pod("p")).await.expect("made").spec.expect("a spec");
    assert_eq!(made.service_account_name.as_deref(), Some("default"));
    let mount = &made.containers[0].volume_mounts.as_ref().expect("mounts")[0];
    assert_eq!(mount.mount_path, "/var/run/secrets/kubernetes.io/serviceaccount");
    assert!(made.tolerations.expect("tolerations").len() == 2 && made.priority == Some(0));
    let mut other = pod("q");
    other.spec.as_mut().expect("a spec").service_account_name = Some("nobody".to_owned());
    let refused = pods.create(&PostParams::default(), &other).await.expect_err("refused");
    assert!(
        refused
            .to_string()
            .contains("error looking up service account default/nobody: serviceaccount \"nobody\" not found"),
        "{refused}"
    );
}

#[tokio::test]
async fn an_identity_may_only_do_what_its_groups_allow() {
    let cluster = Cluster::new().await;
    let somebody: Api<ConfigMap> = Api::namespaced(cluster.gateway.client("alice", &["people"]), "default");
    let refused = somebody.list(&ListParams::default()).await.expect_err("refused");
    assert!(
        refused.to_string().contains(
            "configmaps is forbidden: User \"alice\" cannot list resource \"configmaps\" in API group \"\" in the \
             namespace \"default\""
        ),
        "{refused}"
    );
    let node: Api<Pod> = Api::all(cluster.gateway.client("system:node:n", &["system:nodes"]));
    node.list(&ListParams::default().fields("spec.nodeName=n")).await.expect("a node lists its own pods");
    assert_eq!(code(node.list(&ListParams::default()).await.expect_err("all pods")), 403);
}

#[tokio::test]
async fn many_writers_of_one_object_all_get_through() {
    let cluster = Cluster::new().await;
    let maps: Api<ConfigMap> = Api::namespaced(cluster.admin(), "default");
    maps.create(&PostParams::default(), &config_map("a", &json!({}))).await.expect("made");
    let writers = (0..16).map(|writer| {
        let maps = maps.clone();
        async move {
            let patch = Patch::Merge(json!({ "data": { format!("k{writer}"): "v" } }));
            maps.patch("a", &PatchParams::default(), &patch).await
        }
    });
    futures::future::try_join_all(writers).await.expect("all patched");
    assert_eq!(maps.get("a").await.expect("there").data.expect("data").len(), 17);
}

#[tokio::test]
async fn a_generated_name_is_tried_again_until_it_is_free() {
    let cluster = Cluster::new().await;
    let maps: Api<ConfigMap> = Api::namespaced(cluster.admin(), "default");
    let mut map = config_map("", &json!({}));
    map.metadata.name = None;
    map.metadata.generate_name = Some("g-".to_owned());
    let first = maps.create(&PostParams::default(), &map).await.expect("made").name_any();
    let second = maps.create(&PostParams::default(), &map).await.expect("made").name_any();
    assert!(first.starts_with("g-") && second.starts_with("g-") && first != second);
}

/// The code of the answer to a raw request of the administrator.
async fn raw(cluster: &Cluster, method: &str, path: &str, content_type: &str, body: &serde_json::Value) -> u16 {
    let request = http::Request::builder()
        .method(method)
        .uri(path)
        .header("Content-Type", content_type)
        .body(body.to_string().into_bytes())
        .expect("a request");
    match cluster.admin().request_text(request).await {
        Ok(_) => 200,
        Err(error) => code(error),
    }
}

#[tokio::test]
async fn a_watch_may_ask_for_more_time_than_there_is() {
    let cluster = Cluster::new().await;
    let path = format!("/api/v1/configmaps?watch=true&timeoutSeconds={}", i64::MAX);
    let request = http::Request::get(path).body(Vec::new()).expect("a request");
    let stream = cluster.admin().request_stream(request).await;
    assert!(stream.is_ok(), "{:?}", stream.err());
}

#[tokio::test]
async fn a_binding_for_another_pod_of_the_name_or_another_state_of_it_is_409() {
    let cluster = Cluster::new().await;
    let accounts: Api<ServiceAccount> = Api::namespaced(cluster.admin(), "default");
    let account = serde_json::from_value(json!({ "metadata": { "name": "default" } })).expect("an account");
    accounts.create(&PostParams::default(), &account).await.expect("made");
    let pods: Api<Pod> = Api::namespaced(cluster.admin(), "default");
    let pod = serde_json::from_value(json!({ "metadata": { "name": "p" },
        "spec": { "containers": [{ "name": "c", "image": "x" }] } }))
    .expect("a Pod");
    let made = pods.create(&PostParams::default(), &pod).await.expect("made");
    let bind = async |metadata: serde_json::Value| {
        let body = json!({ "kind": "Binding", "apiVersion": "v1", "metadata": metadata, "target": { "name": "n" } });
        raw(&cluster, "POST", "/api/v1/namespaces/default/pods/p/binding", "application/json", &body).await
    };
    assert_eq!(bind(json!({ "name": "p", "uid": "another" })).await, 409);
    assert_eq!(bind(json!({ "name": "p", "resourceVersion": "1" })).await, 409);
    let same = json!({ "name": "p", "uid": made.uid(), "resourceVersion": made.resource_version() });
    assert_eq!(bind(same).await, 200);
}

#[tokio::test]
async fn a_scale_conflicts_with_who_set_the_number_and_is_not_put_onto_another_object() {
    let cluster = Cluster::new().await;
    let deployments = "/apis/apps/v1/namespaces/default/deployments";
    let deployment = json!({ "kind": "Deployment", "apiVersion": "apps/v1", "metadata": { "name": "d" },
        "spec": { "selector": { "matchLabels": { "a": "b" } }, "template": { "metadata": { "labels": { "a": "b" } },
            "spec": { "containers": [{ "name": "c", "image": "x" }] } } } });
    assert_eq!(raw(&cluster, "POST", deployments, "application/json", &deployment).await, 200);
    let path = format!("{deployments}/d/scale?fieldManager=m");
    let scale = |metadata: serde_json::Value| json!({ "kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": metadata, "spec": { "replicas": 2 } });
    let named = scale(json!({ "name": "d", "namespace": "default" }));
    assert_eq!(raw(&cluster, "PATCH", &path, "application/apply-patch+yaml", &named).await, 409);
    let other = scale(json!({ "name": "d", "namespace": "default", "uid": "another" }));
    assert_eq!(raw(&cluster, "PUT", &path, "application/json", &other).await, 409);
    assert_eq!(raw(&cluster, "PUT", &path, "application/json", &named).await, 200);
}

#[tokio::test]
async fn those_who_apply_a_new_object_at_once_all_succeed() {
    let cluster = Cluster::new().await;
    let maps: Api<ConfigMap> = Api::namespaced(cluster.admin(), "default");
    let apply = |writer: usize| {
        let maps = maps.clone();
        async move {
            let key = format!("k{writer}");
            let config = json!({ "kind": "ConfigMap", "apiVersion": "v1", "metadata": { "name": "a" },
                "data": { key: "v" } });
            maps.patch("a", &PatchParams::apply(&format!("m{writer}")), &Patch::Apply(config)).await
        }
    };
    for result in futures::future::join_all((0..8).map(apply)).await {
        result.expect("applied");
    }
    let made = maps.get("a").await.expect("there");
    assert_eq!(made.data.map(|data| data.len()), Some(8));
}
