//! Who is asking: a client certificate, a token (a service account's, an identity provider's, one from a file), a part of
//! Carob itself, or nobody.

pub(crate) mod bootstrap;
mod claims;
pub(crate) mod front_proxy;
mod impersonation;
pub(crate) mod legacy;
mod oidc;
pub(crate) mod publication;
mod static_tokens;
pub(crate) mod token;

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use carob_api::status::Status;
use http::header::AUTHORIZATION;
use http::request::Parts;
use serde_json::Value;
use x509_parser::prelude::{FromDer as _, X509Certificate};
use x509_parser::x509::X509Name;

use crate::Server;
use crate::pki::Pki;
use crate::settings::AuthenticationSettings;
use front_proxy::FrontProxy;
pub(crate) use impersonation::{Impersonation, USER as IMPERSONATE_USER, impersonate};
use static_tokens::StaticTokens;

/// What is said of a token of which nothing else can be said.
const INVALID: &str = "invalid bearer token";

/// The group of administrators, who may do everything.
pub(crate) const MASTERS: &str = "system:masters";
/// The group of everybody who is known.
pub(crate) const AUTHENTICATED: &str = "system:authenticated";
/// The group of everybody else.
pub(crate) const UNAUTHENTICATED: &str = "system:unauthenticated";

/// Who is asking.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Identity {
    pub user: String,
    pub uid: String,
    pub groups: Vec<String>,
    pub extra: BTreeMap<String, Vec<String>>,
    /// Whether it is a part of this process that asks, on behalf of nobody.
    pub inside: bool,
}

/// Put on requests that come from inside the process. It is a value in memory: nothing that a network client sends can
/// become one.
#[derive(Clone)]
pub(crate) struct InProcess(pub Identity);

/// Put on requests of a connection whose client certificate was verified.
#[derive(Clone)]
pub(crate) struct Certified(pub Identity);

impl Identity {
    /// A known user.
    pub fn authenticated(user: &str, groups: impl IntoIterator<Item = String>) -> Self {
        let mut groups: Vec<String> = groups.into_iter().collect();
        if !groups.iter().any(|group| group == AUTHENTICATED) {
            groups.push(AUTHENTICATED.to_owned());
        }
        Self { user: user.to_owned(), groups, ..Self::default() }
    }

    /// A service account.
    pub fn service_account(namespace: &str, name: &str) -> Self {
        let groups = ["system:serviceaccounts".to_owned(), format!("system:serviceaccounts:{namespace}")];
        Self::authenticated(&format!("system:serviceaccount:{namespace}:{name}"), groups)
    }

    /// Nobody.
    pub fn anonymous() -> Self {
        Self { user: "system:anonymous".to_owned(), groups: vec![UNAUTHENTICATED.to_owned()], ..Self::default() }
    }

    /// The subject of a verified client certificate: its common name is the user, its organizations the groups.
    pub fn of_certificate(der: &[u8]) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let subject = certificate.subject();
        let user = common_name(subject).filter(|user| !user.is_empty())?;
        let groups = subject.iter_organization().filter_map(|name| name.as_str().ok()).map(ToOwned::to_owned);
        Some(Self::authenticated(user, groups))
    }

    /// Whether the user is in a group.
    pub fn is_in(&self, group: &str) -> bool {
        self.groups.iter().any(|member| member == group)
    }
}

/// The common name of a subject. One with several has none: whoever took another of them would know its holder as another.
pub(crate) fn common_name<'a>(subject: &'a X509Name<'_>) -> Option<&'a str> {
    let mut names = subject.iter_common_name();
    names.next().filter(|_| names.next().is_none())?.as_str().ok()
}

/// Who holds a verified certificate: the common name of its subject (DER).
pub fn certified_name(der: &[u8]) -> Option<String> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    common_name(certificate.subject()).map(str::to_owned)
}

/// A token's owner, and those of the wanted audiences for which it is meant.
#[derive(Debug)]
pub(crate) struct Known {
    pub identity: Identity,
    pub audiences: Vec<String>,
}

/// All ways to find out who somebody is.
pub(crate) struct Authenticators {
    pub tokens: token::Tokens,
    from_file: StaticTokens,
    providers: Vec<oidc::Provider>,
    anonymous: bool,
}

