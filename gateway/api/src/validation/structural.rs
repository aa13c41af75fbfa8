//! What a schema of a CustomResourceDefinition must be like: structural, so that every field has one meaning.

use serde_json::{Value, json};

use super::json::{flag, get, items, str_at, texts};
use crate::cel;
use crate::custom::rules::Rule;
use crate::custom::{self, Structural, formats};
use crate::field::{ErrorList, Path};

const TYPES: [&str; 6] = ["array", "boolean", "integer", "number", "object", "string"];
/// Keywords of JSON schema that have no place in a structural one.
const UNKNOWN: [&str; 5] = ["$ref", "definitions", "dependencies", "id", "patternProperties"];
/// What only stands outside of `allOf`, `anyOf`, `oneOf` and `not`.
const OUTSIDE: [&str; 9] = [
    "additionalProperties",
    "default",
    "description",
    "nullable",
    "title",
    "type",
    "x-kubernetes-embedded-resource",
    "x-kubernetes-int-or-string",
    "x-kubernetes-preserve-unknown-fields",
];
/// How deep schemas may be nested.
const DEEPEST: usize = 64;
/// What a rule may cost by estimate, and how long a list or text without a limit is thought to be.
const STATIC_LIMIT: f64 = 10_000_000.0;
const REQUEST_SIZE: f64 = 3_145_728.0;

/// Everything that is wrong with the schema of a version.
pub fn check(schema: &Value, at: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    match str_at(schema, "type") {
        "object" => {}
        "" => errors.push(at.child("type").required("must not be empty at the root")),
        other => errors.push(at.child("type").invalid(other, "must be object at the root")),
    }
    if let Some(metadata) = schema.pointer("/properties/metadata") {
        check_metadata(metadata, &at.child("properties").key("metadata"), &mut errors);
    }
    check_top(schema, at, &mut errors);
    let walk = Walk { depth: 0, root: true, instances: 1.0, correlatable: true };
    check_schema(schema, at, walk, &mut errors);
    errors
}

#[derive(Clone, Copy)]
struct Walk {
    depth: usize,
    root: bool,
    /// How many values of this schema an object may hold.
    instances: f64,
    /// Whether a value can be found again after a change.
    correlatable: bool,
}

impl Walk {
    fn down(self) -> Self {
        Self { depth: self.depth + 1, root: false, ..self }
    }
}

/// What every object has, however its kind describes it.
fn check_top(schema: &Value, at: &Path, errors: &mut ErrorList) {
    for (name, wanted) in [("apiVersion", "string"), ("kind", "string"), ("metadata", "object")] {
        let Some(field) = schema.pointer(&format!("/properties/{name}")) else { continue };
        let place = at.child("properties").key(name);
        let type_ = str_at(field, "type");
        if type_ != wanted {
            errors.push(place.child("type").invalid(type_, format!("must be {wanted}")));
        }
        if get(field, "default").is_some() && wanted == "string" {
            errors.push(place.child("default").forbidden(format!("must not be set in top-level {name}")));
        }
    }
}

fn check_metadata(metadata: &Value, at: &Path, errors: &mut ErrorList) {
    let allowed = |name: &str| matches!(name, "name" | "generateName");
    let fields = get(metadata, "properties").and_then(Value::as_object);
    if fields.is_some_and(|fields| fields.keys().any(|name| !allowed(name))) {
        errors.push(at.forbidden(
            "must not specify anything other than name and generateName, but metadata is implicitly specified",
        ));
    }
}

