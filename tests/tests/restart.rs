//! The gateway is killed the hard way and started again: pods don't notice, and nothing is lost, doubled or left behind.

use std::collections::BTreeSet;

use carob_tests::machine::Traces;
use carob_tests::{Carob, eventually};
use serde_json::Value;

const COUNTER: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: counter}
spec:
  replicas: 3
  selector: {matchLabels: {app: counter}}
  template:
    metadata: {labels: {app: counter}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - name: main
        image: busybox
        imagePullPolicy: IfNotPresent
        command: [sh, -c, 'i=0; while true; do echo line $i; i=$((i+1)); sleep 0.1; done']
"#;

/// A pod that ends with code 7 as soon as the file is there.
const ENDS_WHEN_TOLD: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: told}
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 0
  volumes: [{name: host, hostPath: {path: HOSTPATH, type: Directory}}]
  containers:
  - name: main
    image: busybox
    imagePullPolicy: IfNotPresent
    command: [sh, -c, 'while [ ! -e /host/end ]; do sleep 0.05; done; exit 7']
    volumeMounts: [{name: host, mountPath: /host}]
"#;

fn container_ids(carob: &Carob, selector: &str) -> BTreeSet<String> {
    let pods = carob.get(&["pods", "-l", selector]);
    let pods = pods["items"].as_array().expect("items");
    pods.iter()
        .map(|pod| pod["status"]["containerStatuses"][0]["containerID"].as_str().unwrap_or("none").to_owned())
        .collect()
}

/// Containers of this Carob that the kernel knows of.
fn running_containers(carob: &Carob) -> BTreeSet<String> {
    let traces = Traces::of(&carob.instance(), &carob.data_dir());
    let id = |path: &String| path.rsplit('/').next().filter(|name| name.len() == 64).map(str::to_owned);
    traces.cgroups.iter().filter_map(id).collect()
}

#[test]
fn pods_go_on_while_the_gateway_is_dead_and_an_exit_in_between_keeps_its_code() {
    let mut carob = Carob::start(&["busybox"]);
    carob.apply(COUNTER);
    carob.kubectl(&["rollout", "status", "deployment/counter", "--timeout=60s"]);
    let host = carob.path("host");
    std::fs::create_dir(&host).unwrap();
    carob.start_pod(&ENDS_WHEN_TOLD.replace("HOSTPATH", &host.to_string_lossy()), "told");
    let before = container_ids(&carob, "app=counter");
    assert_eq!(before.len(), 3);
    let told: String = carob.jsonpath("pod/told", ".status.containerStatuses[0].containerID");
    let told = told.trim_start_matches("carob://").to_owned();

    carob.kill();
    std::fs::write(host.join("end"), "").unwrap();
    let has_ended = || {
        // Version 1 or version 2.
        let root = |path: &str| std::path::Path::new(path).join(format!("carob-{}", carob.instance()));
        let mut pending = vec![root("/sys/fs/cgroup/pids"), root("/sys/fs/cgroup")];
        while let Some(directory) = pending.pop() {
            if directory.ends_with(&told) {
                return std::fs::read_to_string(directory.join("cgroup.procs")).is_ok_and(|text| text.is_empty());
            }
            pending.extend(
                std::fs::read_dir(directory)
                    .into_iter()
                    .flatten()
                    .flatten()
                    .map(|entry| entry.path())
                    .filter(|path| path.is_dir()),
            );
        }
        true
    };
    eventually("the told container has ended without a gateway", has_ended);
    carob.up(&[]);

    carob.wait("pod/told", "jsonpath={.status.phase}=Failed");
    assert_eq!(carob.jsonpath("pod/told", ".status.containerStatuses[0].state.terminated.exitCode"), "7");
    carob.kubectl(&["rollout", "status", "deployment/counter", "--timeout=60s"]);
    assert_eq!(container_ids(&carob, "app=counter"), before, "the same containers");
    let mut expected: BTreeSet<String> = before.iter().map(|id| id.trim_start_matches("carob://").to_owned()).collect();
    eventually("no container but those", || {
        let mut running = running_containers(&carob);
        running.remove(&told);
        running == expected
    });
    expected.clear();
    let pods = carob.get(&["pods", "-l", "app=counter"]);
    for pod in pods["items"].as_array().unwrap() {
        let name = pod["metadata"]["name"].as_str().unwrap();
        assert_eq!(pod["status"]["containerStatuses"][0]["restartCount"], 0);
        assert_eq!(carob.kubectl(&["exec", name, "--", "hostname"]).trim(), name);
        let lines: Vec<u32> = carob
            .kubectl(&["logs", name])
            .lines()
            .map(|line| line.trim_start_matches("line ").parse().expect("a counted line"))
            .collect();
        let counted: Vec<u32> = (0..u32::try_from(lines.len()).unwrap()).collect();
        assert_eq!(lines, counted, "every line once, in order, also those of the dead time");
    }
}

