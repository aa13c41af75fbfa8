//! Calls to servers that clusters bring themselves: admission and conversion webhooks.

use std::net::SocketAddr;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use carob_store::KeyRange;
use futures::StreamExt as _;
use serde_json::Value;

use crate::Server;
use crate::objects::{self, text};

/// The largest answer that is read, in bytes.
const LARGEST: usize = 8 << 20;

/// How a webhook is reached.
pub(crate) enum Callout {
    Url(String, Result<reqwest::Client, String>),
    Service { namespace: String, name: String, path: String, port: i64, authority: Option<Vec<u8>> },
}

impl Callout {
    /// Reads a `WebhookClientConfig`.
    pub fn read(client: &Value) -> Self {
        let authority =
            client["caBundle"].as_str().and_then(|bundle| STANDARD.decode(bundle).ok()).filter(|pem| !pem.is_empty());
        if let Some(url) = client["url"].as_str() {
            return Self::Url(url.to_owned(), build(authority.as_deref(), None));
        }
        let service = &client["service"];
        Self::Service {
            namespace: text(service, "/namespace").to_owned(),
            name: text(service, "/name").to_owned(),
            path: service["path"].as_str().unwrap_or_default().to_owned(),
            port: service["port"].as_i64().unwrap_or(443),
            authority,
        }
    }

    /// Sends a question and reads the answer.
    ///
    /// # Errors
    /// Why there is none, as Kubernetes words it.
    pub async fn ask(&self, server: &Server, question: &Value, patience: Duration) -> Result<Value, String> {
        let (client, address, shown) = self.reach(server).await?;
        let seconds = patience.as_secs();
        let with_patience = |address: &str| {
            let join = if address.contains('?') { '&' } else { '?' };
            format!("{address}{join}timeout={seconds}s")
        };
        let failed = |error: &reqwest::Error| {
            format!("failed to call webhook: Post {:?}: {}", with_patience(&shown), in_gos_words(error, &shown))
        };
        let sent = client
            .post(with_patience(&address))
            .timeout(patience)
            .header("Content-Type", "application/json")
            .header("Accept", "application/json")
            .body(question.to_string())
            .send()
            .await
            .map_err(|error| failed(&error))?;
        let status = sent.status();
        if !status.is_success() {
            let why = "the server rejected our request for an unknown reason";
            return Err(format!("failed to call webhook: {why} ({status})"));
        }
        let mut bytes = Vec::new();
        let mut body = sent.bytes_stream();
        while let Some(piece) = body.next().await {
            bytes.extend_from_slice(&piece.map_err(|error| failed(&error))?);
            if bytes.len() > LARGEST {
                return Err("failed to call webhook: the answer is too large".to_owned());
            }
        }
        serde_json::from_slice(&bytes).map_err(|error| format!("couldn't get version/kind; json parse error: {error}"))
    }

    /// A client, the address that it calls, and the address as it is shown.
    async fn reach(&self, server: &Server) -> Result<(reqwest::Client, String, String), String> {
        match self {
            Self::Url(url, client) => Ok((client.clone()?, url.clone(), url.clone())),
            Self::Service { namespace, name, path, port, authority } => {
                let host = format!("{name}.{namespace}.svc");
                let address = resolve(server, namespace, name, *port).await?;
                let client = build(authority.as_deref(), Some((&host, address)))?;
                let slash = if path.starts_with('/') { "" } else { "/" };
                let shown = format!("https://{host}:{port}{slash}{path}");
                Ok((client, format!("https://{host}:{}{slash}{path}", address.port()), shown))
            }
        }
    }
}

/// What went wrong with a connection, as Go's client says it.
fn in_gos_words(error: &reqwest::Error, url: &str) -> String {
    if error.is_timeout() {
        return "context deadline exceeded".to_owned();
    }
    let mut source: Option<&dyn std::error::Error> = Some(error);
    while let Some(cause) = source {
        if let Some(io) = cause.downcast_ref::<std::io::Error>()
            && io.kind() == std::io::ErrorKind::ConnectionRefused
        {
            let host = url.split('/').nth(2).unwrap_or_default();
            let host = if host.contains(':') { host.to_owned() } else { format!("{host}:443") };
            return format!("dial tcp {host}: connect: connection refused");
        }
        source = cause.source();
    }
    let mut last: &dyn std::error::Error = error;
    while let Some(inner) = last.source() {
        last = inner;
    }
    last.to_string()
}

fn build(authority: Option<&[u8]>, resolved: Option<(&str, SocketAddr)>) -> Result<reqwest::Client, String> {
    let mut builder =
        reqwest::Client::builder().https_only(true).no_proxy().redirect(reqwest::redirect::Policy::none());
    if let Some(pem) = authority {
        let authorities = reqwest::Certificate::from_pem_bundle(pem).map_err(|error| error.to_string())?;
        builder = builder.tls_certs_only(authorities);
    }
    if let Some((host, address)) = resolved {
        builder = builder.resolve(host, address);
    }
    builder.build().map_err(|error| error.to_string())
}

/// Where a Service's port leads: to one of its ready endpoints, or if there are none known, to its own address.
async fn resolve(server: &Server, namespace: &str, name: &str, port: i64) -> Result<SocketAddr, String> {
    let failed = |error: carob_store::Error| objects::store_failure(&error).message().to_owned();
    let key = objects::core_key("services", Some(namespace), name);
    let Some(entry) = server.store.get(&key).await.map_err(failed)? else {
        return Err(format!("failed to call webhook: service {name:?} not found"));
    };
    let service = objects::decode(&entry.value).map_err(|status| status.message().to_owned())?;
    let ports = service.pointer("/spec/ports").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let Some(wanted) = ports.iter().find(|known| known["port"] == port) else {
        return Err(format!("failed to call webhook: no service port {port} found for service {name:?}"));
    };
    let range = KeyRange::prefix(format!("/discovery.k8s.io/endpointslices/{namespace}/"));
    for slice in server.store.range(&range, None, None).await.map_err(failed)?.entries {
        let Ok(slice) = objects::decode(&slice.value) else { continue };
        if slice["metadata"]["labels"]["kubernetes.io/service-name"] != name {
            continue;
        }
        let ports = slice["ports"].as_array().into_iter().flatten();
        let same =
            |known: &&Value| known["name"].as_str().unwrap_or_default() == wanted["name"].as_str().unwrap_or_default();
        let Some(target) = ports.filter(same).find_map(|known| known["port"].as_u64()) else { continue };
        let endpoints = slice["endpoints"].as_array().into_iter().flatten();
        let ready = endpoints.filter(|endpoint| endpoint["conditions"]["ready"] != false);
        let mut addresses = ready.flat_map(|endpoint| endpoint["addresses"].as_array().into_iter().flatten());
        if let Some(address) = addresses.find_map(|address| address.as_str()?.parse().ok())
            && let Ok(target) = u16::try_from(target)
        {
            return Ok(SocketAddr::new(address, target));
        }
    }
    let address = text(&service, "/spec/clusterIP").parse();
    let address =
        address.map_err(|_| format!("failed to call webhook: no endpoints available for service {name:?}"))?;
    Ok(SocketAddr::new(address, u16::try_from(port).unwrap_or(443)))
}
