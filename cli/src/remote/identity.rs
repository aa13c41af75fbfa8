//! Who a worker on another machine is: a key and a certificate from the cluster's authority, asked for by a token the first
//! time and renewed by itself from then on.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestSpec};
use kube::Api;
use kube::api::PostParams;
use rcgen::{CertificateParams, DnType, KeyPair, SanType};
use serde::{Deserialize, Serialize};
use x509_parser::pem::parse_x509_pem;

use super::token::TokenFile;

const NODES: &str = "system:nodes";
const CLIENT_SIGNER: &str = "kubernetes.io/kube-apiserver-client-kubelet";
const SERVING_SIGNER: &str = "kubernetes.io/kubelet-serving";
/// How long a certificate is waited for.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often it is looked for.
const LOOK: Duration = Duration::from_millis(250);
/// A certificate is renewed when this part of its life has passed, in percent.
const RENEW_AT: i64 = 70;

/// A certificate and its key, PEM.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Pair {
    pub certificate: String,
    pub key: String,
    /// When it was given, in seconds since the epoch: it says itself that it began earlier, for clocks that are behind.
    #[serde(default)]
    given: i64,
}

impl Pair {
    /// When it ends, and when it is time for the next; in seconds since the epoch.
    fn times(&self) -> Option<(i64, i64)> {
        let (_, pem) = parse_x509_pem(self.certificate.as_bytes()).ok()?;
        let certificate = pem.parse_x509().ok()?;
        let (from, to) = (certificate.validity().not_before.timestamp(), certificate.validity().not_after.timestamp());
        let from = from.max(self.given);
        Some((to, from + (to - from) * RENEW_AT / 100))
    }

    fn has_ended(&self) -> bool {
        self.times().is_none_or(|(end, _)| end <= Timestamp::now().as_second())
    }

    /// How long until it is time for the next one; nothing when it is.
    pub fn fresh_for(&self) -> Option<Duration> {
        let (_, renew) = self.times()?;
        let left = u64::try_from(renew - Timestamp::now().as_second()).ok()?;
        (left > 0).then(|| Duration::from_secs(left))
    }

    /// How long it still holds.
    pub fn holds_for(&self) -> Duration {
        let end = self.times().map_or(0, |(end, _)| end);
        Duration::from_secs(u64::try_from(end - Timestamp::now().as_second()).unwrap_or(0))
    }
}

/// What a worker keeps of who it is, in one file: it is whole or not there.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Identity {
    pub gateway: String,
    pub node: String,
    /// The cluster's authority, PEM.
    pub authority: String,
    pub client: Pair,
    /// The machine that joined, as `/etc/machine-id` has it: a copy of this file on another isn't this worker. None if it had
    /// none.
    #[serde(default)]
    pub machine_id: Option<String>,
}

/// What a worker is to be.
pub struct Wanted<'a> {
    pub gateway: Option<&'a str>,
    pub token_file: Option<&'a Path>,
    pub ca_file: Option<&'a Path>,
    pub node: &'a str,
}

fn file(dir: &Path) -> PathBuf {
    dir.join("identity.json")
}

/// The node that a data directory's worker is, if it has joined.
pub fn kept_node(dir: &Path) -> Result<Option<String>> {
    Ok(super::worker::read_kept::<Identity>(&file(dir))?.map(|kept| kept.node))
}

impl Identity {
    /// The one that is kept, or the one that a token gets.
    pub async fn open(dir: &Path, wanted: &Wanted<'_>) -> Result<Self> {
        let kept: Option<Self> = super::worker::read_kept(&file(dir))?;
        if let Some(kept) = kept {
            if let Some(gateway) = wanted.gateway.filter(|gateway| *gateway != kept.gateway) {
                bail!("--join {gateway}: this data directory's worker joined {}", kept.gateway);
            }
            if kept.node != wanted.node {
                bail!("--node-name {}: this data directory's worker is {}", wanted.node, kept.node);
            }
            let machine = machine_id();
            if let Some(other) = kept.is_of_another(machine.as_deref()) {
                bail!(
                    "{} is of another machine ({other}): a copy of a worker isn't one. Give this machine's worker a data \
                     directory of its own; if that machine is gone and this is what became of it, take machineId out of that \
                     file",
                    file(dir).display()
                );
            }
            if !kept.client.has_ended() {
                let known = kept.machine_id.is_some() || machine.is_none();
                let kept = Self { machine_id: kept.machine_id.or(machine), ..kept };
                if !known {
                    kept.keep(dir)?;
                }
                return Ok(kept);
            }
            tracing::warn!("the worker's certificate has ended: it joins anew");
        }
        let identity = Self::join(wanted).await?;
        identity.keep(dir)?;
        Ok(identity)
    }

