//! Credentials for registries, as pull secrets hold them.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use crate::{Error, Reference};

/// One registry's credential.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Credential {
    /// As in a docker configuration: a host, optionally with port, path or `*` wildcards, optionally a URL.
    pub registry: String,
    /// Empty when an identity token is given.
    pub username: String,
    /// The password, or empty.
    pub password: String,
    /// An OAuth2 refresh token in place of username and password.
    pub identity_token: Option<String>,
    /// Its owner's image may be used by everybody here: it is the machine's own, and not a pod's.
    pub shared: bool,
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

#[derive(Deserialize)]
struct Auths {
    auths: BTreeMap<String, Auth>,
}

#[derive(Deserialize)]
struct Auth {
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
    /// `user:password` in base64, in place of the two above.
    #[serde(default, rename = "auth")]
    both: String,
    #[serde(default, rename = "identitytoken")]
    identity_token: Option<String>,
}

/// Reads a `kubernetes.io/dockerconfigjson` secret (`{"auths": {…}}`) or the older `.dockercfg` (the inner map alone).
pub fn docker_config_json(json: &[u8]) -> Result<Vec<Credential>, Error> {
    let malformed = |problem: String| Error::Secret { problem };
    let auths = match serde_json::from_slice::<Auths>(json) {
        Ok(config) => config.auths,
        // The error is of the newer form: that is the one people write. It never cites values.
        Err(error) => serde_json::from_slice(json).map_err(|_| {
            malformed(format!("not a docker configuration, at line {} column {}", error.line(), error.column()))
        })?,
    };
    auths
        .into_iter()
        .map(|(registry, auth)| {
            let (username, password) = if auth.both.is_empty() {
                (auth.username, auth.password)
            } else {
                let plain = STANDARD.decode(auth.both.trim()).ok().and_then(|plain| String::from_utf8(plain).ok());
                let pair = plain.as_deref().and_then(|plain| plain.split_once(':'));
                let (username, password) =
                    pair.ok_or_else(|| malformed(format!("auths[{registry:?}].auth is not base64 of user:password")))?;
                (username.to_owned(), password.to_owned())
            };
            Ok(Credential { registry, username, password, identity_token: auth.identity_token, shared: false })
        })
        .collect()
}

/// The credentials that are for this image, the most specific first.
pub(crate) fn matching(credentials: &[Credential], reference: &Reference) -> Vec<Credential> {
    let mut found: Vec<(usize, &Credential)> = credentials
        .iter()
        .filter_map(|credential| Some((specificity(&credential.registry, reference)?, credential)))
        .collect();
    found.sort_by_key(|(length, _)| std::cmp::Reverse(*length));
    found.into_iter().map(|(_, credential)| credential.clone()).collect()
}

/// Whether a registry's key, as credentials have it, is for this image; none is for what isn't the name of an image.
pub fn covers(key: &str, image: &str) -> bool {
    Reference::parse(image).is_ok_and(|reference| specificity(key, &reference).is_some())
}

/// How much of the reference a key covers, as kubelet's keyring matches: scheme ignored, host by label globs, path as a
/// prefix.
fn specificity(key: &str, reference: &Reference) -> Option<usize> {
    let key = key.trim_start_matches("https://").trim_start_matches("http://").trim_end_matches('/');
    let key = key.strip_suffix("/v1").or_else(|| key.strip_suffix("/v2")).unwrap_or(key);
    let (host, path) = key.split_once('/').unwrap_or((key, ""));
    let host = match host {
        "index.docker.io" | "registry-1.docker.io" => "docker.io",
        host => host,
    };
    let (host_name, host_port) = host.rsplit_once(':').unwrap_or((host, ""));
    let (name, port) = reference.registry.rsplit_once(':').unwrap_or((&reference.registry, ""));
    let labels = || host_name.split('.').zip(name.split('.'));
    let covered = host_port == port
        && host_name.split('.').count() == name.split('.').count()
        && labels().all(|(glob, label)| matches_glob(glob, label))
        && reference.repository.starts_with(path);
    covered.then_some(key.bytes().filter(|byte| *byte != b'*').count())
}

/// `*` stands for any characters within one label.
fn matches_glob(glob: &str, text: &str) -> bool {
    match glob.split_once('*') {
        None => glob.eq_ignore_ascii_case(text),
        Some((head, tail)) => text.strip_prefix(head).is_some_and(|rest| {
            (0..=rest.len()).any(|at| rest.is_char_boundary(at) && matches_glob(tail, &rest[at..]))
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(config: &str, image: &str) -> Vec<String> {
        let credentials = docker_config_json(config.as_bytes()).unwrap();
        matching(&credentials, &Reference::parse(image).unwrap()).into_iter().map(|found| found.username).collect()
    }

    #[test]
    fn a_secret_names_the_user_either_way() {
        let config = r#"{"auths":{"https://index.docker.io/v1/":{"auth":"dXNlcjpwYTpzcw=="}}}"#;
        let found = docker_config_json(config.as_bytes()).unwrap();
        assert_eq!((found[0].username.as_str(), found[0].password.as_str()), ("user", "pa:ss"));
        assert_eq!(keys(config, "nginx"), ["user"]);
        assert_eq!(keys(r#"{"r.io":{"username":"u","password":"p"}}"#, "r.io/x"), ["u"]);
        assert!(!format!("{found:?}").contains("pa:ss"));
    }

    #[test]
    fn the_most_specific_key_is_first_and_others_stay_out() {
        let config = r#"{"auths":{"r.io:5000":{"username":"host"},"r.io:5000/team":{"username":"team"},
            "*.io:5000":{"username":"glob"},"r.io":{"username":"port"},"q.io:5000":{"username":"other"}}}"#;
        assert_eq!(keys(config, "r.io:5000/team/app"), ["team", "host", "glob"]);
        assert_eq!(keys(config, "r.io:5000/other"), ["host", "glob"]);
        assert_eq!(keys(config, "evil.r.io:5000/team/app"), Vec::<String>::new());
    }

    #[test]
    fn broken_secrets_are_refused_without_showing_them() {
        for text in ["", "[]", r#"{"auths":{"a":{"auth":"c2VjcmV0"}}}"#, r#"{"auths":{"a":{"auth":"%"}}}"#] {
            let error = docker_config_json(text.as_bytes()).unwrap_err().to_string();
            assert!(!error.contains("c2VjcmV0") && !error.contains("secret:"), "{error}");
        }
    }
}
