//! Tokens of service accounts: signed by the cluster, bound to objects that must still exist.

use std::collections::BTreeMap;

use carob_api::status::Status;
use carob_store::Store;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Identity, Known, legacy};
use crate::authz::rules::quoted;
use crate::objects;
use crate::pki::Pki;
use crate::random;

/// How long a token is still taken after its Pod was marked for deletion, in seconds.
const DELETION_LEEWAY: i64 = 60;

/// How far clocks may differ, in seconds.
const CLOCK_LEEWAY: i64 = 10;
const INVALID: &str = "invalid bearer token";
const INVALIDATED: &str = "service account token has been invalidated";

/// Signs and verifies tokens.
pub(crate) struct Tokens {
    issuer: String,
    key_id: String,
    /// The public key's coordinates, base64url.
    point: (String, String),
    signing: EncodingKey,
    verifying: DecodingKey,
    validation: Validation,
    legacy: Validation,
}

/// The claims of a token, as Kubernetes has them.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Claims {
    pub aud: Vec<String>,
    pub exp: i64,
    pub iat: i64,
    pub iss: String,
    pub jti: String,
    #[serde(rename = "kubernetes.io")]
    pub bound: Bound,
    pub nbf: i64,
    pub sub: String,
}

/// What a token is bound to.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Bound {
    pub namespace: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<Reference>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<Reference>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<Reference>,
    pub serviceaccount: Reference,
}

/// One object by name and uid.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Reference {
    pub name: String,
    #[serde(default)]
    pub uid: String,
}

impl Tokens {
    /// With the keys of the cluster; none if they cannot be read.
    pub fn new(pki: &Pki, issuer: &str) -> Result<Self, jsonwebtoken::errors::Error> {
        // Times and audiences are compared here, so that it can be said what is wrong with them.
        let of_issuer = |issuer: &str, claims: &[&str]| {
            let mut validation = Validation::new(Algorithm::ES256);
            validation.set_issuer(&[issuer]);
            validation.set_required_spec_claims(claims);
            validation.validate_exp = false;
            validation.validate_aud = false;
            validation
        };
        Ok(Self {
            issuer: issuer.to_owned(),
            key_id: key_id(&pki.token_public_key),
            point: point(&pki.token_public_key),
            legacy: of_issuer(legacy::ISSUER, &["iss", "sub"]),
            validation: of_issuer(issuer, &["exp", "iss", "aud", "sub"]),
            signing: EncodingKey::from_ec_pem(pki.token_key.as_bytes())?,
            verifying: DecodingKey::from_ec_pem(pki.token_public_key.as_bytes())?,
        })
    }

    /// The audience of tokens that are meant for this server.
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// A token for these audiences that holds for `seconds` from `now` (seconds since 1970).
    pub fn sign(&self, bound: Bound, audiences: Vec<String>, now: i64, seconds: i64) -> Result<String, Status> {
        let claims = Claims {
            aud: audiences,
            exp: now.saturating_add(seconds),
            iat: now,
            iss: self.issuer.clone(),
            jti: random::uuid(),
            sub: format!("system:serviceaccount:{}:{}", bound.namespace, bound.serviceaccount.name),
            bound,
            nbf: now,
        };
        self.sign_any(&claims)
    }

    /// Whose token it is, if it is meant for one of the audiences; or why it doesn't hold.
    pub async fn verify(
        &self,
        store: &dyn Store,
        token: &str,
        audiences: &[&str],
    ) -> Result<Result<Known, String>, Status> {
        let Ok(data) = jsonwebtoken::decode::<Claims>(token, &self.verifying, &self.validation) else {
            return Ok(Err(INVALID.to_owned()));
        };
        let claims = data.claims;
        let now = jiff::Timestamp::now().as_second();
        if claims.exp.saturating_add(CLOCK_LEEWAY) < now {
            return Ok(Err("service account token has expired".to_owned()));
        }
        if claims.nbf.saturating_sub(CLOCK_LEEWAY) > now {
            return Ok(Err("service account token is not valid yet".to_owned()));
        }
        let met: Vec<String> = claims.aud.iter().filter(|aud| audiences.contains(&aud.as_str())).cloned().collect();
        if met.is_empty() {
            let wanted: Vec<String> = audiences.iter().map(ToString::to_string).collect();
            return Ok(Err(format!(
                "token audiences {} is invalid for the target audiences {}",
                quoted(&claims.aud),
                quoted(&wanted)
            )));
        }
        let known = self.identity(store, &claims).await?;
        Ok(known.map(|identity| Known { identity, audiences: met }).ok_or_else(|| INVALIDATED.to_owned()))
    }