fn check_schema(schema: &Value, at: &Path, walk: Walk, errors: &mut ErrorList) {
    if walk.depth > DEEPEST {
        errors.push(at.forbidden("the schema is nested too deep"));
        return;
    }
    check_type(schema, at, errors);
    for name in UNKNOWN.iter().filter(|name| get(schema, name).is_some()) {
        errors.push(at.child(name).forbidden(format!("{name} is not supported")));
    }
    if flag(schema, "uniqueItems") {
        errors.push(
            at.child("uniqueItems")
                .forbidden("uniqueItems cannot be set to true since the runtime complexity becomes quadratic"),
        );
    }
    if walk.root && get(schema, "additionalProperties").is_some() {
        errors.push(at.child("additionalProperties").forbidden("must not be used at the root"));
    }
    let properties = get(schema, "properties").and_then(Value::as_object);
    if properties.is_some_and(|fields| !fields.is_empty()) && get(schema, "additionalProperties").is_some() {
        let why = if schema["additionalProperties"] == json!(false) {
            "additionalProperties cannot be set to false"
        } else {
            "additionalProperties and properties are mutual exclusive"
        };
        errors.push(at.child("additionalProperties").forbidden(why));
    }
    if let Err(why) = formats::check_pattern(str_at(schema, "pattern")) {
        errors.push(
            at.child("pattern")
                .invalid(str_at(schema, "pattern"), format!("must be a valid regular expression, but isn't: {why}")),
        );
    }
    check_list(schema, at, errors);
    for (junctor, place) in junctors(schema, at) {
        check_junctor(junctor, &place, walk.depth, errors);
        check_defined(junctor, &place, schema, at, errors);
    }
    check_default(schema, at, errors);
    check_rules(schema, at, walk, errors);
    for (name, field) in properties.into_iter().flatten() {
        let place = at.child("properties").key(name);
        if walk.root && matches!(name.as_str(), "apiVersion" | "kind" | "metadata") {
            continue;
        }
        require_type(field, &place, "must not be empty for specified object fields", errors);
        check_schema(field, &place, walk.down(), errors);
    }
    if let Some(values) = get(schema, "additionalProperties").filter(|values| values.is_object()) {
        let place = at.child("additionalProperties");
        require_type(values, &place, "must not be empty for specified object fields", errors);
        let instances = walk.instances * bound(schema, "maxProperties", 4.0);
        check_schema(values, &place, Walk { instances, ..walk.down() }, errors);
    }
    match get(schema, "items") {
        Some(Value::Array(_)) => {
            errors.push(at.child("items").forbidden("items must be a schema object and not an array"));
        }
        Some(element) => {
            let place = at.child("items");
            require_type(element, &place, "must not be empty for specified array items", errors);
            let instances = walk.instances * bound(schema, "maxItems", 2.0);
            let correlatable = walk.correlatable && str_at(schema, "x-kubernetes-list-type") == "map";
            check_schema(element, &place, Walk { instances, correlatable, ..walk.down() }, errors);
        }
        None if str_at(schema, "type") == "array" && !flag(schema, "x-kubernetes-preserve-unknown-fields") => {
            errors.push(at.child("items").required("must be specified"));
        }
        None => {}
    }
}

fn bound(schema: &Value, limit: &str, smallest: f64) -> f64 {
    get(schema, limit).and_then(Value::as_f64).unwrap_or(REQUEST_SIZE / smallest)
}

fn junctors<'a>(schema: &'a Value, at: &Path) -> Vec<(&'a Value, Path)> {
    let mut found = Vec::new();
    for name in ["allOf", "anyOf", "oneOf"] {
        found.extend(items(schema, name).iter().enumerate().map(|(index, part)| (part, at.child(name).index(index))));
    }
    found.extend(get(schema, "not").map(|part| (part, at.child("not"))));
    found
}

fn require_type(schema: &Value, at: &Path, why: &str, errors: &mut ErrorList) {
    let free = flag(schema, "x-kubernetes-int-or-string") || flag(schema, "x-kubernetes-preserve-unknown-fields");
    if str_at(schema, "type").is_empty() && !free {
        errors.push(at.child("type").required(why));
    }
}

fn check_type(schema: &Value, at: &Path, errors: &mut ErrorList) {
    let type_ = str_at(schema, "type");
    if !type_.is_empty() && !TYPES.contains(&type_) {
        if type_ == "null" {
            errors.push(at.child("type").forbidden("type cannot be set to null, use nullable as an alternative"));
        } else {
            errors.push(at.child("type").not_supported(type_, &TYPES));
        }
    }
    if flag(schema, "x-kubernetes-int-or-string") && !type_.is_empty() {
        errors.push(at.child("type").forbidden("must be empty if x-kubernetes-int-or-string is true"));
    }
    if flag(schema, "x-kubernetes-embedded-resource") {
        if type_ != "object" {
            errors.push(at.child("type").invalid(type_, "must be object if x-kubernetes-embedded-resource is true"));
        }
        if get(schema, "properties").is_none() && !flag(schema, "x-kubernetes-preserve-unknown-fields") {
            errors.push(at.child("properties").required("must not be empty if x-kubernetes-embedded-resource is true without x-kubernetes-preserve-unknown-fields"));
        }
    }
    if get(schema, "x-kubernetes-preserve-unknown-fields") == Some(&json!(false)) {
        errors.push(at.child("x-kubernetes-preserve-unknown-fields").invalid(false, "must be true or undefined"));
    }
}

