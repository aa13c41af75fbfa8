//! RuntimeClasses whose handlers are other OCI runtimes of this machine.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use carob_tests::pods::{idle, list, pod, shell_pod};
use carob_tests::{Carob, Setup, eventually, text};
use serde_json::{Value, json};

/// Debian's runtimes, where they are installed.
const RUNTIMES: [(&str, &str); 2] = [("runc", "/usr/sbin/runc"), ("crun", "/usr/bin/crun")];

fn class(handler: &str) -> Value {
    json!({"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": handler}, "handler": handler})
}

fn of(handler: &str, mut manifest: Value) -> Value {
    manifest["spec"]["runtimeClassName"] = json!(handler);
    manifest
}

/// A program that notes how it is called and is the runtime then.
fn noting(folder: &Path, handler: &str, binary: &str) -> String {
    let path = folder.join(handler);
    let script = format!("#!/bin/sh\necho \"$@\" >> {}.calls\nexec {binary} \"$@\"\n", path.display());
    fs::write(&path, script).expect("a script");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("it can be executed");
    path.display().to_string()
}

#[test]
fn containers_of_another_runtime_live_as_those_of_our_own() {
    let folder = tempfile::tempdir().expect("a directory");
    let here: Vec<_> = RUNTIMES.into_iter().filter(|(_, binary)| Path::new(binary).exists()).collect();
    if here.is_empty() {
        eprintln!("neither runc nor crun is installed: nothing to test");
        return;
    }
    let configured: serde_json::Map<String, Value> =
        here.iter().map(|(name, binary)| ((*name).to_owned(), json!(noting(folder.path(), name, binary)))).collect();
    let config = json!({"runtimes": configured}).to_string();
    let mut carob =
        Carob::start_with(&Setup { images: &["busybox", "tools"], config: Some(&config), ..Setup::default() });
    let mut wanted = vec![
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "given"}, "stringData": {"key": "value"}}),
    ];
    for (name, _) in &here {
        wanted.push(class(name));
    }
    carob.apply(&list(&wanted));
    for (name, _) in &here {
        let script = "cat /given/key; id -u; hostname; for i in $(seq 20000); do :; done; echo err >&2; \
                      touch /data/file; trap 'exit 7' TERM; while :; do sleep 0.1; done";
        let mut full = of(name, shell_pod(&format!("full-{name}"), script));
        full["spec"]["volumes"] =
            json!([{"name": "given", "secret": {"secretName": "given"}}, {"name": "data", "emptyDir": {}}]);
        let main = &mut full["spec"]["containers"][0];
        main["volumeMounts"] =
            json!([{"name": "given", "mountPath": "/given"}, {"name": "data", "mountPath": "/data"}]);
        main["securityContext"] = json!({"runAsUser": 1000, "capabilities": {"drop": ["ALL"]}});
        main["resources"] = json!({"limits": {"memory": "64Mi", "cpu": "1"}});
        main["readinessProbe"] = json!({"exec": {"command": ["test", "-e", "/data/file"]}, "periodSeconds": 1});
        let missing = of(
            name,
            pod(
                &format!("missing-{name}"),
                &[json!({"name": "main", "image": "busybox",
            "imagePullPolicy": "IfNotPresent", "command": ["/no/such/program"]})],
            ),
        );
        let mut own = of(name, pod(&format!("own-{name}"), &[idle("main")]));
        own["spec"]["hostUsers"] = json!(false);
        carob.apply(&list(&[full, missing, own]));
    }
    for (name, _) in &here {
        let pod = format!("full-{name}");
        carob.kubectl(&["wait", "--for=condition=Ready", &format!("pod/{pod}"), "--timeout=60s"]);
        let logged = carob.until(&["logs", &pod], |seen| seen.contains("err"));
        assert_eq!(logged, format!("value1000\n{pod}\nerr\n"));
        let script = "cat; grep -c . /proc/self/mountinfo > /dev/null; grep Seccomp: /proc/self/status; cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null; exit 5";
        let said = carob.pipe(&["exec", "-i", &pod, "--", "sh", "-c", script], "through\n");
        let said = text(&said);
        assert!(said.starts_with("through\nSeccomp:\t2\n67108864\n"), "{said}");
        assert!(said.contains("exit code 5"), "{said}");
        carob.wait_event(&format!("missing-{name}"), "/no/such/program");
        carob.wait_event(&format!("own-{name}"), "does not support user namespaces");
    }

    carob.kill();
    carob.up(&[]);
    for (name, _) in &here {
        let pod = format!("full-{name}");
        carob.until(&["exec", &pod, "--", "echo", "still here"], |seen| seen.contains("still here"));
        // It may end with the container before it can tell how it went.
        carob.run(&["exec", &pod, "--", "kill", "1"]);
        let ended = ["get", "pod", &pod, "-o", "jsonpath={.status.containerStatuses[0].state.terminated.exitCode}"];
        carob.until(&ended, |code| code == "7");
        eventually("what it used is billed", || {
            carob.bill(&["--pod", &pod])["total"]["cpuNanoseconds"].as_u64().is_some_and(|used| used > 0)
        });
        carob.kubectl(&["delete", "pod", &pod, &format!("own-{name}"), "--timeout=60s"]);
        let calls = folder.path().join(format!("{name}.calls"));
        eventually("the runtime was asked for each step", || {
            let calls = fs::read_to_string(&calls).unwrap_or_default();
            ["create --bundle", "start ", "exec --detach", "delete --force"].iter().all(|step| calls.contains(step))
        });
    }
    let handlers = carob.kubectl(&["get", "nodes", "-o", "jsonpath={.items[0].status.runtimeHandlers[*].name}"]);
    assert!(here.iter().all(|(name, _)| handlers.contains(name)), "{handlers}");
    carob.down();
}
