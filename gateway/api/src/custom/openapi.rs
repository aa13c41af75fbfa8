//! The schema of a custom resource as OpenAPI documents show it.

use serde_json::{Map, Value, json};

use crate::kind::Kind;

/// Markers that only version 3 of OpenAPI can express.
const V3_ONLY: [&str; 6] = ["nullable", "oneOf", "anyOf", "allOf", "not", "default"];

impl Kind {
    /// The definition of a custom kind, complete with what every object has, `common`; none for a kind that is built in.
    /// The older version of OpenAPI knows less.
    pub(crate) fn custom_definition(&self, common: &Map<String, Value>, is_v2: bool) -> Option<Value> {
        let custom = self.custom.as_ref()?;
        let mut definition = custom.openapi().clone();
        if is_v2 {
            simplify(&mut definition);
        }
        if !definition.is_object() {
            definition = json!({});
        }
        definition["type"] = "object".into();
        if !definition["properties"].is_object() {
            definition["properties"] = json!({});
        }
        for (name, field) in common {
            definition["properties"][name] = field.clone();
        }
        Some(definition)
    }
}

/// Takes out what version 2 cannot express. What then would be wrong is left open.
fn simplify(schema: &mut Value) {
    let Some(fields) = schema.as_object_mut() else { return };
    let open = ["oneOf", "anyOf", "allOf", "not"].iter().any(|name| fields.contains_key(*name))
        || fields.get("nullable") == Some(&Value::Bool(true));
    for name in V3_ONLY {
        fields.shift_remove(name);
    }
    if open || fields.contains_key("x-kubernetes-int-or-string") {
        fields.shift_remove("type");
    }
    if fields.get("x-kubernetes-preserve-unknown-fields") == Some(&Value::Bool(true)) {
        fields.shift_remove("items");
        fields.shift_remove("properties");
    }
    for name in ["items", "additionalProperties"] {
        if let Some(inner) = fields.get_mut(name) {
            simplify(inner);
        }
    }
    if let Some(Value::Object(properties)) = fields.get_mut("properties") {
        properties.values_mut().for_each(simplify);
    }
}
