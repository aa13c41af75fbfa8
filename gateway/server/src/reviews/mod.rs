//! Questions about oneself: who am I (`kubectl auth whoami`), and may I (`kubectl auth can-i`).

use axum::response::Response;
use bytes::Bytes;
use carob_api::field::{ErrorList, Path};
use carob_api::status::Status;
use http::{HeaderMap, StatusCode};
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::authn::Identity;
use crate::authz::Attributes;
use crate::negotiate::body_value;
use crate::objects::{self, text};
use crate::request::ResourcePath;
use crate::{Server, response};

/// The reviews that are answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Review {
    Subject,
    Access,
}

impl Review {
    /// The review of a path, if it is one.
    pub fn of(path: &ResourcePath) -> Option<Self> {
        match (path.group.as_str(), path.version.as_str(), path.resource.as_str()) {
            ("authentication.k8s.io", "v1", "selfsubjectreviews") => Some(Self::Subject),
            ("authorization.k8s.io", "v1", "selfsubjectaccessreviews") => Some(Self::Access),
            _ => None,
        }
    }

    /// Answers it.
    pub async fn answer(
        self,
        server: &Server,
        identity: &Identity,
        headers: &HeaderMap,
        body: &Bytes,
    ) -> Result<Response, Status> {
        let review = body_value(headers, body)?;
        let answer = match self {
            Self::Subject => who_am_i(identity),
            Self::Access => may_i(server, identity, review).await?,
        };
        Ok(response::json(StatusCode::CREATED, &answer))
    }
}

fn who_am_i(identity: &Identity) -> Value {
    let mut user = Map::new();
    user.insert("username".to_owned(), identity.user.as_str().into());
    if !identity.uid.is_empty() {
        user.insert("uid".to_owned(), identity.uid.as_str().into());
    }
    user.insert("groups".to_owned(), identity.groups.clone().into());
    if !identity.extra.is_empty() {
        user.insert("extra".to_owned(), json!(identity.extra));
    }
    json!({
        "kind": "SelfSubjectReview",
        "apiVersion": "authentication.k8s.io/v1",
        "metadata": { "creationTimestamp": objects::timestamp(Timestamp::now()) },
        "status": { "userInfo": user },
    })
}

async fn may_i(server: &Server, identity: &Identity, mut review: Value) -> Result<Value, Status> {
    let path = Path::new("spec");
    let resource = review.pointer("/spec/resourceAttributes").filter(|value| !value.is_null());
    let other = review.pointer("/spec/nonResourceAttributes").filter(|value| !value.is_null());
    let mut errors = ErrorList::new();
    match (resource, other) {
        (None, None) => errors.push(
            path.child("resourceAttributes")
                .invalid(Value::Null, "exactly one of nonResourceAttributes or resourceAttributes must be specified"),
        ),
        (Some(_), Some(other)) => {
            let shown = json!({ "Path": text(other, "/path"), "Verb": text(other, "/verb") });
            errors.push(
                path.child("nonResourceAttributes")
                    .invalid(shown, "cannot be specified in combination with resourceAttributes"),
            );
        }
        _ => {}
    }
    if !errors.is_empty() {
        return Err(Status::invalid(("authorization.k8s.io", ""), "", errors));
    }
    let wanted = match (resource, other) {
        (Some(resource), _) => Attributes {
            verb: text(resource, "/verb").to_owned(),
            path: String::new(),
            group: text(resource, "/group").to_owned(),
            resource: text(resource, "/resource").to_owned(),
            subresource: text(resource, "/subresource").to_owned(),
            namespace: text(resource, "/namespace").to_owned(),
            name: text(resource, "/name").to_owned(),
        },
        (None, other) => {
            let other = other.unwrap_or(&Value::Null);
            Attributes {
                verb: text(other, "/verb").to_owned(),
                path: text(other, "/path").to_owned(),
                ..Attributes::default()
            }
        }
    };
    let allowed = server.authorizer.allows(identity, &wanted).await;
    if let Some(selector) = review.pointer_mut("/spec/resourceAttributes/fieldSelector").and_then(Value::as_object_mut)
        && selector.get("requirements").and_then(Value::as_array).is_some_and(Vec::is_empty)
    {
        selector.shift_remove("requirements");
    }
    let spec = review.get("spec").cloned().unwrap_or(Value::Null);
    Ok(json!({
        "kind": "SelfSubjectAccessReview",
        "apiVersion": "authorization.k8s.io/v1",
        "metadata": {},
        "spec": spec,
        "status": { "allowed": allowed },
    }))
}
