//! Certificates of a worker on another machine.

use std::collections::BTreeSet;

use carob_tests::pods::{idle, pod};
use carob_tests::{Carob, Setup, eventually};

use crate::machines::{Machine, Worker};
use crate::{on, ready};

#[test]
fn a_workers_certificates_are_replaced_before_they_end_and_nobody_notices() {
    let machine = Machine::new();
    let carob = Carob::start_with(&Setup {
        address: Some(&machine.here),
        config: Some("signingDurationSeconds: 20\n"),
        ..Setup::default()
    });
    let mut worker = Worker::new(&machine, &carob, "worker", &["tools"]);
    worker.join(&carob, "far");
    ready(&carob, 2);
    carob.start_pod(&on("far", pod("before", &[idle("main")])).to_string(), "before");
    // Each is asked for when 14 of its predecessor's 20 seconds have passed: with the third, the first has ended. Requests go
    // with their certificates.
    let mut asked = BTreeSet::new();
    let path = "jsonpath={range .items[*]}{.spec.signerName} {.metadata.name}{\"\\n\"}{end}";
    eventually("both have been replaced twice", || {
        asked.extend(carob.kubectl(&["get", "csr", "-o", path]).lines().map(str::to_owned));
        let signers = ["kubernetes.io/kube-apiserver-client-kubelet", "kubernetes.io/kubelet-serving"];
        signers.iter().all(|signer| asked.iter().filter(|line: &&String| line.starts_with(signer)).count() >= 3)
    });
    let said = carob.kubectl(&["exec", "before", "--", "carob-tools", "lookup", "localhost"]);
    assert!(said.contains("127.0.0.1"), "the gateway is answered: {said}");
    carob.start_pod(&on("far", pod("after", &[idle("main")])).to_string(), "after");
    carob.kubectl(&["delete", "pod", "before", "--timeout=60s"]);
    let ready = carob.jsonpath("node/far", ".status.conditions[?(@.type==\"Ready\")].status");
    assert_eq!(ready, "True");
}
