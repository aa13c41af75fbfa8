//! Objects as rows for people: the `Table` (`meta.k8s.io/v1`) that `kubectl get` prints.
//!
//! Each kind has its columns in a file below; the cells are those of Kubernetes' own printers.

pub mod admission;
pub mod age;
mod cells;
pub mod certificate;
pub mod class;
pub mod component_status;
pub mod config_map;
pub mod controller_revision;
pub mod cron_job;
pub mod daemon_set;
pub mod deployment;
pub mod device;
mod docs;
pub mod endpoints;
pub mod event;
pub mod flow_control;
pub mod horizontal_pod_autoscaler;
pub mod job;
pub mod lease;
pub mod namespace;
pub mod networking;
pub mod node;
pub mod persistent_volume;
pub mod persistent_volume_claim;
pub mod pod;
pub mod pod_disruption_budget;
pub mod pod_template;
pub mod rbac;
pub mod replica_set;
pub mod replication_controller;
pub mod resource_quota;
pub mod scale;
pub mod secret;
pub mod service;
pub mod service_account;
pub mod stateful_set;
pub mod storage;

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::custom::CustomColumn;
use crate::kind::{Column, Kind};
use cells::{column, name};

/// Columns of a kind that has none of its own.
pub const DEFAULT_COLUMNS: &[Column] = &[NAME, column("Created At", "date", 0, created_at)];

const NAME: Column = Column { name: "Name", type_: "string", format: "name", priority: 0, description: "", cell: name };

fn created_at(object: &Value, _: Timestamp) -> Value {
    object.pointer("/metadata/creationTimestamp").cloned().unwrap_or_default()
}

/// What of its object a row carries (`?includeObject=`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IncludeObject {
    /// Nothing.
    None,
    /// Its metadata.
    #[default]
    Metadata,
    /// All of it.
    Object,
}

impl IncludeObject {
    /// The value of the query parameter; empty is the default.
    ///
    /// # Errors
    /// The text for the 400 answer.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text {
            "" | "Metadata" => Ok(Self::Metadata),
            "None" => Ok(Self::None),
            "Object" => Ok(Self::Object),
            other => Err(format!(
                "Unable to convert to Table as requested: includeObject: Invalid value: {}: must be 'Metadata', \
                 'Object', 'None', or empty",
                crate::status::quote(other)
            )),
        }
    }
}

/// How objects become rows.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    /// What of its object a row carries.
    pub include: IncludeObject,
    /// Of `meta.k8s.io`: `v1`, `v1beta1`.
    pub version: &'a str,
    /// The moment that ages count to.
    pub now: Timestamp,
}

impl Rows<'_> {
    /// Objects of one kind as a Table. `list_meta` is the list's (or for a single object that object's) `ListMeta`;
    /// without columns they are null, as in all but the first event of a watch.
    #[allow(clippy::needless_pass_by_value, reason = "the metadata becomes part of the answer")]
    pub fn table(&self, kind: &Kind, objects: &[&Value], list_meta: Value, with_columns: bool) -> Value {
        let rows: Value = match objects {
            [] => no_rows(kind),
            objects => objects.iter().map(|object| self.row(kind, object)).collect(),
        };
        json!({
            "kind": "Table",
            "apiVersion": format!("meta.k8s.io/{}", self.version),
            "metadata": list_meta,
            "columnDefinitions": if with_columns { columns(kind) } else { Value::Null },
            "rows": rows,
        })
    }

    /// The row of an object.
    pub fn row(&self, kind: &Kind, object: &Value) -> Value {
        let mut row = self.shown(kind, object);
        let carried = match self.include {
            IncludeObject::None => Value::Null,
            IncludeObject::Metadata => self.metadata(object),
            IncludeObject::Object => whole(kind, object),
        };
        row.insert("object".into(), carried);
        Value::Object(row)
    }

    /// Writes the row of an object whose metadata is at hand as JSON; the object itself may be without what no cell
    /// shows. The row carries the metadata.
    pub fn write_row(&self, kind: &Kind, object: &Value, metadata: &[u8], out: &mut Vec<u8>) {
        let row = Value::Object(self.shown(kind, object));
        serde_json::to_writer(&mut *out, &row).expect("a JSON value is written into memory");
        out.pop();
        let version = self.version;
        let carried = format!(
            ",\"object\":{{\"kind\":\"PartialObjectMetadata\",\"apiVersion\":\"meta.k8s.io/{version}\",\"metadata\":"
        );
        out.extend_from_slice(carried.as_bytes());
        out.extend_from_slice(metadata);
        out.extend_from_slice(b"}}");
    }

    /// A row without what it carries.
    fn shown(&self, kind: &Kind, object: &Value) -> Map<String, Value> {
        let cells: Vec<Value> = match &kind.custom {
            None => kind.columns.iter().map(|column| (column.cell)(object, self.now)).collect(),
            Some(custom) => std::iter::once(name(object, self.now))
                .chain(custom.columns().iter().map(|column| column.cell(object, self.now)))
                .collect(),
        };
        let mut row = Map::new();
        row.insert("cells".into(), cells.into());
        let is_pod = kind.group.is_empty() && kind.kind == "Pod";
        if let Some(conditions) = is_pod.then(|| pod::row_conditions(object)).flatten() {
            row.insert("conditions".into(), conditions);
        }
        row
    }

    /// An object reduced to its metadata (`PartialObjectMetadata`).
    fn metadata(&self, object: &Value) -> Value {
        json!({
            "kind": "PartialObjectMetadata",
            "apiVersion": format!("meta.k8s.io/{}", self.version),
            "metadata": object.get("metadata").cloned().unwrap_or_else(|| json!({})),
        })
    }
}

