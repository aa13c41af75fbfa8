//! The bill is the kernel's own counters, to the nanosecond, whatever happens to the gateway.

use std::time::{Duration, Instant};

use carob_tests::cgroups::Counter;
use carob_tests::pods::{idle, pod};
use carob_tests::{Carob, Setup, bill, eventually};
use serde_json::Value;

/// A pod that uses CPU until the file `end` is there.
fn burner(name: &str, host: &std::path::Path) -> String {
    format!(
        r#"
apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{team: red}}}}
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 0
  volumes: [{{name: host, hostPath: {{path: {}, type: Directory}}}}]
  containers:
  - name: main
    image: busybox
    imagePullPolicy: IfNotPresent
    command: [sh, -c, 'while [ ! -e /host/end ]; do i=0; while [ $i -lt 2000 ]; do i=$((i+1)); done; done']
    volumeMounts: [{{name: host, mountPath: /host}}]
    resources: {{limits: {{cpu: 500m, memory: 64Mi}}}}
"#,
        host.display()
    )
}

fn cpu(bill: &Value) -> u64 {
    bill["total"]["cpuNanoseconds"].as_u64().expect("nanoseconds")
}

fn nano(cost: &Value) -> u128 {
    cost.as_str().expect("a decimal").replace('.', "").parse().expect("digits")
}

#[test]
fn the_bill_of_an_ended_pod_is_the_kernels_last_counter_to_the_nanosecond() {
    let carob = Carob::start(&["busybox"]);
    let host = carob.path("host");
    std::fs::create_dir(&host).unwrap();
    carob.start_pod(&burner("burner", &host), "burner");
    let counter = Counter::of(&carob, "burner");
    eventually("it has used some CPU", || counter.read().unwrap() > 300_000_000);
    let last = counter.last();
    std::fs::write(host.join("end"), "").unwrap();
    carob.wait("pod/burner", "jsonpath={.status.phase}=Succeeded");
    carob.kubectl(&["delete", "pod/burner"]);
    let last = last.join().unwrap();
    assert!(last > 300_000_000);
    assert_eq!(cpu(&carob.bill(&["--pod", "burner"])), last);
}

#[test]
fn the_bill_is_exact_when_the_gateway_was_dead_for_a_while_and_also_at_the_end() {
    let mut carob = Carob::start(&["busybox"]);
    let host = carob.path("host");
    std::fs::create_dir(&host).unwrap();
    carob.start_pod(&burner("burner", &host), "burner");
    let counter = Counter::of(&carob, "burner");
    for _ in 0..2 {
        let so_far = counter.read().unwrap();
        carob.kill();
        eventually("it goes on without a gateway", || counter.read().unwrap() > so_far + 100_000_000);
        carob.up(&[]);
        let billed = cpu(&carob.bill(&["--pod", "burner"]));
        assert!(billed > so_far + 100_000_000, "the dead time is billed: {billed}");
        assert!(billed <= counter.read().unwrap());
    }
    // It ends while no gateway runs; its last reading is made afterwards.
    carob.kill();
    std::fs::write(host.join("end"), "").unwrap();
    eventually("it has ended", || counter.group_is_empty());
    let last = counter.read().unwrap();
    carob.up(&[]);
    carob.wait("pod/burner", "jsonpath={.status.phase}=Succeeded");
    assert_eq!(cpu(&carob.bill(&["--pod", "burner"])), last);
}

#[test]
fn a_report_is_hardly_behind_also_of_a_pod_that_does_nothing() {
    let carob = Carob::start(&["tools"]);
    carob.start_pod(&pod("idle", &[idle("main")]).to_string(), "idle");
    let billed_until = || {
        let all: Value = serde_json::from_str(&carob.kubectl(&["get", "--raw", "/billing/v1/containers"])).unwrap();
        all["containers"][0]["endedAt"].as_str().expect("a time").parse::<jiff::Timestamp>().expect("a time")
    };
    let first = billed_until();
    eventually("it is billed for the time that passes", || {
        billed_until().duration_since(first).unsigned_abs() > Duration::from_secs(10)
    });
}

#[test]
fn every_container_is_billed_however_short_its_life() {
    let carob = Carob::start(&["busybox"]);
    carob.apply(
        r#"
apiVersion: batch/v1
kind: Job
metadata: {name: brief}
spec:
  completions: 20
  parallelism: 5
  template:
    spec:
      restartPolicy: Never
      containers:
      - {name: main, image: busybox, imagePullPolicy: IfNotPresent, command: ["true"]}
"#,
    );
    carob.wait("job/brief", "condition=Complete");
    let bill = carob.bill(&["--group-by", "pod"]);
    assert_eq!(bill["total"]["containers"], 20);
    let rows = bill["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 20);
    assert!(rows.iter().all(|row| row["cpuNanoseconds"].as_u64().unwrap() > 0), "{rows:?}");
}

#[test]
fn a_restarted_container_is_billed_for_each_of_its_lives() {
    let carob = Carob::start(&["busybox"]);
    carob.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: fails}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - {name: main, image: busybox, imagePullPolicy: IfNotPresent, command: [sh, -c, exit 3]}
"#,
    );
    eventually("it was restarted", || carob.jsonpath("pod/fails", ".status.containerStatuses[0].restartCount") == "1");
    eventually("two containers are billed", || carob.bill(&["--pod", "fails"])["total"]["containers"] == 2);
}

