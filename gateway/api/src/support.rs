//! Nothing silently ignored: which fields Carob carries out, and what to warn of when an object sets others.
//!
//! The facts are in `data/support`. A field that is in no line of it makes a test fail, so that what a new version
//! of Kubernetes adds is noticed.

mod matrix;
mod table;

pub use matrix::matrix_markdown;

use serde_json::Value;

use crate::field::Path;
use crate::kind::Kind;
use crate::schema::{self, Schema, Type};
use table::{Rule, Table};

/// Texts for Warning headers: one for each field that is set and isn't carried out.
pub fn warnings(kind: &Kind, value: &Value) -> Vec<String> {
    let mut found = Vec::new();
    if kind.custom.is_some() {
        return found;
    }
    look(Table::get(), schema::schema_of(kind), value, &Path::root(), &mut found);
    found
}

fn look(table: &'static Table, schema: &Schema, value: &Value, path: &Path, found: &mut Vec<String>) {
    match (schema.type_(), value) {
        (Type::Object, Value::Object(fields)) => {
            let Some(name) = schema.name() else { return };
            for (field, value) in fields.iter().filter(|(_, value)| is_set(value)) {
                let Some(inner) = schema.property(field) else { continue };
                let path = path.child(field);
                match table.rule(name, field) {
                    Rule::Yes => look(table, inner, value, &path, found),
                    Rule::All | Rule::Part(_) | Rule::Set | Rule::Kept | Rule::Never => {}
                    Rule::Only(values) => warn_of_value(values, value, &path, found),
                    Rule::No(reason) => found.push(format!("{path}: not carried out by Carob: {reason}")),
                }
            }
        }
        (Type::Array, Value::Array(items)) => {
            let Some(inner) = schema.items() else { return };
            for (index, item) in items.iter().enumerate() {
                look(table, inner, item, &path.index(index), found);
            }
        }
        _ => {}
    }
}

fn warn_of_value(values: &[&str], value: &Value, path: &Path, found: &mut Vec<String>) {
    let text = plain(value);
    if !values.contains(&text.as_str()) {
        let carried_out = values.join(", ");
        found.push(format!("{path}: {text} is not carried out by Carob, only {carried_out}"));
    }
}

/// A string without quotes; anything else as JSON.
fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// Whether a value asks for anything.
fn is_set(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(fields) => !fields.is_empty(),
        Value::Bool(_) | Value::Number(_) => true,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::json;

    use super::*;
    use crate::kinds::{self, Registry};

    fn pod() -> &'static Kind {
        Registry::builtin().by_gvk("", "v1", "Pod").unwrap()
    }

    #[test]
    fn fields_that_are_not_carried_out_are_named() {
        let object = json!({"metadata": {"name": "p"}, "spec": {"resourceClaims": [{"name": "c"}], "affinity": {}, "priority": 5,
            "schedulerName": "default-scheduler",
            "containers": [{"name": "a"}, {"name": "b", "resources": {"claims": [{"name": "c"}]}}],
            "volumes": [{"name": "v", "nfs": {"server": "s", "path": "/"}}]}});
        let found = warnings(pod(), &object);
        let beginnings = [
            "spec.resourceClaims: not carried out by Carob: devices",
            "spec.containers[1].resources.claims: not carried out by Carob: devices",
            "spec.volumes[0].nfs: not carried out by Carob: ",
        ];
        assert_eq!(found.len(), beginnings.len(), "{found:?}");
        for (warning, beginning) in found.iter().zip(beginnings) {
            assert!(warning.starts_with(beginning) && warning.len() > beginning.len(), "{warning}");
        }
    }

    #[test]
    fn templates_are_looked_into() {
        let deployment = Registry::builtin().by_gvk("apps", "v1", "Deployment").unwrap();
        let object = json!({"spec": {"template": {"spec": {"resourceClaims": [{"name": "c"}], "containers": []}}}});
        let found = warnings(deployment, &object);
        assert!(found[0].starts_with("spec.template.spec.resourceClaims: not carried out by Carob: "), "{found:?}");
    }

    #[test]
    fn what_kubernetes_fills_in_is_no_reason_to_warn() {
        let object = json!({"spec": {"schedulerName": "default-scheduler", "priority": 0, "enableServiceLinks": true,
            "preemptionPolicy": "PreemptLowerPriority", "securityContext": {}, "tolerations": [{"operator": "Exists"}],
            "containers": [{"name": "a", "resources": {}}]}, "status": {"phase": "Pending", "qosClass": "BestEffort"}});
        assert!(warnings(pod(), &object).is_empty());
    }

    /// Every type that is reached through fields that are carried out, with its fields.
    fn reached() -> BTreeSet<(&'static str, &'static str)> {
        fn visit(schema: &'static Schema, seen: &mut BTreeSet<(&'static str, &'static str)>) {
            if let Some(inner) = schema.items().or_else(|| schema.additional()) {
                return visit(inner, seen);
            }
            let Some(name) = schema.name() else { return };
            for (field, inner) in schema.properties() {
                if seen.insert((name, field)) && matches!(Table::get().rule(name, field), Rule::Yes) {
                    visit(inner, seen);
                }
            }
        }
        let mut seen = BTreeSet::new();
        for kind in kinds::builtin().chain(kinds::optional()) {
            visit(schema::schema_of(kind), &mut seen);
        }
        seen
    }

    #[test]
    fn every_field_of_every_served_kind_is_classified() {
        let missing: Vec<_> = reached().into_iter().filter(|(name, field)| !Table::get().knows(name, field)).collect();
        assert!(missing.is_empty(), "add lines to data/support for {missing:?}");
    }

    #[test]
    fn whatever_is_not_carried_out_has_its_reason() {
        let silent = Table::get().without_reason();
        assert!(silent.is_empty(), "add `| REASON` in data/support to the lines of {silent:?}");
    }

    #[test]
    fn every_line_is_about_a_field_that_exists() {
        let reached = reached();
        let stray: Vec<_> = Table::get().fields().filter(|field| !reached.contains(field)).collect();
        assert!(stray.is_empty(), "remove from data/support: {stray:?}");
    }

    #[test]
    fn the_published_matrix_is_the_one_of_the_table() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/support-matrix.md");
        let published = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            published == matrix_markdown(),
            "docs/support-matrix.md is stale: cargo run -p carob-api --example support_matrix > docs/support-matrix.md"
        );
    }
}
