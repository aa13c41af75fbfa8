//! Tokens of identity providers (OpenID Connect): verified with the provider's keys, which are fetched when needed.

use std::time::Duration;

use jsonwebtoken::jwk::{Jwk, JwkSet};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde_json::{Map, Value};
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::Identity;
use super::claims::Reading;
use crate::settings::{self, IssuerSettings, JwtSettings};

/// How long a provider may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long after the keys were fetched they are not fetched again, whatever key a token names.
const AT_MOST_EVERY: Duration = Duration::from_secs(10);
/// The largest document that is read, in bytes.
const LARGEST: usize = 1 << 20;
/// How tokens may be signed: never with a shared secret.
const ALGORITHMS: [Algorithm; 9] = [
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
    Algorithm::ES256,
    Algorithm::ES384,
    Algorithm::EdDSA,
];

/// One provider.
pub(super) struct Provider {
    issuer: IssuerSettings,
    reading: Reading,
    client: reqwest::Client,
    keys: Mutex<Keys>,
}

#[derive(Default)]
struct Keys {
    set: Option<JwkSet>,
    fetched: Option<Instant>,
}

impl Provider {
    /// As the settings describe it. Nothing is fetched yet: a provider that is away keeps no cluster from starting.
    pub fn new(settings: &JwtSettings) -> Result<Self, settings::Error> {
        let wrong = |field: &str, why: &str| settings::Error::Invalid {
            what: format!("authentication.jwt: {field}"),
            why: why.to_owned(),
        };
        let issuer = &settings.issuer;
        if !issuer.url.starts_with("https://") {
            return Err(wrong("issuer.url", "must be a URL that begins with https://"));
        }
        if issuer.discovery_url.as_ref().is_some_and(|url| !url.starts_with("https://")) {
            return Err(wrong("issuer.discoveryURL", "must be a URL that begins with https://"));
        }
        let policy = issuer.audience_match_policy.as_str();
        if !matches!(policy, "" | "MatchAny") || (issuer.audiences.len() > 1 && policy.is_empty()) {
            return Err(wrong("issuer.audienceMatchPolicy", "must be MatchAny for multiple audiences"));
        }
        if issuer.audiences.is_empty() {
            return Err(wrong("issuer.audiences", "at least one is required"));
        }
        let reading = Reading::new(settings)?;
        let mut client = reqwest::Client::builder().timeout(PATIENCE).https_only(true);
        if let Some(authority) = &issuer.certificate_authority {
            let authorities = reqwest::Certificate::from_pem_bundle(authority.as_bytes())
                .map_err(|error| wrong("issuer.certificateAuthority", &error.to_string()))?;
            client = client.tls_certs_only(authorities);
        }
        let client = client.build().map_err(|error| wrong("issuer", &error.to_string()))?;
        Ok(Self { issuer: issuer.clone(), reading, client, keys: Mutex::default() })
    }

    /// The claim `iss` of its tokens.
    pub fn issuer(&self) -> &str {
        &self.issuer.url
    }

    /// Whose token it is, or why it doesn't hold.
    pub async fn verify(&self, token: &str) -> Result<Identity, String> {
        let header = jsonwebtoken::decode_header(token).map_err(|_| "oidc: malformed token".to_owned())?;
        if !ALGORITHMS.contains(&header.alg) {
            return Err("oidc: the token's algorithm is not allowed".to_owned());
        }
        let key = self.key(header.kid.as_deref()).await?;
        let key = DecodingKey::from_jwk(&key).map_err(|error| format!("oidc: unusable key: {error}"))?;
        let mut validation = Validation::new(header.alg);
        validation.set_issuer(&[self.issuer()]);
        validation.set_audience(&self.issuer.audiences);
        validation.set_required_spec_claims(&["exp", "iss", "aud"]);
        validation.validate_nbf = true;
        validation.leeway = 10;
        let data = jsonwebtoken::decode::<Map<String, Value>>(token, &key, &validation)
            .map_err(|error| format!("oidc: verify token: {error}"))?;
        self.reading.user(&data.claims)
    }

    /// The key of this name; fetched if it isn't known, but not all the time.
    async fn key(&self, name: Option<&str>) -> Result<Jwk, String> {
        let mut keys = self.keys.lock().await;
        if let Some(found) = keys.set.as_ref().and_then(|set| choose(set, name)) {
            return Ok(found);
        }
        if keys.fetched.is_none_or(|at| at.elapsed() >= AT_MOST_EVERY) {
            keys.fetched = Some(Instant::now());
            keys.set = Some(self.fetch().await?);
        }
        keys.set.as_ref().and_then(|set| choose(set, name)).ok_or_else(|| "oidc: unknown signing key".to_owned())
    }

    async fn fetch(&self) -> Result<JwkSet, String> {
        let issuer = &self.issuer;
        let document = match &issuer.discovery_url {
            Some(url) => url.clone(),
            None => format!("{}/.well-known/openid-configuration", issuer.url.trim_end_matches('/')),
        };
        let document: Value = self.read(&document).await?;
        if document["issuer"] != issuer.url.as_str() {
            return Err(format!("oidc: the provider calls itself {}", document["issuer"]));
        }
        let keys = document["jwks_uri"].as_str().ok_or("oidc: the provider names no jwks_uri")?;
        self.read(keys).await
    }