    async fn join(wanted: &Wanted<'_>) -> Result<Self> {
        let (Some(gateway), Some(path)) = (wanted.gateway, wanted.token_file) else {
            bail!("a worker joins with --join https://GATEWAY and --token-file FILE (carob token create prints one)");
        };
        let token = TokenFile::read(path)?;
        let authority = match (wanted.ca_file, token.authority) {
            (Some(file), _) => {
                std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?
            }
            (None, Some(authority)) => authority,
            (None, None) => bail!(
                "{} doesn't hold the certificate of the cluster's authority: give it with --ca-file, so that the worker \
                 knows the gateway",
                path.display()
            ),
        };
        let mut config = config(gateway, &authority)?;
        config.auth_info.token = Some(token.token.into());
        let client = kube::Client::try_from(config)?;
        let ask = ask(&client, wanted.node, CLIENT_SIGNER, Vec::new()).await;
        let certified = ask.map_err(|error| match error.downcast_ref::<kube::Error>() {
            Some(kube::Error::Api(status)) if status.code == 401 => anyhow::anyhow!(
                "{gateway} does not take the token of {}: it is wrong, has expired or was deleted; carob token create \
                 makes another",
                path.display()
            ),
            _ => error.context(format!("cannot join {gateway} as node {}", wanted.node)),
        })?;
        tracing::info!(node = wanted.node, gateway, "joined");
        let (gateway, node) = (gateway.to_owned(), wanted.node.to_owned());
        Ok(Self { gateway, node, authority, client: certified, machine_id: machine_id() })
    }

    /// The machine that it is of, if that is not this one.
    fn is_of_another(&self, machine: Option<&str>) -> Option<&str> {
        self.machine_id.as_deref().filter(|own| machine.is_some_and(|machine| machine != *own))
    }

    /// Keeps it for the next start.
    fn keep(&self, dir: &Path) -> Result<()> {
        super::worker::keep(&file(dir), self)
    }

    /// A client of the gateway with this certificate.
    pub fn connect(&self) -> Result<kube::Client> {
        let mut config = config(&self.gateway, &self.authority)?;
        config.auth_info.client_certificate_data = Some(STANDARD.encode(&self.client.certificate));
        config.auth_info.client_key_data = Some(STANDARD.encode(&self.client.key).into());
        Ok(kube::Client::try_from(config)?)
    }

    /// The same with a new certificate.
    pub async fn renewed(&self, gateway: &kube::Client, dir: &Path) -> Result<Self> {
        let client = ask(gateway, &self.node, CLIENT_SIGNER, Vec::new()).await?;
        let renewed = Self { client, ..self.clone() };
        renewed.keep(dir)?;
        Ok(renewed)
    }
}

/// What tells this machine from others.
fn machine_id() -> Option<String> {
    let id = std::fs::read_to_string("/etc/machine-id").ok()?.trim().to_owned();
    (!id.is_empty()).then_some(id)
}

/// A certificate for answering at these addresses.
pub async fn serving(gateway: &kube::Client, node: &str, address: std::net::IpAddr) -> Result<Pair> {
    let names = vec![SanType::IpAddress(address), SanType::DnsName(node.try_into()?)];
    ask(gateway, node, SERVING_SIGNER, names).await
}

fn config(gateway: &str, authority: &str) -> Result<kube::Config> {
    let url: http::Uri = gateway.parse().with_context(|| format!("--join {gateway}: no URL"))?;
    if url.scheme_str() != Some("https") || url.host().is_none() {
        bail!("--join {gateway}: the gateway's URL is https://HOST:PORT");
    }
    let mut config = kube::Config::new(url);
    let certificates = super::tls::certificates(authority)?;
    config.root_cert = Some(certificates.into_iter().map(|der| der.to_vec()).collect());
    config.connect_timeout = Some(Duration::from_secs(10));
    // The gateway says something on every watch within a minute.
    config.read_timeout = Some(Duration::from_secs(90));
    Ok(config)
}

