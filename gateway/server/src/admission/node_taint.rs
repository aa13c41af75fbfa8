//! `TaintNodesByCondition`: a new node takes no Pods before somebody has seen that it is ready.

use serde_json::{Value, json};

const NOT_READY: &str = "node.kubernetes.io/not-ready";
const EFFECT: &str = "NoSchedule";

/// Taints a new node, unless it comes with the taint. The node's lifecycle takes it off.
pub(super) fn admit(node: &mut Value) {
    if !node["spec"].is_object() {
        node["spec"] = json!({});
    }
    let taints = &mut node["spec"]["taints"];
    if !taints.is_array() {
        *taints = json!([]);
    }
    if let Some(taints) = taints.as_array_mut()
        && !taints.iter().any(|taint| taint["key"] == NOT_READY && taint["effect"] == EFFECT)
    {
        taints.push(json!({"key": NOT_READY, "effect": EFFECT}));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_node_is_tainted_once() {
        let mut node = json!({"metadata": {"name": "n"}});
        admit(&mut node);
        admit(&mut node);
        assert_eq!(node["spec"]["taints"], json!([{"key": NOT_READY, "effect": EFFECT}]));
        let mut node = json!({"spec": {"taints": [{"key": NOT_READY, "effect": "NoExecute"}]}});
        admit(&mut node);
        assert_eq!(node["spec"]["taints"].as_array().map(Vec::len), Some(2));
    }
}