fn check_list(schema: &Value, at: &Path, errors: &mut ErrorList) {
    let type_ = str_at(schema, "type");
    let list_type = str_at(schema, "x-kubernetes-list-type");
    let keys: Vec<&str> = texts(schema, "x-kubernetes-list-map-keys").collect();
    if !matches!(list_type, "" | "atomic" | "set" | "map") {
        errors.push(at.child("x-kubernetes-list-type").not_supported(list_type, &["atomic", "set", "map"]));
    }
    if !list_type.is_empty() && type_ != "array" {
        errors.push(if type_.is_empty() {
            at.child("type").required("must be array if x-kubernetes-list-type is specified")
        } else {
            at.child("type").invalid(type_, "must be array if x-kubernetes-list-type is specified")
        });
    }
    let map_type = str_at(schema, "x-kubernetes-map-type");
    if !matches!(map_type, "" | "atomic" | "granular") {
        errors.push(at.child("x-kubernetes-map-type").not_supported(map_type, &["atomic", "granular"]));
    }
    if !map_type.is_empty() && type_ != "object" {
        errors.push(at.child("type").invalid(type_, "must be object if x-kubernetes-map-type is specified"));
    }
    let element = get(schema, "items");
    match list_type {
        "map" => {
            if keys.is_empty() {
                errors.push(
                    at.child("x-kubernetes-list-map-keys")
                        .required("must not be empty if x-kubernetes-list-type is map"),
                );
            }
            let Some(element) = element else { return };
            if str_at(element, "type") != "object" {
                errors.push(at.child("items").child("type").invalid(
                    str_at(element, "type"),
                    "must be object if parent array's x-kubernetes-list-type is map",
                ));
            }
            for (index, key) in keys.iter().enumerate() {
                let field = element.pointer(&format!("/properties/{}", key.replace('~', "~0").replace('/', "~1")));
                let Some(field) = field else {
                    errors.push(
                        at.child("x-kubernetes-list-map-keys").index(index).invalid(
                            *key,
                            "entries in x-kubernetes-list-map-keys must all be names of item properties",
                        ),
                    );
                    continue;
                };
                let place = at.child("items").child("properties").key(key);
                if matches!(str_at(field, "type"), "array" | "object") {
                    errors.push(place.child("type").invalid(
                        str_at(field, "type"),
                        "must be a scalar type if parent array's x-kubernetes-list-type is map",
                    ));
                }
                let required = texts(element, "required").any(|name| name == *key);
                if !required && get(field, "default").is_none() {
                    errors.push(place.child("default").required(
                        "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property",
                    ));
                }
            }
        }
        "set" if element.is_some_and(|element| str_at(element, "type") == "object") => {
            let element = element.unwrap_or(&Value::Null);
            if str_at(element, "x-kubernetes-map-type") != "atomic" {
                let given = get(element, "x-kubernetes-map-type").cloned().unwrap_or(Value::Null);
                let why = "must be atomic as item of a list with x-kubernetes-list-type=set";
                errors.push(at.child("items").child("x-kubernetes-map-type").invalid(given, why));
            }
        }
        _ if !keys.is_empty() => errors.push(
            at.child("x-kubernetes-list-type")
                .invalid(list_type, "must be map if x-kubernetes-list-map-keys is non-empty"),
        ),
        _ => {}
    }
}

fn check_junctor(schema: &Value, at: &Path, depth: usize, errors: &mut ErrorList) {
    if depth > DEEPEST {
        return;
    }
    for name in
        OUTSIDE.iter().filter(|name| get(schema, name).is_some_and(|value| !matches!(value, Value::Bool(false))))
    {
        // `x-kubernetes-int-or-string` itself brings such an anyOf.
        if *name == "type" && matches!(str_at(schema, "type"), "integer" | "string") && at.to_string().contains("anyOf")
        {
            continue;
        }
        let why = match *name {
            "type" | "description" | "title" => "must be empty to be structural",
            "nullable"
            | "x-kubernetes-embedded-resource"
            | "x-kubernetes-int-or-string"
            | "x-kubernetes-preserve-unknown-fields" => "must be false to be structural",
            _ => "must be undefined to be structural",
        };
        errors.push(at.child(name).forbidden(why));
    }
    for (name, field) in get(schema, "properties").and_then(Value::as_object).into_iter().flatten() {
        check_junctor(field, &at.child("properties").key(name), depth + 1, errors);
    }
    if let Some(element) = get(schema, "items").filter(|element| element.is_object()) {
        check_junctor(element, &at.child("items"), depth + 1, errors);
    }
    for (part, place) in junctors(schema, at) {
        check_junctor(part, &place, depth + 1, errors);
    }
}

