//! Columns of Nodes.

use std::collections::BTreeSet;

use serde_json::Value;

use super::NAME;
use super::cells::{AGE, column, condition_true, list, text, text_or};
use crate::kind::Column;

/// Name, status, roles, age, version; wide: addresses and software.
pub const COLUMNS: &[Column] = &[
    NAME,
    column("Status", "string", 0, |object, _| status(object).into()),
    column("Roles", "string", 0, |object, _| roles(object).into()),
    AGE,
    column("Version", "string", 0, |object, _| text(object, "/status/nodeInfo/kubeletVersion").into()),
    column("Internal-IP", "string", 1, |object, _| address(object, "InternalIP").into()),
    column("External-IP", "string", 1, |object, _| address(object, "ExternalIP").into()),
    column("OS-Image", "string", 1, |object, _| software(object, "/status/nodeInfo/osImage")),
    column("Kernel-Version", "string", 1, |object, _| software(object, "/status/nodeInfo/kernelVersion")),
    column("Container-Runtime", "string", 1, |object, _| software(object, "/status/nodeInfo/containerRuntimeVersion")),
];

fn status(node: &Value) -> String {
    let known = list(node, "/status/conditions").iter().any(|condition| condition["type"] == "Ready");
    let ready = match (known, condition_true(node, "Ready")) {
        (false, _) => "Unknown",
        (true, true) => "Ready",
        (true, false) => "NotReady",
    };
    let unschedulable = node.pointer("/spec/unschedulable") == Some(&Value::Bool(true));
    if unschedulable { format!("{ready},SchedulingDisabled") } else { ready.to_owned() }
}

fn roles(node: &Value) -> String {
    let mut roles = BTreeSet::new();
    if let Some(labels) = node.pointer("/metadata/labels").and_then(Value::as_object) {
        for (key, value) in labels {
            let value = value.as_str().unwrap_or_default();
            match key.strip_prefix("node-role.kubernetes.io/") {
                Some(role) if !role.is_empty() => roles.insert(role),
                None if key == "kubernetes.io/role" && !value.is_empty() => roles.insert(value),
                _ => false,
            };
        }
    }
    if roles.is_empty() { "<none>".to_owned() } else { roles.into_iter().collect::<Vec<_>>().join(",") }
}

fn address<'a>(node: &'a Value, type_: &str) -> &'a str {
    let found = list(node, "/status/addresses").iter().find(|address| address["type"] == type_);
    found.and_then(|address| address["address"].as_str()).unwrap_or("<none>")
}

fn software(node: &Value, pointer: &str) -> Value {
    text_or(node, pointer, "<unknown>").into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_cordoned_node_says_so() {
        let node =
            json!({"spec": {"unschedulable": true}, "status": {"conditions": [{"type": "Ready", "status": "True"}]}});
        assert_eq!(status(&node), "Ready,SchedulingDisabled");
        assert_eq!(status(&json!({})), "Unknown");
        assert_eq!(status(&json!({"status": {"conditions": [{"type": "Ready", "status": "Unknown"}]}})), "NotReady");
    }

    #[test]
    fn roles_come_from_labels() {
        let node = json!({"metadata": {"labels": {"node-role.kubernetes.io/worker": "", "kubernetes.io/role": "a"}}});
        assert_eq!(roles(&node), "a,worker");
        assert_eq!(roles(&json!({})), "<none>");
    }
}
