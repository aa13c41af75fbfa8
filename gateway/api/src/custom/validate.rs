//! Values against their schema, in the words of Kubernetes' OpenAPI validation.
//!
//! What an update left as it was is not checked again: a schema that became stricter doesn't hold up changes elsewhere.

use serde_json::{Map, Value, json};

use super::formats;
use super::structural::{Additional, Structural};
use crate::field::{ErrorKind, ErrorList, FieldError};

/// Where a value is: once for the error's field, once for its text, which leaves the first part out for a status.
#[derive(Clone)]
pub(super) struct Place {
    /// `spec.a[0]`
    pub field: String,
    /// `spec.a[0]`, or `a[0]` below a status that is checked by itself.
    pub name: String,
}

impl Place {
    pub fn root() -> Self {
        Self { field: String::new(), name: String::new() }
    }

    /// A part that is checked by itself.
    pub fn part(field: &str) -> Self {
        Self { field: field.to_owned(), name: String::new() }
    }

    pub fn child(&self, name: &str) -> Self {
        let join = |path: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
        Self { field: join(&self.field), name: join(&self.name) }
    }

    pub fn index(&self, index: usize) -> Self {
        Self { field: format!("{}[{index}]", self.field), name: format!("{}[{index}]", self.name) }
    }

    pub fn error(&self, kind: ErrorKind, value: Value, detail: impl Into<String>) -> FieldError {
        let path = if self.field.is_empty() { "<nil>".to_owned() } else { self.field.clone() };
        FieldError { kind, path, value, detail: detail.into() }
    }

    fn invalid(&self, value: &Value, why: &str) -> FieldError {
        self.error(ErrorKind::Invalid, value.clone(), format!("{} in body {why}", self.name))
    }
}

