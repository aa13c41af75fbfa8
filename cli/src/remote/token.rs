//! Tokens for workers that join: `carob token create`, and the file that it prints, which a worker reads.
//!
//! The file holds the token and the certificate of the cluster's authority, so that the worker knows the gateway, too.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::Api;
use kube::api::PostParams;
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::json;

use crate::DataDirOption;
use crate::data_dir::DataDir;

const NAMESPACE: &str = "kube-system";
/// The longest time that a token may hold.
const LONGEST: SignedDuration = SignedDuration::from_hours(24 * 365);

#[derive(clap::Args)]
pub struct Options {
    #[command(subcommand)]
    action: Action,
}

#[derive(clap::Subcommand)]
enum Action {
    /// Make a token for workers that join, and print the file for `carob worker --token-file`.
    Create {
        #[command(flatten)]
        data: DataDirOption,
        /// The administrator's kubeconfig [default: admin.kubeconfig in the data directory]
        #[arg(long, value_name = "FILE")]
        kubeconfig: Option<PathBuf>,
        /// How long it holds: 30m, 24h, …
        #[arg(long, default_value = "24h", value_name = "DURATION")]
        ttl: SignedDuration,
    },
}

pub async fn run(options: Options) -> Result<()> {
    let Action::Create { data, kubeconfig, ttl } = options.action;
    if ttl <= SignedDuration::ZERO || ttl > LONGEST {
        bail!("--ttl {ttl:#}: a token holds for a second to a year");
    }
    let path = match kubeconfig {
        Some(path) => path,
        None => DataDir::open(&data.data_dir)?.kubeconfig(),
    };
    let client = client(&path).await.with_context(|| format!("cannot use {}", path.display()))?;
    // Before there is a token: where this fails, none is left that nobody was told.
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), NAMESPACE);
    let ca = maps.get("kube-root-ca.crt").await.context("the cluster's authority is not known yet")?;
    let ca = ca.data.and_then(|mut data| data.remove("ca.crt")).context("the cluster's authority is not known")?;
    let (id, secret) = (random(6)?, random(16)?);
    let object = json!({"apiVersion": "v1", "kind": "Secret", "type": "bootstrap.kubernetes.io/token",
        "metadata": {"name": format!("bootstrap-token-{id}")},
        "stringData": {"token-id": id, "token-secret": secret, "usage-bootstrap-authentication": "true",
            "description": "for workers that join", "expiration": (Timestamp::now() + ttl).to_string()}});
    let secrets: Api<Secret> = Api::namespaced(client, NAMESPACE);
    let object: Secret = serde_json::from_value(object)?;
    secrets.create(&PostParams::default(), &object).await.context("cannot make the token")?;
    println!("{id}.{secret}");
    print!("{ca}");
    Ok(())
}

async fn client(path: &Path) -> Result<kube::Client> {
    let kubeconfig = Kubeconfig::read_from(path)?;
    let mut config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    config.connect_timeout = Some(Duration::from_secs(10));
    Ok(kube::Client::try_from(config)?)
}

/// Lower-case letters and digits from the kernel.
fn random(length: usize) -> Result<String> {
    use std::io::Read;
    const ALPHABET: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";
    let mut source = std::fs::File::open("/dev/urandom")?;
    let mut text = String::new();
    let mut byte = [0];
    while text.len() < length {
        source.read_exact(&mut byte)?;
        // The last part of a byte's range would favour the first letters.
        if usize::from(byte[0]) < 256 - 256 % ALPHABET.len() {
            text.push(char::from(ALPHABET[usize::from(byte[0]) % ALPHABET.len()]));
        }
    }
    Ok(text)
}

/// What a worker was given to join with.
#[derive(Debug, PartialEq, Eq)]
pub struct TokenFile {
    pub token: String,
    /// The cluster's authority, PEM, if the file names it.
    pub authority: Option<String>,
}

impl TokenFile {
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        Self::parse(&text).with_context(|| format!("{} holds no token: the first line is ID.SECRET", path.display()))
    }

    fn parse(text: &str) -> Option<Self> {
        let (token, rest) = text.trim_start().split_once('\n').unwrap_or((text.trim(), ""));
        let token = token.trim();
        let plain = |text: &str| text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
        let (id, secret) = token.split_once('.')?;
        if id.len() != 6 || secret.len() != 16 || !plain(id) || !plain(secret) {
            return None;
        }
        let authority = rest.find("-----BEGIN CERTIFICATE-----").map(|at| rest[at..].to_owned());
        Some(Self { token: token.to_owned(), authority })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_file_has_the_token_first_and_perhaps_the_authority() {
        let pem = "-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n";
        let whole = TokenFile::parse(&format!("abcdef.0123456789abcdef\n{pem}")).unwrap();
        assert_eq!(whole, TokenFile { token: "abcdef.0123456789abcdef".into(), authority: Some(pem.into()) });
        assert_eq!(TokenFile::parse("abcdef.0123456789abcdef").unwrap().authority, None);
        for wrong in ["", "abcdef", "abcdef.0123", "Abcdef.0123456789abcdef\n", pem] {
            assert_eq!(TokenFile::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn random_texts_are_letters_and_digits_and_differ() {
        let (one, other) = (random(16).unwrap(), random(16).unwrap());
        assert!(one != other && one.len() == 16 && TokenFile::parse(&format!("abcdef.{one}")).is_some());
    }
}