#[test]
fn a_gateway_that_is_killed_again_and_again_under_load_starts_every_pod_once_and_leaks_nothing() {
    let mut carob = Carob::start(&["busybox"]);
    carob.apply(&COUNTER.replace("replicas: 3", "replicas: 1"));
    carob.kubectl(&["rollout", "status", "deployment/counter", "--timeout=60s"]);
    for replicas in [8, 2, 10, 4, 12] {
        carob.kubectl(&["scale", "deployment/counter", &format!("--replicas={replicas}")]);
        // Somewhere in the middle of starting and stopping pods.
        carob.kill();
        carob.up(&[]);
    }
    eventually("twelve pods are ready", || carob.jsonpath("deployment/counter", ".status.readyReplicas") == "12");
    eventually("twelve pods are there", || {
        let pods = carob.get(&["pods", "-l", "app=counter"]);
        pods["items"].as_array().is_some_and(|pods| pods.len() == 12)
    });
    let told: BTreeSet<String> =
        container_ids(&carob, "app=counter").iter().map(|id| id.trim_start_matches("carob://").to_owned()).collect();
    eventually("the kernel has just those containers", || running_containers(&carob) == told);

    carob.kubectl(&["delete", "deployment/counter", "--cascade=foreground", "--timeout=60s"]);
    eventually("no pod is left", || carob.get(&["pods"])["items"].as_array().is_some_and(Vec::is_empty));
    let pods_left = || {
        let traces = Traces::of(&carob.instance(), &carob.data_dir());
        traces.cgroups.iter().filter(|path| path.contains("/pod")).count()
    };
    eventually("no pod's cgroup is left", || pods_left() == 0);
    let directories = || std::fs::read_dir(carob.data_dir().join("pods")).map_or(0, Iterator::count);
    eventually("no pod's directory is left", || directories() == 0);
    // What waits ready is all that may be left of links: eight for pods with users of their own, two others, and the bridge.
    eventually("no link but those is left", || Traces::of(&carob.instance(), &carob.data_dir()).links.len() <= 11);

    let instance = carob.instance();
    carob.down();
    let mut left = Traces::default();
    eventually("nothing is left on the machine", || {
        left = Traces::of(&instance, &carob.data_dir());
        if !left.is_empty() {
            eprintln!("left: {left:?}");
        }
        left.is_empty()
    });
}

#[test]
fn sigterm_leaves_pods_running_and_down_stops_them() {
    let mut carob = Carob::start(&["busybox"]);
    carob.apply(COUNTER);
    carob.kubectl(&["rollout", "status", "deployment/counter", "--timeout=60s"]);
    let before = running_containers(&carob);
    assert_eq!(before.len(), 3);
    let took = carob.terminate();
    assert!(took.as_secs() < 5, "ending took {took:?}");
    assert_eq!(running_containers(&carob), before);
    let instance = carob.instance();
    carob.down();
    assert_eq!(Traces::of(&instance, &carob.data_dir()), Traces::default());
    carob.up(&[]);
    // The containers are started anew, at whatever addresses are free now, and the pods say so.
    let restarted = |pod: &Value| pod["status"]["containerStatuses"][0]["restartCount"] == 1;
    eventually("every pod has started again", || {
        let pods = carob.get(&["pods", "-l", "app=counter"]);
        pods["items"].as_array().is_some_and(|pods| pods.len() == 3 && pods.iter().all(restarted))
    });
    carob.kubectl(&["rollout", "status", "deployment/counter", "--timeout=60s"]);
    for pod in carob.get(&["pods", "-l", "app=counter"])["items"].as_array().unwrap() {
        let (name, address) = (&pod["metadata"]["name"], &pod["status"]["podIP"]);
        assert_eq!(pod["status"]["podIPs"], serde_json::json!([{ "ip": address }]));
        let said = carob.kubectl(&["exec", name.as_str().unwrap(), "--", "hostname", "-i"]);
        assert_eq!(Some(said.trim()), address.as_str());
    }
}

#[test]
fn two_carobs_run_side_by_side_and_one_does_not_touch_the_other() {
    let mut first = Carob::start(&["busybox"]);
    let second = Carob::start(&["busybox"]);
    for carob in [&first, &second] {
        carob.apply(COUNTER);
        carob.kubectl(&["rollout", "status", "deployment/counter", "--timeout=60s"]);
    }
    let ids = container_ids(&second, "app=counter");
    first.down();
    assert_eq!(running_containers(&second).len(), 3);
    assert_eq!(container_ids(&second, "app=counter"), ids);
    let pods = second.get(&["pods"]);
    let name = pods["items"][0]["metadata"]["name"].as_str().unwrap();
    assert_eq!(second.kubectl(&["exec", name, "--", "hostname"]).trim(), name);
}

#[test]
fn a_second_gateway_on_the_same_data_directory_is_refused() {
    let carob = Carob::start(&[]);
    let output = carob.carob(&["up", "--data-dir", &carob.data_dir().to_string_lossy(), "--listen", "127.0.0.1:0"]);
    assert!(!output.status.success());
    let text = carob_tests::text(&output);
    assert!(text.contains(&format!("another carob uses this data directory (process {})", carob.pid())), "{text}");
}

