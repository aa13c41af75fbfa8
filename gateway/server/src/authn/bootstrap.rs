//! Tokens with which a new worker asks for its first certificate (`id.secret`), each kept in a Secret of the type
//! `bootstrap.kubernetes.io/token` in `kube-system`. They hold until they expire or their Secret is deleted.

use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use carob_api::status::Status;
use carob_store::{KeyRange, Store};
use jiff::Timestamp;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::Identity;
use crate::Server;
use crate::call::Call;
use crate::handlers::delete;
use crate::negotiate::Accept;
use crate::objects::{self, text};
use crate::options::DeleteOptions;

const NAMESPACE: &str = "kube-system";
const NAME_PREFIX: &str = "bootstrap-token-";
const TYPE: &str = "bootstrap.kubernetes.io/token";
/// Everybody with such a token is in it; further groups begin so.
const GROUP: &str = "system:bootstrappers";
/// How often expired ones are looked for.
const CLEAN_EVERY: Duration = Duration::from_secs(60);

/// The two parts of what looks like such a token: six and sixteen lower-case letters and digits.
pub(super) fn parts(token: &str) -> Option<(&str, &str)> {
    let plain = |text: &str| text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    token.split_once('.').filter(|(id, secret)| id.len() == 6 && secret.len() == 16 && plain(id) && plain(secret))
}

/// Who has this token; or why it doesn't hold.
pub(super) async fn verify(store: &dyn Store, id: &str, secret: &str) -> Result<Result<Identity, String>, Status> {
    let key = objects::core_key("secrets", Some(NAMESPACE), &format!("{NAME_PREFIX}{id}"));
    let entry = store.get(&key).await.map_err(|error| objects::store_failure(&error))?;
    let Some(entry) = entry else { return Ok(Err(format!("there is no token {id}"))) };
    Ok(judge(&objects::decode(&entry.value)?, id, secret, Timestamp::now()))
}

fn judge(object: &Value, id: &str, secret: &str, now: Timestamp) -> Result<Identity, String> {
    let refused = |why: &str| Err(format!("the token {id} {why}"));
    if text(object, "/type") != TYPE || object.pointer("/metadata/deletionTimestamp").is_some() {
        return refused("is gone");
    }
    if data(object, "token-id") != id {
        return refused("has another name in its Secret");
    }
    if verify_slices_are_equal(data(object, "token-secret").as_bytes(), secret.as_bytes()).is_err() {
        return refused("has another secret");
    }
    if has_expired(object, now) {
        return refused("has expired");
    }
    if data(object, "usage-bootstrap-authentication") != "true" {
        return refused("is not for authentication");
    }
    let mut groups = vec![GROUP.to_owned()];
    for group in data(object, "auth-extra-groups").split(',').filter(|group| !group.is_empty()) {
        if !is_group(group) {
            return refused("names groups that it may not give");
        }
        groups.push(group.to_owned());
    }
    Ok(Identity::authenticated(&format!("system:bootstrap:{id}"), groups))
}

fn data(object: &Value, key: &str) -> String {
    let encoded = object.get("data").and_then(|data| data.get(key)).and_then(Value::as_str).unwrap_or_default();
    STANDARD.decode(encoded).ok().and_then(|bytes| String::from_utf8(bytes).ok()).unwrap_or_default()
}

/// A time that can't be read has passed.
fn has_expired(object: &Value, now: Timestamp) -> bool {
    let expiration = data(object, "expiration");
    !expiration.is_empty() && expiration.parse::<Timestamp>().map_or(true, |end| end <= now)
}

fn is_group(group: &str) -> bool {
    let name = group.strip_prefix(GROUP).and_then(|rest| rest.strip_prefix(':')).unwrap_or_default();
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    name.len() <= 256
        && name.bytes().last().is_some_and(plain)
        && name.bytes().all(|byte| plain(byte) || b":-".contains(&byte))
}

