//! Where an image's registry is reached: mirrors, schemes, certificates.

use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use reqwest::redirect::{Attempt, Policy};
use reqwest::{Certificate, Client};

use crate::{Error, Reference, RegistryConfig};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// Between two pieces of an answer.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
const MAX_REDIRECTS: usize = 5;

/// One way to reach a registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Endpoint {
    /// `https://host:port/prefix`, without a slash at the end.
    base: String,
    host: String,
    insecure: bool,
    ca_file: Option<PathBuf>,
    /// A mirror has users of its own, and the registry's credentials are not for it.
    is_mirror: bool,
}

/// The mirrors of a reference's registry, then the registry itself.
pub(super) fn of(reference: &Reference, config: &RegistryConfig) -> Vec<Endpoint> {
    let mirrors = config.registries.get(&reference.registry).map(|registry| registry.mirrors.as_slice());
    let mut endpoints: Vec<Endpoint> =
        mirrors.unwrap_or_default().iter().flat_map(|mirror| at(mirror, config, true)).collect();
    let own = if reference.registry == "docker.io" { "registry-1.docker.io" } else { &reference.registry };
    endpoints.extend(at(own, config, false));
    endpoints
}

/// The ways to reach an address: HTTPS; plain HTTP instead on loopback hosts, and after HTTPS on insecure ones.
fn at(address: &str, config: &RegistryConfig, is_mirror: bool) -> Vec<Endpoint> {
    let address = address.trim_end_matches('/');
    let (scheme, rest) = match address.split_once("://") {
        Some((scheme, rest)) => (Some(scheme), rest),
        None => (None, address),
    };
    let host = rest.split('/').next().unwrap_or(rest).to_owned();
    let setting = config.registries.get(if host == "registry-1.docker.io" { "docker.io" } else { &host });
    let ca_file = setting.and_then(|setting| setting.ca_file.clone());
    let loopback = is_loopback(&host);
    let insecure = loopback || setting.is_some_and(|setting| setting.insecure);
    let schemes: &[&str] = match scheme {
        Some("http") => &["http"],
        None if loopback && ca_file.is_none() => &["http"],
        None if insecure && ca_file.is_none() => &["https", "http"],
        _ => &["https"],
    };
    let endpoint = |scheme: &&str| Endpoint {
        base: format!("{scheme}://{rest}"),
        host: host.clone(),
        // With a certificate to check against, it is checked.
        insecure: insecure && ca_file.is_none(),
        ca_file: ca_file.clone(),
        is_mirror,
    };
    schemes.iter().map(endpoint).collect()
}

fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or(rest),
        None => host.split(':').next().unwrap_or(host),
    };
    name == "localhost" || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

impl Endpoint {
    pub fn host(&self) -> &str {
        &self.host
    }

    pub fn url(&self, path: &str) -> String {
        format!("{}/v2/{path}", self.base)
    }

    pub fn is_plain(&self) -> bool {
        self.base.starts_with("http://")
    }

    /// Mirrors get none, and neither does a connection that anybody can listen to.
    pub fn takes_credentials(&self) -> bool {
        !self.is_mirror && (!self.is_plain() || self.insecure)
    }

    /// Endpoints with the same key can share connections.
    pub fn client_key(&self) -> String {
        format!("{}|{}|{:?}", self.insecure, is_loopback(&self.host), self.ca_file)
    }

    pub fn client(&self) -> Result<Client, Error> {
        let insecure = self.insecure;
        let mut builder = Client::builder()
            .user_agent(concat!("carob/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(READ_TIMEOUT)
            .redirect(Policy::custom(move |attempt| redirect(attempt, insecure)));
        if let Some(path) = &self.ca_file {
            let pem = fs::read(path).map_err(Error::io("read", path))?;
            let bundle = Certificate::from_pem_bundle(&pem).map_err(|error| self.broken(&error))?;
            builder = builder.tls_certs_merge(bundle);
        }
        if is_loopback(&self.host) {
            builder = builder.no_proxy();
        }
        if insecure {
            builder = builder.tls_danger_accept_invalid_certs(true);
        }
        builder.build().map_err(|error| self.broken(&error))
    }

    /// A request that got no whole answer.
    pub fn failure(&self, error: &reqwest::Error) -> Error {
        Error::Unavailable { host: self.host.clone(), problem: innermost(error) }
    }

    fn broken(&self, error: &reqwest::Error) -> Error {
        Error::Protocol { host: self.host.clone(), problem: innermost(error) }
    }
}

/// Registries redirect to where blobs are kept, but never from an encrypted to a plain connection.
fn redirect(attempt: Attempt<'_>, insecure: bool) -> reqwest::redirect::Action {
    if attempt.previous().len() > MAX_REDIRECTS {
        return attempt.error("too many redirects");
    }
    let was_encrypted = attempt.previous().last().is_some_and(|url| url.scheme() == "https");
    if was_encrypted && attempt.url().scheme() != "https" && !insecure {
        return attempt.error("redirected to an unencrypted connection");
    }
    attempt.follow()
}

/// The last cause says what happened; the ones above only that something did, and repeat the URL.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Registry;

    fn bases(image: &str, config: &RegistryConfig) -> Vec<String> {
        of(&Reference::parse(image).unwrap(), config).into_iter().map(|endpoint| endpoint.base).collect()
    }

    #[test]
    fn plain_http_is_for_loopback_and_where_it_is_allowed() {
        let mut config = RegistryConfig::default();
        config.registries.insert("10.0.0.5:5000".to_owned(), Registry { insecure: true, ..Registry::default() });
        for (image, expected) in [
            ("localhost:5000/x", &["http://localhost:5000"][..]),
            ("127.0.0.9:5000/x", &["http://127.0.0.9:5000"]),
            ("[::1]:5000/x", &["http://[::1]:5000"]),
            ("10.0.0.5:5000/x", &["https://10.0.0.5:5000", "http://10.0.0.5:5000"]),
            ("127.0.0.1.evil.io/x", &["https://127.0.0.1.evil.io"]),
            ("nginx", &["https://registry-1.docker.io"]),
        ] {
            assert_eq!(bases(image, &config), expected, "{image}");
        }
    }

    #[test]
    fn mirrors_come_first_and_get_no_credentials() {
        let mirrors = vec!["https://m.io/prefix/".to_owned(), "localhost:5000".to_owned()];
        let mut config = RegistryConfig::default();
        config.registries.insert("docker.io".to_owned(), Registry { mirrors, ..Registry::default() });
        assert_eq!(
            bases("nginx", &config),
            ["https://m.io/prefix", "http://localhost:5000", "https://registry-1.docker.io"]
        );
        let endpoints = of(&Reference::parse("nginx").unwrap(), &config);
        assert_eq!(endpoints.iter().map(Endpoint::takes_credentials).collect::<Vec<_>>(), [false, false, true]);
        assert_eq!(endpoints[0].url("a/b"), "https://m.io/prefix/v2/a/b");
    }
}