/// What a condition is about must be specified outside of it.
fn check_defined(condition: &Value, place: &Path, schema: &Value, at: &Path, errors: &mut ErrorList) {
    for (name, field) in get(condition, "properties").and_then(Value::as_object).into_iter().flatten() {
        let (place, at) = (place.child("properties").key(name), at.child("properties").key(name));
        match get(schema, "properties").and_then(|known| known.get(name)) {
            Some(known) => check_defined(field, &place, known, &at, errors),
            None => errors.push(at.required(format!("because it is defined in {place}"))),
        }
    }
    if let Some(element) = get(condition, "items").filter(|element| element.is_object()) {
        let (place, at) = (place.child("items"), at.child("items"));
        match get(schema, "items") {
            Some(known) => check_defined(element, &place, known, &at, errors),
            None => errors.push(at.required(format!("because it is defined in {place}"))),
        }
    }
    for (part, place) in junctors(condition, place) {
        check_defined(part, &place, schema, at, errors);
    }
}

/// A default must be a value of its schema.
fn check_default(schema: &Value, at: &Path, errors: &mut ErrorList) {
    let Some(default) = get(schema, "default") else { return };
    let place = at.child("default");
    let structural = Structural::read(schema);
    let mut value = default.clone();
    let dropped = custom::prune(&structural, &mut value);
    if let Some(first) = dropped.first() {
        errors.push(place.invalid(default.clone(), format!("must not have unspecified fields: {first}")));
    }
    errors.extend(custom::check_default(&structural, default, &place.to_string()));
}

fn check_rules(schema: &Value, at: &Path, walk: Walk, errors: &mut ErrorList) {
    for (index, rule) in items(schema, "x-kubernetes-validations").iter().enumerate() {
        let place = at.child("x-kubernetes-validations").index(index);
        let text = str_at(rule, "rule");
        if text.trim().is_empty() {
            errors.push(place.child("rule").required("rule is not specified"));
            continue;
        }
        let message = str_at(rule, "message");
        if message.trim().is_empty() && !message.is_empty() {
            errors.push(place.child("message").invalid(message, "message must be non-empty if specified"));
        } else if message.contains('\n') {
            errors.push(place.child("message").invalid(message, "must not contain line breaks"));
        } else if text.contains('\n') && message.is_empty() {
            errors.push(place.child("message").required("message must be specified if rule contains line breaks"));
        }
        let reason = str_at(rule, "reason");
        const REASONS: [&str; 4] =
            ["FieldValueRequired", "FieldValueForbidden", "FieldValueInvalid", "FieldValueDuplicate"];
        if !reason.is_empty() && !REASONS.contains(&reason) {
            errors.push(place.child("reason").not_supported(reason, &REASONS));
        }
        let read = Rule::read(rule);
        if let Some(mistake) = read.mistake() {
            errors.push(place.child("rule").invalid(go_rule(rule), format!("compilation failed: {mistake}")));
            continue;
        }
        if let Some(mistake) = check_fields(rule, schema, at) {
            errors.push(place.child("rule").invalid(go_rule(rule), mistake));
            continue;
        }
        if read.transition && !walk.correlatable && get(rule, "optionalOldSelf").is_none() {
            errors.push(
                place
                    .child("rule")
                    .invalid(go_rule(rule), "oldSelf cannot be used on the uncorrelatable portion of the schema"),
            );
        }
        let cost = walk.instances * estimate(text, schema);
        if cost > STATIC_LIMIT {
            let factor = cost / STATIC_LIMIT;
            let shown = if factor > 100.0 { "more than 100x".to_owned() } else { format!("factor of {factor:.1}x") };
            let shown = if factor > 100.0 { format!("factor of {shown}") } else { shown };
            errors.push(place.child("rule").forbidden(format!(
                "estimated rule cost exceeds budget by {shown} (try simplifying the rule, or adding maxItems, maxProperties, \
                 and maxLength where arrays, maps, and strings are declared)"
            )));
        }
    }
}

/// Fields that a rule reaches for must be in the schema. Every object has a kind and a name, whatever its schema says.
fn check_fields(rule: &Value, schema: &Value, at: &Path) -> Option<String> {
    let mut structural = Structural::read(schema);
    if at.to_string().ends_with("openAPIV3Schema") {
        let text = || Structural { type_: "string".to_owned(), ..Structural::default() };
        for name in ["apiVersion", "kind"] {
            structural.properties.entry(name.to_owned()).or_insert_with(text);
        }
        let names = ["generateName", "name"].map(|name| (name.to_owned(), text()));
        let metadata = structural.properties.entry("metadata".to_owned()).or_default();
        "object".clone_into(&mut metadata.type_);
        metadata.properties.extend(names);
    }
    let variables = [("self", &structural), ("oldSelf", &structural)];
    // Where the old value may be missing, it is wrapped.
    let known = if flag(rule, "optionalOldSelf") { &variables[..1] } else { &variables };
    cel::mistake(str_at(rule, "rule"), known)
}

