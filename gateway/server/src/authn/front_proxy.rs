//! Proxies that vouch for others: whoever shows a certificate of the front proxies' authority says in headers on whose
//! behalf it asks, as kube-apiserver does to extension API servers.

use http::HeaderMap;

use super::Identity;
use crate::pki::FRONT_PROXY;
use crate::request::percent_decode;

/// The headers that such a proxy sends.
pub(crate) const USER: &str = "x-remote-user";
pub(crate) const UID: &str = "x-remote-uid";
pub(crate) const GROUP: &str = "x-remote-group";
pub(crate) const EXTRA: &str = "x-remote-extra-";

/// Put on requests of a connection whose certificate is of the front proxies' authority. It says nothing of its holder
/// itself.
#[derive(Clone, Copy)]
pub(crate) struct FrontProxy {
    /// Whether its holder may name others.
    pub allowed: bool,
}

impl FrontProxy {
    /// The holder of a certificate of that authority.
    pub fn of_certificate(der: &[u8]) -> Self {
        Self { allowed: Identity::of_certificate(der).is_some_and(|holder| holder.user == FRONT_PROXY) }
    }

    /// For whom the proxy asks; none if it doesn't say, or may not.
    pub(super) fn identity(self, headers: &HeaderMap) -> Option<Identity> {
        named(headers).filter(|_| self.allowed)
    }
}

fn named(headers: &HeaderMap) -> Option<Identity> {
    let texts = |name: &str| -> Vec<String> {
        let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
        values.map(str::trim).filter(|text| !text.is_empty()).map(str::to_owned).collect()
    };
    let user = texts(USER).into_iter().next()?;
    let mut identity = Identity::authenticated(&user, texts(GROUP));
    identity.uid = texts(UID).into_iter().next().unwrap_or_default();
    for name in headers.keys() {
        let Some(key) = name.as_str().strip_prefix(EXTRA).filter(|key| !key.is_empty()) else { continue };
        let key = percent_decode(key).unwrap_or_else(|| key.to_owned());
        identity.extra.entry(key.to_lowercase()).or_default().extend(texts(name.as_str()));
    }
    Some(identity)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderName, HeaderValue};

    #[test]
    fn headers_name_user_groups_uid_and_extras() {
        let mut headers = HeaderMap::new();
        let proxy = FrontProxy { allowed: true };
        assert_eq!(proxy.identity(&headers), None);
        for (name, value) in [
            (USER, "alice"),
            (GROUP, "a"),
            (GROUP, "b"),
            (UID, "7"),
            ("x-remote-extra-acme.com%2fproject", "one"),
            ("x-remote-extra-scopes", "r"),
        ] {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        assert_eq!(FrontProxy { allowed: false }.identity(&headers), None);
        let known = proxy.identity(&headers).expect("alice");
        assert_eq!((known.user.as_str(), known.uid.as_str()), ("alice", "7"));
        assert_eq!(known.groups, ["a", "b", "system:authenticated"]);
        assert_eq!(known.extra["acme.com/project"], ["one"]);
        assert_eq!(known.extra["scopes"], ["r"]);
    }
}