#[test]
fn an_image_that_was_changed_while_the_gateway_was_dead_is_noticed() {
    let mut carob = Carob::start(&["busybox", "tools"]);
    carob.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: changing}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - {name: main, image: busybox, imagePullPolicy: IfNotPresent, command: [sleep, '3600']}
  - {name: other, image: busybox, imagePullPolicy: IfNotPresent, command: [sleep, '3600']}
"#,
    );
    carob.wait("pod/changing", "condition=Ready");
    // Without a worker the API takes the change and nobody carries it out.
    carob.kill();
    carob.up(&["--workers", "0"]);
    carob.kubectl(&["set", "image", "pod/changing", "main=tools"]);
    carob.kill();
    carob.up(&[]);
    let field = |name: &str, field: &str| format!("{{.status.containerStatuses[?(@.name=='{name}')].{field}}}");
    let path = format!("jsonpath={}", field("main", "imageID"));
    carob.until(&["get", "pod", "changing", "-o", &path], |seen| seen.contains("tools"));
    carob.wait("pod/changing", "condition=Ready");
    for (name, restarts) in [("main", "1"), ("other", "0")] {
        let path = format!("jsonpath={}", field(name, "restartCount"));
        assert_eq!(carob.kubectl(&["get", "pod", "changing", "-o", &path]), restarts, "{name}");
    }
    carob.wait_event("changing", "Container main definition changed, will be restarted");
}

#[test]
fn down_does_not_lose_the_last_usage_to_a_ledger_that_cannot_be_written_nor_wait_for_it_for_ever() {
    let mut carob = Carob::start(&["busybox"]);
    for name in ["one", "two"] {
        carob.apply(&carob_tests::pods::shell_pod(name, "sleep 3600").to_string());
        carob.wait(&format!("pod/{name}"), "condition=Ready");
    }
    carob.terminate();
    let instance = carob.instance();
    let data_dir = carob.data_dir();
    // In a mount namespace of its own the ledger is read-only.
    let script =
        "mount --bind \"$1/ledger\" \"$1/ledger\" && mount -o remount,bind,ro \"$1/ledger\" && shift && exec \"$@\"";
    let refused = std::process::Command::new("unshare")
        .args(["--mount", "sh", "-c", script, "sh"])
        .arg(&data_dir)
        .arg(carob_tests::binary())
        .args(["down", "--grace", "0", "--data-dir"])
        .arg(&data_dir)
        .output()
        .expect("unshare (package util-linux)");
    let said = carob_tests::text(&refused);
    assert!(!refused.status.success() && said.contains("cannot be written"), "{said}");
    assert!(said.contains("run carob down again") && said.contains("--force"), "{said}");
    let left = Traces::of(&instance, &data_dir).processes;
    assert!(!left.iter().any(|process| process.contains("sleep 3600")), "they are stopped nevertheless: {left:?}");
    carob.down();
    assert_eq!(Traces::of(&instance, &data_dir), Traces::default());
    carob.up(&["--workers", "0"]);
    let bill = carob.bill(&["--group-by", "pod"]);
    assert_eq!(bill["rows"].as_array().expect("rows").len(), 2, "{bill}");
}

/// The process that makes this Carob's containers.
fn spawner(carob: &Carob) -> Option<i32> {
    let dir = carob.data_dir().join("sandboxes");
    let processes = std::fs::read_dir("/proc").expect("procfs").flatten();
    let mut ids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    ids.find(|pid| {
        let read = |file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
        read("comm").trim() == "carob-spawner"
            && read("cmdline").split('\0').any(|word| dir == std::path::Path::new(word))
    })
}

#[test]
fn when_the_spawner_dies_carob_begins_anew_and_starts_its_containers_again() {
    let carob = Carob::start(&["busybox"]);
    carob.apply(COUNTER);
    carob.kubectl(&["rollout", "status", "deployment/counter", "--timeout=60s"]);
    let before = container_ids(&carob, "app=counter");
    let (old, own) = (spawner(&carob).expect("a spawner"), carob.pid());
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(old), nix::sys::signal::Signal::SIGKILL).expect("killed");
    eventually("another spawner is there", || spawner(&carob).is_some_and(|new| new != old));
    eventually("all run again", || {
        let ready = ["get", "deployment", "counter", "-o", "jsonpath={.status.readyReplicas}"];
        carob.run(&ready).stdout == b"3" && container_ids(&carob, "app=counter").is_disjoint(&before)
    });
    assert_eq!(carob.pid(), own, "the process is the same, for whoever watches over it");
    assert!(carob.log().contains("the spawner has ended"), "it says why");
    assert_eq!(running_containers(&carob), ids_of(&container_ids(&carob, "app=counter")));
}

fn ids_of(containers: &BTreeSet<String>) -> BTreeSet<String> {
    containers.iter().map(|id| id.trim_start_matches("carob://").to_owned()).collect()
}
