//! Pods that take all they can get: processes, memory, log space. Neighbours and the gateway don't notice.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use carob_tests::pods::{list, pod, shell, shell_pod};
use carob_tests::{Carob, eventually};
use serde_json::{Value, json};

fn limited(mut container: Value, cpu: &str, memory: &str) -> Value {
    container["resources"] = json!({"limits": {"cpu": cpu, "memory": memory}});
    container
}

/// The API answers and a neighbour still takes commands, both promptly.
fn assert_well(carob: &Carob, during: &str) {
    let begin = Instant::now();
    assert_eq!(carob.kubectl(&["get", "--raw", "/readyz"]), "ok");
    assert_eq!(carob.kubectl(&["exec", "neighbour", "--", "echo", "well"]), "well\n");
    let took = begin.elapsed();
    assert!(took < Duration::from_secs(10), "during {during} two answers took {took:?}");
}

#[test]
fn bombs_hurt_nobody_but_themselves() {
    let carob = Carob::start(&["busybox", "tools"]);
    carob
        .start_pod(&pod("neighbour", &[limited(shell("main", "sleep 3600"), "500m", "32Mi")]).to_string(), "neighbour");
    let identity = |carob: &Carob| carob.jsonpath("pod/neighbour", ".status.containerStatuses[0].containerID");
    let before = identity(&carob);

    // Each process makes two: what stops them is the limit on their number.
    let fork = pod(
        "forks",
        &[limited(shell("main", "echo begin; bomb() { bomb | bomb & }; bomb; sleep 3600"), "300m", "512Mi")],
    );
    let eat = |name: &str, script: &str| pod(name, &[limited(shell("main", script), "500m", "32Mi")]);
    let anonymous = eat("anonymous", "x=a; while true; do x=$x$x; done");
    let shared = eat("shared", "dd if=/dev/zero of=/dev/shm/x bs=1M count=2048");
    let mut tmpfs = eat("tmpfs", "dd if=/dev/zero of=/mem/x bs=1M count=2048");
    tmpfs["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "mem", "mountPath": "/mem"}]);
    tmpfs["spec"]["volumes"] = json!([{"name": "mem", "emptyDir": {"medium": "Memory"}}]);
    let device = eat(
        "device",
        "dd if=/dev/zero of=/dev/x bs=1M count=2048; mkdir -p /dev/d; i=0; while touch /dev/d/$i; do i=$((i+1)); done",
    );
    carob.apply(&list(&[fork, anonymous, shared, tmpfs, device]));
    carob.until(&["logs", "forks"], |seen| seen.contains("begin"));
    assert_well(&carob, "the bombs");
    for name in ["anonymous", "shared", "tmpfs", "device"] {
        carob.wait_phase(name, "Failed");
    }
    let reason =
        |pod: &str| carob.jsonpath(&format!("pod/{pod}"), ".status.containerStatuses[0].state.terminated.reason");
    assert_eq!(reason("anonymous"), "OOMKilled");
    assert_well(&carob, "the fork bomb");
    let uid = carob.jsonpath("pod/forks", ".metadata.uid");
    carob.kubectl(&["delete", "pod", "forks", "--now", "--timeout=30s"]);
    let left = |uid: &str| {
        fs::read_dir("/proc")
            .expect("processes")
            .flatten()
            .any(|entry| fs::read_to_string(entry.path().join("cgroup")).is_ok_and(|text| text.contains(uid)))
    };
    eventually("every process of the bomb is gone", || !left(&uid));
    assert_well(&carob, "what follows");
    assert_eq!(identity(&carob), before, "the neighbour is the same container as before");
    assert_eq!(carob.jsonpath("pod/neighbour", ".status.containerStatuses[0].restartCount"), "0");
    assert!(!carob.log().contains("panicked"));
}

fn size(directory: &Path) -> u64 {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(meta) if meta.is_dir() => size(&entry.path()),
            Ok(meta) => meta.len(),
            Err(_) => 0,
        })
        .sum()
}

