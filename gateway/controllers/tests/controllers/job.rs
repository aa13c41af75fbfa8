use k8s_openapi::api::batch::v1::{Job, JobStatus};
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use crate::cluster::{self, Cluster, until, until_gone, until_one};

async fn create(cluster: &Cluster, more: Value) -> Job {
    let mut spec =
        json!({"template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "x"}]}}});
    json_patch::merge(&mut spec, &more);
    cluster.create(json!({"metadata": {"name": "j"}, "spec": spec})).await
}

fn is_live(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    pod.metadata.deletion_timestamp.is_none() && phase == Some("Pending")
}

async fn live(cluster: &Cluster, count: usize) -> Vec<Pod> {
    let pods = until(&cluster.api(), |pods: &[Pod]| pods.iter().filter(|pod| is_live(pod)).count() == count).await;
    pods.into_iter().filter(is_live).collect()
}

fn status(job: &Job) -> JobStatus {
    job.status.clone().unwrap_or_default()
}

/// Type and reason of the conditions that hold.
fn conditions(job: &Job) -> Vec<(String, String)> {
    let conditions =
        status(job).conditions.unwrap_or_default().into_iter().filter(|condition| condition.status == "True");
    conditions.map(|condition| (condition.type_, condition.reason.unwrap_or_default())).collect()
}

async fn until_condition(cluster: &Cluster, type_: &str) -> Job {
    until_one(&cluster.api(), "j", |job| conditions(job).iter().any(|(known, _)| known == type_)).await
}

fn pair(type_: &str, reason: &str) -> (String, String) {
    (type_.to_owned(), reason.to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_completes_when_as_many_pods_have_succeeded_as_it_asks_for() {
    let cluster = cluster::start().await;
    create(&cluster, json!({"completions": 3, "parallelism": 2})).await;
    for pod in live(&cluster, 2).await {
        cluster.pod_status(&pod, json!({"phase": "Succeeded"})).await;
    }
    let last = live(&cluster, 1).await;
    let job = until_one(&cluster.api(), "j", |job: &Job| status(job).succeeded == Some(2)).await;
    assert_eq!(conditions(&job), []);
    cluster.pod_status(&last[0], json!({"phase": "Succeeded"})).await;
    let job = until_condition(&cluster, "Complete").await;
    assert_eq!(
        conditions(&job),
        [pair("SuccessCriteriaMet", "CompletionsReached"), pair("Complete", "CompletionsReached")]
    );
    assert_eq!((status(&job).succeeded, status(&job).active), (Some(3), None));
    assert!(status(&job).completion_time.is_some());
    until(&cluster.api(), |pods: &[Pod]| pods.iter().all(|pod| pod.metadata.finalizers.is_none())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_fails_beyond_its_limit_and_takes_the_other_pods_with_it() {
    let cluster = cluster::start().await;
    create(&cluster, json!({"completions": 2, "parallelism": 2, "backoffLimit": 0})).await;
    let pods = live(&cluster, 2).await;
    cluster.pod_status(&pods[0], json!({"phase": "Failed"})).await;
    let job = until_condition(&cluster, "Failed").await;
    assert_eq!(
        conditions(&job),
        [pair("FailureTarget", "BackoffLimitExceeded"), pair("Failed", "BackoffLimitExceeded")]
    );
    assert_eq!((status(&job).failed, status(&job).active), (Some(2), None));
    let left = until(&cluster.api(), |pods: &[Pod]| pods.len() == 1).await;
    assert_eq!(left[0].metadata.name, pods[0].metadata.name);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_fails_at_its_deadline() {
    let cluster = cluster::start().await;
    create(&cluster, json!({"activeDeadlineSeconds": 1})).await;
    let job = until_condition(&cluster, "Failed").await;
    assert_eq!(conditions(&job), [pair("FailureTarget", "DeadlineExceeded"), pair("Failed", "DeadlineExceeded")]);
    until(&cluster.api(), |pods: &[Pod]| pods.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_finished_job_goes_when_its_time_is_over_and_its_pods_with_it() {
    let cluster = cluster::start().await;
    create(&cluster, json!({"ttlSecondsAfterFinished": 0})).await;
    cluster.pod_status(&live(&cluster, 1).await[0], json!({"phase": "Succeeded"})).await;
    until_gone(&cluster.api::<Job>(), "j").await;
    until(&cluster.api(), |pods: &[Pod]| pods.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_work_queue_is_done_when_one_pod_has_succeeded_and_the_others_have_ended() {
    let cluster = cluster::start().await;
    create(&cluster, json!({"parallelism": 2, "completions": null})).await;
    let pods = live(&cluster, 2).await;
    cluster.pod_status(&pods[0], json!({"phase": "Succeeded"})).await;
    let job = until_one(&cluster.api(), "j", |job: &Job| status(job).succeeded == Some(1)).await;
    assert_eq!(conditions(&job), []);
    cluster.pod_status(&pods[1], json!({"phase": "Succeeded"})).await;
    let job = until_condition(&cluster, "Complete").await;
    assert_eq!(status(&job).succeeded, Some(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_indexed_job_runs_each_index_until_it_has_succeeded() {
    let cluster = cluster::start().await;
    create(&cluster, json!({"completions": 3, "parallelism": 3, "completionMode": "Indexed"})).await;
    let index =
        |pod: &Pod| pod.metadata.annotations.as_ref().unwrap()["batch.kubernetes.io/job-completion-index"].clone();
    let mut pods = live(&cluster, 3).await;
    pods.sort_by_key(index);
    assert_eq!(pods.iter().map(index).collect::<Vec<_>>(), ["0", "1", "2"]);
    cluster.pod_status(&pods[0], json!({"phase": "Succeeded"})).await;
    cluster.pod_status(&pods[2], json!({"phase": "Succeeded"})).await;
    until_one(&cluster.api(), "j", |job: &Job| status(job).completed_indexes.as_deref() == Some("0,2")).await;
    cluster.pod_status(&pods[1], json!({"phase": "Succeeded"})).await;
    let job = until_condition(&cluster, "Complete").await;
    assert_eq!(status(&job).completed_indexes.as_deref(), Some("0-2"));
    assert_eq!(status(&job).succeeded, Some(3));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_suspended_job_stops_its_pods_without_failing_and_goes_on_when_resumed() {
    let cluster = cluster::start().await;
    create(&cluster, json!({"completions": 2, "parallelism": 2})).await;
    live(&cluster, 2).await;
    cluster.patch::<Job>("j", json!({"spec": {"suspend": true}})).await;
    let job = until_condition(&cluster, "Suspended").await;
    assert_eq!(status(&job).failed, None);
    until(&cluster.api(), |pods: &[Pod]| pods.is_empty()).await;
    cluster.patch::<Job>("j", json!({"spec": {"suspend": false}})).await;
    live(&cluster, 2).await;
    let job = until_one(&cluster.api(), "j", |job| conditions(job).is_empty() && status(job).active == Some(2)).await;
    assert_eq!(status(&job).failed, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_of_a_deleted_job_are_let_go() {
    let cluster = cluster::start().await;
    create(&cluster, json!({})).await;
    live(&cluster, 1).await;
    cluster.api::<Job>().delete("j", &kube::api::DeleteParams::background()).await.unwrap();
    until(&cluster.api(), |pods: &[Pod]| pods.is_empty()).await;
}
