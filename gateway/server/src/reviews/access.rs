//! May somebody do something: SubjectAccessReview and its two relatives.

use carob_api::field::{ErrorList, Path};
use carob_api::selector::FieldSelector;
use carob_api::status::Status;
use serde_json::{Value, json};

use crate::authn::Identity;
use crate::authz::Attributes;
use crate::call::Call;
use crate::objects::{metadata_mut, text};

/// `kubectl auth can-i --as`: about anybody.
pub(super) async fn of_anybody(call: &Call, review: Value) -> Result<Value, Status> {
    let mut errors = check(&review);
    errors.extend(check_subject(&review));
    refuse(errors)?;
    let who = subject(&review);
    decide(call, &who, review).await
}

/// About anybody, in one namespace.
pub(super) async fn in_namespace(call: &Call, mut review: Value) -> Result<Value, Status> {
    let namespace = call.namespace.as_deref().unwrap_or_default();
    metadata_mut(&mut review).insert("namespace".to_owned(), namespace.into());
    let mut errors = check(&review);
    errors.extend(check_subject(&review));
    let spec = Path::new("spec");
    let asked = text(&review, "/spec/resourceAttributes/namespace");
    if is_given(&review, "resourceAttributes") && asked != namespace {
        let path = spec.child("resourceAttributes").child("namespace");
        errors.push(path.invalid(asked, "must match metadata.namespace"));
    }
    if is_given(&review, "nonResourceAttributes") {
        let path = spec.child("nonResourceAttributes");
        errors.push(path.invalid(shown(&review), "disallowed on this kind of request"));
    }
    refuse(errors)?;
    let who = subject(&review);
    decide(call, &who, review).await
}

/// `kubectl auth can-i`: about whoever asks.
pub(super) async fn of_oneself(call: &Call, review: Value) -> Result<Value, Status> {
    refuse(check(&review))?;
    decide(call, &call.identity, review).await
}

fn is_given(review: &Value, field: &str) -> bool {
    review["spec"].get(field).is_some_and(|value| !value.is_null())
}

/// The attributes as Go prints them.
fn shown(review: &Value) -> Value {
    let spec = |pointer: &str| text(review, &format!("/spec/nonResourceAttributes/{pointer}")).to_owned();
    json!({ "Path": spec("path"), "Verb": spec("verb") })
}

fn check(review: &Value) -> ErrorList {
    let path = Path::new("spec");
    let mut errors = ErrorList::new();
    match (is_given(review, "resourceAttributes"), is_given(review, "nonResourceAttributes")) {
        (false, false) => errors.push(
            path.child("resourceAttributes")
                .invalid(Value::Null, "exactly one of nonResourceAttributes or resourceAttributes must be specified"),
        ),
        (true, true) => errors.push(
            path.child("nonResourceAttributes")
                .invalid(shown(review), "cannot be specified in combination with resourceAttributes"),
        ),
        _ => {}
    }
    for selector in ["fieldSelector", "labelSelector"] {
        let path = path.child("resourceAttributes").child(selector);
        let Some(given) = review.pointer(&format!("/spec/resourceAttributes/{selector}")) else { continue };
        let raw = text(given, "/rawSelector");
        let several = given.get("requirements").and_then(Value::as_array).is_some_and(|list| !list.is_empty());
        if !raw.is_empty() && several {
            errors.push(path.child("rawSelector").invalid(raw, "may not specified at the same time as requirements"));
        } else if given.is_object() && raw.is_empty() && !several {
            let why = format!(
                "when spec.resourceAttributes.{selector} is specified, requirements or rawSelector is required"
            );
            errors.push(path.child("requirements").required(&why));
        }
    }
    errors
}

fn check_subject(review: &Value) -> ErrorList {
    let grouped = review.pointer("/spec/groups").and_then(Value::as_array).is_some_and(|groups| !groups.is_empty());
    if text(review, "/spec/user").is_empty() && !grouped {
        let path = Path::new("spec").child("user");
        return vec![path.invalid("", "at least one of user or group must be specified")];
    }
    ErrorList::new()
}

fn refuse(errors: ErrorList) -> Result<(), Status> {
    if errors.is_empty() { Ok(()) } else { Err(Status::invalid(("authorization.k8s.io", ""), "", errors)) }
}

