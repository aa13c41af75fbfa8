//! Annotations that say how fast a pod may send and receive.

use carob_tests::pods::{list, shell_pod};
use carob_tests::{Carob, eventually, text};
use serde_json::{Value, json};
use std::process::Command;

/// What is sent each time.
const BYTES: u32 = 4 << 20;

fn pod(name: &str, annotations: &Value) -> Value {
    let script = format!("mkdir /www; head -c {BYTES} /dev/zero > /www/zeros; exec httpd -f -p 7000 -h /www");
    let mut pod = shell_pod(name, &script);
    pod["metadata"]["annotations"] = annotations.clone();
    pod
}

/// Megabits per second from one pod to another, by the receiver's clock: what was sent may still wait in the kernel.
fn rate(carob: &Carob, from: &str, to: &str) -> f64 {
    let address = carob.jsonpath(&format!("pod/{from}"), ".status.podIP");
    let script = format!(
        "read a _ < /proc/uptime; [ $(wget -q -O - http://{address}:7000/zeros | wc -c) = {BYTES} ] && read b _ < /proc/uptime && echo $a $b"
    );
    let said = carob.until(&["exec", to, "--", "sh", "-c", &script], |said| !said.is_empty());
    let times: Vec<f64> = said.split_whitespace().map(|time| time.parse().expect("seconds")).collect();
    f64::from(BYTES) * 8.0 / 1e6 / (times[1] - times[0]).max(0.01)
}

#[test]
fn a_pod_sends_and_receives_no_faster_than_its_annotations_say() {
    let mut carob = Carob::start(&["busybox"]);
    let both = json!({"kubernetes.io/ingress-bandwidth": "16M", "kubernetes.io/egress-bandwidth": "8M"});
    let wrong = json!({"kubernetes.io/egress-bandwidth": "100"});
    let pods = [pod("free", &json!({})), pod("other", &json!({})), pod("slow", &both), pod("wrong", &wrong)];
    carob.apply(&list(&pods));
    for name in ["free", "other", "slow"] {
        carob.wait(&format!("pod/{name}"), "condition=Ready");
    }
    let (received, sent, free) =
        (rate(&carob, "free", "slow"), rate(&carob, "slow", "free"), rate(&carob, "free", "other"));
    assert!((8.0..18.0).contains(&received), "received at {received} Mbit/s");
    assert!((4.0..9.0).contains(&sent), "sent at {sent} Mbit/s");
    assert!(free > 40.0, "nobody limits the others: {free} Mbit/s");
    let events = ["get", "events", "--field-selector=involvedObject.name=wrong"];
    carob.until(&events, |events| events.contains("resource is unreasonably small (< 1kbit)"));

    // Nothing of it stays when the pod is gone, whoever was there to see it go.
    let prefix = format!(" i{}", &carob.instance()[..6]);
    let blocks = || {
        let output = Command::new("ip").args(["-o", "link", "show", "type", "ifb"]).output().expect("ip (iproute2)");
        text(&output).lines().filter(|line| line.contains(&prefix)).count()
    };
    assert_eq!(blocks(), 1);
    carob.kubectl(&["delete", "pod", "slow", "--grace-period=0", "--force"]);
    eventually("its link is gone", || blocks() == 0);
    carob.apply(&pod("slow", &both).to_string());
    carob.wait("pod/slow", "condition=Ready");
    assert_eq!(blocks(), 1);
    carob.down();
    assert_eq!(blocks(), 0);
}
