//! What the spec says of a pod's names, environment, mounts and restarts, as its containers find it.

use std::fs;
use std::process::Command;

use carob_tests::pods::{idle, list, pod, shell, shell_pod};
use carob_tests::{Carob, eventually};
use serde_json::{Value, json};

fn volume(manifest: &mut Value, name: &str, mut source: Value, mounts: &Value) {
    source["name"] = json!(name);
    manifest["spec"]["volumes"] = json!([source]);
    manifest["spec"]["containers"][0]["volumeMounts"] = mounts.clone();
}

/// Where the pod's name is in a variable, for `subPathExpr`.
fn named_env() -> Value {
    json!([{"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}])
}

#[test]
fn names_environment_mounts_and_restart_rules_are_what_the_spec_says() {
    let carob = Carob::start(&["busybox", "tools"]);
    let mut full = shell_pod("full", "hostname; cat /etc/hostname; tail -n 1 /etc/hosts");
    full["spec"]["hostname"] = json!("web");
    full["spec"]["subdomain"] = json!("sub");
    full["spec"]["setHostnameAsFQDN"] = json!(true);
    let mut other = shell_pod("other", "hostname");
    other["spec"]["hostnameOverride"] = json!("other.example.com");
    let mut long = shell_pod("long", "hostname");
    long["spec"]["subdomain"] = json!("s".repeat(60));
    long["spec"]["setHostnameAsFQDN"] = json!(true);

    let once = "if [ -e /data/ran ]; then exit 3; fi; touch /data/ran; exit 42";
    let mut ruled = shell_pod("ruled", once);
    volume(&mut ruled, "data", json!({"emptyDir": {}}), &json!([{"name": "data", "mountPath": "/data"}]));
    ruled["spec"]["containers"][0]["restartPolicy"] = json!("Never");
    ruled["spec"]["containers"][0]["restartPolicyRules"] =
        json!([{"action": "Restart", "exitCodes": {"operator": "In", "values": [42]}}]);

    let mut from_file = shell_pod("from-file", "echo \"$ADDRESS|$MISSING|\"");
    volume(&mut from_file, "data", json!({"emptyDir": {}}), &json!([]));
    from_file["spec"]["initContainers"] = json!([shell("write", "printf \"X='1'\\nADDRESS='a b'\\n\" > /data/env")]);
    from_file["spec"]["initContainers"][0]["volumeMounts"] = json!([{"name": "data", "mountPath": "/data"}]);
    let key = |key: &str, optional: bool| json!({"fileKeyRef": {"volumeName": "data", "path": "env", "key": key, "optional": optional}});
    from_file["spec"]["containers"][0]["env"] = json!([{"name": "ADDRESS", "valueFrom": key("ADDRESS", false)}, {"name": "MISSING", "valueFrom": key("NO", true)}]);

    let mut expression = shell_pod("expression", "echo hi > /sub/file; cat /all/expression/file");
    let mounts = json!([{"name": "data", "mountPath": "/sub", "subPathExpr": "$(POD)"},
        {"name": "data", "mountPath": "/all"}]);
    volume(&mut expression, "data", json!({"emptyDir": {}}), &mounts);
    expression["spec"]["containers"][0]["env"] = named_env();

    let script = "ls /image/bin/busybox /bin-of-it/busybox; touch /image/x || echo read-only; \
                  /image/bin/busybox true || echo not-executable";
    let mut picture = shell_pod("picture", script);
    let mounts = json!([{"name": "data", "mountPath": "/image"},
        {"name": "data", "mountPath": "/bin-of-it", "subPath": "bin"}]);
    let image = json!({"image": {"reference": "busybox", "pullPolicy": "IfNotPresent"}});
    volume(&mut picture, "data", image, &mounts);

    let mut strict = shell_pod("strict", "id -G");
    strict["spec"]["securityContext"] = json!({"runAsUser": 1000, "runAsGroup": 3000, "fsGroup": 2000,
        "supplementalGroups": [4000], "supplementalGroupsPolicy": "Strict"});

    let mut greedy = shell_pod("greedy", "dd if=/dev/zero of=/data/file bs=1M count=4; sleep 3600");
    let limited = json!({"emptyDir": {"sizeLimit": "1Mi"}});
    volume(&mut greedy, "data", limited, &json!([{"name": "data", "mountPath": "/data"}]));
    let mut writer = shell_pod("writer", "dd if=/dev/zero of=/file bs=1M count=4; sleep 3600");
    writer["spec"]["containers"][0]["resources"] = json!({"limits": {"ephemeral-storage": "1Mi"}});
    let mut forbidden = pod("forbidden", &[idle("main")]);
    forbidden["spec"]["securityContext"]["sysctls"] = json!([{"name": "kernel.msgmax", "value": "65536"}]);
    let class = |name: &str, handler: &str| json!({"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": name}, "handler": handler});
    let classed = |name: &str, class: &str| {
        let mut manifest = shell_pod(name, "echo ran");
        manifest["spec"]["runtimeClassName"] = json!(class);
        manifest
    };
    carob.apply(&list(&[class("own", "carob"), class("foreign", "other")]));

    let all = [full, other, long, ruled, from_file, expression, picture, strict, greedy, writer, forbidden];
    let warnings = carob.apply(&list(&all));
    carob.apply(&list(&[classed("own", "own"), classed("foreign", "foreign")]));
    assert!(!warnings.contains("not carried out"), "{warnings}");
    let printed = |name: &str| {
        carob.wait_phase(name, "Succeeded");
        carob.kubectl(&["logs", name, "-c", "main"])
    };
    let address = carob.jsonpath("pod/full", ".status.podIP");
    let name = "web.sub.default.svc.cluster.local";
    let text = printed("full");
    assert!(text.starts_with(&format!("{name}\n{name}\n")) && text.ends_with(&format!("\t{name}\tweb\n")), "{text}");
    assert!(address.is_empty() || text.contains(&address), "{text}");
    assert_eq!(printed("other"), "other.example.com\n");
    carob.wait_event("long", "is too long (64 characters is the max");
    carob.wait_phase("ruled", "Failed");
    let ruled = carob.get(&["pod", "ruled"])["status"]["containerStatuses"][0].clone();
    assert_eq!((&ruled["restartCount"], &ruled["state"]["terminated"]["exitCode"]), (&json!(1), &json!(3)), "{ruled}");
    assert_eq!(ruled["lastState"]["terminated"]["exitCode"], 42, "{ruled}");
    assert_eq!(printed("from-file"), "a b||\n");
    assert_eq!(printed("expression"), "hi\n");
    assert_eq!(printed("strict"), "3000 2000 4000\n");
    assert_eq!(printed("own"), "ran\n");
    carob.wait_event("foreign", "no runtime for \"other\" is configured");
    let refused = |name: &str| {
        carob.wait_phase(name, "Failed");
        let status = carob.get(&["pod", name])["status"].clone();
        (status["reason"].as_str().unwrap_or("").to_owned(), status["message"].as_str().unwrap_or("").to_owned())
    };
    let (reason, message) = refused("forbidden");
    assert_eq!(reason, "SysctlForbidden");
    assert_eq!(message, "Pod was rejected: forbidden sysctl: \"kernel.msgmax\" not allowlisted");
    for (name, text) in [
        ("greedy", "Usage of EmptyDir volume \"data\" exceeds the limit \"1Mi\". "),
        ("writer", "Pod ephemeral local storage usage exceeds the total limit of containers 1Mi. "),
    ] {
        assert_eq!(refused(name), ("Evicted".to_owned(), text.to_owned()));
        let path = ".status.conditions[?(@.type==\"DisruptionTarget\")].reason";
        assert_eq!(carob.jsonpath(&format!("pod/{name}"), path), "TerminationByKubelet");
    }
    let text = printed("picture");
    for expected in ["/image/bin/busybox", "/bin-of-it/busybox", "read-only", "not-executable"] {
        assert!(text.lines().any(|line| line == expected), "{expected} is missing: {text}");
    }
}

/// Mounts for this test and what it starts alone: no other process sees them, and they go with it.
fn own_mounts() {
    use nix::mount::{MsFlags, mount};
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).expect("root may");
    let flags = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, flags, None::<&str>).expect("nothing goes out");
}

