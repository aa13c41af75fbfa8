//! What other API servers say of their groups in OpenAPI, taken into the documents of this one.

use carob_api::openapi;
use serde_json::{Map, Value};

use super::Delegate;
use crate::Server;

/// How a definition is referred to.
const REFERENCE: &str = "#/definitions/";

/// What another server describes.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Described {
    /// Entries of the index of version 3, by their paths: `apis/GROUP/VERSION`.
    pub index: Map<String, Value>,
    /// Paths of version 2.
    paths: Map<String, Value>,
    /// Definitions of version 2.
    definitions: Map<String, Value>,
}

/// Asks another server; what cannot be had is empty.
pub(super) async fn read(server: &Server, delegate: &Delegate, group: &str) -> Described {
    let ask = async |path| {
        let document = delegate.ask(server, path, "application/json").await.ok()?;
        serde_json::from_slice::<Value>(&document.bytes).ok()
    };
    let index = ask("/openapi/v3").await.unwrap_or_default();
    let document = ask("/openapi/v2").await.unwrap_or_default();
    Described::of(group, &index, &document)
}

impl Described {
    /// Only what is about the group: a server may not describe what others serve.
    fn of(group: &str, index: &Value, document: &Value) -> Self {
        let below = |object: &Value, prefix: &str| {
            let all = object.as_object().into_iter().flatten();
            let own = all.filter(|(path, _)| *path == prefix.trim_end_matches('/') || path.starts_with(prefix));
            own.map(|(path, value)| (path.clone(), value.clone())).collect::<Map<String, Value>>()
        };
        Self {
            index: below(&index["paths"], &format!("apis/{group}/")),
            paths: below(&document["paths"], &format!("/apis/{group}/")),
            definitions: document["definitions"].as_object().cloned().unwrap_or_default(),
        }
    }

    /// Adds what is described to a document of version 2. A definition whose name is taken by another one gets a new name.
    fn add_to(&self, document: &mut Value) {
        let renamed: Vec<(String, String)> = self
            .definitions
            .iter()
            .filter(|(name, definition)| {
                document["definitions"].get(name.as_str()).is_some_and(|known| known != *definition)
            })
            .map(|(name, _)| (name.clone(), free_name(name, &document["definitions"], &self.definitions)))
            .collect();
        let new_name = |name: &str| renamed.iter().find(|(old, _)| old == name).map(|(_, new)| new.clone());
        for (list, own) in [("definitions", &self.definitions), ("paths", &self.paths)] {
            let Some(known) = document[list].as_object_mut() else { continue };
            for (name, value) in own {
                let mut value = value.clone();
                if !renamed.is_empty() {
                    refer(&mut value, &new_name);
                }
                let name = if list == "definitions" { new_name(name) } else { None }.unwrap_or_else(|| name.clone());
                known.entry(name).or_insert(value);
            }
        }
    }
}

/// The name with a number that nobody has.
fn free_name(name: &str, taken: &Value, also: &Map<String, Value>) -> String {
    let mut names = (2..).map(|number| format!("{name}_v{number}"));
    names.find(|name| taken.get(name.as_str()).is_none() && !also.contains_key(name)).unwrap_or_default()
}

/// Follows definitions to their new names.
fn refer(value: &mut Value, new_name: &impl Fn(&str) -> Option<String>) {
    match value {
        Value::Object(fields) => {
            if let Some(Value::String(reference)) = fields.get_mut("$ref")
                && let Some(new) = reference.strip_prefix(REFERENCE).and_then(new_name)
            {
                *reference = format!("{REFERENCE}{new}");
            }
            fields.values_mut().for_each(|value| refer(value, new_name));
        }
        Value::Array(items) => items.iter_mut().for_each(|value| refer(value, new_name)),
        _ => {}
    }
}

/// The document of version 2 with what others describe, in JSON or in protobuf.
pub(crate) fn merged(mut document: Value, others: &[Described], protobuf: bool) -> bytes::Bytes {
    for other in others {
        other.add_to(&mut document);
    }
    if protobuf { openapi::in_protobuf(&document) } else { crate::response::to_json(&document) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_server_describes_its_own_group_only() {
        let index = json!({"paths": {"apis/e.x/v1": {"serverRelativeURL": "u"}, "apis/apps/v1": {}, "version": {}}});
        let document = json!({"paths": {"/apis/e.x/": {}, "/apis/e.x/v1/things": {}, "/api/v1/pods": {}}});
        let described = Described::of("e.x", &index, &document);
        assert_eq!(described.index.keys().collect::<Vec<_>>(), ["apis/e.x/v1"]);
        assert_eq!(described.paths.keys().collect::<Vec<_>>(), ["/apis/e.x/", "/apis/e.x/v1/things"]);
    }

    #[test]
    fn a_definition_of_a_taken_name_is_renamed_with_what_refers_to_it() {
        let mut document =
            json!({"paths": {}, "definitions": {"meta": {"type": "object"}, "same": {"type": "string"}}});
        let other = json!({"paths": {"/apis/e.x/v1/things": {"schema": {"$ref": "#/definitions/thing"}}}, "definitions": {
            "meta": {"type": "array"}, "same": {"type": "string"},
            "thing": {"properties": {"m": {"$ref": "#/definitions/meta"}, "s": {"$ref": "#/definitions/same"}}}}});
        Described::of("e.x", &json!({}), &other).add_to(&mut document);
        assert_eq!(document["definitions"]["meta"]["type"], "object");
        assert_eq!(document["definitions"]["meta_v2"]["type"], "array");
        assert_eq!(document["definitions"]["thing"]["properties"]["m"]["$ref"], "#/definitions/meta_v2");
        assert_eq!(document["definitions"]["thing"]["properties"]["s"]["$ref"], "#/definitions/same");
        assert_eq!(document["paths"]["/apis/e.x/v1/things"]["schema"]["$ref"], "#/definitions/thing");
    }
}
