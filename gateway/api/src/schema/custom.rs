//! The schema of a custom resource in the form in which patches and field ownership go by it.

use std::borrow::Cow;
use std::sync::{Arc, OnceLock};

use super::build::leaf;
use super::{Definition, Held, ListType, MapType, Schema, Type, definition};
use crate::custom::{Additional, Structural};
use crate::intern;

const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";

/// What every object has: apiVersion, kind and metadata.
pub(crate) fn object() -> &'static Schema {
    static OBJECT: OnceLock<Schema> = OnceLock::new();
    OBJECT.get_or_init(|| of(&Structural::default()))
}

/// The schema of the objects of a version.
pub(crate) fn of(structural: &Structural) -> Schema {
    let root = Structural { type_: "object".to_owned(), embedded: true, ..structural.clone() };
    schema(&root)
}

fn schema(structural: &Structural) -> Schema {
    let mut schema = shape(structural);
    schema.list = match structural.list_type.as_deref() {
        Some("set") => ListType::Set,
        Some("map") => ListType::Map(intern::texts(&structural.list_map_keys)),
        _ => ListType::Atomic,
    };
    if structural.map_type.as_deref() == Some("atomic") {
        schema.map = MapType::Atomic;
    }
    schema.default = structural.default.clone().map(|value| Held::Shared(Arc::new(value)));
    schema
}

fn shape(structural: &Structural) -> Schema {
    if structural.int_or_string {
        return leaf(Type::IntOrString);
    }
    match structural.type_.as_str() {
        "object" if structural.properties.is_empty() && !structural.embedded => match &structural.additional {
            Some(Additional::Schema(values)) => {
                Schema { element: Some(Held::Shared(Arc::new(schema(values)))), ..leaf(Type::Map) }
            }
            _ if structural.preserve_unknown || structural.additional == Some(Additional::Any(true)) => leaf(Type::Any),
            _ => fields(structural),
        },
        "object" => fields(structural),
        "array" => {
            let items = structural.items.as_deref().map_or_else(|| leaf(Type::Any), schema);
            Schema { element: Some(Held::Shared(Arc::new(items))), ..leaf(Type::Array) }
        }
        "string" => leaf(Type::String),
        "integer" => leaf(Type::Int64),
        "number" => leaf(Type::Double),
        "boolean" => leaf(Type::Boolean),
        _ => leaf(Type::Any),
    }
}

fn fields(structural: &Structural) -> Schema {
    let mut properties: Vec<(Cow<'static, str>, Schema)> =
        structural.properties.iter().map(|(name, field)| (Cow::Owned(name.clone()), schema(field))).collect();
    if structural.embedded {
        properties.retain(|(name, _)| !matches!(&**name, "apiVersion" | "kind" | "metadata"));
        properties.push((Cow::Borrowed("apiVersion"), leaf(Type::String)));
        properties.push((Cow::Borrowed("kind"), leaf(Type::String)));
        if let Some(metadata) = definition(OBJECT_META) {
            properties.push((Cow::Borrowed("metadata"), super::build::copy(metadata)));
        }
    }
    properties.sort_by(|(a, _), (b, _)| a.cmp(b));
    let definition = Definition { name: "", properties: OnceLock::from(properties.into_boxed_slice()), required: &[] };
    Schema { definition: Some(Held::Shared(Arc::new(definition))), ..leaf(Type::Object) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn lists_keep_their_keys_and_metadata_is_known() {
        let structural = Structural::read(&json!({"type": "object", "properties": {"spec": {"type": "object",
            "properties": {"ports": {"type": "array", "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["name"], "items": {"type": "object",
                "properties": {"name": {"type": "string", "default": "a"}}}}}}}}));
        let schema = of(&structural);
        let ports = schema.property("spec").and_then(|spec| spec.property("ports")).expect("known");
        assert_eq!(ports.list_type(), ListType::Map(&["name"]));
        assert_eq!(ports.items().and_then(|items| items.property("name")?.default_value()), Some(&json!("a")));
        assert!(schema.property("metadata").is_some_and(|metadata| metadata.property("labels").is_some()));
    }
}
