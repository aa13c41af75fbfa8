//! What a worker on another machine may put on the bill.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use carob_tests::pods::{idle, list, pod};
use carob_tests::{Carob, Setup, bill, eventually, text};
use serde_json::{Value, json};

use crate::machines::{Machine, Worker};
use crate::{nodes, on, ready};

/// One second of a container of this pod, as a node would tell it.
fn second(container: &str, pod: (&str, &str, &str), node: &str) -> Value {
    let (namespace, name, uid) = pod;
    let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
    let start = u64::try_from(since_epoch.as_nanos()).expect("before 2554");
    let second = 1_000_000_000_u64;
    let at = |sequence: u64, at: u64, cpu: u64| json!({"next_sequence": sequence, "at_ns": at, "cpu_ns": cpu, "memory_bytes": null, "ended": false});
    json!({"container": {"containerId": container, "podUid": uid, "namespace": namespace, "pod": name, "container": "main",
            "attempt": 0, "labels": {}, "node": node, "startedAt": "2023-11-14T22:13:20Z",
            "requests": {"cpuMillis": 0, "memoryBytes": 0}},
        "before": at(0, start, 0), "after": at(1, start + second, second),
        "reading": {"sequence": 0, "start_ns": start, "end_ns": start + second, "cpu_ns": second, "memory_byte_ns": 0,
            "memory_error_byte_ns": 0}})
}

#[test]
fn a_node_bills_the_pods_that_were_bound_to_it_and_nobody_else() {
    let machine = Machine::new();
    let mut carob = Carob::start_with(&Setup { images: &["tools"], address: Some(&machine.here), ..Setup::default() });
    let near = nodes(&carob)[0].clone();
    let mut worker = Worker::new(&machine, &carob, "worker", &["tools"]);
    worker.join(&carob, "far");
    ready(&carob, 2);
    carob.apply(&list(&[
        on(&near, pod("here", &[idle("main")])),
        on("far", pod("there", &[idle("main")])),
        on("far", pod("gone", &[idle("main")])),
    ]));
    for name in ["here", "there", "gone"] {
        carob.wait(&format!("pod/{name}"), "condition=Ready");
    }
    let uid = |name: &str| carob.jsonpath(&format!("pod/{name}"), ".metadata.uid");
    let (here, there, gone) = (uid("here"), uid("there"), uid("gone"));
    let heres = carob.jsonpath("pod/here", ".status.containerStatuses[0].containerID");
    let heres = heres.rsplit('/').next().unwrap().to_owned();
    carob.kubectl(&["delete", "pod", "gone", "--grace-period=0", "--force"]);
    carob.kill();
    carob.up(&[]);

    // What the worker shows, in somebody else's hands.
    let identity: Value = serde_json::from_slice(&fs::read(worker.data().join("identity.json")).unwrap()).unwrap();
    let encoded = |value: &Value| STANDARD.encode(value.as_str().unwrap());
    let kubeconfig = carob.path("far.kubeconfig");
    let config = json!({"apiVersion": "v1", "kind": "Config", "current-context": "far",
        "clusters": [{"name": "far", "cluster": {"server": identity["gateway"],
            "certificate-authority-data": encoded(&identity["authority"])}}],
        "users": [{"name": "far", "user": {"client-certificate-data": encoded(&identity["client"]["certificate"]),
            "client-key-data": encoded(&identity["client"]["key"])}}],
        "contexts": [{"name": "far", "context": {"cluster": "far", "user": "far"}}]});
    fs::write(&kubeconfig, config.to_string()).unwrap();
    let deliver = |record: Value| {
        let file = carob.path("delivery.json");
        fs::write(&file, json!({"records": [record]}).to_string()).unwrap();
        let arguments = ["create", "--raw", "/billing/v1/readings", "-f", file.to_str().unwrap()];
        carob.kubectl_command().env("KUBECONFIG", &kubeconfig).args(arguments).output().expect("kubectl starts")
    };

    for (id, pod, why) in [
        ("a1", ("default", "here", here.as_str()), "another node's pod"),
        ("a2", ("kube-system", "there", there.as_str()), "another namespace"),
        ("a3", ("default", "here", there.as_str()), "another name"),
        ("a4", ("default", "there", here.as_str()), "another's identity"),
        ("a5", ("default", "nobody", "00000000-0000-0000-0000-000000000000"), "no pod at all"),
    ] {
        let said = deliver(second(id, pod, "far"));
        assert!(
            said.status.success() && text(&said).contains(&format!("\"refused\":[\"{id}\"]")),
            "{why}: {}",
            text(&said)
        );
    }
    let said = deliver(second("a6", ("default", "here", &here), &near));
    assert!(!said.status.success() && text(&said).contains("its own containers"), "{}", text(&said));
    // Its own are taken, also when they are gone; and what it calls another's container is its own nonetheless.
    for (id, pod) in [
        ("b1", ("default", "there", there.as_str())),
        ("b2", ("default", "gone", gone.as_str())),
        (heres.as_str(), ("default", "there", there.as_str())),
    ] {
        let said = deliver(second(id, pod, "far"));
        assert!(said.status.success() && text(&said).contains("\"refused\":[]"), "{id}: {}", text(&said));
    }

    let billed = || -> Vec<Value> {
        let all: Value = serde_json::from_str(&carob.kubectl(&["get", "--raw", "/billing/v1/containers"])).unwrap();
        all["containers"].as_array().unwrap().clone()
    };
    let all = billed();
    let ids: Vec<&str> = all.iter().filter_map(|container| container["containerId"].as_str()).collect();
    assert!(["a1", "a2", "a3", "a4", "a5", "a6"].iter().all(|id| !ids.contains(id)), "{ids:?}");
    assert!(["b1", "b2"].iter().all(|id| ids.contains(id)), "{ids:?}");
    let of_here: Vec<(&Value, &Value)> = all
        .iter()
        .filter(|container| container["containerId"] == heres)
        .map(|container| (&container["node"], &container["pod"]))
        .collect();
    assert!(of_here.len() == 2 && of_here.contains(&(&json!(near), &json!("here"))), "{of_here:?}");
    assert!(all.iter().filter(|container| container["pod"] == "here").all(|container| container["node"] == *near));
    assert!(carob.kubectl(&["get", "--raw", "/billing/v1/verify"]).contains("\"intact\":true"));
    // The worker's own readings go on.
    eventually("what it really used is there", || {
        billed().iter().any(|container| {
            container["pod"] == "there"
                && container["container"] == "main"
                && container["containerId"].as_str().is_some_and(|id| id.len() == 64)
        })
    });
}

