//! Columns of what extends and guards the API: webhook configurations, admission policies, aggregated APIs.

use serde_json::Value;

use super::NAME;
use super::cells::{AGE, column, list, text};
use crate::kind::Column;

/// Columns of webhook configurations of both sorts.
pub const WEBHOOKS: &[Column] =
    &[NAME, column("Webhooks", "integer", 0, |object, _| list(object, "/webhooks").len().into()), AGE];

/// Columns of ValidatingAdmissionPolicies.
pub const POLICY: &[Column] = &[
    NAME,
    column("Validations", "integer", 0, |object, _| list(object, "/spec/validations").len().into()),
    column("ParamKind", "string", 0, |object, _| {
        let kind = object.pointer("/spec/paramKind").filter(|value| !value.is_null());
        kind.map_or("<unset>".to_owned(), |kind| format!("{}/{}", text(kind, "/apiVersion"), text(kind, "/kind")))
            .into()
    }),
    AGE,
];

/// Columns of MutatingAdmissionPolicies.
pub const MUTATING_POLICY: &[Column] = &[
    NAME,
    column("Mutations", "integer", 0, |object, _| list(object, "/spec/mutations").len().into()),
    column("ParamKind", "string", 0, |object, _| {
        let kind = object.pointer("/spec/paramKind").filter(|value| !value.is_null());
        kind.map_or("<unset>".to_owned(), |kind| format!("{}/{}", text(kind, "/apiVersion"), text(kind, "/kind")))
            .into()
    }),
    AGE,
];

/// Columns of bindings of admission policies.
pub const BINDING: &[Column] = &[
    NAME,
    column("PolicyName", "string", 0, |object, _| text(object, "/spec/policyName").into()),
    column("ParamRef", "string", 0, |object, _| parameters(object).into()),
    AGE,
];

/// Columns of APIServices.
pub const API_SERVICE: &[Column] = &[
    NAME,
    column("Service", "string", 0, |object, _| service(object).into()),
    column("Available", "string", 0, |object, _| available(object).into()),
    AGE,
];

fn parameters(binding: &Value) -> String {
    match (text(binding, "/spec/paramRef/namespace"), text(binding, "/spec/paramRef/name")) {
        (_, "") => "<unset>".to_owned(),
        ("", name) => name.to_owned(),
        (namespace, name) => format!("{namespace}/{name}"),
    }
}

fn service(api: &Value) -> String {
    match api.pointer("/spec/service").filter(|value| !value.is_null()) {
        Some(service) => format!("{}/{}", text(service, "/namespace"), text(service, "/name")),
        None => "Local".to_owned(),
    }
}

fn available(api: &Value) -> String {
    let Some(condition) = list(api, "/status/conditions").iter().find(|one| one["type"] == "Available") else {
        return "Unknown".to_owned();
    };
    match text(condition, "/status") {
        "True" => "True".to_owned(),
        other => format!("{other} ({})", text(condition, "/reason")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_api_says_where_it_is_and_why_it_is_not_there() {
        assert_eq!(service(&json!({"spec": {}})), "Local");
        assert_eq!(service(&json!({"spec": {"service": {"namespace": "n", "name": "s"}}})), "n/s");
        assert_eq!(available(&json!({})), "Unknown");
        let api =
            json!({"status": {"conditions": [{"type": "Available", "status": "False", "reason": "MissingEndpoints"}]}});
        assert_eq!(available(&api), "False (MissingEndpoints)");
    }

    #[test]
    fn parameters_are_named_with_their_namespace() {
        assert_eq!(parameters(&json!({"spec": {"paramRef": {"name": "p", "namespace": "n"}}})), "n/p");
        assert_eq!(parameters(&json!({"spec": {}})), "<unset>");
    }
}