/// Everything that is wrong with a value.
pub(super) fn check(schema: &Structural, value: &Value, old: Option<&Value>, at: &Place, errors: &mut ErrorList) {
    if old == Some(value) {
        return;
    }
    check_type(schema, value, at, errors);
    if value.is_null() {
        return;
    }
    check_junctors(schema, value, at, errors);
    match value {
        Value::String(text) => check_text(schema, text, at, errors),
        Value::Number(number) => check_number(schema, number.as_f64().unwrap_or(0.0), value, at, errors),
        Value::Array(items) => check_items(schema, items, old, at, errors),
        _ => {}
    }
    if let Some(allowed) = schema.rest.get("enum").and_then(Value::as_array)
        && !allowed.contains(value)
    {
        let shown: Vec<String> = allowed.iter().map(|one| crate::status::quote(&plain(one))).collect();
        errors.push(at.error(
            ErrorKind::NotSupported,
            value.clone(),
            format!("supported values: {}", shown.join(", ")),
        ));
    }
    if let Value::Object(fields) = value {
        check_fields(schema, fields, old, at, errors);
    }
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn check_type(schema: &Structural, value: &Value, at: &Place, errors: &mut ErrorList) {
    let found = type_of(value);
    let (fits, wanted) = if schema.int_or_string {
        (matches!(found, "integer" | "string"), "integer,string")
    } else {
        let wanted = schema.type_.as_str();
        let fits = wanted.is_empty() || found == wanted || (wanted == "number" && found == "integer");
        (fits, wanted)
    };
    let nullable = value.is_null() && (schema.nullable || (wanted.is_empty() && schema.preserve_unknown));
    if fits && !(value.is_null() && wanted.is_empty() && !schema.preserve_unknown) || nullable {
        return;
    }
    if wanted.is_empty() {
        return;
    }
    let name = if at.name.is_empty() { String::new() } else { format!("{} ", at.name) };
    let text = format!("{name}in body must be of type {wanted}: \"{found}\"");
    errors.push(at.error(ErrorKind::TypeInvalid, found.into(), text));
}

pub(super) fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() && number.as_f64().is_some_and(|value| value.fract() != 0.0) => {
            "number"
        }
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn limit(schema: &Structural, name: &str) -> Option<u64> {
    schema.rest.get(name).and_then(Value::as_u64)
}

fn check_text(schema: &Structural, text: &str, at: &Place, errors: &mut ErrorList) {
    let value = Value::from(text);
    errors.extend(first_mistake(schema, text, &value, at));
    if let Some(format) = schema.rest.get("format").and_then(Value::as_str)
        && !formats::is(format, text)
    {
        let text = format!("{} in body must be of type {format}: {}", at.name, crate::status::quote(text));
        errors.push(at.error(ErrorKind::TypeInvalid, value, text));
    }
}

/// Of length and pattern only the first mistake is told.
fn first_mistake(schema: &Structural, text: &str, value: &Value, at: &Place) -> Option<FieldError> {
    let length = text.chars().count() as u64;
    if let Some(most) = limit(schema, "maxLength").filter(|most| length > *most) {
        return Some(at.error(ErrorKind::TooLong, value.clone(), format!("may not be more than {most} bytes")));
    }
    if let Some(least) = limit(schema, "minLength").filter(|least| length < *least) {
        return Some(at.invalid(value, &format!("should be at least {least} chars long")));
    }
    let pattern = schema.rest.get("pattern").and_then(Value::as_str)?;
    (!formats::matches(pattern, text)).then(|| at.invalid(value, &format!("should match '{pattern}'")))
}

fn check_number(schema: &Structural, number: f64, value: &Value, at: &Place, errors: &mut ErrorList) {
    let bound = |name: &str| schema.rest.get(name).filter(|bound| bound.is_number());
    let exclusive = |name: &str| schema.rest.get(name).and_then(Value::as_bool).unwrap_or(false);
    if let Some(factor) = bound("multipleOf")
        && let Some(divisor) = factor.as_f64().filter(|divisor| *divisor != 0.0)
    {
        let times = number / divisor;
        if (times - times.round()).abs() > 1e-9 {
            errors.push(at.invalid(value, &format!("should be a multiple of {factor}")));
        }
    }
    if let Some(most) = bound("maximum") {
        let limit = most.as_f64().unwrap_or(f64::MAX);
        if exclusive("exclusiveMaximum") && number >= limit {
            errors.push(at.invalid(value, &format!("should be less than {most}")));
        } else if number > limit {
            errors.push(at.invalid(value, &format!("should be less than or equal to {most}")));
        }
    }
    if let Some(least) = bound("minimum") {
        let limit = least.as_f64().unwrap_or(f64::MIN);
        if exclusive("exclusiveMinimum") && number <= limit {
            errors.push(at.invalid(value, &format!("should be greater than {least}")));
        } else if number < limit {
            errors.push(at.invalid(value, &format!("should be greater than or equal to {least}")));
        }
    }
}

fn too_many(found: usize, most: u64, at: &Place) -> FieldError {
    let items = if most == 1 { "item" } else { "items" };
    at.error(ErrorKind::TooMany, found.into(), format!("must have at most {most} {items}"))
}

fn check_items(schema: &Structural, items: &[Value], old: Option<&Value>, at: &Place, errors: &mut ErrorList) {
    if let Some(element) = &schema.items {
        for (index, item) in items.iter().enumerate() {
            let before = correlated(schema, item, old);
            check(element, item, before, &at.index(index), errors);
        }
    }
    if let Some(least) = limit(schema, "minItems").filter(|least| (items.len() as u64) < *least) {
        errors.push(at.invalid(&Value::from(items.len()), &format!("should have at least {least} items")));
    }
    if let Some(most) = limit(schema, "maxItems").filter(|most| items.len() as u64 > *most) {
        errors.push(too_many(items.len(), most, at));
    }
}

/// The item of the old list that a new one continues: only lists that are maps have such.
pub(super) fn correlated<'a>(schema: &Structural, item: &Value, old: Option<&'a Value>) -> Option<&'a Value> {
    if schema.list_type.as_deref() != Some("map") {
        return None;
    }
    let key = |item: &Value| -> Vec<Option<Value>> {
        schema.list_map_keys.iter().map(|key| item.get(key).cloned()).collect()
    };
    let wanted = key(item);
    old?.as_array()?.iter().find(|old| key(old) == wanted)
}

