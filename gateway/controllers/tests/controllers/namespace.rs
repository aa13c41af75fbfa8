use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, ServiceAccount};
use kube::api::{Api, DeleteParams};
use serde_json::json;

use crate::cluster::{self, template, until_gone, until_one};

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_goes_when_everything_in_it_has_gone_and_says_what_holds_it() {
    let cluster = cluster::start().await;
    cluster.run_pods();
    let deployment = json!({"metadata": {"name": "d"}, "spec": {
        "replicas": 2, "selector": {"matchLabels": {"app": "a"}}, "template": template("x")}});
    cluster.create::<Deployment>(deployment).await;
    cluster.create::<ConfigMap>(json!({"metadata": {"name": "held", "finalizers": ["e.x/f"]}})).await;
    until_one(&cluster.api(), "d", |d: &Deployment| {
        d.status.as_ref().is_some_and(|status| status.ready_replicas == Some(2))
    })
    .await;
    let namespaces: Api<Namespace> = Api::all(cluster.client.clone());
    namespaces.delete("test", &DeleteParams::default()).await.unwrap();
    let message = |namespace: &Namespace, type_: &str| {
        let conditions = namespace.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default();
        conditions.into_iter().find(|condition| condition.type_ == type_).and_then(|condition| condition.message)
    };
    let only_held = "Some resources are remaining: configmaps. has 1 resource instances";
    let held = until_one(&namespaces, "test", |namespace| {
        message(namespace, "NamespaceContentRemaining").as_deref() == Some(only_held)
    })
    .await;
    assert_eq!(
        message(&held, "NamespaceFinalizersRemaining").as_deref(),
        Some("Some content in the namespace has finalizers remaining: e.x/f in 1 resource instances")
    );
    cluster.patch::<ConfigMap>("held", json!({"metadata": {"finalizers": null}})).await;
    until_gone(&namespaces, "test").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_every_namespace_has_comes_back() {
    let cluster = cluster::start().await;
    let accounts = cluster.api::<ServiceAccount>();
    let before = until_one(&accounts, "default", |_| true).await;
    accounts.delete("default", &DeleteParams::default()).await.unwrap();
    until_one(&accounts, "default", |account| account.metadata.uid != before.metadata.uid).await;
    let is_right = |map: &ConfigMap| json!(map.data) == json!({"ca.crt": "the authority"});
    until_one(&cluster.api(), "kube-root-ca.crt", is_right).await;
    cluster.patch::<ConfigMap>("kube-root-ca.crt", json!({"data": {"ca.crt": "forged", "more": "x"}})).await;
    until_one(&cluster.api(), "kube-root-ca.crt", is_right).await;
}
