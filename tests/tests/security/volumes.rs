//! Volumes whose content is the attacker's: subPath and mount destinations that change under the runtime's feet, keys
//! that are paths, trees that are too deep.

use std::collections::BTreeMap;

use carob_tests::pods::{list, pod, shell, shell_pod};
use carob_tests::{Carob, eventually, text};
use serde_json::{Value, json};

use crate::bait::{Bait, CONTENT};

fn mounted(mut container: Value, mounts: Value) -> Value {
    container["volumeMounts"] = mounts;
    container
}

fn with_volume(mut manifest: Value) -> Value {
    manifest["spec"]["volumes"] = json!([{"name": "v", "emptyDir": {}}, {"name": "w", "emptyDir": {}}]);
    manifest
}

/// What became of a pod's containers: their reasons, by name.
fn reasons(carob: &Carob, pod: &str) -> BTreeMap<String, String> {
    let status = carob.get(&["pod", pod])["status"].clone();
    let containers = status["containerStatuses"].as_array().cloned().unwrap_or_default();
    let reason = |state: &Value| {
        let of = |kind: &str| state[kind]["reason"].as_str().map(str::to_owned);
        of("waiting").or_else(|| of("terminated")).unwrap_or_else(|| "Running".to_owned())
    };
    containers.iter().map(|c| (c["name"].as_str().unwrap_or_default().to_owned(), reason(&c["state"]))).collect()
}

/// CVE-2017-1002101 with links that lie still, CVE-2021-25741 with links that don't.
#[test]
fn sub_paths_and_destinations_stay_in_their_volume() {
    let carob = Carob::start(&["busybox", "python"]);
    let bait = Bait::new();
    let host = bait.path();

    // Links made before: each way of writing one, as the last part, in the middle, to a file and to a directory.
    let links = format!(
        "ln -s {host} /v/abs; ln -s ../../../../../../../../../..{host} /v/rel; ln -s {host}/bait /v/file; ln -s / /v/root; \
         ln -s .. /v/up; mkdir /v/dir; ln -s ../../.. /v/dir/up; ln -s /proc/self/root /v/magic; ln -s loop /v/loop; ln -s {host}/new /v/dangling"
    );
    let probe = format!("ls -a /m; cat /m/bait /m /m/tmp/*/bait /m{host}/bait 2>/dev/null; touch /m/touched; exit 0");
    let paths = [
        "abs",
        "rel",
        "file",
        "root",
        "up",
        "dir/up",
        "magic",
        "loop",
        "dangling",
        "abs/new",
        "magic/tmp",
        "dangling/x",
    ];
    let containers: Vec<Value> = paths
        .iter()
        .enumerate()
        .map(|(n, path)| {
            mounted(shell(&format!("c{n}"), &probe), json!([{"name": "v", "mountPath": "/m", "subPath": path}]))
        })
        .collect();
    let mut linked = with_volume(pod("linked", &containers));
    linked["spec"]["initContainers"] =
        json!([mounted(shell("links", &links), json!([{"name": "v", "mountPath": "/v"}]))]);

    // A name that is a directory at one moment and a link at the next; the same for a mount's destination.
    let exchange = format!(
        r#"
import ctypes, os
libc = ctypes.CDLL(None)
for name in ("sub", "inner"):
    os.mkdir("/v/" + name); os.symlink("{host}", "/v/" + name + "-link")
open("/v/ready", "w").close()
while not os.path.exists("/v/stop"):
    for name in (b"sub", b"inner"):
        libc.renameat2(-100, b"/v/" + name, -100, b"/v/" + name + b"-link", 2)
"#
    );
    let exchanger = json!({
        "name": "exchange", "image": "python", "imagePullPolicy": "IfNotPresent", "command": ["python3", "-c", exchange],
        "volumeMounts": [{"name": "v", "mountPath": "/v"}],
        "lifecycle": {"postStart": {"exec": {"command": ["sh", "-c", "until [ -e /v/ready ]; do sleep 0.01; done"]}}},
    });
    let racers = |prefix: &str, script: &str, mounts: &Value| -> Vec<Value> {
        (0..8).map(|n| mounted(shell(&format!("{prefix}{n}"), script), mounts.clone())).collect()
    };
    let sub = racers("sub", &probe, &json!([{"name": "v", "mountPath": "/m", "subPath": "sub"}]));
    let nested = json!([{"name": "v", "mountPath": "/v"}, {"name": "w", "mountPath": "/v/inner"}]);
    let inner = racers("inner", "ls -a /v/inner; cat /v/inner/bait; touch /v/inner/touched; exit 0", &nested);
    let racing = with_volume(pod("racing", &[vec![exchanger], sub, inner].concat()));

    // Variables that expand to what may not be written down.
    let up = |name: &str, value: &str| {
        let mut container = shell(name, &probe);
        container["env"] = json!([{"name": "UP", "value": value}]);
        mounted(container, json!([{"name": "v", "mountPath": "/m", "subPathExpr": "$(UP)"}]))
    };
    let expanded = with_volume(pod("expanded", &[up("up", ".."), up("far", "x/../../.."), up("abs", host)]));
    carob.apply(&list(&[linked, racing, expanded]));

    eventually("all have ended or been refused", || {
        let settled = |pod: &str| {
            let all = reasons(&carob, pod);
            !all.is_empty()
                && all.iter().all(|(name, reason)| {
                    name == "exchange"
                        || !["Running", "ContainerCreating", "PodInitializing"].contains(&reason.as_str())
                })
        };
        settled("linked") && settled("racing") && settled("expanded")
    });
    let mut mounted_well = 0;
    for pod in ["linked", "racing", "expanded"] {
        for (container, reason) in reasons(&carob, pod) {
            if reason != "Completed" {
                continue;
            }
            mounted_well += 1;
            let printed = carob.kubectl(&["logs", pod, "-c", &container]);
            assert!(!printed.contains(CONTENT), "{container} of {pod} read the machine's file: {printed}");
            assert!(
                !printed.lines().any(|line| line == "proc" || line == "bait"),
                "{container} of {pod} is outside: {printed}"
            );
        }
    }
    assert!(mounted_well > 0, "those that win the race run in the volume");
    for (container, reason) in reasons(&carob, "expanded") {
        assert_eq!(reason, "CreateContainerConfigError", "{container} expands to a path that leads out");
    }
    for (container, reason) in reasons(&carob, "linked") {
        assert_ne!(reason, "Completed", "{container} has a link out of its volume as subPath");
    }
    bait.assert_untouched("a subPath or a mount's destination");
    assert!(!carob.log().contains("panicked"));
}

