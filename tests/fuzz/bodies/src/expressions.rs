//! CEL, and the schemas of custom resources that use it.

use std::sync::Arc;

use carob_api::apply::{self, Manager, Operation};
use carob_api::cel::{Budget, PER_OBJECT, Program, Scope, from_json, to_json};
use carob_api::decode::{FieldValidation, decode_json};
use carob_api::kind::{Kind, Part};
use carob_api::kinds::Registry;
use carob_api::{custom, openapi};
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::source::Source;
use crate::{objects, texts};

/// An expression about an object and its predecessor. It ends, whatever it says, and its value is no larger than paid for.
pub fn cel(data: &[u8]) {
    let source = String::from_utf8_lossy(data);
    let Ok(program) = Program::compile(&source, &["self", "oldSelf"]) else { return };
    let object = json!({"a": 5, "s": "abc", "l": [1, 2, 3], "m": {"k": "v"}, "n": null, "b": true, "t": "2026-01-02T03:04:05Z",
        "long": "x".repeat(1000), "deep": {"a": {"a": {"a": [[[]]]}}}, "objects": [{"name": "a"}, {"name": "b"}]});
    let variables = [("self", from_json(&object)), ("oldSelf", from_json(&object))];
    let root = Scope::root();
    let mut budget = Budget::new(PER_OBJECT);
    if let Ok(value) = program.evaluate(&root.with_all(&variables), &mut budget) {
        let size = to_json(&value).to_string().len();
        assert!(size <= 64 << 20, "{source} made {size} bytes");
    }
}

/// Expressions of every form.
pub fn cel_seeds() -> Vec<Vec<u8>> {
    texts(&[
        "self.a > 4 ? 'big' : 'small'",
        "self.l.all(x, x > 0) && self.l.exists(x, x == 3) && self.l.exists_one(x, x == 2)",
        "self.l.map(x, self.l.map(y, self.l.filter(z, x * y * z != 6)))",
        "quantity('1Gi').isGreaterThan(quantity('500M')) || duration('1h') < duration('90m')",
        "self.s.matches('^(a+)+$') && self.long.find('x*y') == ''",
        "self.?zz.?y.orValue(7) + size(self.long.replace('x', 'xx', -1))",
        "cel.bind(x, self.s + self.s, cel.bind(y, x + x, y + y)).split('').join('-')",
        "timestamp(self.t).getFullYear() == 2026 && has(self.m.k) && 'k' in self.m",
        "url('https://a:1/b?c=d').getHost() + ip('::1').family() + cidr('10.0.0.0/8').ip()",
        "{'a': [1, 2.5, 3u, b'x', null, true]}.a.sum() / 0 % -9223372036854775808",
        "'%d %s'.format([1, 'x']) + self.objects.map(o, o.name)[5] + string(1.0e308 * 10.0)",
        "oldSelf.s.substring(-1, 99999) + 'ab'.charAt(7) + [1, 1].slice(1, 0)",
    ])
}

/// A definition with a schema, rules and columns; then objects of it.
pub fn custom_resource(data: &[u8]) {
    let mut source = Source::new(data);
    let definitions = objects::kind_named("CustomResourceDefinition");
    let sent = definition(&mut source);
    let decoded = decode_json(definitions, sent.to_string().as_bytes(), FieldValidation::Ignore);
    let Ok(decoded) = decoded else { return };
    let mut definition = decoded.value;
    definitions.default(&mut definition);
    definitions.prepare_create(&mut definition);
    if !definitions.validate(&definition).is_empty() {
        return;
    }
    for kind in custom::kinds_of(&definition) {
        for _ in 0..3 {
            custom_object(&mut source, &kind);
        }
        let registry = Registry::with(&[], [Arc::clone(&kind)]);
        assert!(serde_json::from_slice::<Value>(&openapi::openapi_v2(&registry)).is_ok(), "the document is JSON");
        let path = format!("apis/{}/{}", kind.group, kind.version);
        let document = openapi::openapi_v3(&registry, &path).expect("a document of the group");
        assert!(serde_json::from_slice::<Value>(&document).is_ok(), "the document is JSON");
    }
}

fn custom_object(source: &mut Source<'_>, kind: &Kind) {
    let mut sent = objects::any(source, 2);
    if let Some(fields) = sent.as_object_mut() {
        fields.insert("apiVersion".to_owned(), kind.api_version().into());
        fields.insert("kind".to_owned(), kind.kind.into());
        fields.insert("metadata".to_owned(), json!({"name": "a"}));
        fields.insert("spec".to_owned(), objects::any(source, 4));
    }
    let Ok(decoded) = decode_json(kind, sent.to_string().as_bytes(), FieldValidation::Warn) else { return };
    let mut object = decoded.value;
    kind.default(&mut object);
    let once = object.clone();
    kind.default(&mut object);
    assert_eq!(object, once, "defaults are filled in once");
    let again = decode_json(kind, object.to_string().as_bytes(), FieldValidation::Strict);
    assert_eq!(again.expect("what was pruned needs no pruning").value, object);
    let mistakes = kind.validate(&object);
    let _ = kind.validate_update(&object, &object, Part::Main);
    let now = "2026-06-01T00:00:00Z".parse::<Timestamp>().expect("a time");
    let rows = carob_api::table::Rows { include: carob_api::table::IncludeObject::Object, version: "v1", now };
    let _ = rows.table(kind, &[&object], json!({}), true);
    if !mistakes.is_empty() {
        return;
    }
    let manager = Manager { name: "m", operation: Operation::Apply, subresource: "", time: "2026-01-02T03:04:05Z" };
    let Ok(first) = apply::apply(kind, None, &object, &manager, false) else { return };
    let second = apply::apply(kind, Some(&first.object), &object, &manager, false).expect("its own fields");
    assert_eq!(second.object, first.object, "applying twice");
}

