//! Tokens of service accounts: signed by the cluster, bound to objects that must still exist.

use std::collections::BTreeMap;

use carob_api::status::Status;
use carob_store::Store;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Identity;
use crate::objects;
use crate::pki::Pki;
use crate::random;

/// How long a token is still taken after its Pod was marked for deletion, in seconds.
const DELETION_LEEWAY: i64 = 60;

/// Signs and verifies tokens.
pub(crate) struct Tokens {
    issuer: String,
    key_id: String,
    signing: EncodingKey,
    verifying: DecodingKey,
    validation: Validation,
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
        let mut validation = Validation::new(Algorithm::ES256);
        validation.set_issuer(&[issuer]);
        validation.set_audience(&[issuer]);
        validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        validation.validate_nbf = true;
        validation.leeway = 10;
        Ok(Self {
            issuer: issuer.to_owned(),
            key_id: key_id(&pki.token_public_key),
            signing: EncodingKey::from_ec_pem(pki.token_key.as_bytes())?,
            verifying: DecodingKey::from_ec_pem(pki.token_public_key.as_bytes())?,
            validation,
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
        let mut header = Header::new(Algorithm::ES256);
        header.kid = Some(self.key_id.clone());
        header.typ = None;
        jsonwebtoken::encode(&header, &claims, &self.signing).map_err(|error| {
            tracing::error!(%error, "cannot sign a token");
            Status::internal("cannot sign a token")
        })
    }

    /// Whose token it is, or none if it doesn't hold.
    pub async fn verify(&self, store: &dyn Store, token: &str) -> Result<Option<Identity>, Status> {
        let Ok(data) = jsonwebtoken::decode::<Claims>(token, &self.verifying, &self.validation) else {
            return Ok(None);
        };
        let claims = data.claims;
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
        let groups = ["system:serviceaccounts".to_owned(), format!("system:serviceaccounts:{namespace}")];
        let mut identity = Identity::authenticated(&claims.sub, groups);
        identity.uid.clone_from(&account.uid);
        identity.extra = extra;
        Ok(Some(identity))
    }
}

/// Whether the object exists, is the same one, and isn't long deleted.
async fn holds(
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

/// A short name of the public key: part of its digest.
fn key_id(public: &str) -> String {
    use base64::Engine as _;
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, public.as_bytes());
    base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(digest.as_ref())
}
