//! Deployments, Jobs, the scheduler, and what becomes of what belongs to something that goes.

use std::time::Instant;

use carob_tests::pods::{idle, list, shell, shell_pod, tools};
use carob_tests::terminal::Running;
use carob_tests::{Carob, eventually, text};
use serde_json::{Value, json};

fn deployment(name: &str, replicas: u32, container: &Value) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name},
        "spec": {
            "replicas": replicas, "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": {"labels": {"app": name}}, "spec": {"containers": [container], "terminationGracePeriodSeconds": 1}},
        },
    })
}

fn job(name: &str, script: &str, spec: &Value) -> Value {
    let mut manifest = json!({
        "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name},
        "spec": {"template": {"spec": {"restartPolicy": "Never", "terminationGracePeriodSeconds": 1, "containers": [shell("main", script)]}}},
    });
    for (key, value) in spec.as_object().expect("an object") {
        manifest["spec"][key] = value.clone();
    }
    manifest
}

#[test]
fn a_deployment_is_scaled_updated_paused_and_rolled_back() {
    let carob = Carob::start(&["tools"]);
    let version = |number: &str| {
        let mut container = tools("main", &["http-server"]);
        container["env"] = json!([{"name": "VERSION", "value": number}]);
        container["readinessProbe"] = json!({"tcpSocket": {"port": 8080}, "periodSeconds": 1});
        deployment("web", 3, &container)
    };
    carob.apply(&version("1").to_string());
    let status = carob.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    assert!(status.ends_with("deployment \"web\" successfully rolled out\n"), "{status}");
    let table = carob.kubectl(&["get", "deployment", "web"]);
    assert!(table.contains("web    3/3     3            3"), "{table}");
    assert_eq!(
        carob.kubectl(&["get", "rs", "--no-headers"]).split_whitespace().skip(1).take(3).collect::<Vec<_>>(),
        ["3", "3", "3"]
    );
    let pod = carob.kubectl(&["get", "pods", "-o", "name"]);
    let pod = pod.lines().next().expect("a pod").trim_start_matches("pod/").to_owned();
    assert_eq!(carob.jsonpath(&format!("pod/{pod}"), ".metadata.ownerReferences[0].kind"), "ReplicaSet");
    // A pod that goes is replaced.
    carob.kubectl(&["delete", "pod", &pod, "--wait"]);
    carob.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    carob.kubectl(&["scale", "deployment/web", "--replicas=4", "--current-replicas=3"]);
    carob.until(&["get", "deployment", "web"], |seen| seen.contains("4/4"));
    let refused = carob.kubectl_fails(&["scale", "deployment/web", "--replicas=1", "--current-replicas=3"]);
    assert!(refused.contains("Expected replicas to be 3, was 4"), "{refused}");
    carob.kubectl(&["scale", "deployment/web", "--replicas=3"]);
    carob.until(&["get", "pods", "-o", "name"], |seen| seen.lines().count() == 3);

    // A rolling update never has fewer ready or more in all than it may: 3 - 25% and 3 + 25%, rounded.
    let watch = Running::start(carob.kubectl_command().args([
        "get",
        "rs",
        "-w",
        "--no-headers",
        "-o",
        "custom-columns=S:.spec.replicas,R:.status.replicas",
    ]));
    let ready = Running::start(carob.kubectl_command().args([
        "get",
        "deployment",
        "web",
        "-w",
        "--no-headers",
        "-o",
        "custom-columns=A:.status.availableReplicas,R:.status.replicas",
    ]));
    ready.expect("3");
    carob.apply(&version("2").to_string());
    carob.kubectl(&["annotate", "deployment/web", "kubernetes.io/change-cause=second version"]);
    carob.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    drop(watch);
    for line in ready.output().lines() {
        let numbers: Vec<u32> = line.split_whitespace().map(|number| number.parse().unwrap_or_default()).collect();
        assert!(numbers[0] >= 3 && numbers[1] <= 4, "available and all: {}", ready.output());
    }
    carob.until(&["get", "pods", "-o", "jsonpath={.items[*].spec.containers[0].env[0].value}"], |seen| seen == "2 2 2");

    let history = carob.kubectl(&["rollout", "history", "deployment/web"]);
    assert!(history.contains("2         second version"), "{history}");
    let first = carob.kubectl(&["rollout", "history", "deployment/web", "--revision=1"]);
    assert!(first.contains("VERSION:\t1"), "{first}");
    carob.kubectl(&["rollout", "undo", "deployment/web"]);
    carob.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    carob.until(&["get", "pods", "-o", "jsonpath={.items[*].spec.containers[0].env[0].value}"], |seen| seen == "1 1 1");
    let history = carob.kubectl(&["rollout", "history", "deployment/web"]);
    assert!(
        history.lines().any(|line| line.starts_with("3 ")) && !history.lines().any(|line| line.starts_with("1 ")),
        "{history}"
    );

    carob.kubectl(&["rollout", "pause", "deployment/web"]);
    carob.kubectl(&["set", "env", "deployment/web", "VERSION=4"]);
    carob.until(
        &["get", "deployment", "web", "-o", "jsonpath={.status.observedGeneration}={.metadata.generation}"],
        |seen| seen.split_once('=').is_some_and(|(a, b)| a == b),
    );
    assert_eq!(
        carob.jsonpath("pods", ".items[*].spec.containers[0].env[0].value"),
        "1 1 1",
        "nothing moves while it is paused"
    );
    assert!(
        carob.kubectl_fails(&["rollout", "undo", "deployment/web"]).contains("you cannot rollback a paused deployment")
    );
    carob.kubectl(&["rollout", "resume", "deployment/web"]);
    carob.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    carob.until(&["get", "pods", "-o", "jsonpath={.items[*].spec.containers[0].env[0].value}"], |seen| seen == "4 4 4");
    carob.kubectl(&["rollout", "restart", "deployment/web"]);
    carob.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    carob.wait("deployment/web", "condition=Available");
    let described = carob.kubectl(&["describe", "deployment", "web"]);
    assert!(
        described.contains("Scaled up replica set web-")
            && described.contains("RollingUpdateStrategy:  25% max unavailable, 25% max surge"),
        "{described}"
    );
}