#[test]
fn floods_of_output_are_cut_to_size() {
    let carob = Carob::start(&["busybox"]);
    let talker = "i=0; while true; do echo line $i; i=$((i+1)); sleep 0.1; done";
    let fast =
        "exec yes 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa'";
    let short = "exec yes ''";
    // Four gigabytes without a single line's end.
    let endless = "exec dd if=/dev/zero bs=1M count=4096";
    let flood = |name: &str, script: &str| limited(shell(name, script), "500m", "64Mi");
    let message = shell_pod("message", "yes 0123456789abcde | head -c 20000000 > /dev/termination-log; exit 1");
    carob.apply(&list(&[
        shell_pod("neighbour", talker),
        pod("flood", &[flood("fast", fast), flood("short", short), flood("endless", endless)]),
        message,
    ]));
    carob.wait("pod/neighbour", "condition=Ready");
    let logs = carob.data_dir().join("logs/pods");
    let uid = carob.jsonpath("pod/flood", ".metadata.uid");
    let of_flood = logs.join(format!("default_flood_{uid}"));
    // Until the first of them has been written over its bound's half at least, every look is within the bound.
    let bound = 5 * 10 * (1 << 20) + (1 << 20);
    eventually("the flood has come up to its bound", || {
        let sizes = ["fast", "short", "endless"].map(|name| size(&of_flood.join(name)));
        assert!(sizes.iter().all(|size| *size <= bound), "{sizes:?}");
        sizes.iter().any(|size| *size > 30 << 20)
    });
    let line = |carob: &Carob| carob.kubectl(&["logs", "neighbour", "--tail=1"]);
    let earlier = line(&carob);
    eventually("a neighbour's lines arrive meanwhile", || line(&carob) != earlier);
    assert_eq!(carob.kubectl(&["get", "--raw", "/readyz"]), "ok");
    let tail = carob.kubectl(&["logs", "flood", "-c", "fast", "--tail=3"]);
    assert_eq!(tail.lines().count(), 3, "the flood's own end can be read");
    let sizes = ["fast", "short", "endless"].map(|name| size(&of_flood.join(name)));
    assert!(sizes.iter().all(|size| *size <= bound), "{sizes:?}");
    carob.wait_phase("message", "Failed");
    let message = carob.jsonpath("pod/message", ".status.containerStatuses[0].state.terminated.message");
    assert!((1..=4096).contains(&message.len()), "a termination message has {} bytes", message.len());
    carob.kubectl(&["delete", "pod", "flood", "--now", "--timeout=30s"]);
    eventually("the flood's files are gone", || !of_flood.exists());
    assert!(!carob.log().contains("panicked"));
}

/// Answers with the digest of what it keeps in a file.
const SERVER: &str = r#"
import hashlib, os, socket
open("/data/kept", "wb").write(os.urandom(1 << 16))
file = os.open("/data/kept", os.O_RDONLY)
server = socket.socket(); server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1); server.bind(("", 8080)); server.listen(64)
print("ready", flush=True)
while True:
    client, _ = server.accept()
    with client:
        client.recv(100); client.sendall(hashlib.sha256(os.pread(file, 1 << 16, 0)).hexdigest().encode())
"#;

/// Asks it all the time; per batch a line with when it began and ended, the median and the 99th percentile in µs.
const CLIENT: &str = r#"
import os, socket, statistics, time
answers = set()
def ask():
    begin = time.perf_counter()
    with socket.create_connection((os.environ["SERVER"], 8080), 20) as server:
        server.sendall(b"?"); answer = server.recv(100)
    answers.add(answer); assert len(answer) == 64 and len(answers) == 1, answers
    return (time.perf_counter() - begin) * 1e6
while True:
    start, took = time.time(), []
    for _ in range(150): took.append(ask()); time.sleep(0.002)
    took.sort()
    print("batch %.3f %.3f %d %d" % (start, time.time(), statistics.median(took), took[-2]), flush=True)
"#;

