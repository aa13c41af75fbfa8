//! `Impersonate-User` and its companions: acting as somebody else, for administrators.

use carob_api::status::{GroupResource, Status};
use http::{HeaderMap, HeaderValue};

use super::{AUTHENTICATED, Identity, MASTERS, UNAUTHENTICATED};
use crate::request::percent_decode;

const PREFIX: &str = "impersonate-";
const USER: &str = "impersonate-user";
const UID: &str = "impersonate-uid";
const GROUP: &str = "impersonate-group";
const EXTRA: &str = "impersonate-extra-";
const SERVICE_ACCOUNT: &str = "system:serviceaccount:";

/// What the headers ask for.
pub(crate) enum Impersonation {
    /// The request is made as this identity: the sender's own, or another.
    As(Identity),
    /// Groups or extras without a user: Kubernetes answers 500 with this plain text in its body.
    WithoutUser(String),
}

/// Whom a request of `sender` is made as.
pub(crate) fn impersonate(sender: Identity, headers: &HeaderMap) -> Result<Impersonation, Status> {
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
    if !sender.is_in(MASTERS) {
        return Err(refusal(&sender, user));
    }
    let mut identity = Identity { user: user.to_owned(), uid: text(UID).to_owned(), groups, ..Identity::default() };
    if identity.groups.is_empty()
        && let Some((namespace, _)) = user.strip_prefix(SERVICE_ACCOUNT).and_then(|rest| rest.split_once(':'))
    {
        identity.groups = vec!["system:serviceaccounts".to_owned(), format!("system:serviceaccounts:{namespace}")];
    }
    let everybody = if user == "system:anonymous" { UNAUTHENTICATED } else { AUTHENTICATED };
    if !identity.is_in(AUTHENTICATED) && !identity.is_in(UNAUTHENTICATED) {
        identity.groups.push(everybody.to_owned());
    }
    for (name, value) in headers {
        if let (Some(key), Some(value)) = (name.as_str().strip_prefix(EXTRA), read(value)) {
            let key = percent_decode(key).unwrap_or_else(|| key.to_owned());
            identity.extra.entry(key).or_default().push(value.to_owned());
        }
    }
    Ok(Impersonation::As(identity))
}

/// Names may have any letters: clients send them as UTF-8.
fn read(value: &HeaderValue) -> Option<&str> {
    std::str::from_utf8(value.as_bytes()).ok()
}

fn refusal(sender: &Identity, user: &str) -> Status {
    let account = user.strip_prefix(SERVICE_ACCOUNT).and_then(|rest| rest.split_once(':'));
    let (resource, name, place) = match account {
        Some((namespace, name)) => ("serviceaccounts", name, format!("in the namespace {namespace:?}")),
        None => ("users", user, "at the cluster scope".to_owned()),
    };
    let text = format!("User {:?} cannot impersonate resource {resource:?} in API group \"\" {place}", sender.user);
    Status::forbidden(&GroupResource::new("", resource), name, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().expect("name"), value.parse().expect("value"))).collect()
    }

    fn admin() -> Identity {
        Identity::authenticated("admin", [MASTERS.to_owned()])
    }

    #[test]
    fn an_administrator_becomes_the_user_with_the_groups_that_are_asked_for() {
        let asked = headers(&[(USER, "u"), (GROUP, "g"), ("impersonate-extra-foo", "bar"), (UID, "77")]);
        let Ok(Impersonation::As(identity)) = impersonate(admin(), &asked) else { panic!("refused") };
        assert_eq!(identity.groups, ["g", AUTHENTICATED]);
        assert_eq!((identity.user.as_str(), identity.uid.as_str()), ("u", "77"));
        assert_eq!(identity.extra["foo"], ["bar"]);
    }

    #[test]
    fn a_service_account_gets_its_groups() {
        let asked = headers(&[(USER, "system:serviceaccount:ns:default")]);
        let Ok(Impersonation::As(identity)) = impersonate(admin(), &asked) else { panic!("refused") };
        assert_eq!(identity.groups, ["system:serviceaccounts", "system:serviceaccounts:ns", AUTHENTICATED]);
    }

    #[test]
    fn a_request_that_asks_for_anybody_is_never_made_as_its_sender() {
        let header = |bytes: &[u8]| {
            let value = HeaderValue::from_bytes(bytes).expect("a value");
            HeaderMap::from_iter([(http::HeaderName::from_static(USER), value)])
        };
        let Ok(Impersonation::As(identity)) = impersonate(admin(), &header("jürgen".as_bytes())) else {
            panic!("refused")
        };
        assert_eq!((identity.user.as_str(), identity.groups.as_slice()), ("jürgen", &[AUTHENTICATED.to_owned()][..]));
        let Err(status) = impersonate(admin(), &header(b"j\xfcrgen")) else { panic!("allowed") };
        assert_eq!(status.code(), 400);
        let Ok(Impersonation::WithoutUser(_)) = impersonate(admin(), &header(b"")) else { panic!("allowed") };
    }

    #[test]
    fn nobody_else_may() {
        let Err(status) = impersonate(Identity::anonymous(), &headers(&[(USER, "alice")])) else { panic!("allowed") };
        assert_eq!(
            status.message(),
            "users \"alice\" is forbidden: User \"system:anonymous\" cannot impersonate resource \"users\" in API \
             group \"\" at the cluster scope"
        );
    }
}
