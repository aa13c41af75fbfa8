//! Manifests of small pods, as JSON that a test changes where it needs to.

use serde_json::{Value, json};

/// A container that runs a shell script in the busybox image.
pub fn shell(name: &str, script: &str) -> Value {
    json!({"name": name, "image": "busybox", "imagePullPolicy": "IfNotPresent", "command": ["sh", "-c", script]})
}

/// A container that runs one of the tools image's programs.
pub fn tools(name: &str, arguments: &[&str]) -> Value {
    json!({"name": name, "image": "tools", "imagePullPolicy": "IfNotPresent", "args": arguments})
}

/// A container that waits until it is told to end.
pub fn idle(name: &str) -> Value {
    tools(name, &["sleep", "1h"])
}

/// A pod of these containers, which isn't restarted.
pub fn pod(name: &str, containers: &[Value]) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {"containers": containers, "restartPolicy": "Never"},
    })
}

/// A pod whose only container, `main`, runs a shell script.
pub fn shell_pod(name: &str, script: &str) -> Value {
    pod(name, &[shell("main", script)])
}

/// Several objects to apply at once: YAML documents, one below the other.
pub fn list(items: &[Value]) -> String {
    let documents: Vec<String> = items.iter().map(Value::to_string).collect();
    // The first line tells kubectl that it is YAML.
    format!("---\n{}\n", documents.join("\n---\n"))
}