    /// Whom the claims of a verified token speak of; none if what it is bound to is gone.
    async fn identity(&self, store: &dyn Store, claims: &Claims) -> Result<Option<Identity>, Status> {
        let namespace = &claims.bound.namespace;
        let account = &claims.bound.serviceaccount;
        if claims.sub != format!("system:serviceaccount:{namespace}:{}", account.name)
            || !holds(store, "serviceaccounts", Some(namespace), account).await?
        {
            return Ok(None);
        }
        // The node of a Pod's token only says where the Pod is: the Pod decides.
        let node_alone = if claims.bound.pod.is_none() { &claims.bound.node } else { &None };
        let bindings =
            [("pods", &claims.bound.pod, true), ("secrets", &claims.bound.secret, true), ("nodes", node_alone, false)];
        for (resource, reference, namespaced) in bindings {
            if let Some(reference) = reference
                && !holds(store, resource, namespaced.then_some(namespace.as_str()), reference).await?
            {
                return Ok(None);
            }
        }
        let mut extra = BTreeMap::new();
        let mut note = |key: &str, value: String| {
            extra.insert(format!("authentication.kubernetes.io/{key}"), vec![value]);
        };
        if !claims.jti.is_empty() {
            note("credential-id", format!("JTI={}", claims.jti));
        }
        if let Some(pod) = &claims.bound.pod {
            note("pod-name", pod.name.clone());
            note("pod-uid", pod.uid.clone());
        }
        if let Some(node) = &claims.bound.node {
            note("node-name", node.name.clone());
            note("node-uid", node.uid.clone());
        }
        let mut identity = Identity::service_account(namespace, &account.name);
        identity.uid.clone_from(&account.uid);
        identity.extra = extra;
        Ok(Some(identity))
    }

    /// The public key as a set of keys (RFC 7517), by which others verify tokens.
    pub fn key_set(&self) -> Value {
        json!({ "keys": [{
            "use": "sig",
            "kty": "EC",
            "kid": self.key_id,
            "crv": "P-256",
            "alg": "ES256",
            "x": self.point.0,
            "y": self.point.1,
        }] })
    }

    /// A token that holds as long as its Secret does, as Kubernetes once made them.
    pub fn sign_legacy(&self, claims: &legacy::Claims) -> Result<String, Status> {
        self.sign_any(claims)
    }

    /// The claims of such a token, if this cluster signed it.
    pub fn legacy_claims(&self, token: &str) -> Option<legacy::Claims> {
        jsonwebtoken::decode(token, &self.verifying, &self.legacy).ok().map(|data| data.claims)
    }

    fn sign_any(&self, claims: &impl Serialize) -> Result<String, Status> {
        let mut header = Header::new(Algorithm::ES256);
        header.kid = Some(self.key_id.clone());
        header.typ = None;
        jsonwebtoken::encode(&header, claims, &self.signing).map_err(|error| {
            tracing::error!(%error, "cannot sign a token");
            Status::internal("cannot sign a token")
        })
    }
}

/// Whether the object exists, is the same one, and isn't long deleted.
pub(super) async fn holds(
    store: &dyn Store,
    resource: &str,
    namespace: Option<&str>,
    reference: &Reference,
) -> Result<bool, Status> {
    let key = objects::core_key(resource, namespace, &reference.name);
    let Some(entry) = store.get(&key).await.map_err(|error| objects::store_failure(&error))? else {
        return Ok(false);
    };
    let object = objects::decode(&entry.value)?;
    if objects::text(&object, "/metadata/uid") != reference.uid {
        return Ok(false);
    }
    let deleted: Option<jiff::Timestamp> =
        object.pointer("/metadata/deletionTimestamp").and_then(Value::as_str).and_then(|text| text.parse().ok());
    Ok(deleted.is_none_or(|at| jiff::Timestamp::now().as_second() < at.as_second() + DELETION_LEEWAY))
}

/// The coordinates of a P-256 key: the last 64 bytes of its SubjectPublicKeyInfo.
fn point(public: &str) -> (String, String) {
    use base64::Engine as _;
    use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
    let body: String = public.lines().filter(|line| !line.starts_with("-----")).collect();
    let der = STANDARD.decode(body).unwrap_or_default();
    let (x, y) = der
        .split_at_checked(der.len().saturating_sub(64))
        .map_or(([].as_slice(), [].as_slice()), |(_, point)| point.split_at(point.len() / 2));
    (URL_SAFE_NO_PAD.encode(x), URL_SAFE_NO_PAD.encode(y))
}

/// A short name of the public key: part of its digest.
fn key_id(public: &str) -> String {
    use base64::Engine as _;
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, public.as_bytes());
    base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(digest.as_ref())
}
