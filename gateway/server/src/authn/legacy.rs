//! Tokens kept in Secrets of the type `kubernetes.io/service-account-token`: whoever makes such a Secret for an account
//! gets a token that holds as long as the Secret does.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use carob_api::status::Status;
use carob_store::{Entry, Event, Store};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::{Mutex, mpsc};
use tokio_util::sync::CancellationToken;

use super::Identity;
use super::token::{Reference, Tokens, holds};
use crate::authz::follow::{self, Mirror};
use crate::call::Call;
use crate::handlers::delete;
use crate::handlers::update::{self, Change};
use crate::negotiate::Accept;
use crate::objects::{self, text};
use crate::options::{DeleteOptions, WriteOptions};
use crate::{Error, Server};

/// Who signed such a token.
pub(crate) const ISSUER: &str = "kubernetes/serviceaccount";
const SECRETS: &str = "/core/secrets/";
const TYPE: &str = "kubernetes.io/service-account-token";
const ACCOUNT: &str = "/metadata/annotations/kubernetes.io~1service-account.name";
const ACCOUNT_UID: &str = "/metadata/annotations/kubernetes.io~1service-account.uid";

/// What such a token says.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Claims {
    iss: String,
    #[serde(rename = "kubernetes.io/serviceaccount/namespace")]
    namespace: String,
    #[serde(rename = "kubernetes.io/serviceaccount/secret.name")]
    secret: String,
    #[serde(rename = "kubernetes.io/serviceaccount/service-account.name")]
    account: String,
    #[serde(rename = "kubernetes.io/serviceaccount/service-account.uid")]
    uid: String,
    sub: String,
}

/// Whose token it is: its Secret must hold this very token, and its account must still be the same.
pub(super) async fn verify(tokens: &Tokens, store: &dyn Store, token: &str) -> Result<Option<Identity>, Status> {
    let Some(claims) = tokens.legacy_claims(token) else { return Ok(None) };
    let key = objects::core_key("secrets", Some(&claims.namespace), &claims.secret);
    let entry = store.get(&key).await.map_err(|error| objects::store_failure(&error))?;
    let Some(entry) = entry else { return Ok(None) };
    let secret = objects::decode(&entry.value)?;
    let kept = STANDARD.decode(text(&secret, "/data/token")).unwrap_or_default();
    if kept != token.as_bytes() || secret.pointer("/metadata/deletionTimestamp").is_some() {
        return Ok(None);
    }
    let account = Reference { name: claims.account.clone(), uid: claims.uid.clone() };
    if !holds(store, "serviceaccounts", Some(&claims.namespace), &account).await? {
        return Ok(None);
    }
    let mut identity = Identity::service_account(&claims.namespace, &claims.account);
    identity.uid = claims.uid;
    Ok(Some(identity))
}

/// Fills such Secrets, and deletes those whose account is gone, until told to stop.
pub(crate) async fn start(server: &Arc<Server>, authority: &str, stop: &CancellationToken) -> Result<(), Error> {
    let (sender, keys) = mpsc::unbounded_channel();
    for prefix in [SECRETS, ACCOUNTS] {
        let mirror = Arc::new(Seen(sender.clone()));
        follow::follow(&server.store, prefix, mirror, stop.clone()).await.map_err(Error::Store)?;
    }
    let (server, authority) = (Arc::downgrade(server), Arc::<str>::from(STANDARD.encode(authority)));
    let keys = Arc::new(Mutex::new(keys));
    tokio::spawn(carob_keep::keep("tokens' Secrets", stop.clone(), move || {
        let (server, authority, keys) = (server.clone(), Arc::clone(&authority), Arc::clone(&keys));
        async move {
            // What panicked is passed over: the next one is another.
            while let Some(seen) = keys.lock().await.recv().await {
                let Some(server) = server.upgrade() else { return };
                let done = match seen {
                    What::Secret(key) => settle(&server, &authority, &key).await,
                    What::AccountGone(key) => clear(&server, &key).await,
                };
                if let Err(status) = done {
                    tracing::warn!(%status, "a token's Secret could not be settled");
                }
            }
        }
    }));
    Ok(())
}

const ACCOUNTS: &str = "/core/serviceaccounts/";

/// What has to be looked at, by key.
enum What {
    Secret(String),
    AccountGone(String),
}

/// Notices Secrets that hold tokens, and accounts that go.
struct Seen(mpsc::UnboundedSender<What>);

impl Seen {
    fn look(&self, entry: &Entry) {
        // Only such Secrets are decoded, and only when they come into being or change.
        if entry.key.starts_with(SECRETS) && entry.value.windows(TYPE.len()).any(|text| text == TYPE.as_bytes()) {
            // The receiver is gone when the server stops.
            let _ = self.0.send(What::Secret(entry.key.to_string()));
        }
    }
}