#[test]
fn a_resize_is_billed_though_nobody_could_be_told_and_worker_and_gateway_died() {
    let machine = Machine::new();
    let prices = tempfile::NamedTempFile::new().unwrap();
    fs::write(prices.path(), bill::FLOOR).unwrap();
    let config = format!("priceBook: {}\n", prices.path().display());
    let setup = Setup { images: &[], address: Some(&machine.here), config: Some(&config), ..Setup::default() };
    let mut carob = Carob::start_with(&setup);
    let mut worker = Worker::new(&machine, &carob, "worker", &["busybox"]);
    worker.join(&carob, "far");
    ready(&carob, 2);
    let host = carob.path("host");
    fs::create_dir(&host).unwrap();
    carob.apply(&on("far", bill::requesting("resized", "200m", &host)).to_string());
    carob.wait("pod/resized", "condition=Ready");
    let uid = carob.jsonpath("pod/resized", ".metadata.uid");
    let id = carob.jsonpath("pod/resized", ".status.containerStatuses[0].containerID");
    let group = format!("carob-{}/pod{uid}/{}", worker.instance(), id.trim_start_matches("carob://"));
    let [v1, v2] = ["cpu/", ""].map(|hierarchy| PathBuf::from(format!("/sys/fs/cgroup/{hierarchy}{group}")));
    let (group, file) = if v1.exists() { (v1, "cpu.shares") } else { (v2, "cpu.weight") };
    let size = || fs::read_to_string(group.join(file)).unwrap();
    let before = size();
    bill::until_billed(&carob, "resized", 4);
    bill::resize(&carob, "resized", "700m");
    while size() == before {
        std::thread::yield_now();
    }
    carob.kill();
    // Time that is to be billed; the worker meters it and can tell nobody.
    let since = Instant::now();
    eventually("three seconds have passed", || since.elapsed() > Duration::from_secs(3));
    worker.kill();
    fs::write(host.join("end"), "").unwrap();
    eventually("it has ended", || fs::read_to_string(group.join("cgroup.procs")).unwrap().is_empty());
    carob.up(&[]);
    worker.start(&[]);
    carob.wait_phase("resized", "Succeeded");
    eventually("its end is delivered", || {
        let all: Value = serde_json::from_str(&carob.kubectl(&["get", "--raw", "/billing/v1/containers"])).unwrap();
        let ended = carob.jsonpath("pod/resized", ".status.containerStatuses[0].state.terminated.finishedAt");
        let seconds = |text: &Value| text.as_str().is_some_and(|text| text[..19] >= ended[..19]);
        all["containers"].as_array().unwrap().iter().any(|one| one["pod"] == "resized" && seconds(&one["endedAt"]))
    });
    bill::assert_resized(&carob, "resized", 200_000_000, 700_000_000);
    assert!(carob.kubectl(&["get", "--raw", "/billing/v1/verify"]).contains("\"intact\":true"));
}