fn run(program: &str, arguments: &[&str]) {
    let status = Command::new(program).args(arguments).status().expect("it starts");
    assert!(status.success(), "{program} {arguments:?}: {status}");
}

#[test]
fn mounts_propagate_as_far_as_the_spec_says() {
    own_mounts();
    let place = tempfile::tempdir().expect("a directory");
    let host = place.path().join("host");
    fs::create_dir(&host).expect("made");
    let shown = host.to_str().expect("UTF-8");
    run("mount", &["-t", "tmpfs", "tmpfs", shown]);
    run("mount", &["--make-shared", shown]);
    for name in ["before", "after", "from-pod"] {
        fs::create_dir(host.join(name)).expect("made");
    }
    run("mount", &["-t", "tmpfs", "tmpfs", &format!("{shown}/before")]);

    let carob = Carob::start(&["busybox", "tools"]);
    let mounted = |name: &str, mount: Value, container: Value| {
        let mut manifest = pod(name, &[container]);
        let mut mount = mount;
        (mount["name"], mount["mountPath"]) = (json!("data"), json!("/data"));
        volume(&mut manifest, "data", json!({"hostPath": {"path": shown}}), &json!([mount]));
        manifest
    };
    let mut privileged = shell("main", "mount -t tmpfs tmpfs /data/from-pod && touch /data/from-pod/file; sleep 3600");
    privileged["securityContext"] = json!({"privileged": true});
    let warnings = carob.apply(&list(&[
        mounted("none", json!({}), idle("main")),
        mounted("follows", json!({"mountPropagation": "HostToContainer"}), idle("main")),
        mounted("both", json!({"mountPropagation": "Bidirectional"}), privileged),
        mounted("shallow", json!({"readOnly": true}), idle("main")),
        mounted("deep", json!({"readOnly": true, "recursiveReadOnly": "Enabled"}), idle("main")),
    ]));
    assert!(!warnings.contains("not carried out"), "{warnings}");
    for name in ["none", "follows", "both", "shallow", "deep"] {
        carob.wait(&format!("pod/{name}"), "condition=Ready");
    }
    eventually("what the pod mounted is the host's", || host.join("from-pod/file").exists());
    run("mount", &["-t", "tmpfs", "tmpfs", &format!("{shown}/after")]);
    fs::write(host.join("after/file"), "x").expect("written");
    let sees = |pod: &str, path: &str| carob.run(&["exec", pod, "--", "test", "-e", path]).status.success();
    eventually("it follows the host", || sees("follows", "/data/after/file"));
    assert!(sees("follows", "/data/from-pod/file"), "one pod's mount on the host is another's to follow");
    assert!(!sees("none", "/data/after/file") && sees("none", "/data/before"));
    let writes = |pod: &str| carob.run(&["exec", pod, "--", "touch", "/data/before/x"]).status.success();
    assert!(writes("shallow"), "what is mounted below a read-only mount isn't part of it");
    assert!(!writes("deep"), "unless it is asked for");
    let path = ".status.containerStatuses[0].volumeMounts[0].recursiveReadOnly";
    assert_eq!(carob.jsonpath("pod/deep", path), "Enabled");
    assert_eq!(carob.jsonpath("pod/shallow", path), "Disabled");
}

