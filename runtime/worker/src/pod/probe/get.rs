//! HTTP GET, as the kubelet's client does it: certificates aren't checked, and redirects are followed within the host.

use super::{Outcome, USER_AGENT, connect, port};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{Container, HTTPGetAction};
use std::net::IpAddr;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};

/// Go's client follows so many redirects.
const MOST_REDIRECTS: usize = 10;
/// Most of a body that is shown.
const BODY: usize = 10 * 1024;

/// Sends a GET; 200 to 299 is success, and so is a redirect to another host, with a warning.
pub(in crate::pod) async fn http_get(
    action: &HTTPGetAction,
    container: &Container,
    pod_ip: Option<IpAddr>,
    timeout: Duration,
) -> Outcome {
    let Some(port) = port(container, &action.port) else {
        return Outcome::Unknown(format!("couldn't find port: {:?}", action.port));
    };
    let given = action.host.as_deref().filter(|host| !host.is_empty()).map(str::to_owned);
    let Some(host) = given.or_else(|| pod_ip.map(|ip| ip.to_string())) else {
        return Outcome::Unknown("the pod has no address".to_owned());
    };
    let path = action.path.as_deref().unwrap_or("/");
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    let tls = action.scheme.as_deref().is_some_and(|scheme| scheme.eq_ignore_ascii_case("https"));
    let first = Target { tls, host, port, path };
    let late = first.failed("context deadline exceeded (Client.Timeout exceeded while awaiting headers)");
    tokio::time::timeout(timeout, follow(action, first, timeout)).await.unwrap_or(late)
}

/// Where a request goes.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Target {
    tls: bool,
    host: String,
    port: u16,
    path: String,
}

/// What of an answer counts.
struct Answer {
    code: u16,
    location: Option<String>,
    body: String,
}

async fn follow(action: &HTTPGetAction, first: Target, timeout: Duration) -> Outcome {
    let host = first.host.clone();
    let mut target = first;
    for _ in 0..MOST_REDIRECTS {
        let answer = match target.ask(action, timeout).await {
            Ok(answer) => answer,
            Err(why) => return target.failed(&why),
        };
        match (answer.code, answer.location) {
            (200..=299, _) => return Outcome::Success,
            (301..=303, None) => {
                return target.failed(&format!("{} response missing Location header", answer.code));
            }
            (301..=303 | 307 | 308, Some(location)) => match target.redirected(&location) {
                Some(next) if next.host == host => target = next,
                _ => return stopped(&answer.body),
            },
            (300..=399, _) => return stopped(&answer.body),
            (code, _) => return Outcome::Failure(format!("HTTP probe failed with statuscode: {code}")),
        }
    }
    target.failed(&format!("stopped after {MOST_REDIRECTS} redirects"))
}

fn stopped(body: &str) -> Outcome {
    Outcome::Warning(format!("Probe terminated redirects, Response body: {body}"))
}

impl Target {
    fn failed(&self, why: &str) -> Outcome {
        let scheme = if self.tls { "https" } else { "http" };
        Outcome::Failure(format!("Get \"{scheme}://{}:{}{}\": {why}", self.host, self.port, self.path))
    }

    /// Where `Location` leads from here.
    fn redirected(&self, location: &str) -> Option<Self> {
        if location.starts_with('/') && !location.starts_with("//") {
            return Some(Self { path: location.to_owned(), ..self.clone() });
        }
        let scheme = if self.tls { "https" } else { "http" };
        let whole = if location.starts_with("//") {
            format!("{scheme}:{location}")
        } else if location.contains("://") {
            location.to_owned()
        } else {
            let folder = self.path.rfind('/').map_or("/", |end| &self.path[..=end]);
            return Some(Self { path: format!("{folder}{location}"), ..self.clone() });
        };
        let uri: http::Uri = whole.parse().ok()?;
        let tls = uri.scheme_str()?.eq_ignore_ascii_case("https");
        Some(Self {
            tls,
            host: uri.host()?.to_owned(),
            port: uri.port_u16().unwrap_or(if tls { 443 } else { 80 }),
            path: uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str).to_owned(),
        })
    }

    async fn ask(&self, action: &HTTPGetAction, timeout: Duration) -> Result<Answer, String> {
        let stream = connect(&self.host, self.port, timeout).await?;
        if !self.tls {
            return self.ask_over(stream, action).await;
        }
        let stream = crate::pod::probes::tls::connect(stream, &self.host).await.map_err(|error| error.to_string())?;
        self.ask_over(stream, action).await
    }

    async fn ask_over<S>(&self, stream: S, action: &HTTPGetAction) -> Result<Answer, String>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let text = |error: hyper::Error| error.to_string();
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(text)?;
        let connection = tokio::spawn(connection);
        let mut request = http::Request::get(&self.path);
        let headers = || action.http_headers.iter().flatten();
        let has = |name: &str| headers().any(|header| header.name.eq_ignore_ascii_case(name));
        if !has("host") {
            request = request.header("Host", format!("{}:{}", self.host, self.port));
        }
        if !has("user-agent") {
            request = request.header("User-Agent", USER_AGENT);
        }
        if !has("accept") {
            request = request.header("Accept", "*/*");
        }
        for header in headers() {
            request = request.header(&header.name, &header.value);
        }
        let request = request.header("Connection", "close").body(Empty::<Bytes>::new());
        let request = request.map_err(|error| error.to_string())?;
        let answer = sender.send_request(request).await.map_err(text);
        let answer = match answer {
            Ok(answer) => Ok(read(answer).await),
            Err(error) => Err(error),
        };
        connection.abort();
        answer
    }
}

async fn read(answer: http::Response<hyper::body::Incoming>) -> Answer {
    let code = answer.status().as_u16();
    let location = answer.headers().get("location").and_then(|value| value.to_str().ok()).map(str::to_owned);
    let (mut body, mut bytes) = (answer.into_body(), Vec::new());
    // Only redirects show it.
    while (300..400).contains(&code) && bytes.len() < BODY {
        let Some(Ok(frame)) = body.frame().await else { break };
        if let Some(data) = frame.data_ref() {
            bytes.extend_from_slice(&data[..data.len().min(BODY - bytes.len())]);
        }
    }
    Answer { code, location, body: String::from_utf8_lossy(&bytes).into_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations_are_read_relative_to_where_they_were_given() {
        let here = Target { tls: false, host: "10.0.0.1".into(), port: 8080, path: "/a/b".into() };
        let there =
            |tls, host: &str, port, path: &str| Some(Target { tls, host: host.into(), port, path: path.into() });
        for (location, expected) in [
            ("/login?x=1", there(false, "10.0.0.1", 8080, "/login?x=1")),
            ("c", there(false, "10.0.0.1", 8080, "/a/c")),
            ("https://10.0.0.1/x", there(true, "10.0.0.1", 443, "/x")),
            ("//other:81/x", there(false, "other", 81, "/x")),
            ("http://", None),
        ] {
            assert_eq!(here.redirected(location), expected, "{location}");
        }
    }
}
