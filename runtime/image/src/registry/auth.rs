//! Leave to pull: HTTP Basic, and bearer tokens as the distribution project specifies them.

use std::fmt;

use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use reqwest::{Client, RequestBuilder, StatusCode, Url};
use serde::Deserialize;

use super::endpoint::Endpoint;
use super::{MAX_ERROR_BODY, bounded, registry_message};
use crate::{Credential, Error};

/// A token is some kilobytes at most.
const MAX_TOKEN: u64 = 256 << 10;
const CLIENT_ID: &str = "carob";

/// What goes into the Authorization header.
#[derive(Clone)]
pub(super) enum Authorization {
    Basic(Credential),
    Bearer(String),
}

impl fmt::Debug for Authorization {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Basic(_) => "Basic",
            Self::Bearer(_) => "Bearer",
        })
    }
}

impl Authorization {
    pub fn apply(&self, request: RequestBuilder) -> RequestBuilder {
        match self {
            Self::Basic(credential) => request.basic_auth(&credential.username, Some(&credential.password)),
            Self::Bearer(token) => match HeaderValue::from_str(&format!("Bearer {token}")) {
                Ok(mut value) => {
                    value.set_sensitive(true);
                    request.header(AUTHORIZATION, value)
                }
                // The registry will say that there is no token.
                Err(_) => request,
            },
        }
    }
}

#[derive(Deserialize)]
struct TokenAnswer {
    #[serde(default)]
    token: Option<String>,
    #[serde(default)]
    access_token: Option<String>,
}

/// A `WWW-Authenticate` header.
#[derive(Debug, PartialEq, Eq)]
struct Challenge {
    scheme: String,
    parameters: Vec<(String, String)>,
}

impl Challenge {
    fn get(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// Gets what a refused request needs to be let in; `None` if there is nothing that could help.
pub(super) async fn ask(
    http: &Client,
    endpoint: &Endpoint,
    refusal: &HeaderMap,
    repository: &str,
    credential: Option<&Credential>,
) -> Result<Option<Authorization>, Error> {
    let challenges: Vec<Challenge> =
        refusal.get_all(WWW_AUTHENTICATE).iter().filter_map(|header| parse(header.to_str().ok()?)).collect();
    if let Some(bearer) = challenges.iter().find(|challenge| challenge.scheme == "bearer") {
        return token(http, endpoint, bearer, repository, credential).await.map(Some);
    }
    let basic = challenges.iter().any(|challenge| challenge.scheme == "basic");
    let credential = credential.filter(|credential| basic && !credential.username.is_empty());
    Ok(credential.cloned().map(Authorization::Basic))
}

async fn token(
    http: &Client,
    endpoint: &Endpoint,
    challenge: &Challenge,
    repository: &str,
    credential: Option<&Credential>,
) -> Result<Authorization, Error> {
    let protocol = |problem: &str| Error::Protocol { host: endpoint.host().to_owned(), problem: problem.to_owned() };
    let realm = challenge.get("realm").ok_or_else(|| protocol("a challenge without a realm"))?;
    let mut url = Url::parse(realm).map_err(|_| protocol("a challenge whose realm is not a URL"))?;
    if !matches!(url.scheme(), "https" | "http") || (url.scheme() == "http" && !endpoint.is_plain()) {
        return Err(protocol("a challenge whose realm is not encrypted"));
    }
    // Our own scope rather than the challenge's: a registry cannot make us ask for more than to pull this.
    let scope = format!("repository:{repository}:pull");
    let service = challenge.get("service").unwrap_or_default();
    let identity = credential.and_then(|credential| credential.identity_token.as_deref()).filter(|it| !it.is_empty());
    let request = if let Some(identity) = identity {
        let mut form = Url::parse("form:").map_err(|_| protocol("no form"))?;
        form.query_pairs_mut()
            .append_pair("grant_type", "refresh_token")
            .append_pair("refresh_token", identity)
            .append_pair("client_id", CLIENT_ID)
            .append_pair("service", service)
            .append_pair("scope", &scope);
        http.post(url)
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(form.query().unwrap_or_default().to_owned())
    } else {
        url.query_pairs_mut().append_pair("service", service).append_pair("scope", &scope);
        let request = http.get(url);
        match credential.filter(|credential| !credential.username.is_empty()) {
            Some(credential) => request.basic_auth(&credential.username, Some(&credential.password)),
            None => request,
        }
    };
    let response = request.send().await.map_err(|error| endpoint.failure(&error))?;
    let status = response.status();
    if !status.is_success() {
        let text = bounded(response, "token", MAX_ERROR_BODY, endpoint).await.unwrap_or_default();
        let problem = format!("failed to fetch a token: {status} {}", registry_message(&text)).trim_end().to_owned();
        let host = endpoint.host().to_owned();
        return Err(match status {
            status if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS => {
                Error::Unavailable { host, problem }
            }
            _ => Error::Unauthorized { repository: format!("{host}/{repository}"), problem },
        });
    }
    let text = bounded(response, "token", MAX_TOKEN, endpoint).await?;
    let answer: TokenAnswer = serde_json::from_slice(&text).map_err(|_| protocol("a token that is not JSON"))?;
    let token = answer.token.or(answer.access_token).filter(|token| !token.is_empty());
    token.map(Authorization::Bearer).ok_or_else(|| protocol("a token answer without a token"))
}

/// Reads one challenge: a scheme and `name=value` pairs, quoted or not, separated by commas.
fn parse(header: &str) -> Option<Challenge> {
    let (scheme, mut rest) = header.trim().split_once(' ').unwrap_or((header.trim(), ""));
    let mut parameters = Vec::new();
    while let Some((name, after)) = rest.split_once('=') {
        let name = name.trim_matches([' ', ',', '\t']).to_ascii_lowercase();
        let mut value = String::new();
        let after = after.trim_start();
        if let Some(quoted) = after.strip_prefix('"') {
            let mut letters = quoted.char_indices();
            let end = loop {
                match letters.next()? {
                    (at, '"') => break at,
                    (_, '\\') => value.push(letters.next()?.1),
                    (_, letter) => value.push(letter),
                }
            };
            rest = &quoted[end + 1..];
        } else {
            let end = after.find(',').unwrap_or(after.len());
            value.push_str(after[..end].trim());
            rest = &after[end..];
        }
        parameters.push((name, value));
    }
    (!scheme.is_empty()).then(|| Challenge { scheme: scheme.to_ascii_lowercase(), parameters })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_read_with_and_without_quotes() {
        let header =
            r#"Bearer realm="https://a.io/token?x=1,2",service=reg.io, scope="repository:a:pull,push",e="a\"b""#;
        let challenge = parse(header).unwrap();
        assert_eq!(challenge.scheme, "bearer");
        assert_eq!(challenge.get("realm"), Some("https://a.io/token?x=1,2"));
        assert_eq!(challenge.get("service"), Some("reg.io"));
        assert_eq!(challenge.get("scope"), Some("repository:a:pull,push"));
        assert_eq!(challenge.get("e"), Some("a\"b"));
        assert_eq!(parse("Basic").unwrap().scheme, "basic");
        assert_eq!(parse(r#"Bearer realm="open"#), None);
        assert_eq!(parse(""), None);
    }
}
