//! A request as webhooks and expressions see it.

use carob_api::cel::{self, Access};
use carob_api::kind::Kind;
use serde_json::{Map, Value, json};

use super::matching::Facts;
use crate::admission::{Operation, Request};
use crate::authn::Identity;
use crate::authz::Attributes;

/// The request of an `AdmissionReview`, without its uid and its objects.
pub(super) fn describe(request: &Request<'_>) -> Value {
    let (kind_of, resource) = names(request, &request.call.kind);
    let (sent_kind, sent_resource) = names(request, request.sent_for.unwrap_or(&request.call.kind));
    let mut described = Map::new();
    described.insert("kind".into(), kind_of);
    described.insert("resource".into(), resource);
    if !request.subresource.is_empty() {
        described.insert("subResource".into(), request.subresource.into());
        described.insert("requestSubResource".into(), request.subresource.into());
    }
    described.insert("requestKind".into(), sent_kind);
    described.insert("requestResource".into(), sent_resource);
    if !request.name.is_empty() {
        described.insert("name".into(), request.name.as_str().into());
    }
    if let Some(namespace) = &request.call.namespace {
        described.insert("namespace".into(), namespace.as_str().into());
    }
    described.insert("operation".into(), request.operation.name().into());
    described.insert("userInfo".into(), user(&request.call.identity));
    described.insert("dryRun".into(), request.dry_run.into());
    described.insert("options".into(), options(request));
    Value::Object(described)
}

/// The kind of what a request of this row takes, and the resource.
fn names(request: &Request<'_>, kind: &Kind) -> (Value, Value) {
    let part = kind.subresource(request.subresource);
    let (group, version, name) = part.map_or((kind.group, kind.version, kind.kind), |part| part.gvk);
    let kind_of = json!({ "group": group, "version": version, "kind": name });
    (kind_of, json!({ "group": kind.group, "version": kind.version, "resource": kind.plural }))
}

fn user(identity: &Identity) -> Value {
    let mut user = json!({ "username": identity.user, "groups": identity.groups });
    if !identity.uid.is_empty() {
        user["uid"] = identity.uid.as_str().into();
    }
    if !identity.extra.is_empty() {
        user["extra"] = json!(identity.extra);
    }
    user
}

fn options(request: &Request<'_>) -> Value {
    if request.options.is_object() {
        return request.options.clone();
    }
    let kind = match request.operation {
        Operation::Create => "CreateOptions",
        Operation::Update => "UpdateOptions",
        Operation::Delete => "DeleteOptions",
        Operation::Connect => return Value::Null,
    };
    let mut options = json!({ "kind": kind, "apiVersion": "meta.k8s.io/v1" });
    for name in ["fieldManager", "fieldValidation"] {
        if let Some(value) = request.call.query.text(name).filter(|_| request.operation != Operation::Delete) {
            options[name] = value.into();
        }
    }
    if request.dry_run {
        options["dryRun"] = json!(["All"]);
    }
    options
}

/// The variables of expressions about a request.
pub(super) const VARIABLES: [&str; 7] =
    ["object", "oldObject", "request", "params", "namespaceObject", "variables", "authorizer"];

/// The values of those variables that a request gives.
pub(super) fn variables(request: &Request<'_>, facts: &Facts) -> Vec<(&'static str, cel::Value)> {
    let kind = &request.call.kind;
    let asked = json!({ "@access": true });
    let mut resource = json!({ "@access": true, "group": kind.group, "resource": kind.plural });
    for (name, value) in [
        ("subresource", request.subresource),
        ("namespace", request.call.namespace.as_deref().unwrap_or_default()),
        ("name", &request.name),
    ] {
        if !value.is_empty() {
            resource[name] = value.into();
        }
    }
    let mut authorizer = asked;
    authorizer["requestResource"] = resource;
    vec![
        ("object", cel::from_json(&request.object)),
        ("oldObject", request.old.map_or(cel::Value::Null, cel::from_json)),
        ("request", cel::from_json(&describe(request))),
        ("namespaceObject", facts.namespace.as_ref().map_or(cel::Value::Null, cel::from_json)),
        ("authorizer", cel::from_json(&authorizer)),
    ]
}

/// What the user of a request may do.
pub(super) struct Rights<'a>(pub &'a Request<'a>);

impl Access for Rights<'_> {
    fn allowed(&self, check: &Value) -> bool {
        let text = |name: &str| check.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        let wanted = Attributes {
            verb: text("verb"),
            path: text("path"),
            group: text("group"),
            version: "*".to_owned(),
            resource: text("resource"),
            subresource: text("subresource"),
            namespace: text("namespace"),
            name: text("name"),
            fields: Vec::new(),
        };
        let call = self.0.call;
        match check.get("user").and_then(Value::as_str) {
            Some(account) => {
                let groups = account_groups(account);
                call.server.authorizer.allows(&Identity::authenticated(account, groups), &wanted)
            }
            None => call.server.authorizer.allows(&call.identity, &wanted),
        }
    }
}

/// The groups of a ServiceAccount.
fn account_groups(account: &str) -> Vec<String> {
    let namespace =
        account.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split(':').next()).unwrap_or_default();
    vec!["system:serviceaccounts".to_owned(), format!("system:serviceaccounts:{namespace}")]
}