fn check_fields(
    schema: &Structural,
    fields: &Map<String, Value>,
    old: Option<&Value>,
    at: &Place,
    errors: &mut ErrorList,
) {
    let is_root = at.field.is_empty();
    if let Some(least) = limit(schema, "minProperties").filter(|least| (fields.len() as u64) < *least) {
        let found = Value::from(fields.len());
        errors.push(at.invalid(&found, &format!("should have at least {least} properties")));
    }
    if let Some(most) = limit(schema, "maxProperties").filter(|most| fields.len() as u64 > *most) {
        errors.push(too_many(fields.len(), most, at));
    }
    for (name, value) in fields {
        if is_root && matches!(name.as_str(), "apiVersion" | "kind" | "metadata") {
            continue;
        }
        let field = match (schema.properties.get(name), &schema.additional) {
            (Some(field), _) => field,
            (None, Some(Additional::Schema(field))) => field,
            _ => continue,
        };
        check(field, value, old.and_then(|old| old.get(name)), &at.child(name), errors);
    }
    let required = schema.rest.get("required").and_then(Value::as_array);
    for name in required.into_iter().flatten().filter_map(Value::as_str).filter(|name| !fields.contains_key(*name)) {
        errors.push(at.child(name).error(ErrorKind::Required, json!(""), ""));
    }
}

fn mistakes(schema: &Value, value: &Value, at: &Place) -> ErrorList {
    let mut errors = ErrorList::new();
    check(&Structural::read(schema), value, None, at, &mut errors);
    errors
}

fn is_valid(schema: &Value, value: &Value, at: &Place) -> bool {
    mistakes(schema, value, at).is_empty()
}

fn check_junctors(schema: &Structural, value: &Value, at: &Place, errors: &mut ErrorList) {
    let list = |name: &str| schema.rest.get(name).and_then(Value::as_array).filter(|list| !list.is_empty());
    let mut below = ErrorList::new();
    let mut told = |why: String| {
        let text = format!("{} {why}", crate::status::quote(&at.name));
        errors.push(at.error(ErrorKind::Invalid, json!(""), text).without_place());
    };
    if let Some(list) = list("anyOf")
        && !schema.int_or_string
        && !list.iter().any(|schema| is_valid(schema, value, at))
    {
        told("must validate at least one schema (anyOf)".to_owned());
        // What would have had to be otherwise for the first of them.
        below.extend(list.first().map(|schema| mistakes(schema, value, at)).unwrap_or_default());
    }
    if let Some(list) = list("oneOf") {
        match list.iter().filter(|schema| is_valid(schema, value, at)).count() {
            1 => {}
            0 => {
                told("must validate one and only one schema (oneOf). Found none valid".to_owned());
                below.extend(list.first().map(|schema| mistakes(schema, value, at)).unwrap_or_default());
            }
            several => {
                told(format!("must validate one and only one schema (oneOf). Found {several} valid alternatives"));
            }
        }
    }
    if let Some(list) = list("allOf") {
        for schema in list {
            check(&Structural::read(schema), value, None, at, &mut below);
        }
        if !below.is_empty() {
            told("must validate all the schemas (allOf)".to_owned());
            errors.append(&mut below);
        }
    }
    if let Some(not) = schema.rest.get("not").filter(|not| not.is_object())
        && is_valid(not, value, at)
    {
        errors.push(
            at.error(
                ErrorKind::Invalid,
                json!(""),
                format!("{} must not validate the schema (not)", crate::status::quote(&at.name)),
            )
            .without_place(),
        );
    }
}

impl FieldError {
    /// Errors of several schemas together are about no field in particular.
    fn without_place(self) -> Self {
        Self { path: "<nil>".to_owned(), ..self }
    }
}

/// Lists that are sets or maps: no item may come twice.
pub(super) fn check_lists(schema: &Structural, value: &Value, old: Option<&Value>, at: &Place, errors: &mut ErrorList) {
    if old == Some(value) {
        return;
    }
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                let field = match (schema.properties.get(name), &schema.additional) {
                    (Some(field), _) => field,
                    (None, Some(Additional::Schema(field))) => field,
                    _ => continue,
                };
                check_lists(field, value, old.and_then(|old| old.get(name)), &at.child(name), errors);
            }
        }
        Value::Array(items) => {
            let mut seen: Vec<Value> = Vec::new();
            for (index, item) in items.iter().enumerate() {
                let key = match schema.list_type.as_deref() {
                    Some("set") => item.clone(),
                    Some("map") => {
                        let keys = schema.list_map_keys.iter();
                        Value::Object(keys.filter_map(|key| Some((key.clone(), item.get(key)?.clone()))).collect())
                    }
                    _ => continue,
                };
                if seen.contains(&key) {
                    errors.push(at.index(index).error(ErrorKind::Duplicate, key, ""));
                } else {
                    seen.push(key);
                }
            }
            if let Some(element) = &schema.items {
                for (index, item) in items.iter().enumerate() {
                    check_lists(element, item, correlated(schema, item, old), &at.index(index), errors);
                }
            }
        }
        _ => {}
    }
}

