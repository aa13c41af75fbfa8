//! `PodTopologyLabels`: a Pod on a node says in which zone and region it is, as its node does.

use carob_api::status::Status;
use serde_json::{Value, json};

use super::request::Request;
use crate::objects::{self, store_failure, text};

/// What is taken over.
const LABELS: [&str; 2] = ["topology.kubernetes.io/region", "topology.kubernetes.io/zone"];

/// Labels a binding, whose labels become the Pod's, or a Pod that is made on a node.
pub(super) async fn admit(request: &mut Request<'_>) -> Result<(), Status> {
    let object = &request.object;
    let node = match request.subresource {
        "binding" if text(object, "/target/kind") == "Node" => text(object, "/target/name"),
        "" => text(object, "/spec/nodeName"),
        _ => "",
    };
    if node.is_empty() {
        return Ok(());
    }
    let key = objects::core_key("nodes", None, node);
    let entry = request.call.server.store.get(&key).await.map_err(|error| store_failure(&error))?;
    // A node that isn't there is no reason to refuse, as in Kubernetes.
    let Some(entry) = entry else { return Ok(()) };
    let node = request.call.server.decoded.get(&entry)?;
    label(&mut request.object, &node);
    Ok(())
}

fn label(object: &mut Value, node: &Value) {
    for name in LABELS {
        let Some(value) = node["metadata"]["labels"].get(name) else { continue };
        let labels = objects::metadata_mut(object).entry("labels").or_insert_with(|| json!({}));
        if labels.is_null() {
            *labels = json!({});
        }
        labels[name] = value.clone();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zone_and_region_are_the_nodes() {
        let node = json!({"metadata": {"labels": {"topology.kubernetes.io/zone": "z", "other": "x"}}});
        let mut binding = json!({"metadata": {"name": "p", "labels": {"topology.kubernetes.io/zone": "no", "a": "b"}}});
        label(&mut binding, &node);
        assert_eq!(binding["metadata"]["labels"], json!({"topology.kubernetes.io/zone": "z", "a": "b"}));
        let mut binding = json!({"metadata": {"name": "p"}});
        label(&mut binding, &json!({"metadata": {"name": "n"}}));
        assert_eq!(binding, json!({"metadata": {"name": "p"}}));
    }
}
