use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::api::{Api, DeleteParams, PostParams};
use serde_json::json;

use crate::cluster::{self, object, until, until_one};

fn phase(claim: &PersistentVolumeClaim) -> Option<&str> {
    claim.status.as_ref()?.phase.as_deref()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_of_the_default_class_gets_a_directory_where_its_pod_goes_and_loses_it_when_it_goes() {
    let dir = tempfile::tempdir().unwrap();
    let options = carob_controllers::Options { volumes: Some(dir.path().to_owned()), ..Default::default() };
    let cluster = cluster::start_with(options).await;
    let classes: Api<StorageClass> = Api::all(cluster.client.clone());
    until(&classes, |classes| classes.len() == 1).await;
    let claim = json!({"metadata": {"name": "c"}, "spec": {"storageClassName": "standard", "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": "1Gi"}}}});
    cluster.create::<PersistentVolumeClaim>(claim).await;
    until_one(&cluster.api(), "c", |claim| phase(claim) == Some("Pending")).await;
    let nodes: Api<Node> = Api::all(cluster.client.clone());
    let node = json!({"metadata": {"name": "n", "labels": {"kubernetes.io/hostname": "n"}},
        "status": {"allocatable": {"cpu": "2", "memory": "1Gi", "pods": "10"}, "conditions": [{"type": "Ready", "status": "True"}]}});
    nodes.create(&PostParams::default(), &object(node.clone())).await.unwrap();
    let status = kube::api::Patch::Merge(json!({"status": node["status"]}));
    nodes.patch_status("n", &kube::api::PatchParams::default(), &status).await.unwrap();
    let volumes = json!([{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]);
    cluster
        .create::<Pod>(json!({"metadata": {"name": "p"}, "spec": {"volumes": volumes, "containers": [{"name": "c", "image": "x"}]}}))
        .await;
    let bound = until_one(&cluster.api(), "c", |claim| phase(claim) == Some("Bound")).await;
    until_one(&cluster.api::<Pod>(), "p", |pod| pod.spec.as_ref().unwrap().node_name.as_deref() == Some("n")).await;
    let name = bound.spec.unwrap().volume_name.unwrap();
    assert!(dir.path().join(&name).is_dir());
    // It grows as its claim does.
    let more = json!({"spec": {"resources": {"requests": {"storage": "2Gi"}}}});
    cluster.patch::<PersistentVolumeClaim>("c", more).await;
    let size =
        |claim: &PersistentVolumeClaim| Some(claim.status.as_ref()?.capacity.as_ref()?.get("storage")?.0.clone());
    until_one(&cluster.api(), "c", |claim| size(claim).as_deref() == Some("2Gi")).await;
    // A pod uses it: it stays, however much it is to go.
    cluster.api::<PersistentVolumeClaim>().delete("c", &DeleteParams::default()).await.unwrap();
    until_one(&cluster.api::<PersistentVolumeClaim>(), "c", |claim| claim.metadata.deletion_timestamp.is_some()).await;
    cluster.api::<Pod>().delete("p", &DeleteParams::default().grace_period(0)).await.unwrap();
    until(&cluster.api::<PersistentVolumeClaim>(), <[_]>::is_empty).await;
    let all: Api<PersistentVolume> = Api::all(cluster.client.clone());
    until(&all, <[_]>::is_empty).await;
    assert!(!dir.path().join(&name).exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_claims_one_gets_the_only_volume() {
    let cluster = cluster::start().await;
    let volumes: Api<PersistentVolume> = Api::all(cluster.client.clone());
    let volume = json!({"metadata": {"name": "v"}, "spec": {"capacity": {"storage": "2Gi"}, "accessModes": ["ReadWriteOnce"],
        "hostPath": {"path": "/x"}, "storageClassName": "by-hand"}});
    volumes.create(&PostParams::default(), &object(volume)).await.unwrap();
    for name in ["a", "b"] {
        let spec = json!({"storageClassName": "by-hand", "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}});
        cluster.create::<PersistentVolumeClaim>(json!({"metadata": {"name": name}, "spec": spec})).await;
    }
    let claims = until(&cluster.api::<PersistentVolumeClaim>(), |claims| {
        claims.len() == 2 && claims.iter().any(|claim| phase(claim) == Some("Bound"))
    })
    .await;
    assert_eq!(claims.iter().filter(|claim| phase(claim) == Some("Bound")).count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ephemeral_volume_is_a_claim_of_its_pod() {
    let cluster = cluster::start().await;
    let template = json!({"metadata": {"labels": {"of": "p"}}, "spec": {"accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": "1Gi"}}}});
    let volumes = json!([{"name": "data", "ephemeral": {"volumeClaimTemplate": template}}]);
    let pod = cluster
        .create::<Pod>(json!({"metadata": {"name": "p"}, "spec": {"volumes": volumes, "containers": [{"name": "c", "image": "x"}]}}))
        .await;
    let claim = until_one(&cluster.api::<PersistentVolumeClaim>(), "p-data", |_| true).await;
    assert_eq!(claim.metadata.labels.unwrap()["of"], "p");
    assert_eq!(claim.metadata.owner_references.unwrap()[0].uid, pod.metadata.uid.unwrap());
    cluster.api::<Pod>().delete("p", &DeleteParams::default().grace_period(0)).await.unwrap();
    until(&cluster.api::<PersistentVolumeClaim>(), <[_]>::is_empty).await;
}
