//! Who is asking: a client certificate, a service account's token, a part of Carob itself, or nobody.

mod impersonation;
pub(crate) mod token;

use std::collections::BTreeMap;

use carob_api::status::Status;
use http::header::AUTHORIZATION;
use http::request::Parts;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::Server;
pub(crate) use impersonation::{Impersonation, impersonate};

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

    /// Nobody.
    pub fn anonymous() -> Self {
        Self { user: "system:anonymous".to_owned(), groups: vec![UNAUTHENTICATED.to_owned()], ..Self::default() }
    }

    /// The subject of a verified client certificate: its common name is the user, its organizations the groups.
    pub fn of_certificate(der: &[u8]) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let subject = certificate.subject();
        let user = subject.iter_common_name().next()?.as_str().ok().filter(|user| !user.is_empty())?;
        let groups = subject.iter_organization().filter_map(|name| name.as_str().ok()).map(ToOwned::to_owned);
        Some(Self::authenticated(user, groups))
    }

    /// Whether the user is in a group.
    pub fn is_in(&self, group: &str) -> bool {
        self.groups.iter().any(|member| member == group)
    }
}

/// Finds out who sent a request. A token that doesn't hold is 401; no token at all is anonymous.
pub(crate) async fn authenticate(server: &Server, parts: &Parts) -> Result<Identity, Status> {
    if let Some(InProcess(identity)) = parts.extensions.get() {
        return Ok(identity.clone());
    }
    if let Some(Certified(identity)) = parts.extensions.get() {
        return Ok(identity.clone());
    }
    match bearer(parts) {
        None => Ok(Identity::anonymous()),
        Some(token) => match server.tokens.verify(&*server.store, token).await? {
            Some(identity) => Ok(identity),
            None => Err(Status::unauthorized("Unauthorized")),
        },
    }
}

fn bearer(parts: &Parts) -> Option<&str> {
    let value = parts.headers.get(AUTHORIZATION)?.to_str().ok()?.trim();
    let (scheme, token) = value.split_once(' ')?;
    Some(token.trim()).filter(|token| scheme.eq_ignore_ascii_case("bearer") && !token.is_empty())
}