fn definition(source: &mut Source<'_>) -> Value {
    let mut spec = Map::new();
    for _ in 0..source.below(4) {
        spec.insert(name(source), schema(source, 0));
    }
    let mut root = json!({"type": "object", "properties": {"spec": {"type": "object", "properties": spec}}});
    if source.one_in(4) {
        root["properties"]["spec"]["x-kubernetes-preserve-unknown-fields"] = true.into();
    }
    if source.one_in(3) {
        root["properties"]["spec"]["x-kubernetes-validations"] = json!([rule(source)]);
    }
    let mut version = json!({"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": root}});
    if source.one_in(2) {
        const PATHS: &[&str] =
            &[".spec.a", ".spec.b[0].c", ".metadata.creationTimestamp", ".spec['x y']", ".spec.a[*]", "{.x}", "."];
        version["additionalPrinterColumns"] = json!([{"name": "C", "type": source.pick(&["string", "integer", "date", "boolean", "number"]), "jsonPath": source.pick(PATHS)}]);
    }
    if source.one_in(4) {
        version["subresources"] =
            json!({"status": {}, "scale": {"specReplicasPath": ".spec.a", "statusReplicasPath": ".status.a"}});
    }
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "xs.example.com"},
        "spec": {"group": "example.com", "scope": "Namespaced", "names": {"plural": "xs", "singular": "x", "kind": "X", "listKind": "XList"},
            "versions": [version]},
    })
}

/// Names that meet those of [`objects::any`].
fn name(source: &mut Source<'_>) -> String {
    (*source.pick(&["a", "b", "c", "x y", "/", "v1", "true", "self", "~"])).to_owned()
}

fn schema(source: &mut Source<'_>, depth: usize) -> Value {
    let type_ = *source.pick(if depth > 4 {
        &["string", "integer"][..]
    } else {
        &["string", "integer", "number", "boolean", "object", "array"]
    });
    let mut schema = json!({ "type": type_ });
    match type_ {
        "object" if source.one_in(2) => schema["additionalProperties"] = self::schema(source, depth + 1),
        "object" => {
            let properties: Map<_, _> =
                (0..source.below(3)).map(|_| (name(source), self::schema(source, depth + 1))).collect();
            schema["properties"] = properties.into();
            if source.one_in(4) {
                schema["required"] = json!(["a"]);
            }
        }
        "array" => {
            schema["items"] = self::schema(source, depth + 1);
            if source.one_in(3) {
                schema["x-kubernetes-list-type"] = (*source.pick(&["atomic", "set", "map"])).into();
                schema["x-kubernetes-list-map-keys"] = json!(["a"]);
            }
        }
        "string" => {
            const FORMATS: &[&str] =
                &["date-time", "ipv4", "uuid", "byte", "int32", "duration", "email", "uri", "nope"];
            if source.one_in(3) {
                schema["format"] = (*source.pick(FORMATS)).into();
            }
            if source.one_in(4) {
                schema["pattern"] =
                    (*source.pick(&["^a+$", "(", "(a|a)*b", "\\d{1,1000}", "[[:alpha:]]", "(?=a)"])).into();
            }
            if source.one_in(4) {
                schema["enum"] = json!(["a", "b", objects::any(source, 9)]);
            }
        }
        _ => {
            if source.one_in(3) {
                schema["minimum"] = objects::any(source, 9);
            }
            if source.one_in(4) {
                schema["multipleOf"] = objects::any(source, 9);
            }
        }
    }
    for (field, many) in [
        ("nullable", 4),
        ("x-kubernetes-int-or-string", 12),
        ("x-kubernetes-preserve-unknown-fields", 12),
        ("x-kubernetes-embedded-resource", 16),
    ] {
        if source.one_in(many) {
            schema[field] = true.into();
        }
    }
    if source.one_in(4) {
        schema["default"] = objects::any(source, 6);
    }
    if source.one_in(6) {
        schema["x-kubernetes-validations"] = json!([rule(source)]);
    }
    schema
}

fn rule(source: &mut Source<'_>) -> Value {
    const RULES: &[&str] = &[
        "self == oldSelf",
        "self.a > 1",
        "size(self) < 3",
        "self.all(x, self.all(y, x == y))",
        "has(self.a) && self.a.b == 'x'",
        "self.matches('a+')",
        "true",
        "self.a.map(x, x.b)[0] == 1",
        "1/0 == 1",
        "self",
    ];
    json!({"rule": source.pick(RULES), "message": "m", "reason": "FieldValueInvalid"})
}