/// What a neighbour does: forks, takes memory, writes to the disk, logs; each as much as it can and never ending.
const NOISE: [(&str, &str); 4] = [
    ("forks", "import os\nprint('begin', flush=True)\nwhile True:\n    try: os.fork()\n    except OSError: pass\n"),
    ("memory", "print('begin', flush=True)\nall = []\nwhile True: all.append(bytearray(1 << 20))\n"),
    (
        "disk",
        "import os\nfile = os.open('/data/x', os.O_CREAT | os.O_WRONLY)\nblock = os.urandom(1 << 20)\nprint('begin', flush=True)\n\
         while True:\n    for place in range(100): os.pwrite(file, block, place << 20)\n    os.fsync(file)\n",
    ),
    ("log", "import os\nprint('begin', flush=True)\nwhile True: os.write(1, b'x' * 120 + b'\\n')\n"),
];

fn batches(carob: &Carob) -> Vec<(f64, f64, f64)> {
    let printed = carob.kubectl(&["logs", "client", "--tail=400"]);
    let batch = |line: &str| {
        let mut fields = line.strip_prefix("batch ")?.split(' ').map(|field| field.parse::<f64>().ok());
        Some((fields.next()??, fields.next()??, fields.next()??))
    };
    printed.lines().filter_map(batch).collect()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// The median of the medians of so many batches that lie wholly after now, in µs.
fn latency(carob: &Carob, count: usize) -> f64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs_f64();
    let mut seen = Vec::new();
    eventually("the client has asked often enough", || {
        seen = batches(carob).into_iter().filter(|(start, ..)| *start > now).map(|(.., median)| median).collect();
        seen.len() >= count
    });
    median(seen)
}

/// Both ask for processor time, as whoever wants latency has to. What is compared are medians of medians, quiet before
/// and after noise, and of three rounds the middle one: this machine has others' noise, too, which comes and goes.
#[test]
fn a_noisy_neighbour_makes_nobodys_answers_twice_as_slow() {
    let carob = Carob::start(&["python"]);
    let asking = |mut container: Value, cpu: &str| {
        container["resources"] = json!({"requests": {"cpu": cpu}, "limits": {"memory": "96Mi"}});
        container["volumeMounts"] = json!([{"name": "data", "mountPath": "/data"}]);
        container
    };
    let of = |name: &str, container: Value| {
        let mut manifest = pod(name, &[container]);
        manifest["spec"]["volumes"] = json!([{"name": "data", "emptyDir": {}}]);
        manifest
    };
    carob.apply(&of("server", asking(crate::escapes::python("main", SERVER, &[]), "300m")).to_string());
    carob.until(&["logs", "server"], |seen| seen.contains("ready"));
    let address = carob.jsonpath("pod/server", ".status.podIP");
    let client = crate::escapes::python("main", CLIENT, &[("SERVER", &address)]);
    carob.apply(&of("client", asking(client, "300m")).to_string());
    carob.wait("pod/client", "condition=Ready");
    let noise: Vec<Value> = NOISE
        .iter()
        .map(|(name, script)| {
            let mut manifest = of(name, asking(crate::escapes::python("main", script, &[]), "50m"));
            manifest["spec"]["restartPolicy"] = json!("Always");
            manifest["spec"]["terminationGracePeriodSeconds"] = json!(0);
            manifest
        })
        .collect();
    let mut rounds = Vec::new();
    for _ in 0..3 {
        let before = latency(&carob, 5);
        carob.apply(&list(&noise));
        for (name, _) in NOISE {
            // A flood's first line is gone soon.
            carob.until(&["logs", name, "--tail=1"], |seen| seen.contains("begin") || seen.contains("xxx"));
        }
        let during = latency(&carob, 6);
        let names: Vec<&str> = NOISE.iter().map(|(name, _)| *name).collect();
        carob.kubectl(&[&["delete", "pod", "--now", "--timeout=60s"], names.as_slice()].concat());
        let after = latency(&carob, 5);
        println!("{before} µs before, {during} µs during, {after} µs after");
        rounds.push(during / f64::midpoint(before, after));
    }
    assert!(
        median(rounds.clone()) <= 2.0,
        "{rounds:?} times as slow\n{}",
        carob.kubectl(&["logs", "client", "--tail=60"])
    );
    for name in ["server", "client"] {
        assert_eq!(carob.jsonpath(&format!("pod/{name}"), ".status.containerStatuses[0].restartCount"), "0");
        assert_eq!(carob.jsonpath(&format!("pod/{name}"), ".status.phase"), "Running");
    }
    assert!(!carob.log().contains("panicked"));
}