/// What a rule may cost at most, roughly. What isn't known to be shorter is as long as the longest list that there can be.
fn estimate(text: &str, schema: &Value) -> f64 {
    let structural = Structural::read(schema);
    cel::steps(text, &[("self", &structural), ("oldSelf", &structural)], longest(schema, 0))
}

/// The longest list or map that a value of this schema may hold.
fn longest(schema: &Value, depth: usize) -> f64 {
    if depth > DEEPEST {
        return 1.0;
    }
    let here = match str_at(schema, "type") {
        "array" => bound(schema, "maxItems", smallest(&schema["items"])),
        "object" if schema["additionalProperties"].is_object() => bound(schema, "maxProperties", 8.0),
        _ => 1.0,
    };
    let fields = get(schema, "properties").and_then(Value::as_object).into_iter().flatten().map(|(_, field)| field);
    let below = fields.chain(get(schema, "items")).map(|schema| longest(schema, depth + 1));
    below.fold(here, f64::max)
}

/// The fewest bytes that a value of a schema takes in JSON, with a comma.
fn smallest(schema: &Value) -> f64 {
    match str_at(schema, "type") {
        "boolean" => 5.0,
        "string" | "object" | "array" => 3.0,
        _ => 2.0,
    }
}

/// A rule as Go prints its own form of it.
fn go_rule(rule: &Value) -> Value {
    json!({
        "Rule": str_at(rule, "rule"),
        "Message": str_at(rule, "message"),
        "MessageExpression": str_at(rule, "messageExpression"),
        "Reason": get(rule, "reason"),
        "FieldPath": str_at(rule, "fieldPath"),
        "OptionalOldSelf": get(rule, "optionalOldSelf"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errors(schema: &Value) -> Vec<String> {
        check(schema, &Path::new("s")).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn every_field_has_a_type() {
        assert_eq!(errors(&json!({})), ["s.type: Required value: must not be empty at the root"]);
        assert_eq!(
            errors(&json!({"type": "object", "properties": {"a": {}, "b": {"type": "array", "items": {}}}})),
            [
                "s.properties[a].type: Required value: must not be empty for specified object fields",
                "s.properties[b].items.type: Required value: must not be empty for specified array items",
            ]
        );
        assert!(
            errors(&json!({"type": "object", "properties": {"a": {"x-kubernetes-int-or-string": true},
            "b": {"x-kubernetes-preserve-unknown-fields": true}}}))
            .is_empty()
        );
    }

    #[test]
    fn keys_of_lists_must_be_there() {
        let schema = json!({"type": "object", "properties": {"l": {"type": "array", "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["name", "zz"],
            "items": {"type": "object", "properties": {"name": {"type": "string"}}}}}});
        assert_eq!(
            errors(&schema),
            [
                "s.properties[l].items.properties[name].default: Required value: this property is in \
                 x-kubernetes-list-map-keys, so it must have a default or be a required property",
                "s.properties[l].x-kubernetes-list-map-keys[1]: Invalid value: \"zz\": entries in \
                 x-kubernetes-list-map-keys must all be names of item properties",
            ]
        );
    }

    #[test]
    fn rules_must_compile_and_be_cheap() {
        let found =
            errors(&json!({"type": "object", "properties": {"l": {"type": "array", "items": {"type": "string"},
            "x-kubernetes-validations": [{"rule": "self.all(x, self.all(y, x != y))"}, {"rule": "nope == 1"}]}}}));
        assert!(found[0].contains("estimated rule cost exceeds budget by factor of more than 100x"), "{found:?}");
        assert!(
            found[1].contains("compilation failed: ERROR: <input>:1:1: undeclared reference to 'nope'"),
            "{found:?}"
        );
        assert!(
            errors(&json!({"type": "object", "properties": {"l": {"type": "array", "maxItems": 10, "items": {"type":
            "string"}, "x-kubernetes-validations": [{"rule": "self.all(x, self.exists(y, x == y))"}]}}}))
            .is_empty()
        );
    }

    #[test]
    fn defaults_must_fit() {
        let found = errors(&json!({"type": "object", "properties": {"a": {"type": "integer", "default": "x"}}}));
        assert_eq!(
            found,
            [
                "s.properties[a].default: Invalid value: \"string\": s.properties[a].default in body must be of type integer: \"string\""
            ]
        );
    }
}
