//! A node that runs short: what it says, whom it evicts first, and what it takes meanwhile.

use carob_tests::pods::{idle, list, pod, shell};
use carob_tests::registry::Registry;
use carob_tests::{Carob, Setup, eventually, text};
use serde_json::{Value, json};

fn condition(carob: &Carob, type_: &str) -> String {
    let path = format!("jsonpath={{.items[0].status.conditions[?(@.type==\"{type_}\")].status}}");
    carob.kubectl(&["get", "nodes", "-o", &path])
}

/// Asks for this much memory and holds 20 MiB of it.
fn holding(name: &str, request: &str) -> Value {
    let script = "dd if=/dev/zero of=/dev/shm/held bs=1M count=20 2>/dev/null; touch /ready; exec sleep 3600";
    let mut container = shell("main", script);
    container["resources"] = json!({"requests": {"memory": request}});
    container["readinessProbe"] = json!({"exec": {"command": ["test", "-e", "/ready"]}, "periodSeconds": 1});
    pod(name, &[container])
}

fn class(name: &str, value: i64) -> Value {
    json!({"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": name}, "value": value})
}

fn of_class(class: &str, mut pod: Value) -> Value {
    pod["spec"]["priorityClassName"] = json!(class);
    pod
}

fn evicted(carob: &Carob) -> Vec<String> {
    let found = carob.kubectl(&[
        "get",
        "pods",
        "-o",
        "jsonpath={range .items[?(@.status.reason==\"Evicted\")]}{.metadata.name}{\"\\n\"}{end}",
    ]);
    found.lines().map(str::to_owned).collect()
}

#[test]
fn a_node_short_of_memory_evicts_in_kubernetes_order_and_takes_only_what_it_must() {
    let mut carob = Carob::start(&["busybox", "tools"]);
    let mut critical = of_class("system-cluster-critical", holding("critical", "0"));
    critical["metadata"]["namespace"] = json!("kube-system");
    carob.apply(&list(&[
        class("important", 1000),
        holding("within", "200Mi"),
        holding("beyond", "1Mi"),
        of_class("important", holding("dear", "1Mi")),
        critical,
    ]));
    carob.kubectl(&["wait", "--for=condition=Ready", "pod", "--all", "--timeout=60s"]);
    carob.kubectl(&["wait", "-n", "kube-system", "--for=condition=Ready", "pod/critical", "--timeout=60s"]);

    // More than the machine has: it is short of it from now on.
    carob.terminate();
    let settings =
        json!({"node": {"evictionHard": {"memory.available": "100%"}, "evictionPressureTransitionPeriod": "0s"}});
    std::fs::write(carob.path("carob.yaml"), settings.to_string()).expect("the configuration");
    carob.up(&[]);
    eventually("the condition is told", || condition(&carob, "MemoryPressure") == "True");
    let mut order: Vec<String> = Vec::new();
    eventually("all but the critical one are evicted", || {
        for name in evicted(&carob) {
            if !order.contains(&name) {
                order.push(name);
            }
        }
        order.len() == 3
    });
    assert_eq!(order, ["beyond", "dear", "within"], "beyond its request and least dear first");
    let status = carob.get(&["pod", "beyond"])["status"].clone();
    let message = status["message"].as_str().unwrap_or_default();
    assert_eq!((&status["phase"], &status["reason"]), (&json!("Failed"), &json!("Evicted")));
    assert!(message.starts_with("The node was low on resource: memory. Threshold quantity: "), "{message}");
    assert!(message.contains("Container main was using ") && message.contains("request is 1Mi"), "{message}");
    let target = carob.jsonpath("pod/beyond", ".status.conditions[?(@.type==\"DisruptionTarget\")].reason");
    assert_eq!(target, "TerminationByKubelet");
    let running = carob.kubectl(&["get", "-n", "kube-system", "pod", "critical", "-o", "jsonpath={.status.phase}"]);
    assert_eq!(running, "Running", "critical pods stay");

    let taints = ["get", "nodes", "-o", "jsonpath={.items[0].spec.taints[*].key}"];
    carob.until(&taints, |taints| taints.contains("node.kubernetes.io/memory-pressure"));
    // Past the scheduler, which keeps to the taint.
    let node = carob.kubectl(&["get", "nodes", "-o", "jsonpath={.items[0].metadata.name}"]);
    let mut forced = pod("forced", &[idle("main")]);
    forced["spec"]["nodeName"] = json!(node);
    carob.apply(&forced.to_string());
    let message = ["get", "pod", "forced", "-o", "jsonpath={.status.reason}: {.status.message}"];
    carob.until(&message, |said| {
        said.trim_end() == "Evicted: Pod was rejected: The node had condition: [MemoryPressure]."
    });

    carob.terminate();
    std::fs::write(carob.path("carob.yaml"), "{}").expect("the configuration");
    carob.up(&[]);
    carob.until(&taints, |taints| !taints.contains("pressure"));
    assert_eq!(condition(&carob, "MemoryPressure"), "False");
    carob.start_pod(&pod("after", &[idle("main")]).to_string(), "after");
}

#[test]
fn unused_images_go_by_age_and_before_pods_where_the_disk_is_short() {
    let registry = Registry::start();
    for name in ["busybox", "tools"] {
        registry.push(name, name, "1");
    }
    let image = |name: &str| format!("{}/{name}", registry.host());
    let settings =
        |hard: &Value| json!({"node": {"evictionHard": hard, "imageMaximumGCAge": "2s", "imageGCPeriod": "1s"}});
    let config = settings(&json!({})).to_string();
    let mut carob = Carob::start_with(&Setup { images: &["busybox"], config: Some(&config), ..Setup::default() });
    let of = |name: &str, container: Value, from: &str| {
        let mut manifest = pod(name, &[container]);
        manifest["spec"]["containers"][0]["image"] = json!(format!("{}:1", image(from)));
        manifest
    };
    carob.start_pod(&of("uses", idle("main"), "tools").to_string(), "uses");
    carob.apply(&of("used", shell("main", "true"), "busybox").to_string());
    carob.wait_phase("used", "Succeeded");
    let listed =
        |carob: &Carob| text(&carob.carob(&["image", "ls", "--data-dir", &carob.data_dir().to_string_lossy()]));
    assert!(listed(&carob).contains(&image("busybox")));
    carob.kubectl(&["delete", "pod", "used", "--timeout=60s"]);
    eventually("what nobody uses goes", || !listed(&carob).contains(&image("busybox")));
    let left = listed(&carob);
    assert!(left.contains(&image("tools")), "what is used stays: {left}");
    assert!(left.contains("docker.io/library/busybox"), "and what was imported by hand: {left}");

    carob.terminate();
    let config = settings(&json!({"nodefs.available": "100%"})).to_string();
    std::fs::write(carob.path("carob.yaml"), config).expect("the configuration");
    carob.up(&[]);
    eventually("the condition is told", || condition(&carob, "DiskPressure") == "True");
    let reason = ["get", "pod", "uses", "-o", "jsonpath={.status.reason}: {.status.message}"];
    carob.until(&reason, |said| said.starts_with("Evicted: The node was low on resource: ephemeral-storage."));
    carob.kubectl(&["delete", "pod", "uses", "--timeout=60s"]);
    eventually("its image goes, too", || !listed(&carob).contains(&image("tools")));
}
