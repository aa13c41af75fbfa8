//! `hostUsers: false`: a pod's root is nobody on the machine, and finds everything as its own nonetheless.

use std::fs;
use std::os::unix::fs::MetadataExt;

use carob_tests::pods::{idle, list, pod, shell, shell_pod};
use carob_tests::{Carob, eventually, text};
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use serde_json::{Value, json};

/// Where the machine's users that pods get begin.
const FIRST: u32 = 0x3000_0000;

fn own(mut manifest: Value) -> Value {
    manifest["spec"]["hostUsers"] = json!(false);
    manifest
}

/// The machine's number of a container's root, as it says itself.
fn root_of(carob: &Carob, pod: &str) -> u32 {
    let map = carob.kubectl(&["exec", pod, "--", "cat", "/proc/self/uid_map"]);
    let numbers: Vec<u32> = map.split_whitespace().map(|number| number.parse().expect("a number")).collect();
    assert_eq!((numbers[0], numbers[2]), (0, if numbers[1] == 0 { u32::MAX } else { 65536 }), "{map}");
    numbers[1]
}

#[test]
fn pods_have_users_of_their_own_unless_they_need_the_machines() {
    let mut carob = Carob::start(&["tools"]);
    let plain = |name: &str| pod(name, &[idle("main")]);
    let mut says = plain("says");
    says["spec"]["hostUsers"] = json!(true);
    let mut needs = plain("needs");
    needs["spec"]["volumes"] = json!([{"name": "v", "hostPath": {"path": "/tmp"}}]);
    carob.apply(&list(&[plain("plain"), says, needs]));
    let ready = |pod: &str| {
        vec!["wait".to_owned(), "--for=condition=Ready".to_owned(), format!("pod/{pod}"), "--timeout=60s".to_owned()]
    };
    let wait = |carob: &Carob, pod: &str| {
        carob.kubectl(&ready(pod).iter().map(String::as_str).collect::<Vec<_>>());
    };
    for pod in ["plain", "says", "needs"] {
        wait(&carob, pod);
    }
    assert!(root_of(&carob, "plain") >= FIRST);
    assert_eq!((root_of(&carob, "says"), root_of(&carob, "needs")), (0, 0));
    assert_eq!(carob.jsonpath("pod/plain", ".spec.hostUsers"), "", "what wasn't said isn't said for it");

    carob.kill();
    let config = carob.path("config.yaml");
    fs::write(&config, "node: {userNamespaces: whenAsked}").expect("the configuration");
    carob.up(&["--config", &config.to_string_lossy()]);
    carob.apply(&list(&[plain("unasked"), own(plain("asked"))]));
    for pod in ["unasked", "asked"] {
        wait(&carob, pod);
    }
    assert_eq!(root_of(&carob, "unasked"), 0);
    assert!(root_of(&carob, "asked") >= FIRST && root_of(&carob, "plain") >= FIRST);
}

/// What is tried as the pod's root, and what it says.
const PROBES: [(&str, &str); 13] = [
    ("id -u; id -g", "0 0"),
    ("stat -c %u:%g / /bin/busybox /dev /dev/shm /tmp-of-root | sort -u", "0:0"),
    ("stat -c %u:%g /data /config/key /secret/key /host /claim/. /etc/hosts /image/bin/busybox | sort -u", "0:0"),
    ("cat /config/key /secret/key", "valuevalue"),
    (
        "touch /data/file /memory/file /host/file /claim/file /written && stat -c %u /data/file /host/file /written | sort -u",
        "0",
    ),
    ("chown 1000:1000 /written && su -s /bin/sh -c 'stat -c %u /written' worker", "1000"),
    ("chown 65535 /written && stat -c %u /written", "65535"),
    ("chown 65536 /written 2>/dev/null || echo refused", "refused"),
    ("echo out > /dev/stdout", "out"),
    ("su -s /bin/sh -c 'id -u' worker", "1000"),
    // What the machine lets its root do, and a pod's not.
    ("mount -t tmpfs none /data 2>/dev/null || echo refused", "refused"),
    ("hostname other 2>/dev/null || echo refused", "refused"),
    ("mknod /data/null c 1 3 2>/dev/null || echo refused", "refused"),
];