#[test]
fn a_rollout_that_cannot_work_stops_and_says_so() {
    let carob = Carob::start(&["tools"]);
    let mut broken = deployment("stuck", 1, &tools("main", &["http-server"]));
    broken["spec"]["progressDeadlineSeconds"] = json!(2);
    carob.apply(&broken.to_string());
    carob.wait("deployment/stuck", "condition=Available");
    carob.kubectl(&["set", "image", "deployment/stuck", "main=127.0.0.1:1/nobody:1"]);
    let output = carob.run(&["rollout", "status", "deployment/stuck", "--timeout=60s"]);
    assert!(text(&output).contains("exceeded its progress deadline"), "{}", text(&output));
    assert_eq!(carob.jsonpath("deployment/stuck", ".status.availableReplicas"), "1", "the old pod still serves");
    let mut recreated = deployment("recreated", 2, &tools("main", &["http-server"]));
    recreated["spec"]["strategy"] = json!({"type": "Recreate"});
    carob.apply(&recreated.to_string());
    carob.wait("deployment/recreated", "condition=Available");
    let watch = Running::start(carob.kubectl_command().args([
        "get",
        "deployment",
        "recreated",
        "-w",
        "--no-headers",
        "-o",
        "custom-columns=R:.status.replicas",
    ]));
    watch.expect("2");
    carob.kubectl(&["rollout", "restart", "deployment/recreated"]);
    carob.kubectl(&["rollout", "status", "deployment/recreated", "--timeout=60s"]);
    let most = watch.output().lines().filter_map(|line| line.trim().parse::<u32>().ok()).max();
    assert_eq!(most, Some(2), "the old ones go before the new ones come");
}