impl Authenticators {
    /// With the cluster's keys, and what the settings name beside.
    pub fn new(pki: &Pki, issuer: &str, settings: &AuthenticationSettings) -> Result<Self, crate::Error> {
        let tokens = token::Tokens::new(pki, issuer).map_err(crate::Error::TokenKey)?;
        let from_file = match &settings.token_file {
            Some(path) => StaticTokens::read(path).map_err(crate::Error::Settings)?,
            None => StaticTokens::default(),
        };
        let providers = settings.jwt.iter().map(oidc::Provider::new).collect::<Result<_, _>>();
        let providers = providers.map_err(crate::Error::Settings)?;
        Ok(Self { tokens, from_file, providers, anonymous: settings.anonymous.enabled })
    }
}

/// Finds out who sent a request. A token that doesn't hold is 401; no token at all is anonymous.
pub(crate) async fn authenticate(server: &Server, parts: &Parts) -> Result<Identity, Status> {
    if let Some(InProcess(identity)) = parts.extensions.get() {
        return Ok(Identity { inside: true, ..identity.clone() });
    }
    if let Some(Certified(identity)) = parts.extensions.get() {
        return Ok(identity.clone());
    }
    let unauthorized = || Status::unauthorized("Unauthorized");
    let proxy = parts.extensions.get::<FrontProxy>().copied();
    if let Some(identity) = proxy.and_then(|proxy| proxy.identity(&parts.headers)) {
        return Ok(identity);
    }
    match bearer(parts) {
        // Whoever shows a certificate isn't nobody.
        None if proxy.is_some() => Err(unauthorized()),
        None if server.authn.anonymous => Ok(Identity::anonymous()),
        None => Err(unauthorized()),
        Some(token) => match of_token(server, token, &[]).await? {
            Ok(known) => Ok(known.identity),
            Err(why) => {
                tracing::debug!(why, "a token is refused");
                Err(unauthorized())
            }
        },
    }
}

/// Whose token it is, if it is meant for one of the audiences (for this server, if none is given); or why it doesn't hold.
pub(crate) async fn of_token(
    server: &Server,
    token: &str,
    audiences: &[&str],
) -> Result<Result<Known, String>, Status> {
    let authn = &server.authn;
    let own = [authn.tokens.issuer()];
    let audiences = if audiences.is_empty() { own.as_slice() } else { audiences };
    let own = || audiences.iter().filter(|audience| **audience == own[0]).map(ToString::to_string).collect();
    if let Some(identity) = authn.from_file.find(token) {
        return Ok(Ok(Known { identity, audiences: own() }));
    }
    if let Some((id, secret)) = bootstrap::parts(token) {
        let found = bootstrap::verify(&*server.store, id, secret).await?;
        return Ok(found.map(|identity| Known { identity, audiences: own() }));
    }
    // Whoever signed it, it is only asked here whom to ask; the signature is verified by who knows the key.
    match issuer_of(token).as_deref() {
        Some(legacy::ISSUER) => {
            let found = legacy::verify(&authn.tokens, &*server.store, token).await?;
            Ok(found.map(|identity| Known { identity, audiences: own() }).ok_or_else(|| INVALID.to_owned()))
        }
        Some(issuer) if issuer == authn.tokens.issuer() => authn.tokens.verify(&*server.store, token, audiences).await,
        Some(issuer) => match authn.providers.iter().find(|provider| provider.issuer() == issuer) {
            Some(provider) => Ok(provider.verify(token).await.map(|identity| Known { identity, audiences: own() })),
            None => Ok(Err(INVALID.to_owned())),
        },
        None => Ok(Err(INVALID.to_owned())),
    }
}

/// Who says that a token is theirs. Nothing is verified.
fn issuer_of(token: &str) -> Option<String> {
    let mut parts = token.split('.');
    let (_, payload) = (parts.next()?, parts.next()?);
    let payload = URL_SAFE_NO_PAD.decode(payload).ok()?;
    let claims: Value = serde_json::from_slice(&payload).ok()?;
    claims.get("iss")?.as_str().map(str::to_owned)
}

fn bearer(parts: &Parts) -> Option<&str> {
    let value = parts.headers.get(AUTHORIZATION)?.to_str().ok()?.trim();
    let (scheme, token) = value.split_once(' ')?;
    Some(token.trim()).filter(|token| scheme.eq_ignore_ascii_case("bearer") && !token.is_empty())
}
