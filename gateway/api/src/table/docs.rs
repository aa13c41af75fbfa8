//! What the columns of Tables mean: the texts that Kubernetes' printers give, most of which are the documentation of the
//! field that a column shows.

use std::collections::HashMap;
use std::sync::{Mutex, OnceLock, PoisonError};

use serde_json::{Map, Value};

use crate::kind::{Column, Kind};
use crate::schema::build::generate;

/// Columns: group, resource (`*` for all), column, text or `@TYPE.FIELD`.
const TABLE: &str = include_str!("../../data/columns.tsv");

/// Where the columns of Events of both groups are described.
const EVENT: &str = "io.k8s.api.core.v1.Event";

/// The description of a kind's column: its own, or else what the table has for it; empty if nothing is known.
pub(super) fn description(kind: &Kind, column: &Column) -> String {
    let (own, name): (&str, &str) = (column.description, column.name);
    if !own.is_empty() {
        return own.to_owned();
    }
    let (group, plural): (&str, &str) = (kind.group, kind.plural);
    let Some(text) = table().get(&(group, plural, name)).or_else(|| table().get(&("*", "*", name))) else {
        return String::new();
    };
    match text.strip_prefix('@').and_then(|field| field.rsplit_once('.')) {
        Some((type_, field)) => documentation(kind.schema, type_, field),
        None => text.replace("\\n", "\n"),
    }
}

type Key = (&'static str, &'static str, &'static str);

fn table() -> &'static HashMap<Key, &'static str> {
    static ROWS: OnceLock<HashMap<Key, &'static str>> = OnceLock::new();
    ROWS.get_or_init(|| {
        let row = |line: &'static str| {
            let mut cells = line.splitn(4, '\t');
            Some(((cells.next()?, cells.next()?, cells.next()?), cells.next()?))
        };
        TABLE.lines().skip(1).filter_map(row).collect()
    })
}

/// The documentation of a field of a type that a kind's schema leads to. Texts are kept: there are few.
fn documentation(schema: &str, type_: &str, field: &str) -> String {
    static KNOWN: OnceLock<Mutex<HashMap<String, String>>> = OnceLock::new();
    let known = KNOWN.get_or_init(Mutex::default);
    let name = format!("{type_}.{field}");
    if let Some(text) = known.lock().unwrap_or_else(PoisonError::into_inner).get(&name) {
        return text.clone();
    }
    let has_own = crate::schema::definition(schema).is_some();
    let schema = if has_own { schema } else { EVENT };
    let shapes = generate(|wanted| wanted == schema || (wanted == EVENT && type_.starts_with(EVENT)));
    let text = text(&shapes, type_, field);
    known.lock().unwrap_or_else(PoisonError::into_inner).insert(name, text.clone());
    text
}

fn text(shapes: &Map<String, Value>, type_: &str, field: &str) -> String {
    let text = shapes.get(type_).map(|shape| &shape["properties"][field]["description"]);
    text.and_then(Value::as_str).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::Registry;

    #[test]
    fn a_column_is_described_by_the_field_it_shows_or_by_a_text_of_its_own() {
        let registry = Registry::builtin();
        let pods = registry.by_resource("", "v1", "pods").unwrap();
        let of = |name: &str| {
            let column = pods.columns.iter().find(|column| column.name == name).unwrap();
            description(pods, column)
        };
        assert!(of("Name").starts_with("Name must be unique within a namespace."));
        assert!(of("Node").starts_with("NodeName indicates in which node this pod is scheduled."));
        assert_eq!(of("Status"), "The aggregate status of the containers in this pod.");
    }

    #[test]
    fn every_column_of_a_built_in_kind_is_described() {
        for kind in Registry::builtin().iter() {
            for column in kind.columns {
                let bare = (kind.plural, column.name) == ("runtimeclasses", "Handler");
                assert_eq!(description(kind, column).is_empty(), bare, "{}.{}", kind.plural, column.name);
            }
        }
    }
}