/// Asks for a certificate with a new key, and waits for it.
async fn ask(gateway: &kube::Client, node: &str, signer: &str, names: Vec<SanType>) -> Result<Pair> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, NODES);
    params.distinguished_name.push(DnType::CommonName, format!("system:node:{node}"));
    params.subject_alt_names = names;
    let pem = params.serialize_request(&key)?.pem()?;
    let auth = if signer == SERVING_SIGNER { "server auth" } else { "client auth" };
    let request = CertificateSigningRequest {
        metadata: kube::api::ObjectMeta { generate_name: Some("node-csr-".to_owned()), ..Default::default() },
        spec: CertificateSigningRequestSpec {
            request: ByteString(pem.into_bytes()),
            signer_name: signer.to_owned(),
            usages: Some(vec!["digital signature".to_owned(), auth.to_owned()]),
            ..Default::default()
        },
        status: None,
    };
    let api: Api<CertificateSigningRequest> = Api::all(gateway.clone());
    let name = api.create(&PostParams::default(), &request).await?.metadata.name.unwrap_or_default();
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let answer = api.get(&name).await?;
        let status = answer.status.unwrap_or_default();
        if let Some(certificate) = status.certificate.filter(|certificate| !certificate.0.is_empty()) {
            let given = Timestamp::now().as_second();
            return Ok(Pair { certificate: String::from_utf8(certificate.0)?, key: key.serialize_pem(), given });
        }
        let mut conditions = status.conditions.iter().flatten();
        if let Some(condition) = conditions.find(|condition| condition.type_ != "Approved") {
            let why = condition.message.as_deref().or(condition.reason.as_deref()).unwrap_or("no reason is given");
            bail!("the certificate was refused: {why}");
        }
        if tokio::time::Instant::now() > deadline {
            bail!("the request {name} for a certificate is not answered: kubectl describe csr {name} may say why");
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// A client that always shows the newest certificate. Requests that are under way end with the one that they began with.
#[derive(Clone)]
pub struct Renewable {
    current: Arc<RwLock<kube::Client>>,
}

impl Renewable {
    pub fn new(client: kube::Client) -> Self {
        Self { current: Arc::new(RwLock::new(client)) }
    }

    /// Shows another certificate from now on.
    pub fn replace(&self, client: kube::Client) {
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = client;
    }

    /// The client for everybody else.
    pub fn client(&self) -> kube::Client {
        self.client_with(None)
    }

    /// The same on behalf of a part of the cluster that works on every node. A node as such sees only what is its own.
    pub fn client_as(&self, user: &'static str) -> kube::Client {
        self.client_with(Some(http::HeaderValue::from_static(user)))
    }

    fn client_with(&self, user: Option<http::HeaderValue>) -> kube::Client {
        let current = Arc::clone(&self.current);
        let service = tower::service_fn(move |mut request: http::Request<kube::client::Body>| {
            let client = current.read().unwrap_or_else(PoisonError::into_inner).clone();
            if let Some(user) = &user {
                request.headers_mut().insert("impersonate-user", user.clone());
            }
            async move { client.send(request).await }
        });
        kube::Client::new(service, "default")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_copy_on_another_machine_is_not_the_worker() {
        let folder = tempfile::tempdir().unwrap();
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::default().self_signed(&key).unwrap().pem();
        let client = Pair { certificate, key: key.serialize_pem(), given: 0 };
        let kept = |machine_id: Option<&str>| Identity {
            gateway: "https://192.0.2.1:6443".to_owned(),
            node: "far".to_owned(),
            authority: String::new(),
            client: client.clone(),
            machine_id: machine_id.map(str::to_owned),
        };
        let wanted = Wanted { gateway: None, token_file: None, ca_file: None, node: "far" };
        let Some(own) = machine_id() else { panic!("this machine has no /etc/machine-id") };
        kept(Some("another")).keep(folder.path()).unwrap();
        let said = Identity::open(folder.path(), &wanted).await.unwrap_err().to_string();
        assert!(said.contains("is of another machine (another)") && said.contains("take machineId out"), "{said}");
        // One that was kept by an earlier version, or that somebody took it out of.
        kept(None).keep(folder.path()).unwrap();
        for _ in 0..2 {
            let opened = Identity::open(folder.path(), &wanted).await.unwrap();
            assert_eq!(opened.machine_id.as_deref(), Some(own.as_str()));
            let text = std::fs::read_to_string(file(folder.path())).unwrap();
            assert!(text.contains(&own), "it is known from now on: {text}");
        }
        // A machine without one can't be told from others.
        assert_eq!(kept(Some("another")).is_of_another(None), None);
    }
}
