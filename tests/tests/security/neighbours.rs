//! Pod against pod: nothing of one can be found from another by name, number or key, and neither can the machine's.

use carob_tests::Carob;
use carob_tests::pods::{list, pod};
use serde_json::{Value, json};

use crate::bundle::{Bundle, reached};
use crate::escapes::python;

const VICTIM: &str = include_str!("victim.py");
const PROBER: &str = include_str!("prober.py");

/// What only another user namespace parts: the kernel keeps one keyring per user (keyrings(7)), whatever the container,
/// and to reach it takes a call that the default filter refuses.
const OF_THE_USER: [&str; 3] = ["user keyring", "user-session keyring", "names of keys"];

/// The machine's own files, and the spawner's socket, by every path that could lead to them.
fn machine_paths(carob: &Carob) -> Vec<String> {
    let data = carob.data_dir();
    let inside = [
        "sandboxes/spawner.sock",
        "instance.json",
        "pki/ca.key",
        "admin.kubeconfig",
        "store.redb",
        "ledger",
        "pods",
        "logs",
    ];
    let all = inside.map(|name| data.join(name).to_string_lossy().into_owned());
    for path in &all {
        assert!(std::path::Path::new(path).exists(), "{path}: what isn't there can't be reached");
    }
    all.iter()
        .flat_map(|path| [path.clone(), format!("/proc/1/root{path}"), format!("/proc/self/root{path}")])
        .collect()
}

fn hardened(mut manifest: Value, kind: &str) -> Value {
    manifest["spec"]["hostUsers"] = json!(kind != "own-users");
    match kind {
        "user" => manifest["spec"]["securityContext"] = json!({"runAsUser": 1000, "runAsGroup": 1000}),
        "unfiltered" | "own-users" => {
            manifest["spec"]["securityContext"] = json!({"seccompProfile": {"type": "Unconfined"}});
        }
        _ => {}
    }
    manifest
}

#[test]
fn a_pod_finds_nothing_of_another_ones_nor_of_the_machines() {
    let carob = Carob::start(&["python"]);
    carob.kubectl(&["create", "namespace", "tenant"]);
    carob.kubectl(&["create", "secret", "generic", "s", "-n", "tenant", "--from-literal=k=v"]);
    let kinds = ["root", "user", "unfiltered", "own-users"];
    let victims: Vec<Value> = kinds
        .iter()
        .map(|kind| hardened(pod(&format!("victim-{kind}"), &[python("main", VICTIM, &[])]), kind))
        .collect();
    carob.apply(&list(&victims));
    let mut pids = vec![carob.pid(), std::process::id()];
    for kind in kinds {
        let name = format!("victim-{kind}");
        let printed = carob.until(&["logs", &name], |seen| seen.contains("ready") || seen.contains("Traceback"));
        assert!(printed.contains("ready"), "{kind}: {printed}");
        let keys =
            if kind.starts_with("un") || kind.starts_with("own") { "keys session user user-session" } else { "keys " };
        assert!(printed.contains(keys), "{kind} has what is looked for: {printed}");
        pids.push(process_of(&carob.jsonpath(&format!("pod/{name}"), ".metadata.uid")));
    }
    let api = [
        "/api/v1/namespaces/tenant/secrets/s",
        "/api/v1/namespaces/tenant/secrets",
        "/api/v1/secrets",
        "/api/v1/namespaces/default/pods/victim-root",
        "/api/v1/namespaces/default/pods/victim-root/log",
        "/api/v1/nodes",
    ];
    let plan = json!({"pids": pids, "paths": machine_paths(&carob), "api": api}).to_string();
    let probers: Vec<Value> = kinds
        .iter()
        .map(|kind| hardened(pod(&format!("prober-{kind}"), &[python("main", PROBER, &[("PLAN", &plan)])]), kind))
        .collect();
    carob.apply(&list(&probers));
    for kind in kinds {
        let name = format!("prober-{kind}");
        let printed = carob.until(&["logs", &name], |seen| seen.contains("done\n") || seen.contains("Traceback"));
        assert!(printed.contains("done\n"), "{kind}: {printed}");
        assert!(api.iter().all(|path| printed.contains(&format!("api {path} 403"))), "{kind}: {printed}");
        let mut found = reached(&printed);
        if kind == "unfiltered" {
            for expected in OF_THE_USER {
                found.remove(expected);
            }
        }
        assert!(found.is_empty(), "{kind} reached {found:?} in {printed}");
    }
    for kind in kinds {
        assert_eq!(carob.jsonpath(&format!("pod/victim-{kind}"), ".status.phase"), "Running");
    }
}

/// The number that a container of this pod has on the machine.
fn process_of(uid: &str) -> u32 {
    let mut found = None;
    carob_tests::eventually("the victim's process is there", || {
        found = std::fs::read_dir("/proc").expect("processes").flatten().find_map(|entry| {
            let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
            std::fs::read_to_string(entry.path().join("cgroup")).is_ok_and(|text| text.contains(uid)).then_some(pid)
        });
        found.is_some()
    });
    found.expect("it is there")
}

/// The same two programs where nothing is between them.
#[test]
fn the_probes_of_pods_find_everything_where_nothing_keeps_them() {
    let bundle = Bundle::of("python");
    // Namespaces that they share, as pods on the machine's would, and that go with them.
    let own = bundle.open(&["sh", "-c", "ip link set lo up && exec python3 -c \"$VICTIM\""], &[("VICTIM", VICTIM)]);
    let shared = ["ipc", "network"];
    let with = |mut config: Value, path: &dyn Fn(&str) -> Value| {
        let namespaces = config["linux"]["namespaces"].as_array_mut().expect("a list");
        namespaces.extend(shared.map(path));
        config
    };
    let mut victim = bundle.start("victim", &with(own, &|kind| json!({"type": kind})), 0);
    let printed = victim.until("ready");
    assert!(printed.contains("keys session user user-session"), "{printed}");
    let plan = json!({"pids": [std::process::id()], "paths": ["/tmp/victim"]}).to_string();
    let config = bundle.open(&["python3", "-c", PROBER], &[("PLAN", &plan)]);
    let pid = victim.pid();
    let path = |kind: &str| json!({"type": kind, "path": format!("/proc/{pid}/ns/{}", &kind[..3])});
    let config = with(config, &path);
    let printed = bundle.start("prober", &config, 0).until("done\n");
    let mut missed: Vec<&str> = printed.lines().filter(|line| !line.ends_with(" OPEN") && *line != "done").collect();
    // runc gives each container a session keyring, as Carob does.
    missed.retain(|line| !line.starts_with("session keyring"));
    assert!(missed.is_empty(), "{missed:?} in {printed}");
}