#[test]
fn jobs_complete_retry_give_up_and_clear_away() {
    let carob = Carob::start(&["busybox"]);
    carob.apply(&list(&[
        job("several", "exit 0", &json!({"completions": 4, "parallelism": 2})),
        job("failing", "exit 1", &json!({"backoffLimit": 1})),
        job("late", "sleep 3600", &json!({"activeDeadlineSeconds": 2})),
        job("fleeting", "exit 0", &json!({"ttlSecondsAfterFinished": 1})),
        job("held", "exit 0", &json!({"suspend": true})),
    ]));
    carob.wait("job/several", "condition=Complete");
    assert_eq!(carob.jsonpath("job/several", ".status.succeeded"), "4");
    let table = carob.kubectl(&["get", "job", "several"]);
    assert!(table.contains("Complete   4/4"), "{table}");
    carob.wait("job/late", "condition=Failed");
    assert_eq!(carob.jsonpath("job/late", ".status.conditions[?(@.type==\"Failed\")].reason"), "DeadlineExceeded");
    carob.until(&["get", "pods", "-l", "job-name=late", "-o", "name"], str::is_empty);
    carob.wait("job/fleeting", "delete");
    carob.wait("job/failing", "condition=Failed");
    assert_eq!(
        carob.jsonpath("job/failing", ".status.conditions[?(@.type==\"Failed\")].reason"),
        "BackoffLimitExceeded"
    );
    assert_eq!(carob.jsonpath("job/failing", ".status.failed"), "2", "once, and one retry");
    let described = carob.kubectl(&["describe", "job", "failing"]);
    assert!(described.contains("Job has reached the specified backoff limit"), "{described}");
    assert_eq!(carob.kubectl(&["get", "pods", "-l", "job-name=held", "-o", "name"]), "");
    carob.kubectl(&["patch", "job", "held", "-p", r#"{"spec": {"suspend": false}}"#]);
    carob.wait("job/held", "condition=Complete");
    assert!(carob.kubectl(&["logs", "job/several"]).is_empty());
    carob.kubectl(&["delete", "job", "several", "--wait"]);
    carob.until(&["get", "pods", "-l", "job-name=several", "-o", "name"], str::is_empty);
    carob.kubectl(&["create", "job", "made", "--image=busybox:latest", "--dry-run=server", "--", "true"]);
}

#[test]
fn a_pod_that_does_not_fit_waits_with_the_reason_and_runs_when_there_is_room() {
    let carob = Carob::start(&["tools"]);
    let cpu = carob.jsonpath("nodes", ".items[0].status.allocatable.cpu");
    let millis: u64 = cpu
        .strip_suffix('m')
        .map_or_else(|| cpu.parse::<u64>().map(|cores| cores * 1000), str::parse)
        .expect("a number of cores");
    let wanting = |name: &str, resources: Value| {
        let mut manifest = carob_tests::pods::pod(name, &[idle("main")]);
        manifest["spec"]["containers"][0]["resources"] = json!({"requests": resources});
        manifest["spec"]["terminationGracePeriodSeconds"] = json!(1);
        manifest
    };
    carob.start_pod(&wanting("first", json!({"cpu": format!("{}m", millis * 3 / 4)})).to_string(), "first");
    let mut elsewhere = wanting("elsewhere", json!({}));
    elsewhere["spec"]["nodeSelector"] = json!({"zone": "far"});
    carob.apply(&list(&[
        wanting("second", json!({"cpu": format!("{}m", millis / 2)})),
        wanting("huge", json!({"memory": "4Pi"})),
        elsewhere,
    ]));
    for (name, reason) in [
        ("second", "0/1 nodes are available: 1 Insufficient cpu"),
        ("huge", "0/1 nodes are available: 1 Insufficient memory"),
        ("elsewhere", "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector"),
    ] {
        carob.until(
            &["get", "pod", name, "-o", "jsonpath={.status.conditions[?(@.type==\"PodScheduled\")].message}"],
            |seen| seen.starts_with(reason),
        );
        carob.wait_event(name, reason);
        assert_eq!(carob.jsonpath(&format!("pod/{name}"), ".status.phase"), "Pending");
    }
    assert_eq!(carob.jsonpath("pod/second", ".status.conditions[?(@.type==\"PodScheduled\")].reason"), "Unschedulable");
    carob.kubectl(&["delete", "pod", "first", "--wait"]);
    carob.wait("pod/second", "condition=Ready");
    let node = carob.kubectl(&["get", "nodes", "-o", "name"]);
    carob.kubectl(&["label", node.trim(), "zone=far"]);
    carob.wait("pod/elsewhere", "condition=Ready");
    carob.kubectl(&["cordon", node.trim()]);
    carob.apply(&wanting("cordoned", json!({})).to_string());
    carob.wait_event("cordoned", "0/1 nodes are available: 1 node(s) were unschedulable");
    carob.kubectl(&["uncordon", node.trim()]);
    carob.wait("pod/cordoned", "condition=Ready");
}

#[test]
fn a_namespace_goes_with_everything_in_it_and_new_ones_have_what_pods_need() {
    let carob = Carob::start(&["busybox"]);
    carob.kubectl(&["create", "namespace", "team"]);
    carob.until(&["-n", "team", "get", "serviceaccount", "default", "-o", "name"], |seen| !seen.is_empty());
    carob.until(&["-n", "team", "get", "configmap", "kube-root-ca.crt", "-o", "jsonpath={.data.ca\\.crt}"], |seen| {
        seen.contains("BEGIN CERTIFICATE")
    });
    let apply = |manifest: &str| {
        let output = carob.pipe(&["-n", "team", "apply", "-f", "-"], manifest);
        assert!(output.status.success(), "{}", text(&output));
    };
    let mut stubborn = shell_pod("stubborn", "trap '' TERM; sleep 3600");
    stubborn["spec"]["terminationGracePeriodSeconds"] = json!(1);
    apply(&list(&[
        deployment("web", 2, &shell("main", "sleep 3600")),
        job("work", "sleep 3600", &json!({})),
        stubborn,
    ]));
    carob.kubectl(&["-n", "team", "create", "configmap", "left", "--from-literal=a=b"]);
    carob.kubectl(&["-n", "team", "rollout", "status", "deployment/web", "--timeout=60s"]);
    let begin = Instant::now();
    carob.kubectl(&["delete", "namespace", "team", "--wait=false"]);
    assert!(carob.kubectl(&["get", "namespace", "team", "--ignore-not-found"]).contains("Terminating"));
    let refused = text(&carob.run(&["-n", "team", "create", "configmap", "late"]));
    assert!(
        refused.contains("because it is being terminated") || refused.contains("namespaces \"team\" not found"),
        "{refused}"
    );
    carob.wait("namespace/team", "delete");
    assert!(begin.elapsed().as_secs() < 50, "{:?}", begin.elapsed());
    carob.kubectl(&["create", "namespace", "team"]);
    carob.until(&["-n", "team", "get", "cm,deploy,rs,job,pods", "-o", "name"], |seen| {
        !seen.contains("left") && seen.lines().count() <= 1
    });
    for kept in ["default", "kube-system", "kube-public", "kube-node-lease"] {
        carob.kubectl(&["get", "namespace", kept]);
    }
}

#[test]
fn dependents_go_with_their_owners_as_the_propagation_policy_says() {
    let carob = Carob::start(&["busybox"]);
    let container = shell("main", "trap 'exit 0' TERM; while :; do sleep 0.1; done");
    for (name, cascade, left) in
        [("background", "background", false), ("foreground", "foreground", false), ("orphan", "orphan", true)]
    {
        carob.apply(&deployment(name, 1, &container).to_string());
        carob.kubectl(&["rollout", "status", &format!("deployment/{name}"), "--timeout=60s"]);
        let policy = format!("--cascade={cascade}");
        carob.kubectl(&["delete", "deployment", name, &policy, "--timeout=60s"]);
        let label = format!("app={name}");
        if left {
            let rs = carob.get(&["rs", "-l", &label]);
            assert_eq!(rs["items"][0]["status"]["readyReplicas"], 1);
            eventually("its owner reference is gone", || {
                carob.get(&["rs", "-l", &label])["items"][0]["metadata"]["ownerReferences"].is_null()
            });
        } else {
            if cascade == "foreground" {
                assert_eq!(carob.kubectl(&["get", "rs,pods", "-l", &label, "-o", "name"]), "", "the owner goes last");
            }
            carob.until(&["get", "rs,pods", "-l", &label, "-o", "name"], str::is_empty);
        }
    }
    // Any object can own another; an owner that never was takes its dependents along as well.
    carob.kubectl(&["create", "configmap", "owner"]);
    let uid = carob.jsonpath("configmap/owner", ".metadata.uid");
    let owned = |name: &str, uid: &str| {
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "ownerReferences": [
        {"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": uid}]}})
    };
    carob.apply(&list(&[owned("child", &uid), owned("stray", "00000000-0000-0000-0000-000000000000")]));
    carob.wait("configmap/stray", "delete");
    carob.kubectl(&["get", "configmap", "child"]);
    carob.kubectl(&["delete", "configmap", "owner"]);
    carob.wait("configmap/child", "delete");
    carob.kubectl(&["create", "configmap", "kept"]);
    carob.kubectl(&["patch", "configmap", "kept", "-p", r#"{"metadata": {"finalizers": ["carob.test/hold"]}}"#]);
    carob.kubectl(&["delete", "configmap", "kept", "--wait=false"]);
    assert!(!carob.jsonpath("configmap/kept", ".metadata.deletionTimestamp").is_empty());
    carob.kubectl(&["patch", "configmap", "kept", "--type=merge", "-p", r#"{"metadata": {"finalizers": null}}"#]);
    carob.wait("configmap/kept", "delete");
}
