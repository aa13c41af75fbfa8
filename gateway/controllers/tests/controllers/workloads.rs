use std::collections::BTreeSet;

use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, StatefulSet};
use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::api::core::v1::{Node, PersistentVolumeClaim, Pod, ReplicationController, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use crate::cluster::{self, Cluster, object, ready, until, until_one};

fn template(image: &str) -> Value {
    json!({"metadata": {"labels": {"app": "a"}}, "spec": {"containers": [{"name": "c", "image": image}]}})
}

fn stateful_set(more: Value) -> Value {
    let mut spec = json!({"replicas": 3, "serviceName": "s", "selector": {"matchLabels": {"app": "a"}}, "template": template("one")});
    json_patch::merge(&mut spec, &more);
    json!({"metadata": {"name": "s"}, "spec": spec})
}

fn names(pods: &[Pod]) -> BTreeSet<String> {
    pods.iter().map(ResourceExt::name_any).collect()
}

fn image(pod: &Pod) -> String {
    pod.spec.as_ref().unwrap().containers[0].image.clone().unwrap()
}

async fn node(cluster: &Cluster, name: &str, more: Value) {
    let mut node = json!({"metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
        "status": {"allocatable": {"cpu": "2", "memory": "1Gi", "pods": "10"},
            "conditions": [{"type": "Ready", "status": "True"}]}});
    json_patch::merge(&mut node, &more);
    let nodes: Api<Node> = Api::all(cluster.client.clone());
    nodes.create(&PostParams::default(), &object(node.clone())).await.unwrap();
    let status = Patch::Merge(json!({"status": node["status"]}));
    nodes.patch_status(name, &PatchParams::default(), &status).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stateful_set_makes_its_pods_in_order_and_updates_them_from_the_last() {
    let cluster = cluster::start().await;
    let claims = json!([{"metadata": {"name": "v"}, "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}]);
    cluster.create::<StatefulSet>(stateful_set(json!({"volumeClaimTemplates": claims}))).await;
    let first = until(&cluster.api::<Pod>(), |pods| !pods.is_empty()).await;
    assert_eq!(names(&first), BTreeSet::from(["s-0".to_owned()]));
    cluster.run_pods();
    until(&cluster.api::<Pod>(), |pods| pods.len() == 3).await;
    until(&cluster.api::<PersistentVolumeClaim>(), |claims| claims.len() == 3).await;
    until_one(&cluster.api::<StatefulSet>(), "s", |set| {
        set.status.as_ref().is_some_and(|status| status.ready_replicas == Some(3))
    })
    .await;
    let partition = json!({"spec": {"template": template("two"),
        "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 2}}}});
    cluster.patch::<StatefulSet>("s", partition).await;
    let of_new = |pods: &[Pod]| {
        pods.iter().filter(|pod| image(pod) == "two").map(ResourceExt::name_any).collect::<BTreeSet<_>>()
    };
    until(&cluster.api::<Pod>(), |pods| pods.len() == 3 && of_new(pods) == BTreeSet::from(["s-2".to_owned()])).await;
    cluster.patch::<StatefulSet>("s", json!({"spec": {"updateStrategy": {"rollingUpdate": {"partition": 0}}}})).await;
    until(&cluster.api::<Pod>(), |pods| pods.len() == 3 && of_new(pods).len() == 3).await;
    until_one(&cluster.api::<StatefulSet>(), "s", |set| {
        set.status.as_ref().is_some_and(|status| {
            status.current_revision == status.update_revision && status.updated_replicas == Some(3)
        })
    })
    .await;
    until(&cluster.api::<ControllerRevision>(), |revisions| revisions.len() == 2).await;
    // Scaling down leaves the claims.
    cluster.patch::<StatefulSet>("s", json!({"spec": {"replicas": 1}})).await;
    until(&cluster.api::<Pod>(), |pods| names(pods) == BTreeSet::from(["s-0".to_owned()])).await;
    until(&cluster.api::<PersistentVolumeClaim>(), |claims| claims.len() == 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn claims_go_with_pods_that_are_scaled_away_if_the_policy_says_so() {
    let cluster = cluster::start().await;
    cluster.run_pods();
    let claims = json!([{"metadata": {"name": "v"}, "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}]);
    let policy = json!({"whenScaled": "Delete", "whenDeleted": "Retain"});
    let more = json!({"volumeClaimTemplates": claims, "persistentVolumeClaimRetentionPolicy": policy, "podManagementPolicy": "Parallel"});
    cluster.create::<StatefulSet>(stateful_set(more)).await;
    until(&cluster.api::<PersistentVolumeClaim>(), |claims| claims.len() == 3).await;
    until(&cluster.api::<Pod>(), |pods| pods.len() == 3).await;
    cluster.patch::<StatefulSet>("s", json!({"spec": {"replicas": 1}})).await;
    let left = until(&cluster.api::<PersistentVolumeClaim>(), |claims| claims.len() == 1).await;
    assert_eq!(left[0].name_any(), "v-s-0");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_set_has_one_pod_on_each_node_that_will_have_it() {
    let cluster = cluster::start().await;
    cluster.run_pods();
    node(&cluster, "a", json!({})).await;
    node(&cluster, "b", json!({"spec": {"taints": [{"key": "k", "effect": "NoSchedule"}]}})).await;
    let set = json!({"metadata": {"name": "d"}, "spec": {"selector": {"matchLabels": {"app": "a"}}, "template": template("one")}});
    cluster.create::<DaemonSet>(set).await;
    let placed = |pods: &[Pod]| {
        let nodes = pods.iter().filter_map(|pod| pod.spec.as_ref()?.node_name.clone());
        nodes.collect::<BTreeSet<_>>()
    };
    until(&cluster.api::<Pod>(), |pods| placed(pods) == BTreeSet::from(["a".to_owned()])).await;
    node(&cluster, "c", json!({})).await;
    until(&cluster.api::<Pod>(), |pods| placed(pods) == BTreeSet::from(["a".to_owned(), "c".to_owned()])).await;
    cluster.patch::<DaemonSet>("d", json!({"spec": {"template": template("two")}})).await;
    until(&cluster.api::<Pod>(), |pods| pods.len() == 2 && pods.iter().all(|pod| image(pod) == "two")).await;
    until_one(&cluster.api::<DaemonSet>(), "d", |set| {
        set.status
            .as_ref()
            .is_some_and(|status| status.number_available == Some(2) && status.updated_number_scheduled == Some(2))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cron_job_makes_the_job_of_the_last_time_that_was_due_and_only_one() {
    let cluster = cluster::start().await;
    let job = json!({"spec": {"template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "x"}]}}}});
    let spec = json!({"schedule": "* * * * *", "concurrencyPolicy": "Forbid", "suspend": true, "jobTemplate": job});
    cluster.create::<CronJob>(json!({"metadata": {"name": "c"}, "spec": spec})).await;
    // As if the last time had been an hour ago.
    let hour_ago = k8s_openapi::jiff::Timestamp::now() - k8s_openapi::jiff::SignedDuration::from_hours(1);
    let status = json!({"status": {"lastScheduleTime": hour_ago.strftime("%Y-%m-%dT%H:%M:00Z").to_string()}});
    cluster.api::<CronJob>().patch_status("c", &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
    cluster.patch::<CronJob>("c", json!({"spec": {"suspend": false}})).await;
    let jobs = until(&cluster.api::<Job>(), |jobs| !jobs.is_empty()).await;
    let minutes = k8s_openapi::jiff::Timestamp::now().as_second() / 60;
    let made: i64 = jobs[0].name_any().trim_start_matches("c-").parse().unwrap();
    assert!((minutes - 1..=minutes).contains(&made), "{made} at {minutes}");
    until_one(&cluster.api::<CronJob>(), "c", |cron| {
        cron.status.as_ref().is_some_and(|status| status.active.as_ref().is_some_and(|active| active.len() == 1))
    })
    .await;
    assert_eq!(cluster.api::<Job>().list(&kube::api::ListParams::default()).await.unwrap().items.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replication_controller_keeps_its_number_of_pods() {
    let cluster = cluster::start().await;
    cluster.run_pods();
    let spec = json!({"replicas": 2, "selector": {"app": "a"}, "template": template("one")});
    cluster.create::<ReplicationController>(json!({"metadata": {"name": "r"}, "spec": spec})).await;
    let pods = until(&cluster.api::<Pod>(), |pods| pods.len() == 2).await;
    cluster.api::<Pod>().delete(&pods[0].name_any(), &DeleteParams::default()).await.unwrap();
    let gone = pods[0].name_any();
    until(&cluster.api::<Pod>(), |pods| pods.len() == 2 && !names(pods).contains(&gone)).await;
    until_one(&cluster.api::<ReplicationController>(), "r", |set| {
        set.status.as_ref().is_some_and(|status| status.ready_replicas == Some(2))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slice_follows_its_pods_and_a_budget_counts_them() {
    let cluster = cluster::start().await;
    node(&cluster, "a", json!({"metadata": {"labels": {"topology.kubernetes.io/zone": "z"}}})).await;
    cluster
        .create::<Service>(json!({"metadata": {"name": "web"}, "spec": {"selector": {"app": "a"}, "ports": [{"port": 80, "targetPort": "http"}]}}))
        .await;
    cluster
        .create::<PodDisruptionBudget>(
            json!({"metadata": {"name": "b"}, "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "a"}}}}),
        )
        .await;
    let container = json!({"name": "c", "image": "x", "ports": [{"name": "http", "containerPort": 8080}]});
    let pod =
        |name: &str| json!({"metadata": {"name": name, "labels": {"app": "a"}}, "spec": {"containers": [container]}});
    for name in ["one", "two"] {
        cluster.create::<Pod>(pod(name)).await;
        until_one(&cluster.api::<Pod>(), name, |pod| pod.spec.as_ref().unwrap().node_name.is_some()).await;
    }
    for (number, pod) in until(&cluster.api::<Pod>(), |pods| pods.len() == 2).await.iter().enumerate() {
        let mut status = ready();
        status["podIP"] = json!(format!("10.0.0.{number}"));
        status["podIPs"] = json!([{"ip": format!("10.0.0.{number}")}]);
        cluster.pod_status(pod, status).await;
    }
    let ready_endpoints = |slice: &EndpointSlice| {
        slice.endpoints.iter().filter(|one| one.conditions.as_ref().and_then(|known| known.ready) == Some(true)).count()
    };
    let slices =
        until(&cluster.api::<EndpointSlice>(), |slices| slices.iter().map(ready_endpoints).sum::<usize>() == 2).await;
    let slice = slices.iter().find(|slice| !slice.endpoints.is_empty()).unwrap();
    assert_eq!(slice.ports.as_ref().unwrap()[0].port, Some(8080));
    assert_eq!(slice.endpoints[0].zone.as_deref(), Some("z"));
    let allowed = |count: i32| {
        move |budget: &PodDisruptionBudget| {
            budget.status.as_ref().is_some_and(|status| status.disruptions_allowed == count)
        }
    };
    until_one(&cluster.api(), "b", allowed(1)).await;
    // It is still there, and ends.
    cluster.api::<Pod>().delete("one", &DeleteParams::default()).await.unwrap();
    until_one(&cluster.api(), "b", allowed(0)).await;
    until(&cluster.api::<EndpointSlice>(), |slices| {
        let ending = |slice: &EndpointSlice| {
            slice.endpoints.iter().any(|one| one.conditions.as_ref().and_then(|known| known.terminating) == Some(true))
        };
        slices.iter().any(ending) && slices.iter().map(ready_endpoints).sum::<usize>() == 1
    })
    .await;
}