/// Objects inside objects need what makes them objects.
pub(super) fn check_embedded(schema: &Structural, value: &Value, at: &Place, is_root: bool, errors: &mut ErrorList) {
    if schema.embedded && !is_root && value.is_object() {
        for name in ["apiVersion", "kind"] {
            if value.get(name).and_then(Value::as_str).is_none_or(str::is_empty) {
                errors.push(at.child(name).error(ErrorKind::Required, json!(""), ""));
            }
        }
    }
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                if let Some(field) = schema.properties.get(name) {
                    check_embedded(field, value, &at.child(name), false, errors);
                } else if let Some(Additional::Schema(field)) = &schema.additional {
                    check_embedded(field, value, &at.child(name), false, errors);
                }
            }
        }
        Value::Array(items) => {
            if let Some(element) = &schema.items {
                for (index, item) in items.iter().enumerate() {
                    check_embedded(element, item, &at.index(index), false, errors);
                }
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errors(schema: &Value, value: &Value, old: Option<&Value>) -> Vec<String> {
        let mut errors = ErrorList::new();
        check(&Structural::read(schema), value, old, &Place::root(), &mut errors);
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn mistakes_are_told_in_kubernetes_words() {
        let schema = json!({"type": "object", "properties": {"spec": {"type": "object", "required": ["n"], "properties": {
            "n": {"type": "integer", "minimum": 1, "maximum": 5},
            "s": {"type": "string", "pattern": "^a+$", "maxLength": 3, "enum": ["a", "aa"]},
            "l": {"type": "array", "maxItems": 1, "items": {"type": "string"}},
            "f": {"type": "string", "format": "date-time"},
            "i": {"x-kubernetes-int-or-string": true},
            "one": {"type": "object", "oneOf": [{"required": ["a"]}, {"required": ["b"]}]}}}}});
        for (spec, expected) in [
            (json!({}), vec!["spec.n: Required value"]),
            (json!({"n": 0}), vec!["spec.n: Invalid value: 0: spec.n in body should be greater than or equal to 1"]),
            (
                json!({"n": 1.5}),
                vec!["spec.n: Invalid value: \"number\": spec.n in body must be of type integer: \"number\""],
            ),
            (
                json!({"n": 6, "s": "bbbb"}),
                vec![
                    "spec.n: Invalid value: 6: spec.n in body should be less than or equal to 5",
                    "spec.s: Too long: may not be more than 3 bytes",
                    "spec.s: Unsupported value: \"bbbb\": supported values: \"a\", \"aa\"",
                ],
            ),
            (json!({"n": 1, "l": ["a", "b"]}), vec!["spec.l: Too many: 2: must have at most 1 item"]),
            (
                json!({"n": 1, "f": "nope", "i": true}),
                vec![
                    "spec.f: Invalid value: \"nope\": spec.f in body must be of type date-time: \"nope\"",
                    "spec.i: Invalid value: \"boolean\": spec.i in body must be of type integer,string: \"boolean\"",
                ],
            ),
            (
                json!({"n": 1, "one": {}}),
                vec![
                    "<nil>: Invalid value: \"\": \"spec.one\" must validate one and only one schema (oneOf). Found none valid",
                ],
            ),
        ] {
            assert_eq!(errors(&schema, &json!({ "spec": spec }), None), expected, "{spec}");
        }
    }

    #[test]
    fn what_an_update_leaves_alone_is_not_checked_again() {
        let schema =
            json!({"type": "object", "properties": {"a": {"type": "integer", "maximum": 1}, "b": {"type": "string"}}});
        let old = json!({"a": 5, "b": "x"});
        assert!(errors(&schema, &json!({"a": 5, "b": "y"}), Some(&old)).is_empty());
        assert_eq!(errors(&schema, &json!({"a": 6, "b": "y"}), Some(&old)).len(), 1);
    }
}