fn texts(value: Option<&Value>) -> Vec<String> {
    let list = value.and_then(Value::as_array).into_iter().flatten();
    list.filter_map(Value::as_str).map(ToOwned::to_owned).collect()
}

/// Whom the review is about.
fn subject(review: &Value) -> Identity {
    let extra = review.pointer("/spec/extra").and_then(Value::as_object).into_iter().flatten();
    Identity {
        user: text(review, "/spec/user").to_owned(),
        uid: text(review, "/spec/uid").to_owned(),
        groups: texts(review.pointer("/spec/groups")),
        extra: extra.map(|(key, values)| (key.clone(), texts(Some(values)))).collect(),
        inside: false,
    }
}

/// What the review is about.
fn attributes(review: &Value) -> Attributes {
    let spec = &review["spec"];
    let Some(resource) = spec.get("resourceAttributes").filter(|value| !value.is_null()) else {
        let get = |pointer: &str| text(spec, &format!("/nonResourceAttributes/{pointer}")).to_owned();
        return Attributes { verb: get("verb"), path: get("path"), ..Attributes::default() };
    };
    let get = |pointer: &str| text(resource, pointer).to_owned();
    Attributes {
        verb: get("/verb"),
        path: String::new(),
        group: get("/group"),
        version: get("/version"),
        resource: get("/resource"),
        subresource: get("/subresource"),
        namespace: get("/namespace"),
        name: get("/name"),
        fields: fields(resource),
    }
}

/// The fields that must have one value.
fn fields(resource: &Value) -> Vec<(String, String)> {
    if let Ok(selector) = FieldSelector::parse(text(resource, "/fieldSelector/rawSelector"))
        && !selector.is_everything()
    {
        let exact = selector.requirements().iter().filter(|(_, equals, _)| *equals);
        return exact.map(|(field, _, value)| (field.clone(), value.clone())).collect();
    }
    let list = resource.pointer("/fieldSelector/requirements").and_then(Value::as_array).into_iter().flatten();
    let exact = list.filter_map(|requirement| match texts(requirement.get("values")).as_slice() {
        [one] if text(requirement, "/operator") == "In" => Some((text(requirement, "/key").to_owned(), one.clone())),
        _ => None,
    });
    exact.collect()
}

async fn decide(call: &Call, who: &Identity, review: Value) -> Result<Value, Status> {
    let wanted = attributes(&review);
    let decision = call.server.authorizer.decide_now(&*call.server.store, who, &wanted).await;
    let mut status = json!({ "allowed": decision.allowed });
    let why = decision.why.to_string();
    if !why.is_empty() {
        status["reason"] = why.into();
    }
    let mut metadata = review.get("metadata").cloned().unwrap_or_else(|| json!({}));
    if let Some(metadata) = metadata.as_object_mut() {
        metadata.retain(|_, value| !value.is_null());
    }
    Ok(json!({
        "kind": call.kind.kind,
        "apiVersion": call.kind.api_version(),
        "metadata": metadata,
        "spec": review["spec"],
        "status": status,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_review_needs_a_subject_and_one_question() {
        let nobody = json!({"spec": {"resourceAttributes": {}}});
        let texts = |errors: ErrorList| errors.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert!(check(&nobody).is_empty());
        assert_eq!(
            texts(check_subject(&nobody)),
            ["spec.user: Invalid value: \"\": at least one of user or group must be specified"]
        );
        assert!(check_subject(&json!({"spec": {"groups": ["g"]}})).is_empty());
        assert_eq!(check(&json!({"spec": {}})).len(), 1);
        assert_eq!(check(&json!({"spec": {"resourceAttributes": {}, "nonResourceAttributes": {}}})).len(), 1);
    }

    #[test]
    fn selectors_are_read_in_both_forms() {
        let raw = json!({"fieldSelector": {"rawSelector": "spec.nodeName=n,a!=b"}});
        assert_eq!(fields(&raw), [("spec.nodeName".to_owned(), "n".to_owned())]);
        let listed = json!({"fieldSelector": {"requirements": [
            {"key": "spec.nodeName", "operator": "In", "values": ["n"]},
            {"key": "x", "operator": "In", "values": ["n", "m"]}]}});
        assert_eq!(fields(&listed), [("spec.nodeName".to_owned(), "n".to_owned())]);
    }
}