#[test]
fn a_pod_with_users_of_its_own_is_root_in_itself_and_nobody_outside() {
    let mut carob = Carob::start(&["busybox", "tools"]);
    let host = carob.data_dir().with_file_name("of-the-host");
    fs::create_dir(&host).expect("a directory");
    let script = "mkdir /tmp-of-root; echo worker:x:1000:1000::/:/bin/sh >> /etc/passwd; exec sleep 3600";
    let mut full = own(shell_pod("full", script));
    full["spec"]["volumes"] = json!([
        {"name": "data", "emptyDir": {}},
        {"name": "memory", "emptyDir": {"medium": "Memory"}},
        {"name": "config", "configMap": {"name": "given"}},
        {"name": "secret", "secret": {"secretName": "given"}},
        {"name": "host", "hostPath": {"path": host}},
        {"name": "claim", "persistentVolumeClaim": {"claimName": "kept"}},
        {"name": "image", "image": {"reference": "busybox", "pullPolicy": "IfNotPresent"}},
    ]);
    let names = ["data", "memory", "config", "secret", "host", "claim", "image"];
    full["spec"]["containers"][0]["volumeMounts"] =
        names.iter().map(|name| json!({"name": name, "mountPath": format!("/{name}")})).collect();
    let mut shared = own(pod("shared", &[idle("main"), shell("other", "ps -o pid,user; sleep 3600")]));
    shared["spec"]["shareProcessNamespace"] = json!(true);
    shared["spec"]["securityContext"] = json!({"sysctls": [{"name": "kernel.shm_rmid_forced", "value": "1"}],
        "runAsUser": 1000, "fsGroup": 2000});
    shared["spec"]["volumes"] = json!([{"name": "data", "emptyDir": {}}]);
    shared["spec"]["containers"][1]["volumeMounts"] = json!([{"name": "data", "mountPath": "/data"}]);
    let script = "mkdir /m; mount -t tmpfs none /m && echo mounted; umount /proc/keys 2>/dev/null || echo locked; \
                  hostname other && hostname; sleep 3600";
    let mut able = own(shell_pod("able", script));
    able["spec"]["containers"][0]["securityContext"] = json!({"capabilities": {"add": ["SYS_ADMIN"]}});
    let mut beyond = own(shell_pod("beyond", "true"));
    beyond["spec"]["securityContext"] = json!({"runAsUser": 70_000});
    let settings = |kind: &str, data: &str| json!({"apiVersion": "v1", "kind": kind, "metadata": {"name": "given"}, data: {"key": "value"}});
    let claim = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "kept"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}}});
    let settings = [settings("ConfigMap", "data"), settings("Secret", "stringData"), claim];
    carob.apply(&list(&[&settings[..], &[full, shared, able, beyond]].concat()));
    for pod in ["full", "shared", "able"] {
        carob.kubectl(&["wait", "--for=condition=Ready", &format!("pod/{pod}"), "--timeout=60s"]);
    }

    for (probe, answer) in PROBES {
        let output = carob.run(&["exec", "full", "--", "sh", "-c", probe]);
        let said = text(&output).split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(said, answer, "{probe}");
    }
    let mut roots: Vec<u32> = ["full", "shared", "able"].iter().map(|pod| root_of(&carob, pod)).collect();
    assert!(roots.iter().all(|root| *root >= FIRST), "{roots:?}");
    let full_root = roots[0];
    roots.sort_unstable();
    assert!(roots.windows(2).all(|pair| pair[1] - pair[0] >= 65536), "each has users of its own: {roots:?}");

    // On the machine's disk: what is kept belongs to root, so that another pod can have it; what goes with the pod, doesn't.
    let owner = |path: &std::path::Path| fs::metadata(path).expect("it is there").uid();
    assert_eq!(owner(&host.join("file")), 0);
    let uid = carob.jsonpath("pod/full", ".metadata.uid");
    let upper = carob.data_dir().join("pods").join(&uid).join("containers/main/0/rootfs/upper");
    assert_eq!(owner(&upper.join("tmp-of-root")), full_root);

    carob.until(&["logs", "shared", "-c", "other"], |seen| seen.contains("65535") && seen.contains("1000"));
    let script = "id; cat /proc/sys/kernel/shm_rmid_forced; touch /data/x && stat -c %g /data/x";
    let said = carob.kubectl(&["exec", "shared", "-c", "other", "--", "sh", "-c", script]);
    assert!(said.starts_with("uid=1000") && said.ends_with("1\n2000\n"), "{said}");
    carob.until(&["logs", "able"], |seen| seen == "mounted\nlocked\nother\n");
    let said = carob.until(&["get", "pod", "beyond", "-o", "jsonpath={..message}"], |said| said.contains("70000"));
    assert!(said.contains("not among the pod's own users"), "{said}");

    let mut wrong = own(pod("wrong", &[idle("main")]));
    wrong["spec"]["hostNetwork"] = json!(true);
    let refused = carob.pipe(&["apply", "-f", "-"], &wrong.to_string());
    assert!(text(&refused).contains("spec.hostNetwork: Forbidden: when `hostUsers` is false"), "{}", text(&refused));

    // Whoever comes after a crash gets none of theirs.
    carob.kill();
    carob.up(&[]);
    let later: Vec<String> = (0..3).map(|number| format!("later-{number}")).collect();
    carob.apply(&list(&later.iter().map(|name| own(pod(name, &[idle("main")]))).collect::<Vec<_>>()));
    for name in &later {
        carob.kubectl(&["wait", "--for=condition=Ready", &format!("pod/{name}"), "--timeout=60s"]);
        let root = root_of(&carob, name);
        assert!(!roots.contains(&root), "{root} was another's: {roots:?}");
        roots.push(root);
    }
    assert_eq!(root_of(&carob, "full"), full_root);
}

