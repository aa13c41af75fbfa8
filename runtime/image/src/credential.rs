//! Credentials for registries, as pull secrets hold them.

use std::fmt;

use crate::Error;

/// One registry's credential.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Credential {
    /// As in a docker configuration: a host, optionally with port, path or `*.` wildcards, optionally a URL.
    pub registry: String,
    /// Empty when an identity token is given.
    pub username: String,
    /// The password, or empty.
    pub password: String,
    /// An OAuth2 refresh token in place of username and password.
    pub identity_token: Option<String>,
}

impl fmt::Debug for Credential {
    /// Never shows the secret parts.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credential")
            .field("registry", &self.registry)
            .field("username", &self.username)
            .finish_non_exhaustive()
    }
}

/// Reads a `kubernetes.io/dockerconfigjson` secret (`{"auths": {…}}`) or the older `.dockercfg` (the inner map alone).
pub fn docker_config_json(json: &[u8]) -> Result<Vec<Credential>, Error> {
    let _ = json;
    Err(Error::Secret { problem: "not read yet".to_owned() })
}
