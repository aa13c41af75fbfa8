//! Columns of `ControllerRevision`s.

use serde_json::Value;

use super::NAME;
use super::cells::{AGE, column, list, number, text};
use crate::kind::Column;

/// Name, whose it is, number, age.
pub const COLUMNS: &[Column] = &[
    NAME,
    column("Controller", "string", 0, |object, _| controller(object).into()),
    column("Revision", "string", 0, |object, _| number(object, "/revision").into()),
    AGE,
];

fn controller(revision: &Value) -> String {
    let owners = list(revision, "/metadata/ownerReferences");
    let Some(owner) = owners.iter().find(|owner| owner["controller"] == true) else { return "<none>".to_owned() };
    let kind = text(owner, "/kind").to_lowercase();
    match text(owner, "/apiVersion").split_once('/') {
        Some((group, _)) => format!("{kind}.{group}/{}", text(owner, "/name")),
        None => format!("{kind}/{}", text(owner, "/name")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_controller_is_named_with_its_group() {
        let revision = json!({"metadata": {"ownerReferences": [
            {"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "s", "controller": true}]}});
        assert_eq!(controller(&revision), "statefulset.apps/s");
        assert_eq!(controller(&json!({})), "<none>");
    }
}