impl Mirror for Seen {
    fn reset(&self, entries: &[Entry]) {
        for entry in entries {
            self.look(entry);
        }
    }

    fn apply(&self, events: &[Event]) {
        for event in events {
            match event {
                Event::Put { entry, .. } => self.look(entry),
                Event::Delete { entry, .. } if entry.key.starts_with(ACCOUNTS) => {
                    let _ = self.0.send(What::AccountGone(entry.key.to_string()));
                }
                Event::Delete { .. } => {}
            }
        }
    }
}

/// Completes one Secret, or deletes it if its account doesn't exist.
async fn settle(server: &Arc<Server>, authority: &str, key: &str) -> Result<(), Status> {
    let Some(secret) = find(server, key).await? else { return Ok(()) };
    let name = text(&secret, ACCOUNT);
    if text(&secret, "/type") != TYPE || name.is_empty() || secret.pointer("/metadata/deletionTimestamp").is_some() {
        return Ok(());
    }
    let namespace = text(&secret, "/metadata/namespace");
    let account = find(server, &objects::core_key("serviceaccounts", Some(namespace), name)).await?;
    let uid = account.as_ref().map(|account| text(account, "/metadata/uid"));
    let named = text(&secret, ACCOUNT_UID);
    let call = call(server, &secret)?;
    let Some(uid) = uid.filter(|uid| named.is_empty() || named == *uid) else {
        return remove(&call).await;
    };
    let claims = Claims {
        iss: ISSUER.to_owned(),
        namespace: namespace.to_owned(),
        secret: call.name().to_owned(),
        account: name.to_owned(),
        uid: uid.to_owned(),
        sub: format!("system:serviceaccount:{namespace}:{name}"),
    };
    let data = [("ca.crt", authority.to_owned()), ("namespace", STANDARD.encode(namespace))];
    let token = match text(&secret, "/data/token") {
        "" => Some(STANDARD.encode(server.authn.tokens.sign_legacy(&claims)?)),
        _ => None,
    };
    let options = WriteOptions {
        dry_run: false,
        manager: "kube-controller-manager".to_owned(),
        validation: carob_api::decode::FieldValidation::Strict,
        force: false,
    };
    let change = |secret: &Value| {
        let mut secret = secret.clone();
        secret["metadata"]["annotations"]["kubernetes.io/service-account.uid"] = uid.into();
        if !secret["data"].is_object() {
            secret["data"] = json!({});
        }
        for (key, value) in &data {
            secret["data"][key] = value.as_str().into();
        }
        if let Some(token) = &token
            && text(&secret, "/data/token").is_empty()
        {
            secret["data"]["token"] = token.as_str().into();
        }
        Ok(secret)
    };
    update::change(&call, &Change::new(carob_api::kind::Part::Main, &options), change).await.map(drop)
}

/// Deletes the Secrets of an account that is gone.
async fn clear(server: &Arc<Server>, key: &str) -> Result<(), Status> {
    let mut parts = key.rsplit('/');
    let (Some(name), Some(namespace)) = (parts.next(), parts.next()) else { return Ok(()) };
    let range = carob_store::KeyRange::prefix(format!("{SECRETS}{namespace}/"));
    let page = server.store.range(&range, None, None).await.map_err(|error| objects::store_failure(&error))?;
    for entry in page.entries {
        let secret = objects::decode(&entry.value)?;
        if text(&secret, "/type") == TYPE && text(&secret, ACCOUNT) == name && find(server, key).await?.is_none() {
            remove(&call(server, &secret)?).await?;
        }
    }
    Ok(())
}

async fn remove(call: &Call) -> Result<(), Status> {
    match delete::delete_object(call, call.name(), &DeleteOptions::default()).await {
        Err(status) if status.code() != 404 => Err(status),
        _ => Ok(()),
    }
}

async fn find(server: &Server, key: &str) -> Result<Option<Value>, Status> {
    let entry = server.store.get(key).await.map_err(|error| objects::store_failure(&error))?;
    entry.map(|entry| objects::decode(&entry.value)).transpose()
}

fn call(server: &Arc<Server>, secret: &Value) -> Result<Call, Status> {
    let kind = server.kind("", "v1", "secrets").ok_or_else(|| Status::internal("secrets are not served"))?;
    let identity = Identity::authenticated("system:kube-controller-manager", []);
    let mut call = Call::new(Arc::clone(server), kind, identity, http::HeaderMap::new(), Accept::JSON);
    call.namespace = Some(text(secret, "/metadata/namespace").to_owned());
    call.name = Some(text(secret, "/metadata/name").to_owned());
    Ok(call)
}