#[test]
fn a_volume_is_mounted_inside_another_one_whoever_the_users_are() {
    let carob = Carob::start(&["busybox"]);
    let script = "find /data /memory -exec stat -c '%n %u:%g %F' {} + | grep -v config/ | sort; cat /data/config/key /data/one/key; pwd; sleep 3600";
    let nested = |name: &str, host_users: bool| {
        let mut pod = shell_pod(name, script);
        let spec = &mut pod["spec"];
        spec["hostUsers"] = json!(host_users);
        spec["volumes"] = json!([
            {"name": "data", "emptyDir": {}},
            {"name": "deep", "emptyDir": {}},
            {"name": "memory", "emptyDir": {"medium": "Memory"}},
            {"name": "config", "configMap": {"name": "given"}},
        ]);
        spec["containers"][0]["workingDir"] = json!("/data/work/here");
        spec["containers"][0]["volumeMounts"] = json!([
            {"name": "deep", "mountPath": "/data/a/b"},
            {"name": "config", "mountPath": "/data/config"},
            {"name": "config", "mountPath": "/data/one/key", "subPath": "key"},
            {"name": "deep", "mountPath": "/memory/x"},
            {"name": "memory", "mountPath": "/memory"},
            {"name": "data", "mountPath": "/data"},
        ]);
        pod
    };
    let given =
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "given"}, "data": {"key": "value\n"}});
    carob.apply(&list(&[given, nested("own", false), nested("hosts", true)]));
    let all = |pod: &str| carob.until(&["logs", pod], |said| said.ends_with("/data/work/here\n"));
    let (own, hosts) = (all("own"), all("hosts"));
    assert_eq!(own, hosts);
    assert!(own.ends_with("value\nvalue\n/data/work/here\n"), "{own}");
    for (path, kind) in [
        ("/data/a/b", "directory"),
        ("/data/work", "directory"),
        ("/data/one/key", "regular file"),
        ("/memory/x", "directory"),
    ] {
        assert!(own.contains(&format!("{path} 0:0 {kind}\n")), "{path}: {own}");
    }
}

/// Whether some spawner of the machine has claimed these users, as the kernel says.
fn claimed(root: u32) -> bool {
    let file = fs::OpenOptions::new().write(true).open("/run/carob.users").expect("claims are kept there");
    let write = libc::F_WRLCK.try_into().expect("a small number");
    let mut byte = libc::flock { l_type: write, l_whence: 0, l_start: (root / 65536).into(), l_len: 1, l_pid: 0 };
    fcntl(&file, FcntlArg::F_OFD_GETLK(&mut byte)).expect("the kernel says");
    i32::from(byte.l_type) != libc::F_UNLCK
}

#[test]
fn a_pods_users_are_claimed_on_the_machine_while_it_is_there_whatever_becomes_of_the_gateway() {
    let mut carob = Carob::start(&["tools"]);
    carob.start_pod(&own(pod("own", &[idle("main")])).to_string(), "own");
    let root = root_of(&carob, "own");
    assert!(claimed(root));
    carob.kill();
    assert!(claimed(root));
    carob.up(&[]);
    carob.kubectl(&["delete", "pod", "own", "--grace-period=0"]);
    eventually("they are anybody's", || !claimed(root));
}