/// What stands for rows where there are none: Kubernetes' printers give an empty list, its default for kinds without
/// columns of their own gives null.
pub fn no_rows(kind: &Kind) -> Value {
    let plain = kind.columns.len() == DEFAULT_COLUMNS.len()
        && kind.columns.iter().zip(DEFAULT_COLUMNS).all(|(own, other)| own.name == other.name);
    if plain { Value::Null } else { Value::Array(Vec::new()) }
}

/// The definitions of a kind's columns.
pub fn columns(kind: &Kind) -> Value {
    if let Some(custom) = &kind.custom {
        let own = custom.columns().iter().map(CustomColumn::definition);
        return kind.columns[..1].iter().map(|column| definition(kind, column)).chain(own).collect();
    }
    kind.columns.iter().map(|column| definition(kind, column)).collect()
}

fn definition(kind: &Kind, column: &Column) -> Value {
    json!({
        "name": column.name,
        "type": column.type_,
        "format": column.format,
        "description": docs::description(kind, column),
        "priority": column.priority,
    })
}

/// The object with its kind, which items of a list may lack.
fn whole(kind: &Kind, object: &Value) -> Value {
    let mut whole = Map::new();
    whole.insert("kind".into(), kind.kind.into());
    whole.insert("apiVersion".into(), kind.api_version().into());
    if let Value::Object(fields) = object {
        whole.extend(fields.iter().map(|(name, value)| (name.clone(), value.clone())));
    }
    Value::Object(whole)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::Registry;

    #[test]
    fn a_table_has_columns_cells_and_metadata() {
        let kind = Registry::builtin().by_resource("", "v1", "configmaps").unwrap();
        let object = json!({"metadata": {"name": "a", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "data": {"x": "1", "y": "2"}});
        let now: Timestamp = "2026-01-01T00:00:30Z".parse().unwrap();
        let rows = Rows { include: IncludeObject::Metadata, version: "v1", now };
        let table = rows.table(kind, &[&object], json!({"resourceVersion": "7"}), true);
        assert_eq!(table["columnDefinitions"][0]["format"], "name");
        assert_eq!(table["rows"][0]["cells"], json!(["a", 2, "30s"]));
        assert_eq!(table["rows"][0]["object"]["kind"], "PartialObjectMetadata");
    }

    #[test]
    fn a_row_may_carry_nothing_or_everything() {
        let kind = Registry::builtin().by_resource("", "v1", "configmaps").unwrap();
        let object = json!({"metadata": {"name": "a"}});
        let of = |include| {
            let rows = Rows { include, version: "v1", now: Timestamp::UNIX_EPOCH };
            rows.table(kind, &[&object], json!({}), false)
        };
        assert_eq!(of(IncludeObject::None)["rows"][0]["object"], Value::Null);
        assert_eq!(of(IncludeObject::None)["columnDefinitions"], Value::Null);
        assert_eq!(of(IncludeObject::Object)["rows"][0]["object"]["kind"], "ConfigMap");
        assert!(IncludeObject::parse("Bad").unwrap_err().contains("includeObject: Invalid value: \"Bad\""));
    }
}
