//! Columns of RoleBindings and ClusterRoleBindings.

use serde_json::Value;

use super::NAME;
use super::cells::{AGE, column, list, text};
use crate::kind::Column;

/// Name, role, age; wide: who has it.
pub const BINDING: &[Column] = &[
    NAME,
    column("Role", "string", 0, |object, _| {
        format!("{}/{}", text(object, "/roleRef/kind"), text(object, "/roleRef/name")).into()
    }),
    AGE,
    column("Users", "string", 1, |object, _| named(object, "User").into()),
    column("Groups", "string", 1, |object, _| named(object, "Group").into()),
    column("ServiceAccounts", "string", 1, |object, _| {
        let accounts = subjects(object, "ServiceAccount");
        let shown = accounts.map(|one| format!("{}/{}", text(one, "/namespace"), text(one, "/name")));
        shown.collect::<Vec<_>>().join(", ").into()
    }),
];

fn subjects<'a>(binding: &'a Value, kind: &'static str) -> impl Iterator<Item = &'a Value> {
    list(binding, "/subjects").iter().filter(move |subject| subject["kind"] == kind)
}

fn named(binding: &Value, kind: &'static str) -> String {
    subjects(binding, kind).map(|one| text(one, "/name")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use serde_json::json;

    use super::*;

    #[test]
    fn subjects_are_sorted_by_kind() {
        let binding = json!({"roleRef": {"kind": "Role", "name": "x"}, "subjects": [
            {"kind": "User", "name": "u"}, {"kind": "User", "name": "v"}, {"kind": "ServiceAccount", "namespace": "n", "name": "s"}]});
        let cells: Vec<Value> = BINDING.iter().map(|column| (column.cell)(&binding, Timestamp::UNIX_EPOCH)).collect();
        assert_eq!((&cells[1], &cells[3], &cells[5]), (&json!("Role/x"), &json!("u, v"), &json!("n/s")));
    }
}
