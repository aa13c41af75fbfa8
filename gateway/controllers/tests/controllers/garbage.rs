use k8s_openapi::api::core::v1::ConfigMap;
use kube::ResourceExt;
use kube::api::DeleteParams;
use serde_json::json;

use crate::cluster::{self, Cluster, until, until_gone, until_one};

async fn make(cluster: &Cluster, name: &str, owners: &[(&str, &str)]) -> String {
    let owners: Vec<_> = owners
        .iter()
        .map(|(name, uid)| json!({"apiVersion": "v1", "kind": "ConfigMap", "name": name, "uid": uid, "blockOwnerDeletion": true}))
        .collect();
    let made: ConfigMap = cluster.create(json!({"metadata": {"name": name, "ownerReferences": owners}})).await;
    made.uid().unwrap()
}

const NOBODY: &str = "11111111-2222-3333-4444-555555555555";

#[tokio::test(flavor = "multi_thread")]
async fn dependents_go_after_their_owner_and_theirs_after_them() {
    let cluster = cluster::start().await;
    let owner = make(&cluster, "owner", &[]).await;
    let child = make(&cluster, "child", &[("owner", &owner)]).await;
    make(&cluster, "grandchild", &[("child", &child)]).await;
    cluster.api::<ConfigMap>().delete("owner", &DeleteParams::background()).await.unwrap();
    until_gone(&cluster.api::<ConfigMap>(), "grandchild").await;
    until_gone(&cluster.api::<ConfigMap>(), "child").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_deleted_in_the_foreground_goes_last() {
    let cluster = cluster::start().await;
    let owner = make(&cluster, "owner", &[]).await;
    make(&cluster, "child", &[("owner", &owner)]).await;
    cluster.patch::<ConfigMap>("child", json!({"metadata": {"finalizers": ["e.x/held"]}})).await;
    cluster.api::<ConfigMap>().delete("owner", &DeleteParams::foreground()).await.unwrap();
    until_one(&cluster.api(), "child", |child: &ConfigMap| child.metadata.deletion_timestamp.is_some()).await;
    let owner = cluster.api::<ConfigMap>().get("owner").await.unwrap();
    assert_eq!(owner.finalizers(), ["foregroundDeletion"]);
    cluster.patch::<ConfigMap>("child", json!({"metadata": {"finalizers": null}})).await;
    until_gone(&cluster.api::<ConfigMap>(), "owner").await;
    until_gone(&cluster.api::<ConfigMap>(), "child").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn orphans_stay_and_lose_only_the_owner_that_went() {
    let cluster = cluster::start().await;
    let owner = make(&cluster, "owner", &[]).await;
    let other = make(&cluster, "other", &[]).await;
    make(&cluster, "child", &[("owner", &owner), ("other", &other)]).await;
    // What the collector knows is as old as its watch: let it have seen the child first.
    make(&cluster, "lost", &[("nobody", NOBODY)]).await;
    until_gone(&cluster.api::<ConfigMap>(), "lost").await;
    cluster.api::<ConfigMap>().delete("owner", &DeleteParams::orphan()).await.unwrap();
    until_gone(&cluster.api::<ConfigMap>(), "owner").await;
    let child = cluster.api::<ConfigMap>().get("child").await.unwrap();
    assert_eq!(child.owner_references().iter().map(|owner| owner.name.as_str()).collect::<Vec<_>>(), ["other"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_goes_only_if_all_its_owners_are_absent() {
    let cluster = cluster::start().await;
    let owner = make(&cluster, "owner", &[]).await;
    make(&cluster, "half", &[("owner", &owner), ("nobody", NOBODY)]).await;
    make(&cluster, "mistaken", &[("owner", NOBODY)]).await;
    until_gone(&cluster.api::<ConfigMap>(), "mistaken").await;
    let half = until_one(&cluster.api(), "half", |half: &ConfigMap| half.owner_references().len() == 1).await;
    assert_eq!(half.owner_references()[0].uid, owner);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_in_another_namespace_is_none() {
    let mut cluster = cluster::start().await;
    let owner = make(&cluster, "owner", &[]).await;
    cluster.make_namespace("abroad").await;
    cluster.namespace = "abroad".to_owned();
    make(&cluster, "child", &[("owner", &owner)]).await;
    until_gone(&cluster.api::<ConfigMap>(), "child").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_circle_of_owners_that_is_deleted_in_the_foreground_ends() {
    let cluster = cluster::start().await;
    let first = make(&cluster, "first", &[]).await;
    let second = make(&cluster, "second", &[("first", &first)]).await;
    let back =
        json!([{"apiVersion": "v1", "kind": "ConfigMap", "name": "second", "uid": second, "blockOwnerDeletion": true}]);
    cluster.patch::<ConfigMap>("first", json!({"metadata": {"ownerReferences": back}})).await;
    cluster.api::<ConfigMap>().delete("first", &DeleteParams::foreground()).await.unwrap();
    until(&cluster.api(), |maps: &[ConfigMap]| maps.iter().all(|map| map.name_any() == "kube-root-ca.crt")).await;
}
