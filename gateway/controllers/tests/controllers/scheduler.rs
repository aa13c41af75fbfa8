use k8s_openapi::api::core::v1::{Event, Node, Pod};
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