/// Paths in manifests: refused before anything is done about them.
#[test]
fn names_keys_and_paths_that_climb_are_refused() {
    let carob = Carob::start(&["busybox"]);
    let config =
        |key: &str| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m"}, "data": {key: "x"}});
    let named = |kind: &str, name: &str| json!({"apiVersion": "v1", "kind": kind, "metadata": {"name": name}});
    let mut refused: Vec<Value> =
        ["..", ".", "../x", "..x/../y", "a/b", "/etc/passwd", "a\u{0}b", ""].map(config).into();
    refused.extend(["../x", "..", "a/b", "a%2fb", "-", "A"].map(|name| named("ConfigMap", name)));
    refused.extend(["../x", "..", "a.b", "kube/system"].map(|name| named("Namespace", name)));
    let volume = |volume: Value| {
        let mut manifest = shell_pod("p", "true");
        manifest["spec"]["volumes"] = json!([volume]);
        manifest["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "v", "mountPath": "/m"}]);
        manifest
    };
    for path in ["../x", "a/../../x", "/etc/x", ".."] {
        let items = json!([{"key": "k", "path": path}]);
        let field = json!([{"path": path, "fieldRef": {"fieldPath": "metadata.name"}}]);
        refused.push(volume(json!({"name": "v", "configMap": {"name": "m", "items": items}})));
        refused.push(volume(json!({"name": "v", "secret": {"secretName": "m", "items": items}})));
        refused.push(volume(json!({"name": "v", "downwardAPI": {"items": field}})));
        refused.push(volume(
            json!({"name": "v", "projected": {"sources": [{"configMap": {"name": "m", "items": items}}]}}),
        ));
        refused.push(volume(json!({"name": "v", "projected": {"sources": [{"serviceAccountToken": {"path": path}}]}})));
    }
    refused.push(volume(json!({"name": "../v", "emptyDir": {}})));
    refused.push(volume(json!({"name": "v", "hostPath": {"path": "/tmp/../etc"}})));
    for path in ["..", "../x", "a/../..", "/etc"] {
        let mut manifest = volume(json!({"name": "v", "emptyDir": {}}));
        manifest["spec"]["containers"][0]["volumeMounts"][0]["subPath"] = json!(path);
        refused.push(manifest);
    }
    let mut change = |pointer: &str, value: &str| {
        let mut manifest = shell_pod("p", "true");
        manifest["spec"]["securityContext"] = json!({"seccompProfile": {"type": "Localhost", "localhostProfile": "x"}});
        *manifest.pointer_mut(pointer).expect("a field") = json!(value);
        refused.push(manifest);
    };
    change("/metadata/name", "../../x");
    change("/spec/containers/0/name", "../x");
    change("/spec/containers/0/image", "../../../etc/passwd\n");
    change("/spec/securityContext/seccompProfile/localhostProfile", "../../../../etc/passwd");
    let all = ["get", "configmaps,pods,namespaces", "-A", "-o", "name"];
    carob.until(&all, |seen| seen.matches("kube-root-ca.crt").count() == seen.matches("namespace/").count());
    let before = carob.kubectl(&all);
    let proxy = carob_tests::proxy::Proxy::start(&carob);
    for object in refused {
        let path = match object["kind"].as_str() {
            Some("Namespace") => "/api/v1/namespaces",
            Some("Pod") => "/api/v1/namespaces/default/pods",
            _ => "/api/v1/namespaces/default/configmaps",
        };
        let answer = proxy.post(path, &object.to_string());
        assert!((400..500).contains(&answer.status), "{object} was answered with {}", answer.status);
    }
    assert_eq!(carob.kubectl(&all), before);
}

/// Removing a pod means walking what it left behind.
#[test]
fn a_tree_too_deep_to_walk_goes_with_its_pod() {
    let carob = Carob::start(&["python", "busybox"]);
    // Disks take milliseconds for each level; carob-sandbox's own test goes deeper, in memory.
    const DEEP: &str = r#"
import os
os.chdir("/v")
for level in range(3500): os.mkdir("d"); os.chdir("d")
os.symlink("/", "out")
print("deep", flush=True)
"#;
    let digger = json!({"name": "main", "image": "python", "imagePullPolicy": "IfNotPresent", "command": ["python3", "-c", DEEP]});
    let manifest = with_volume(pod("deep", &[mounted(digger, json!([{"name": "v", "mountPath": "/v"}]))]));
    assert_eq!(carob.run_to_end(&manifest), "deep\n");
    let directory = carob.data_dir().join("pods").join(carob.jsonpath("pod/deep", ".metadata.uid"));
    let deleted = carob.run(&["delete", "pod", "deep", "--now", "--timeout=30s"]);
    assert!(deleted.status.success(), "{}\n{}", text(&deleted), carob.log());
    eventually("its files are gone", || !directory.exists());
    assert_eq!(carob.run_to_end(&shell_pod("after", "echo alive")), "alive\n");
}