    async fn read<T: serde::de::DeserializeOwned>(&self, url: &str) -> Result<T, String> {
        let failed = |error: reqwest::Error| format!("oidc: cannot read {url}: {error}");
        let mut answer =
            self.client.get(url).send().await.and_then(reqwest::Response::error_for_status).map_err(failed)?;
        let mut body = Vec::new();
        while let Some(piece) = answer.chunk().await.map_err(failed)? {
            body.extend_from_slice(&piece);
            if body.len() > LARGEST {
                return Err(format!("oidc: {url} is too large"));
            }
        }
        serde_json::from_slice(&body).map_err(|error| format!("oidc: {url} cannot be understood: {error}"))
    }
}

fn choose(set: &JwkSet, name: Option<&str>) -> Option<Jwk> {
    match name {
        Some(name) => set.find(name).cloned(),
        None => set.keys.first().filter(|_| set.keys.len() == 1).cloned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn settings() -> JwtSettings {
        serde_json::from_value(json!({
            "issuer": {"url": "https://id.example.com", "audiences": ["carob"]},
            "claimMappings": {
                "username": {"claim": "sub", "prefix": "id:"},
            },
        }))
        .expect("settings")
    }

    #[test]
    fn settings_without_a_prefix_or_an_audience_are_refused() {
        assert!(Provider::new(&settings()).is_ok());
        let mut other = settings();
        other.claim_mappings.username.prefix = None;
        assert!(Provider::new(&other).is_err());
        let mut other = settings();
        other.issuer.audiences.clear();
        assert!(Provider::new(&other).is_err());
        let mut other = settings();
        other.issuer.url = "http://id.example.com".to_owned();
        assert!(Provider::new(&other).is_err());
    }

    /// Serves documents by path over TLS; gives its address and its authority.
    async fn provider(documents: impl Fn(&str, u16) -> Value + Send + 'static) -> (u16, String) {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).expect("a certificate");
        let key = rustls_pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).expect("a key");
        let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .expect("a configuration");
        let acceptor = tokio_rustls::TlsAcceptor::from(std::sync::Arc::new(config));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let Ok(mut stream) = acceptor.accept(stream).await else { continue };
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(stream.read_u8().await.expect("a request"));
                }
                let head = String::from_utf8(head).expect("text");
                let body = documents(head.split(' ').nth(1).unwrap_or_default(), port).to_string();
                let answer =
                    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len());
                stream.write_all(answer.as_bytes()).await.expect("sent");
                let _ = stream.shutdown().await;
            }
        });
        (port, made.cert.pem())
    }

    #[tokio::test]
    async fn a_provider_is_asked_for_its_keys_and_only_tokens_for_us_hold() {
        let folder = tempfile::tempdir().expect("a directory");
        let pki = crate::pki::Pki::open(folder.path(), &[]).expect("keys");
        let tokens = super::super::token::Tokens::new(&pki, "x").expect("keys");
        let keys = tokens.key_set();
        let name = keys["keys"][0]["kid"].as_str().expect("a name").to_owned();
        let (port, authority) = provider(move |path, port| match path {
            "/.well-known/openid-configuration" => json!({"issuer": format!("https://localhost:{port}"),
                "jwks_uri": format!("https://localhost:{port}/keys")}),
            _ => keys.clone(),
        })
        .await;
        let issuer = format!("https://localhost:{port}");
        let mut settings = settings();
        settings.issuer.url.clone_from(&issuer);
        settings.issuer.certificate_authority = Some(authority);
        let provider = Provider::new(&settings).expect("settings");
        let signing = jsonwebtoken::EncodingKey::from_ec_pem(pki.token_key.as_bytes()).expect("a key");
        let token = |claims: Value| {
            let mut header = jsonwebtoken::Header::new(Algorithm::ES256);
            header.kid = Some(name.clone());
            jsonwebtoken::encode(&header, &claims, &signing).expect("signed")
        };
        let good = json!({"iss": issuer, "aud": "carob", "sub": "alice", "exp": 4_000_000_000_u64});
        assert_eq!(provider.verify(&token(good.clone())).await.expect("known").user, "id:alice");
        for (field, value) in [("aud", json!("other")), ("iss", json!("https://evil")), ("exp", json!(1))] {
            let mut bad = good.clone();
            bad[field] = value;
            assert!(provider.verify(&token(bad)).await.is_err(), "{field}");
        }
        let secret = jsonwebtoken::EncodingKey::from_secret(pki.token_public_key.as_bytes());
        let mut header = jsonwebtoken::Header::new(Algorithm::HS256);
        header.kid = Some(name.clone());
        let forged = jsonwebtoken::encode(&header, &good, &secret).expect("signed");
        assert!(provider.verify(&forged).await.is_err(), "the public key is no shared secret");
    }
}
