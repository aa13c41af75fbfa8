use k8s_openapi::api::core::v1::{Event, Node, PersistentVolume, PersistentVolumeClaim, Pod};
use kube::api::{Api, DeleteParams, PatchParams, PostParams};
use serde_json::json;

use crate::cluster::{self, Cluster, object, until, until_one};

async fn pod(cluster: &Cluster, name: &str, cpu: &str) {
    let container = json!({"name": "c", "image": "x", "resources": {"requests": {"cpu": cpu}}});
    cluster.create::<Pod>(json!({"metadata": {"name": name}, "spec": {"containers": [container]}})).await;
}

fn is_placed(pod: &Pod) -> bool {
    pod.spec.as_ref().is_some_and(|spec| spec.node_name.as_deref() == Some("n"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_waits_with_the_reason_and_is_placed_when_room_appears() {
    let cluster = cluster::start().await;
    pod(&cluster, "first", "1500m").await;
    let why = |pod: &Pod| {
        let conditions = pod.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default();
        conditions
            .into_iter()
            .find(|condition| condition.type_ == "PodScheduled")
            .and_then(|condition| condition.message)
    };
    until_one(&cluster.api(), "first", |pod| why(pod).as_deref() == Some("no nodes available to schedule pods")).await;
    let node =
        json!({"metadata": {"name": "n"}, "status": {"allocatable": {"cpu": "2", "memory": "1Gi", "pods": "10"}}});
    let nodes: Api<Node> = Api::all(cluster.client.clone());
    nodes.create(&PostParams::default(), &object(node.clone())).await.unwrap();
    let ready = json!({"status": {"allocatable": node["status"]["allocatable"], "conditions": [{"type": "Ready", "status": "True"}]}});
    nodes.patch_status("n", &PatchParams::default(), &kube::api::Patch::Merge(ready)).await.unwrap();
    until_one(&cluster.api(), "first", is_placed).await;
    pod(&cluster, "second", "1").await;
    let waiting = "0/1 nodes are available: 1 Insufficient cpu. no new claims to deallocate, preemption: 0/1 nodes are available: \
         1 No preemption victims found for incoming pod.";
    until_one(&cluster.api(), "second", |pod| why(pod).as_deref() == Some(waiting)).await;
    cluster.api::<Pod>().delete("first", &DeleteParams::default().grace_period(0)).await.unwrap();
    until_one(&cluster.api(), "second", is_placed).await;
    let is_it = |event: &Event| {
        event.involved_object.name.as_deref() == Some("second") && event.message.as_deref() == Some(waiting)
    };
    let told = until(&cluster.api(), |events| events.iter().any(is_it)).await;
    let counts: Vec<_> = told.iter().filter(|event| is_it(event)).map(|event| event.count).collect();
    assert_eq!(counts, [Some(1)]);
}

async fn node(cluster: &Cluster, name: &str) {
    let nodes: Api<Node> = Api::all(cluster.client.clone());
    let status = json!({"allocatable": {"cpu": "1", "memory": "1Gi", "pods": "10"}, "conditions": [{"type": "Ready", "status": "True"}]});
    nodes.create(&PostParams::default(), &object(json!({"metadata": {"name": name}}))).await.unwrap();
    let patch = kube::api::Patch::Merge(json!({"status": status}));
    nodes.patch_status(name, &PatchParams::default(), &patch).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_more_important_pod_takes_the_place_of_another() {
    let cluster = cluster::start().await;
    node(&cluster, "n").await;
    let classes: Api<k8s_openapi::api::scheduling::v1::PriorityClass> = Api::all(cluster.client.clone());
    classes.create(&PostParams::default(), &object(json!({"metadata": {"name": "vip"}, "value": 1000}))).await.unwrap();
    pod(&cluster, "low", "1").await;
    until_one(&cluster.api(), "low", is_placed).await;
    let container = json!({"name": "c", "image": "x", "resources": {"requests": {"cpu": "1"}}});
    let spec = json!({"priorityClassName": "vip", "containers": [container]});
    cluster.create::<Pod>(json!({"metadata": {"name": "vip"}, "spec": spec})).await;
    let victim = until_one(&cluster.api::<Pod>(), "low", |pod| pod.metadata.deletion_timestamp.is_some()).await;
    let conditions = victim.status.unwrap().conditions.unwrap();
    assert!(conditions.iter().any(|known| known.reason.as_deref() == Some("PreemptionByScheduler")));
    let nominated = |pod: &Pod| pod.status.as_ref().unwrap().nominated_node_name.as_deref() == Some("n");
    until_one(&cluster.api(), "vip", nominated).await;
    cluster.api::<Pod>().delete("low", &DeleteParams::default().grace_period(0)).await.unwrap();
    until_one(&cluster.api(), "vip", is_placed).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_leave_a_node_whose_taint_they_do_not_tolerate() {
    let cluster = cluster::start().await;
    node(&cluster, "n").await;
    pod(&cluster, "stays", "100m").await;
    let toleration = json!({"key": "leave", "operator": "Exists"});
    let spec = json!({"tolerations": [toleration], "containers": [{"name": "c", "image": "x"}]});
    cluster.create::<Pod>(json!({"metadata": {"name": "tolerant"}, "spec": spec})).await;
    for name in ["stays", "tolerant"] {
        until_one(&cluster.api(), name, is_placed).await;
    }
    let nodes: Api<Node> = Api::all(cluster.client.clone());
    let taint = kube::api::Patch::Merge(json!({"spec": {"taints": [{"key": "leave", "effect": "NoExecute"}]}}));
    nodes.patch("n", &PatchParams::default(), &taint).await.unwrap();
    until_one(&cluster.api::<Pod>(), "stays", |pod| pod.metadata.deletion_timestamp.is_some()).await;
    assert!(cluster.api::<Pod>().get("tolerant").await.unwrap().metadata.deletion_timestamp.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_that_one_pod_alone_may_use_keeps_the_next_waiting() {
    let cluster = cluster::start().await;
    node(&cluster, "n").await;
    let volumes: Api<PersistentVolume> = Api::all(cluster.client.clone());
    let volume = json!({"metadata": {"name": "v"}, "spec": {"capacity": {"storage": "1Gi"}, "storageClassName": "",
        "accessModes": ["ReadWriteOncePod"], "hostPath": {"path": "/tmp/x"}}});
    volumes.create(&PostParams::default(), &object(volume)).await.unwrap();
    let claim: PersistentVolumeClaim = cluster
        .create(json!({"metadata": {"name": "c"}, "spec": {"storageClassName": "", "volumeName": "v",
            "accessModes": ["ReadWriteOncePod"], "resources": {"requests": {"storage": "1Gi"}}}}))
        .await;
    until_one(&cluster.api::<PersistentVolumeClaim>(), claim.metadata.name.as_deref().unwrap(), |claim| {
        claim.status.as_ref().is_some_and(|status| status.phase.as_deref() == Some("Bound"))
    })
    .await;
    let user = |name: &str| {
        json!({"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "x"}],
            "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]}})
    };
    cluster.create::<Pod>(user("first")).await;
    until_one(&cluster.api(), "first", is_placed).await;
    cluster.create::<Pod>(user("second")).await;
    let waits = |pod: &Pod| {
        let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
        conditions.into_iter().any(|known| {
            known.message.as_deref().is_some_and(|why| why.contains("ReadWriteOncePod access mode already in-use"))
        })
    };
    until_one(&cluster.api(), "second", waits).await;
    cluster.api::<Pod>().delete("first", &DeleteParams::default().grace_period(0)).await.unwrap();
    until_one(&cluster.api(), "second", is_placed).await;
}