/// Deletes expired ones until told to stop.
pub(crate) fn start(server: &Arc<Server>, stop: &CancellationToken) {
    let server = Arc::downgrade(server);
    tokio::spawn(carob_keep::keep("expired tokens", stop.clone(), move || {
        let server = server.clone();
        async move {
            loop {
                tokio::time::sleep(CLEAN_EVERY).await;
                let Some(server) = server.upgrade() else { return };
                if let Err(status) = clean(&server).await {
                    tracing::warn!(%status, "expired tokens could not be deleted");
                }
            }
        }
    }));
}

async fn clean(server: &Arc<Server>) -> Result<(), Status> {
    let prefix = objects::core_key("secrets", Some(NAMESPACE), "");
    let page = server.store.range(&KeyRange::prefix(prefix), None, None).await;
    for entry in page.map_err(|error| objects::store_failure(&error))?.entries {
        if !entry.key.rsplit('/').next().is_some_and(|name| name.starts_with(NAME_PREFIX)) {
            continue;
        }
        let object = objects::decode(&entry.value)?;
        if text(&object, "/type") != TYPE || !has_expired(&object, Timestamp::now()) {
            continue;
        }
        let kind = server.kind("", "v1", "secrets").ok_or_else(|| Status::internal("secrets are not served"))?;
        let identity = Identity::authenticated("system:kube-controller-manager", []);
        let mut call = Call::new(Arc::clone(server), kind, identity, http::HeaderMap::new(), Accept::JSON);
        call.namespace = Some(NAMESPACE.to_owned());
        call.name = Some(text(&object, "/metadata/name").to_owned());
        match delete::delete_object(&call, call.name(), &DeleteOptions::default()).await {
            Err(status) if status.code() != 404 => return Err(status),
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn secret(more: &[(&str, &str)]) -> Value {
        let mut object = json!({"type": TYPE, "metadata": {"name": "bootstrap-token-abcdef"}, "data": {}});
        let plain =
            [("token-id", "abcdef"), ("token-secret", "0123456789abcdef"), ("usage-bootstrap-authentication", "true")];
        for (key, value) in plain.iter().chain(more) {
            object["data"][*key] = STANDARD.encode(value).into();
        }
        object
    }

    fn judged(more: &[(&str, &str)], token: &str) -> Result<Vec<String>, String> {
        judge(&secret(more), "abcdef", token, "2026-01-01T00:00:00Z".parse().unwrap()).map(|identity| {
            assert_eq!(identity.user, "system:bootstrap:abcdef");
            identity.groups
        })
    }

    #[test]
    fn only_six_and_sixteen_letters_and_digits_are_a_token() {
        assert_eq!(parts("abcdef.0123456789abcdef"), Some(("abcdef", "0123456789abcdef")));
        for other in ["abcdef.0123456789abcde", "Abcdef.0123456789abcdef", "abcdef", "a.b.c", "abcdef.0123456789abcde-"]
        {
            assert_eq!(parts(other), None, "{other}");
        }
    }

    #[test]
    fn a_token_holds_until_it_expires_and_gives_groups_of_bootstrappers_alone() {
        let right = "0123456789abcdef";
        assert_eq!(judged(&[], right).unwrap(), [GROUP, super::super::AUTHENTICATED]);
        assert!(judged(&[("expiration", "2026-01-01T00:00:01Z")], right).is_ok());
        assert!(judged(&[("auth-extra-groups", "system:bootstrappers:farm")], right).unwrap()[1].ends_with(":farm"));
        type Data<'a> = &'a [(&'a str, &'a str)];
        let refused: [(Data<'_>, &str, &str); 6] = [
            (&[], "0123456789abcdee", "another secret"),
            (&[("expiration", "2026-01-01T00:00:00Z")], right, "has expired"),
            (&[("expiration", "soon")], right, "has expired"),
            (&[("usage-bootstrap-authentication", "false")], right, "not for authentication"),
            (&[("auth-extra-groups", "system:masters")], right, "may not give"),
            (&[("token-id", "fedcba")], right, "another name"),
        ];
        for (more, token, why) in refused {
            assert!(judged(more, token).unwrap_err().contains(why), "{why}");
        }
    }
}