#[test]
fn each_second_is_billed_as_was_requested_then_also_when_the_gateway_dies_after_a_resize() {
    let prices = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(prices.path(), bill::FLOOR).unwrap();
    let config = format!("priceBook: {}\n", prices.path().display());
    let mut carob = Carob::start_with(&Setup { images: &["busybox"], config: Some(&config), ..Setup::default() });
    let host = carob.path("host");
    std::fs::create_dir(&host).unwrap();
    carob.start_pod(&bill::requesting("resized", "200m", &host).to_string(), "resized");
    let counter = Counter::of(&carob, "resized");
    bill::until_billed(&carob, "resized", 4);
    bill::resize(&carob, "resized", "700m");
    let shown = ".status.containerStatuses[0].resources.requests.cpu";
    eventually("the resize is shown", || carob.jsonpath("pod/resized", shown) == "700m");
    // What is shown is on the bill, whoever dies; the rest of a life is billed by it.
    carob.kill();
    let since = Instant::now();
    eventually("three seconds have passed", || since.elapsed() > Duration::from_secs(3));
    std::fs::write(host.join("end"), "").unwrap();
    eventually("it has ended", || counter.group_is_empty());
    carob.up(&[]);
    carob.wait("pod/resized", "jsonpath={.status.phase}=Succeeded");
    bill::assert_resized(&carob, "resized", 200_000_000, 700_000_000);
}

#[test]
fn groups_steps_formats_and_prices_add_up() {
    let prices = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(prices.path(), "currency: EUR\nvcpuSecond: '2'\ngibSecond: '0'\n").unwrap();
    let config = format!("priceBook: {}\n", prices.path().display());
    let carob = Carob::start_with(&Setup { images: &["busybox"], config: Some(&config), ..Setup::default() });
    let host = carob.path("host");
    std::fs::create_dir(&host).unwrap();
    carob.apply(&burner("one", &host));
    carob.apply(&burner("two", &host).replace("team: red", "team: blue"));
    carob.wait("pod/one", "condition=Ready");
    carob.wait("pod/two", "condition=Ready");
    eventually("three seconds are in the ledger", || {
        carob.bill(&["--step", "1s", "--pod", "one"])["rows"].as_array().unwrap().len() > 3
    });
    std::fs::write(host.join("end"), "").unwrap();
    carob.wait("pod/one", "jsonpath={.status.phase}=Succeeded");
    carob.wait("pod/two", "jsonpath={.status.phase}=Succeeded");

    let whole = carob.bill(&[]);
    assert_eq!(whole["currency"], "EUR");
    for arguments in
        [&["--step", "1s"][..], &["--step", "1m"], &["--group-by", "namespace"], &["--group-by", "label:team"]]
    {
        let bill = carob.bill(arguments);
        let rows = bill["rows"].as_array().unwrap();
        assert_eq!(cpu(&bill), cpu(&whole), "{arguments:?}");
        assert_eq!(
            rows.iter().map(|row| row["cpuNanoseconds"].as_u64().unwrap()).sum::<u64>(),
            cpu(&whole),
            "{arguments:?}"
        );
        assert_eq!(
            rows.iter().map(|row| nano(&row["cost"])).sum::<u128>(),
            nano(&whole["total"]["cost"]),
            "{arguments:?}"
        );
    }
    // Two units per vCPU-second, nothing for memory: the cost is twice the CPU time.
    assert_eq!(nano(&whole["total"]["cost"]), u128::from(cpu(&whole)) * 2);
    let labels: Vec<_> = carob.bill(&["--group-by", "label:team"])["rows"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| row["label"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(labels, ["blue", "red"]);

    let kubeconfig = carob.kubeconfig();
    let kubeconfig = kubeconfig.to_str().unwrap();
    let csv = carob.carob(&["bill", "--kubeconfig", kubeconfig, "-o", "csv"]);
    let csv = String::from_utf8(csv.stdout).unwrap();
    assert_eq!(csv.lines().count(), 3, "{csv}");
    let table = carob.carob(&["bill", "--kubeconfig", kubeconfig]);
    let table = String::from_utf8(table.stdout).unwrap();
    assert!(table.contains("COST EUR") && table.contains("TOTAL"), "{table}");

    let refused = carob.carob(&["bill", "--kubeconfig", kubeconfig, "--step", "1ms"]);
    assert!(!refused.status.success());
    assert!(carob_tests::text(&refused).contains("step: must be at least 1s"), "{}", carob_tests::text(&refused));
    let server = format!("https://127.0.0.1:{}", carob.port());
    let nobody = carob
        .kubectl_command()
        .env("KUBECONFIG", "/dev/null")
        .args(["--server", &server, "--insecure-skip-tls-verify", "get", "--raw", "/billing/v1/report"])
        .output()
        .unwrap();
    assert!(!nobody.status.success(), "the bill is for administrators: {}", carob_tests::text(&nobody));
}