#[test]
fn what_an_owner_adds_to_a_nodes_capacity_is_allocatable_until_it_is_taken_away() {
    let carob = Carob::start(&["busybox"]);
    let node = carob.jsonpath("nodes", ".items[0].metadata.name");
    let advertise = |amount: Value| {
        let patch = json!({"status": {"capacity": {"example.com/dongle": amount}}}).to_string();
        carob.kubectl(&["patch", "node", &node, "--subresource=status", "--type=merge", "-p", &patch]);
    };
    let mut wanting = shell_pod("wanting", "exec sleep 1000");
    wanting["spec"]["containers"][0]["resources"] = json!({"limits": {"example.com/dongle": "2"}});
    carob.apply(&wanting.to_string());
    carob.wait_event("wanting", "Insufficient example.com/dongle");
    advertise(json!("2"));
    carob.wait_phase("wanting", "Running");
    assert_eq!(carob.jsonpath(&format!("node/{node}"), ".status.allocatable.example\\.com/dongle"), "2");
    advertise(Value::Null);
    let allocatable = format!("node/{node}");
    eventually("nothing of it is left", || {
        !carob.jsonpath(&allocatable, ".status.allocatable").contains("example.com/dongle")
    });
    carob.kubectl(&["wait", "--for=condition=Ready", "pod/wanting", "--timeout=5s"]);
}
