//! A structural schema: the part of OpenAPI v3 that says what a value is, field by field.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

/// The schema of one value, as a CustomResourceDefinition states it.
#[derive(Clone, Debug, Default, PartialEq)]
#[allow(clippy::struct_excessive_bools, reason = "each is a keyword of its own")]
pub struct Structural {
    /// `object`, `array`, `string`, `integer`, `number`, `boolean`; empty if anything goes.
    pub type_: String,
    /// Whether null is a value.
    pub nullable: bool,
    /// A number or a string (`x-kubernetes-int-or-string`).
    pub int_or_string: bool,
    /// Fields that the schema doesn't name stay (`x-kubernetes-preserve-unknown-fields`).
    pub preserve_unknown: bool,
    /// A Kubernetes object of its own, with apiVersion, kind and metadata (`x-kubernetes-embedded-resource`).
    pub embedded: bool,
    /// The named fields.
    pub properties: BTreeMap<String, Structural>,
    /// What other fields hold.
    pub additional: Option<Additional>,
    /// What a list holds.
    pub items: Option<Box<Structural>>,
    /// What an absent field becomes.
    pub default: Option<Value>,
    /// `atomic`, `set` or `map` (`x-kubernetes-list-type`).
    pub list_type: Option<String>,
    /// The fields that tell items of a list apart.
    pub list_map_keys: Vec<String>,
    /// `atomic` or `granular` (`x-kubernetes-map-type`).
    pub map_type: Option<String>,
    /// Everything else that the schema says: limits, patterns, formats, `allOf`, rules, …
    pub rest: Map<String, Value>,
}

/// What fields hold that a schema doesn't name.
#[derive(Clone, Debug, PartialEq)]
pub enum Additional {
    /// Anything, or they may not be there.
    Any(bool),
    /// Values of this schema.
    Schema(Box<Structural>),
}

impl Structural {
    /// Whether any value fits.
    pub fn accepts_anything(&self) -> bool {
        self.type_.is_empty() && self.preserve_unknown
    }

    /// Reads a `JSONSchemaProps`.
    pub fn read(schema: &Value) -> Self {
        let mut read = Self::default();
        for (name, value) in schema.as_object().into_iter().flatten() {
            read.take(name, value);
        }
        read
    }

    fn take(&mut self, name: &str, value: &Value) {
        let flag = || value.as_bool().unwrap_or(false);
        let text = || value.as_str().unwrap_or_default().to_owned();
        match name {
            "type" => self.type_ = text(),
            "nullable" => self.nullable = flag(),
            "x-kubernetes-int-or-string" => self.int_or_string = flag(),
            "x-kubernetes-preserve-unknown-fields" => self.preserve_unknown = flag(),
            "x-kubernetes-embedded-resource" => self.embedded = flag(),
            "x-kubernetes-list-type" => self.list_type = Some(text()),
            "x-kubernetes-map-type" => self.map_type = Some(text()),
            "x-kubernetes-list-map-keys" => {
                let keys = value.as_array().into_iter().flatten();
                self.list_map_keys = keys.filter_map(Value::as_str).map(str::to_owned).collect();
            }
            "properties" => {
                let fields = value.as_object().into_iter().flatten();
                self.properties = fields.map(|(name, schema)| (name.clone(), Self::read(schema))).collect();
            }
            "items" if value.is_object() => self.items = Some(Box::new(Self::read(value))),
            "additionalProperties" => {
                self.additional = match value {
                    Value::Bool(allowed) => Some(Additional::Any(*allowed)),
                    Value::Object(_) => Some(Additional::Schema(Box::new(Self::read(value)))),
                    _ => None,
                };
            }
            "default" => self.default = Some(value.clone()).filter(|value| !value.is_null()),
            _ => {
                self.rest.insert(name.to_owned(), value.clone());
            }
        }
    }
}
