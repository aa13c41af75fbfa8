//! The operations of a document: what can be done at which path, with which parameters.

use serde_json::{Map, Value, json};

use super::components::{DELETE_OPTIONS, Dialect, PATCH, STATUS, gvk, list_name};
use crate::kind::{Kind, Scope, Subresource};
use crate::kinds;

/// A query parameter: name, type, what it does.
type Parameter = (&'static str, &'static str, &'static str);

const DRY_RUN: Parameter = ("dryRun", "string", "`All`: do everything but keep the outcome.");
const FIELD_MANAGER: Parameter = ("fieldManager", "string", "Who makes the change, for field ownership.");
const FIELD_VALIDATION: Parameter =
    ("fieldValidation", "string", "What happens to unknown and duplicate fields: `Ignore`, `Warn` or `Strict`.");
const FORCE: Parameter = ("force", "boolean", "Take over fields that others own (server-side apply).");
const GRACE: Parameter = ("gracePeriodSeconds", "integer", "Seconds before the object is deleted.");
const PROPAGATION: Parameter =
    ("propagationPolicy", "string", "What happens to dependents: `Orphan`, `Background` or `Foreground`.");

const WRITE: &[Parameter] = &[DRY_RUN, FIELD_MANAGER, FIELD_VALIDATION];
const APPLY: &[Parameter] = &[DRY_RUN, FIELD_MANAGER, FIELD_VALIDATION, FORCE];
const REMOVE: &[Parameter] = &[DRY_RUN, GRACE, PROPAGATION];
const LIST: &[Parameter] = &[
    ("allowWatchBookmarks", "boolean", "Send bookmarks in a watch."),
    ("continue", "string", "Where the last page ended."),
    ("fieldSelector", "string", "Which objects, by fields."),
    ("labelSelector", "string", "Which objects, by labels."),
    ("limit", "integer", "How many objects a page has at most."),
    ("resourceVersion", "string", "From or at which version."),
    ("resourceVersionMatch", "string", "How `resourceVersion` is meant: `Exact` or `NotOlderThan`."),
    ("sendInitialEvents", "boolean", "Begin a watch with what is there."),
    ("timeoutSeconds", "integer", "How long a list or watch may take."),
    ("watch", "boolean", "Send changes as they happen."),
];

/// One operation: verb of the API, method of HTTP, x-kubernetes-action, parameters, whether it takes a body.
struct Operation {
    verb: &'static str,
    method: &'static str,
    action: &'static str,
    parameters: &'static [Parameter],
    body: Body,
}

#[derive(Clone, Copy)]
enum Body {
    None,
    Object,
    Patch,
    DeleteOptions,
}

const fn operation(
    verb: &'static str,
    method: &'static str,
    action: &'static str,
    parameters: &'static [Parameter],
    body: Body,
) -> Operation {
    Operation { verb, method, action, parameters, body }
}

/// On a resource as a whole.
const OF_ALL: &[Operation] = &[
    operation("list", "get", "list", LIST, Body::None),
    operation("create", "post", "post", WRITE, Body::Object),
    operation("deletecollection", "delete", "deletecollection", REMOVE, Body::DeleteOptions),
];

/// On one object.
const OF_ONE: &[Operation] = &[
    operation("get", "get", "get", &[], Body::None),
    operation("update", "put", "put", WRITE, Body::Object),
    operation("patch", "patch", "patch", APPLY, Body::Patch),
    operation("delete", "delete", "delete", REMOVE, Body::DeleteOptions),
];

/// On a part of one object.
const OF_PART: &[Operation] = &[
    operation("get", "get", "get", &[], Body::None),
    operation("create", "post", "post", WRITE, Body::Object),
    operation("update", "put", "put", WRITE, Body::Object),
    operation("patch", "patch", "patch", APPLY, Body::Patch),
];

/// The paths of these kinds, sorted.
pub(super) fn paths(kinds: &[&Kind], dialect: Dialect) -> Map<String, Value> {
    let mut paths = Map::new();
    for kind in kinds {
        let root = if kind.group.is_empty() { "/api" } else { "/apis" };
        let root = format!("{root}/{}", kind.api_version());
        let collection = match kind.scope {
            Scope::Cluster => format!("{root}/{}", kind.plural),
            Scope::Namespaced => {
                // Everywhere at once there is only reading.
                paths.insert(format!("{root}/{}", kind.plural), item(kind, None, &OF_ALL[..1], dialect, &[]));
                format!("{root}/namespaces/{{namespace}}/{}", kind.plural)
            }
        };
        let namespaced = kind.scope == Scope::Namespaced;
        let (in_collection, in_object): (&[&str], &[&str]) =
            if namespaced { (&["namespace"], &["name", "namespace"]) } else { (&[], &["name"]) };
        let object = format!("{collection}/{{name}}");
        for part in kind.subresources {
            paths.insert(format!("{object}/{}", part.name), item(kind, Some(part), OF_PART, dialect, in_object));
        }
        paths.insert(object, item(kind, None, OF_ONE, dialect, in_object));
        paths.insert(collection, item(kind, None, OF_ALL, dialect, in_collection));
    }
    paths.sort_keys();
    paths
}

/// The operations at one path. `places` are the parts of the path that vary.
fn item(kind: &Kind, part: Option<&Subresource>, operations: &[Operation], dialect: Dialect, places: &[&str]) -> Value {
    let verbs = part.map_or(kind.verbs, |part| part.verbs);
    let mut item = Map::new();
    for operation in operations.iter().filter(|operation| verbs.contains(&operation.verb)) {
        item.insert(operation.method.to_owned(), describe(kind, part, operation, dialect, places.len()));
    }
    let parameters: Vec<Value> = places.iter().map(|place| path_parameter(place, dialect)).collect();
    if !parameters.is_empty() {
        item.insert("parameters".into(), parameters.into());
    }
    Value::Object(item)
}

fn describe(kind: &Kind, part: Option<&Subresource>, operation: &Operation, dialect: Dialect, depth: usize) -> Value {
    let group = if kind.group.is_empty() { "core" } else { kind.group.split('.').next().unwrap_or_default() };
    let part_name = part.map_or("", |part| part.name);
    let scope = if kind.scope == Scope::Namespaced && depth == 0 { "ForAllNamespaces" } else { "" };
    let given = type_of(kind, part);
    let answer = match operation.verb {
        "list" => Some(list_name(kind)),
        "delete" | "deletecollection" => Some(STATUS.to_owned()),
        _ => given.map(|given| given.schema.to_owned()),
    };
    let mut described = json!({
        "description": format!("{} {}{}{part_name}", operation.verb, kind.kind, if part.is_some() { "/" } else { "" }),
        "operationId": format!("{}-{group}-{}-{}{scope}-{part_name}", operation.verb, kind.version, kind.kind),
        "tags": [format!("{group}_{}", kind.version)],
        "x-kubernetes-action": if part.is_some_and(|part| part.gvk.2.ends_with("Options")) { "connect" } else { operation.action },
        "x-kubernetes-group-version-kind": match part {
            Some(part) => json!({"group": part.gvk.0, "version": part.gvk.1, "kind": part.gvk.2}),
            None => gvk(kind, ""),
        },
    });
    let mut parameters: Vec<Value> =
        operation.parameters.iter().map(|parameter| query_parameter(parameter, dialect)).collect();
    let body = match operation.body {
        Body::None => None,
        Body::Object => given.map(|given| given.schema),
        Body::Patch => Some(PATCH),
        Body::DeleteOptions => Some(DELETE_OPTIONS),
    };
    let ok = |name: &str| json!({"$ref": dialect.path(name)});
    match dialect {
        Dialect::V2 => {
            if let Some(body) = body {
                parameters.push(json!({"name": "body", "in": "body", "required": true, "schema": ok(body)}));
            }
            described["consumes"] = consumes(operation.body, kind.custom.is_some()).into();
            described["produces"] = json!(["application/json"]);
            let answer = answer
                .map_or_else(|| json!({"description": "OK"}), |name| json!({"description": "OK", "schema": ok(&name)}));
            described["responses"] = json!({"200": answer});
        }
        Dialect::V3 => {
            if let Some(body) = body {
                let content: Map<String, Value> = consumes(operation.body, kind.custom.is_some())
                    .iter()
                    .map(|type_| ((*type_).to_owned(), json!({"schema": ok(body)})))
                    .collect();
                described["requestBody"] = json!({"content": content, "required": true});
            }
            let answer = answer.map_or_else(
                || json!({"description": "OK"}),
                |name| json!({"description": "OK", "content": {"application/json": {"schema": ok(&name)}}}),
            );
            described["responses"] = json!({"200": answer});
        }
    }
    if !parameters.is_empty() {
        described["parameters"] = parameters.into();
    }
    described
}

/// What is given and taken: the kind itself, or what its subresource says.
fn type_of<'a>(kind: &'a Kind, part: Option<&Subresource>) -> Option<&'a Kind> {
    if kind.custom.is_some() && part.is_none_or(|part| part.name == "status") {
        return Some(kind);
    }
    let (group, version, name) = part.map_or((kind.group, kind.version, kind.kind), |part| part.gvk);
    kinds::Registry::builtin().type_of(group, version, name)
}

fn consumes(body: Body, custom: bool) -> &'static [&'static str] {
    match body {
        // By this kubectl sees that a custom resource takes no strategic merge.
        Body::Patch if custom => {
            &["application/json-patch+json", "application/merge-patch+json", "application/apply-patch+yaml"]
        }
        Body::Patch => &[
            "application/json-patch+json",
            "application/merge-patch+json",
            "application/strategic-merge-patch+json",
            "application/apply-patch+yaml",
        ],
        _ => &["application/json", "application/yaml"],
    }
}

fn query_parameter((name, type_, description): &Parameter, dialect: Dialect) -> Value {
    match dialect {
        Dialect::V2 => {
            json!({"name": name, "in": "query", "type": type_, "uniqueItems": true, "description": description})
        }
        Dialect::V3 => json!({"name": name, "in": "query", "description": description,
            "schema": {"type": type_, "uniqueItems": true}}),
    }
}

fn path_parameter(name: &str, dialect: Dialect) -> Value {
    match dialect {
        Dialect::V2 => json!({"name": name, "in": "path", "required": true, "type": "string", "uniqueItems": true}),
        Dialect::V3 => json!({"name": name, "in": "path", "required": true,
            "schema": {"type": "string", "uniqueItems": true}}),
    }
}
