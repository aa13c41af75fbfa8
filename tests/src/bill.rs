//! What a bill says of each second.

use std::path::Path;

use serde_json::{Value, json};

use crate::Carob;

/// A price book that bills CPU alone, and at least what was requested.
pub const FLOOR: &str = "currency: EUR\nvcpuSecond: '1'\ngibSecond: '0'\nrequestFloor: true\n";

/// An idle pod that ends when the file `end` is in this directory, whose container requests this much of a CPU.
pub fn requesting(name: &str, cpu: &str, host: &Path) -> Value {
    let mut pod = crate::pods::shell_pod(name, "until [ -e /host/end ]; do sleep 0.2; done");
    pod["spec"]["volumes"] = json!([{"name": "host", "hostPath": {"path": host, "type": "Directory"}}]);
    pod["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "host", "mountPath": "/host"}]);
    pod["spec"]["containers"][0]["resources"] = json!({"requests": {"cpu": cpu}});
    pod
}

/// Waits until so many seconds of a pod's life are on the bill.
pub fn until_billed(carob: &Carob, pod: &str, seconds: usize) {
    crate::eventually("some seconds are billed", || {
        carob.bill(&["--pod", pod, "--step", "1s"])["rows"].as_array().is_some_and(|rows| rows.len() >= seconds)
    });
}

/// Asks for another request of the container `main`.
pub fn resize(carob: &Carob, pod: &str, cpu: &str) {
    let resources = json!({"requests": {"cpu": cpu}});
    let patch = json!({"spec": {"containers": [{"name": "main", "resources": resources}]}}).to_string();
    carob.kubectl(&["patch", "pod", pod, "--subresource=resize", "-p", &patch]);
}

/// Checks that an idle pod is billed `before` CPU-nanoseconds for each whole second of its life, and `after` from one
/// second on, which may have a part of both.
pub fn assert_resized(carob: &Carob, pod: &str, before: u64, after: u64) {
    let bill = carob.bill(&["--pod", pod, "--step", "1s"]);
    let billed = |row: &Value| row["billedCpuNanoseconds"].as_u64().expect("nanoseconds");
    let seconds: Vec<u64> = bill["rows"].as_array().expect("rows").iter().map(billed).collect();
    assert_eq!(seconds.iter().sum::<u64>(), billed(&bill["total"]));
    // Its life begins and ends within a second.
    let [_, whole @ .., _] = seconds.as_slice() else { panic!("too short a life: {seconds:?}") };
    // A second's share of each reading is rounded.
    let is = |second: &u64, wanted: u64| second.abs_diff(wanted) < 10;
    let at = whole.iter().position(|second| !is(second, before)).unwrap_or_else(|| panic!("no resize: {seconds:?}"));
    let (first, rest) = whole[at..].split_first().expect("a second");
    assert!(at > 0 && !rest.is_empty(), "both sizes are there: {seconds:?}");
    assert!((before - 10..after + 10).contains(first), "{seconds:?}");
    assert!(rest.iter().all(|second| is(second, after)), "{seconds:?}");
}
