//! Ephemeral containers: `kubectl debug` of a pod that runs.

use carob_tests::pods::{idle, pod};
use carob_tests::{Carob, text};
use serde_json::{Value, json};

/// `kubectl debug` of this pod with a busybox container of this name.
fn debug<'a>(pod: &'a str, name: &'a str, rest: &[&'a str]) -> Vec<&'a str> {
    let mut all = vec!["debug", pod, "--image=busybox", "--image-pull-policy=IfNotPresent", "-c", name];
    all.extend(rest);
    all
}

fn status(carob: &Carob, pod: &str, name: &str) -> Value {
    let found = carob.get(&["pod", pod])["status"]["ephemeralContainerStatuses"].clone();
    found.as_array().and_then(|all| all.iter().find(|one| one["name"] == name)).cloned().unwrap_or_default()
}

#[test]
fn a_running_pod_is_debugged_among_its_processes_and_goes_on() {
    let mut carob = Carob::start(&["busybox", "tools"]);
    let mut manifest = pod("web", &[idle("main")]);
    manifest["spec"]["restartPolicy"] = json!("Always");
    carob.start_pod(&manifest.to_string(), "web");
    let before = carob.jsonpath("pod/web", ".status.containerStatuses[0].containerID");

    let script = "ps -o pid,args; exec sleep 3600";
    let output = carob.run(&debug("web", "look", &["--target=main", "--", "sh", "-c", script]));
    assert!(output.status.success() && !text(&output).contains("not carried out"), "{}", text(&output));
    let seen = carob.until(&["logs", "web", "-c", "look"], |seen| seen.contains("ps -o"));
    assert!(seen.contains("sleep 1h"), "the target's processes are its own: {seen}");
    let look = status(&carob, "web", "look");
    assert!(look["state"]["running"]["startedAt"].is_string() && look["ready"] == false, "{look}");
    assert_eq!(carob.kubectl(&["exec", "web", "-c", "look", "--", "cat", "/proc/1/comm"]), "carob-tools\n");

    let alone = carob.run(&debug("web", "alone", &["--", "sh", "-c", "ps -o pid,args; exec sleep 3600"]));
    assert!(alone.status.success(), "{}", text(&alone));
    let seen = carob.until(&["logs", "web", "-c", "alone"], |seen| seen.contains("ps -o"));
    assert!(!seen.contains("sleep 1h"), "without a target it has processes of its own: {seen}");

    let talk = carob.pipe(&debug("web", "talk", &["-i", "--", "sh"]), "echo sum-$((1+1))\nexit 7\n");
    assert!(text(&talk).contains("sum-2"), "{}", text(&talk));
    let path = "jsonpath={.status.ephemeralContainerStatuses[?(@.name==\"talk\")].state.terminated.exitCode}";
    carob.until(&["get", "pod", "web", "-o", path], |code| code == "7");

    // A gateway that is killed finds all of them again.
    carob.kill();
    carob.up(&[]);
    carob.until(&["exec", "web", "-c", "look", "--", "echo", "still here"], |seen| seen.contains("still here"));
    let talk = status(&carob, "web", "talk");
    assert_eq!((&talk["restartCount"], &talk["state"]["terminated"]["reason"]), (&json!(0), &json!("Error")));
    assert_eq!(carob.jsonpath("pod/web", ".status.containerStatuses[0].containerID"), before);
    assert_eq!(carob.jsonpath("pod/web", ".status.containerStatuses[0].restartCount"), "0");
    assert_eq!(carob.jsonpath("pod/web", ".status.conditions[?(@.type==\"Ready\")].status"), "True");
    assert_eq!(carob.bill(&["--pod", "web"])["total"]["containers"], 4, "each of them is billed");

    carob.kubectl(&["delete", "pod", "web", "--grace-period=1", "--timeout=60s"]);
}
