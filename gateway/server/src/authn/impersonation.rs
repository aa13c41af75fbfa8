//! `Impersonate-User` and its companions: acting as somebody else, for whoever may `impersonate` all that they name.

use std::collections::BTreeMap;

use carob_api::status::Status;
use carob_store::Store;
use http::{HeaderMap, HeaderValue};

use super::{AUTHENTICATED, Identity, UNAUTHENTICATED};
use crate::authz::{Attributes, Authorizer};
use crate::request::percent_decode;

const PREFIX: &str = "impersonate-";
pub(crate) const USER: &str = "impersonate-user";
const UID: &str = "impersonate-uid";
const GROUP: &str = "impersonate-group";
const EXTRA: &str = "impersonate-extra-";
const GROUP_OF_EXTRA: &str = "authentication.k8s.io";
const SERVICE_ACCOUNT: &str = "system:serviceaccount:";

/// What the headers ask for.
pub(crate) enum Impersonation {
    /// The request is made as this identity: the sender's own, or another.
    As(Identity),
    /// Groups or extras without a user: Kubernetes answers 500 with this plain text in its body.
    WithoutUser(String),
}

/// Whom a request of `sender` is made as.
pub(crate) async fn impersonate(
    authorizer: &Authorizer,
    store: &dyn Store,
    sender: Identity,
    headers: &HeaderMap,
) -> Result<Impersonation, Status> {
    // Only a request that asks for nobody is the sender's own: what cannot be read must not be taken for that.
    let asks = |name: &str| matches!(name, USER | UID | GROUP) || name.starts_with(EXTRA);
    if !headers.keys().any(|name| asks(name.as_str())) {
        return Ok(Impersonation::As(sender));
    }
    for (name, value) in headers.iter().filter(|(name, _)| name.as_str().starts_with(PREFIX)) {
        if read(value).is_none() {
            return Err(Status::bad_request(format!("the value of the header {name} is not UTF-8")));
        }
    }
    let text = |name: &str| headers.get(name).and_then(read).unwrap_or_default();
    let groups: Vec<String> = headers.get_all(GROUP).iter().filter_map(read).map(ToOwned::to_owned).collect();
    let user = text(USER);
    if user.is_empty() {
        let asked: Vec<String> = groups.iter().map(|group| format!("{{Group  {group}    }}")).collect();
        return Ok(Impersonation::WithoutUser(format!("requested [{}] without impersonating a user", asked.join(" "))));
    }
    let extra = extra(headers);
    for wanted in needed(user, text(UID), &groups, &extra) {
        let decision = authorizer.decide_for_sender(store, &sender, &wanted).await;
        if !decision.allowed {
            return Err(wanted.refusal(&sender, &decision.why));
        }
    }
    let mut identity = Identity { user: user.to_owned(), uid: text(UID).to_owned(), groups, ..Identity::default() };
    if identity.groups.is_empty()
        && let Some((namespace, _)) = service_account(user)
    {
        identity.groups = vec!["system:serviceaccounts".to_owned(), format!("system:serviceaccounts:{namespace}")];
    }
    let everybody = if user == "system:anonymous" { UNAUTHENTICATED } else { AUTHENTICATED };
    if !identity.is_in(AUTHENTICATED) && !identity.is_in(UNAUTHENTICATED) {
        identity.groups.push(everybody.to_owned());
    }
    identity.extra = extra;
    Ok(Impersonation::As(identity))
}

/// Names may have any letters: clients send them as UTF-8.
fn read(value: &HeaderValue) -> Option<&str> {
    std::str::from_utf8(value.as_bytes()).ok()
}

/// What is said in `Impersonate-Extra-KEY` headers.
fn extra(headers: &HeaderMap) -> BTreeMap<String, Vec<String>> {
    let mut extra: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, value) in headers {
        if let (Some(key), Some(value)) = (name.as_str().strip_prefix(EXTRA), read(value)) {
            let key = percent_decode(key).unwrap_or_else(|| key.to_owned());
            extra.entry(key).or_default().push(value.to_owned());
        }
    }
    extra
}

/// What the sender must be allowed: each part of the borrowed identity by itself.
fn needed(user: &str, uid: &str, groups: &[String], extra: &BTreeMap<String, Vec<String>>) -> Vec<Attributes> {
    let one = |group: &str, resource: &str, subresource: &str, namespace: &str, name: &str| Attributes {
        verb: "impersonate".to_owned(),
        group: group.to_owned(),
        version: "v1".to_owned(),
        resource: resource.to_owned(),
        subresource: subresource.to_owned(),
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        ..Attributes::default()
    };
    let mut needed = vec![match service_account(user) {
        Some((namespace, name)) => one("", "serviceaccounts", "", namespace, name),
        None => one("", "users", "", "", user),
    }];
    needed.extend(groups.iter().map(|group| one("", "groups", "", "", group)));
    for (key, values) in extra {
        needed.extend(values.iter().map(|value| one(GROUP_OF_EXTRA, "userextras", key, "", value)));
    }
    if !uid.is_empty() {
        needed.push(one(GROUP_OF_EXTRA, "uids", "", "", uid));
    }
    needed
}

/// Namespace and name of a service account, if a user's name is one's.
fn service_account(user: &str) -> Option<(&str, &str)> {
    let (namespace, name) = user.strip_prefix(SERVICE_ACCOUNT)?.split_once(':')?;
    (!namespace.is_empty() && !name.is_empty() && !name.contains(':')).then_some((namespace, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let pairs = pairs.iter();
        pairs
            .map(|(name, value)| (name.parse::<http::HeaderName>().expect("name"), value.parse().expect("value")))
            .collect()
    }

    fn asked(pairs: &[(&'static str, &str)]) -> Vec<String> {
        let headers = headers(pairs);
        let groups: Vec<String> = headers.get_all(GROUP).iter().filter_map(read).map(ToOwned::to_owned).collect();
        let text = |name: &str| headers.get(name).and_then(read).unwrap_or_default();
        let needed = needed(text(USER), text(UID), &groups, &extra(&headers));
        let shown = needed
            .iter()
            .map(|one| format!("{}/{}/{}/{}/{}", one.group, one.resource, one.subresource, one.namespace, one.name));
        shown.collect()
    }

    #[test]
    fn every_part_of_an_identity_is_asked_for() {
        assert_eq!(
            asked(&[(USER, "u"), (GROUP, "g"), ("impersonate-extra-scopes%2fa", "x"), (UID, "7")]),
            [
                "/users///u",
                "/groups///g",
                "authentication.k8s.io/userextras/scopes/a//x",
                "authentication.k8s.io/uids///7"
            ]
        );
        assert_eq!(asked(&[(USER, "system:serviceaccount:ns:s")]), ["/serviceaccounts//ns/s"]);
        assert_eq!(asked(&[(USER, "system:serviceaccount:ns")]), ["/users///system:serviceaccount:ns"]);
    }
}
