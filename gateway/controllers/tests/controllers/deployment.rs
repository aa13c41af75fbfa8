use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use crate::cluster::{self, Cluster, ready, template, until, until_one};

// A literal object reads better as an argument by value.
#[allow(clippy::needless_pass_by_value)]
fn deployment(replicas: i32, strategy: Value) -> Value {
    json!({"metadata": {"name": "d"}, "spec": {
        "replicas": replicas, "strategy": strategy, "selector": {"matchLabels": {"app": "a"}}, "template": template("one")}})
}

fn surge_one() -> Value {
    json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}})
}

/// Whether what was asked for last is there, all of it and nothing else.
fn is_rolled_out(deployment: &Deployment) -> bool {
    let (Some(spec), Some(status)) = (&deployment.spec, &deployment.status) else { return false };
    let all = spec.replicas;
    status.observed_generation == deployment.metadata.generation
        && status.replicas.or(Some(0)) == all
        && status.updated_replicas.or(Some(0)) == all
        && status.available_replicas.or(Some(0)) == all
}

fn image(pod: &Pod) -> &str {
    pod.spec.as_ref().unwrap().containers[0].image.as_deref().unwrap()
}

fn condition(deployment: &Deployment, type_: &str) -> (String, String) {
    let conditions = deployment.status.as_ref().and_then(|status| status.conditions.as_ref()).unwrap();
    let condition = conditions.iter().find(|condition| condition.type_ == type_).unwrap();
    (condition.status.clone(), condition.reason.clone().unwrap())
}

fn revision(deployment: &Deployment) -> &str {
    &deployment.metadata.annotations.as_ref().unwrap()["deployment.kubernetes.io/revision"]
}

async fn rolled_out(cluster: &Cluster) -> Deployment {
    until_one(&cluster.api(), "d", is_rolled_out).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollout_replaces_all_pods_and_going_back_takes_the_old_replica_set_again() {
    let cluster = cluster::start().await;
    cluster.run_pods();
    cluster.create::<Deployment>(deployment(3, surge_one())).await;
    let first = rolled_out(&cluster).await;
    assert_eq!(revision(&first), "1");
    assert_eq!(condition(&first, "Available"), ("True".into(), "MinimumReplicasAvailable".into()));
    until_one(&cluster.api(), "d", |d| condition(d, "Progressing").1 == "NewReplicaSetAvailable").await;

    cluster
        .patch::<Deployment>(
            "d",
            json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "two"}]}}}}),
        )
        .await;
    until(&cluster.api(), |pods: &[Pod]| pods.len() == 3 && pods.iter().all(|pod| image(pod) == "two")).await;
    let second = rolled_out(&cluster).await;
    assert_eq!(revision(&second), "2");

    cluster
        .patch::<Deployment>(
            "d",
            json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "one"}]}}}}),
        )
        .await;
    until(&cluster.api(), |pods: &[Pod]| pods.len() == 3 && pods.iter().all(|pod| image(pod) == "one")).await;
    let third = rolled_out(&cluster).await;
    assert_eq!(revision(&third), "3");
    let sets = cluster.api::<ReplicaSet>().list(&kube::api::ListParams::default()).await.unwrap().items;
    assert_eq!(sets.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_ready_pods_a_rollout_goes_no_further_than_its_surge() {
    let cluster = cluster::start().await;
    cluster.create::<Deployment>(deployment(2, surge_one())).await;
    for pod in until(&cluster.api::<Pod>(), |pods| pods.len() == 2).await {
        cluster.pod_status(&pod, ready()).await;
    }
    rolled_out(&cluster).await;
    cluster
        .patch::<Deployment>(
            "d",
            json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "two"}]}}}}),
        )
        .await;
    let stuck = until_one(&cluster.api::<Deployment>(), "d", |d| {
        d.status
            .as_ref()
            .is_some_and(|status| status.unavailable_replicas == Some(1) && status.updated_replicas == Some(1))
    })
    .await;
    assert_eq!(stuck.status.unwrap().available_replicas, Some(2));
    let pods = until(&cluster.api::<Pod>(), |pods| pods.len() == 3).await;
    let new = pods.iter().find(|pod| image(pod) == "two").unwrap();
    cluster.pod_status(new, ready()).await;
    until(&cluster.api(), |pods: &[Pod]| pods.iter().filter(|pod| image(pod) == "two").count() == 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn scaling_and_pausing_work_as_asked() {
    let cluster = cluster::start().await;
    cluster.run_pods();
    cluster.create::<Deployment>(deployment(1, surge_one())).await;
    rolled_out(&cluster).await;
    cluster.patch::<Deployment>("d", json!({"spec": {"replicas": 4}})).await;
    until(&cluster.api(), |pods: &[Pod]| pods.len() == 4).await;
    rolled_out(&cluster).await;
    let paused = json!({"spec": {"paused": true, "replicas": 2, "template": {"spec": {"containers": [{"name": "c", "image": "two"}]}}}});
    cluster.patch::<Deployment>("d", paused).await;
    let pods = until(&cluster.api(), |pods: &[Pod]| pods.len() == 2).await;
    assert!(pods.iter().all(|pod| image(pod) == "one"));
    until_one(&cluster.api(), "d", |d| condition(d, "Progressing").1 == "DeploymentPaused").await;
    cluster.patch::<Deployment>("d", json!({"spec": {"paused": false}})).await;
    until(&cluster.api(), |pods: &[Pod]| pods.len() == 2 && pods.iter().all(|pod| image(pod) == "two")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn recreate_lets_no_two_templates_run_at_once() {
    let cluster = cluster::start().await;
    cluster.run_pods();
    cluster.create::<Deployment>(deployment(2, json!({"type": "Recreate"}))).await;
    rolled_out(&cluster).await;
    cluster
        .patch::<Deployment>(
            "d",
            json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "two"}]}}}}),
        )
        .await;
    let mixed = |pods: &[Pod]| pods.iter().any(|pod| image(pod) == "one") && pods.iter().any(|pod| image(pod) == "two");
    until(&cluster.api(), |pods: &[Pod]| {
        assert!(!mixed(pods), "both templates run");
        pods.len() == 2 && pods.iter().all(|pod| image(pod) == "two")
    })
    .await;
    rolled_out(&cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_set_adopts_what_matches_and_lets_go_what_no_longer_does() {
    let cluster = cluster::start().await;
    // The set may have made two pods before it hears of this one: then one of those is to go.
    let dear = json!({"controller.kubernetes.io/pod-deletion-cost": "100"});
    cluster
        .create::<Pod>(json!({"metadata": {"name": "orphan", "labels": {"app": "a"}, "annotations": dear}, "spec": template("x")["spec"]}))
        .await;
    let set = json!({"metadata": {"name": "s"}, "spec": {
        "replicas": 2, "selector": {"matchLabels": {"app": "a"}}, "template": template("x")}});
    cluster.create::<ReplicaSet>(set).await;
    let owned = |pod: &Pod| pod.metadata.owner_references.iter().flatten().any(|owner| owner.name == "s");
    until(&cluster.api(), |pods: &[Pod]| pods.len() == 2 && pods.iter().all(owned)).await;
    cluster.patch::<Pod>("orphan", json!({"metadata": {"labels": {"app": "b"}}})).await;
    let pods = until(&cluster.api(), |pods: &[Pod]| pods.len() == 3).await;
    until_one(&cluster.api(), "orphan", |pod: &Pod| !owned(pod)).await;
    assert_eq!(pods.iter().filter(|pod| pod.metadata.name.as_deref() != Some("orphan")).count(), 2);
}
