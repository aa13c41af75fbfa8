//! Columns of a custom resource's Table: what JSONPaths find in its objects.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::path::JsonPath;
use crate::table::age;

/// A column of a custom resource's Table.
#[derive(Debug)]
pub struct CustomColumn {
    name: String,
    type_: String,
    format: String,
    description: String,
    priority: i64,
    path: Option<JsonPath>,
}

impl CustomColumn {
    /// The columns of a version, the name left out.
    pub(super) fn of_version(version: &Value) -> Vec<Self> {
        let columns = version.get("additionalPrinterColumns").and_then(Value::as_array);
        match columns.filter(|columns| !columns.is_empty()) {
            Some(columns) => columns.iter().map(Self::read).collect(),
            None => vec![Self {
                name: "Age".to_owned(),
                type_: "date".to_owned(),
                format: String::new(),
                description: "CreationTimestamp is a timestamp representing the server time when this object was created. It is \
                              not guaranteed to be set in happens-before order across separate operations. Clients may not set \
                              this value. It is represented in RFC3339 form and is in UTC.\n\nPopulated by the system. \
                              Read-only. Null for lists. More info: \
                              https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#metadata"
                    .to_owned(),
                priority: 0,
                path: JsonPath::parse(".metadata.creationTimestamp").ok(),
            }],
        }
    }

    fn read(column: &Value) -> Self {
        let text = |name: &str| column.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        let path = text("jsonPath");
        let mut description = text("description");
        if description.is_empty() {
            description = format!("Custom resource definition column (in JSONPath format): {path}");
        }
        Self {
            name: text("name"),
            type_: text("type"),
            format: text("format"),
            description,
            priority: column.get("priority").and_then(Value::as_i64).unwrap_or(0),
            path: JsonPath::parse(&path).ok(),
        }
    }

    /// What the Table says of the column.
    pub(crate) fn definition(&self) -> Value {
        json!({
            "name": self.name,
            "type": self.type_,
            "format": self.format,
            "description": self.description,
            "priority": self.priority,
        })
    }

    /// The cell of an object.
    pub(crate) fn cell(&self, object: &Value, now: Timestamp) -> Value {
        let Some(value) = self.path.as_ref().and_then(|path| path.find(object).into_iter().next()) else {
            return Value::Null;
        };
        match (self.type_.as_str(), value) {
            (_, Value::Null) => Value::Null,
            ("string", Value::String(text)) => text.as_str().into(),
            ("string", other) => other.to_string().into(),
            ("integer", Value::Number(number)) => {
                #[allow(clippy::cast_possible_truncation, reason = "an integer column shows the integer part")]
                let whole = number.as_i64().or_else(|| number.as_f64().map(|number| number as i64));
                whole.map_or(Value::Null, Value::from)
            }
            ("number", Value::Number(_)) | ("boolean", Value::Bool(_)) => value.clone(),
            ("date", Value::String(_)) => match age::parse(Some(value)) {
                Some(_) => age::since(Some(value), now).into(),
                None => "<invalid>".into(),
            },
            _ => Value::Null,
        }
    }
}
