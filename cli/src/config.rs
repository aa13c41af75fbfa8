//! The file of `--config`: what is too large for a flag.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use carob_edge::IpNet;
use carob_image::RegistryConfig;
use carob_worker::{CredentialProviders, NodeSettings};
use serde::Deserialize;

use crate::agent::Owner;

/// Settings of one Carob. Unknown ones are refused.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct ConfigFile {
    /// Name of the node; the machine's host name where it isn't given.
    pub node_name: Option<String>,
    /// Mirrors, certificates and limits for pulling images.
    pub images: RegistryConfig,
    /// Who is known, what is audited, what is asked of Pods.
    pub cluster: carob_gateway::Settings,
    /// Addresses of load balancers, resolvers, what pods may reach.
    pub network: NetworkSettings,
    /// OCI runtimes that RuntimeClasses can name as handlers: `{runc: /usr/sbin/runc}`.
    pub runtimes: BTreeMap<String, PathBuf>,
    /// When pods are evicted and unused images removed, and what pods may ask of the node.
    pub node: NodeSettings,
    /// For how many seconds a node may be silent before it counts as lost and its pods are replaced: 15 to 3600, 50 where
    /// it isn't given. Nodes are heard every ten seconds.
    pub node_grace_seconds: Option<Seconds<15, 3600>>,
    /// For how many seconds certificates hold that are signed for CertificateSigningRequests, workers' among them, if nobody asks
    /// for less: 20 to a year, which it is where it isn't given.
    pub signing_duration_seconds: Option<Seconds<20, 31_536_000>>,
    /// The price book; list prices of 0 where it isn't given.
    pub price_book: Option<PathBuf>,
}

/// So many seconds, neither fewer nor more than allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "u64")]
pub struct Seconds<const LEAST: u64, const MOST: u64>(pub Duration);

impl<const LEAST: u64, const MOST: u64> TryFrom<u64> for Seconds<LEAST, MOST> {
    type Error = String;

    fn try_from(seconds: u64) -> Result<Self, String> {
        if (LEAST..=MOST).contains(&seconds) {
            Ok(Self(Duration::from_secs(seconds)))
        } else {
            Err(format!("{seconds} is not from {LEAST} to {MOST}"))
        }
    }
}

/// Settings of the pods' network.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct NetworkSettings {
    /// Addresses for Services of type LoadBalancer: `192.0.2.10`, `192.0.2.16/28` or `192.0.2.10-192.0.2.20`, and of IPv6
    /// likewise.
    pub load_balancers: Vec<AddressRange>,
    /// `ADDR:PORT` of the resolvers of names that aren't the cluster's; the machine's own where none is given.
    pub resolvers: Vec<SocketAddr>,
    /// Lets pods reach 169.254.169.254, where clouds tell a machine's secrets.
    pub open_metadata: bool,
    /// The proxy behind Ingresses and Gateways.
    pub edge: EdgeSettings,
}

/// Settings of the proxy behind Ingresses and Gateways.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct EdgeSettings {
    /// Without it neither Ingresses nor Gateways are carried out, and the Gateway API's kinds aren't there.
    pub enabled: bool,
    /// Addresses of this machine at which Ingresses are served, beside their Service `carob-ingress` in `kube-system`.
    pub listen: Vec<IpAddr>,
    /// The ports at those addresses.
    pub http_port: u16,
    pub https_port: u16,
    /// Proxies in front of this one, in CIDR notation, whose `X-Forwarded-…` headers are passed on.
    pub trusted_proxies: Vec<IpNet>,
    /// Threads that pass requests on; as many as there are processors where it isn't given.
    pub threads: Option<usize>,
}

impl Default for EdgeSettings {
    fn default() -> Self {
        Self {
            enabled: true,
            listen: Vec::new(),
            http_port: 80,
            https_port: 443,
            trusted_proxies: Vec::new(),
            threads: None,
        }
    }
}

impl NetworkSettings {
    /// The load balancers' addresses, from the first to the last of each range.
    pub fn pool(&self) -> Vec<(IpAddr, IpAddr)> {
        self.load_balancers.iter().map(|range| (range.first, range.last)).collect()
    }
}

/// Addresses from the first to the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct AddressRange {
    first: IpAddr,
    last: IpAddr,
}

impl TryFrom<String> for AddressRange {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no address, CIDR or range of addresses");
        let address = |text: &str| text.trim().parse::<IpAddr>().map_err(|_| wrong());
        let (first, last) = if let Some((first, last)) = text.split_once('-') {
            (address(first)?, address(last)?)
        } else if text.contains('/') {
            let network: IpNet = text.trim().parse().map_err(|_| wrong())?;
            (network.network(), network.broadcast())
        } else {
            (address(&text)?, address(&text)?)
        };
        if first > last || first.is_ipv4() != last.is_ipv4() { Err(wrong()) } else { Ok(Self { first, last }) }
    }
}

impl ConfigFile {
    /// Reads the file, or takes the defaults.
    pub fn read(path: Option<&Path>) -> Result<Self> {
        let Some(path) = path else { return Ok(Self::default()) };
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let wrong = || format!("{} is no configuration", path.display());
        let config: Self = serde_saphyr::from_str(&text).with_context(wrong)?;
        config.check_runtimes().with_context(wrong)?;
        config.node.check().map_err(anyhow::Error::msg).with_context(wrong)?;
        Ok(config)
    }

    /// What is of workers alone.
    pub fn owner(&self) -> Result<Owner> {
        Ok(Owner {
            runtimes: self.runtimes.clone(),
            credential_providers: self.credential_providers()?,
            settings: self.node.clone(),
        })
    }

    /// The programs that know registries' credentials.
    fn credential_providers(&self) -> Result<CredentialProviders> {
        let NodeSettings {
            image_credential_provider_config: file, image_credential_provider_bin_dir: programs, ..
        } = &self.node;
        let (file, programs) = match (file, programs) {
            (Some(file), Some(programs)) => (file, programs),
            (None, None) => return Ok(CredentialProviders::default()),
            _ => bail!("imageCredentialProviderConfig and imageCredentialProviderBinDir go together"),
        };
        let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        let wrong = || format!("{} is no CredentialProviderConfig", file.display());
        let config = serde_saphyr::from_str(&text).with_context(wrong)?;
        CredentialProviders::new(config, programs).map_err(anyhow::Error::msg).with_context(wrong)
    }

    /// Handlers' names are labels of DNS, as RuntimeClasses write them; their programs are there.
    fn check_runtimes(&self) -> Result<()> {
        for (handler, binary) in &self.runtimes {
            let plain = handler.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
            let ends = handler.starts_with('-') || handler.ends_with('-');
            let label = plain && !ends && (1..=63).contains(&handler.len());
            ensure!(label, "runtimes: {handler:?} is not the name of a handler");
            ensure!(handler != "carob", "runtimes: \"carob\" is Carob's own runtime");
            let there = binary.is_absolute() && binary.is_file();
            ensure!(there, "runtimes: {handler}: {} is not the absolute path of a program", binary.display());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_load_balancers_are_single_ones_networks_or_ranges() {
        let read =
            |text: &str| AddressRange::try_from(text.to_owned()).map(|range| format!("{}-{}", range.first, range.last));
        assert_eq!(read("192.0.2.7").unwrap(), "192.0.2.7-192.0.2.7");
        assert_eq!(read("192.0.2.16/30").unwrap(), "192.0.2.16-192.0.2.19");
        assert_eq!(read("192.0.2.7 - 192.0.2.9").unwrap(), "192.0.2.7-192.0.2.9");
        assert_eq!(read("2001:db8::7").unwrap(), "2001:db8::7-2001:db8::7");
        assert_eq!(read("2001:db8::10/126").unwrap(), "2001:db8::10-2001:db8::13");
        assert_eq!(read("2001:db8::7 - 2001:db8::9").unwrap(), "2001:db8::7-2001:db8::9");
        for wrong in ["", "192.0.2", "192.0.2.9-192.0.2.7", "192.0.2.0/40", "192.0.2.1-2001:db8::1", "2001:db8::/129"] {
            assert!(read(wrong).unwrap_err().contains("no address"), "{wrong}");
        }
    }

    #[test]
    fn an_unknown_setting_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("carob.yaml");
        std::fs::write(&path, "nodeName: a\nnodename: b\n").unwrap();
        let refused = format!("{:#}", ConfigFile::read(Some(&path)).unwrap_err());
        assert!(refused.contains("nodename"), "{refused}");
        for (text, said) in [
            ("runtimes: {carob: /bin/sh}", "Carob's own"),
            ("runtimes: {Runc: /bin/sh}", "name of a handler"),
            ("runtimes: {runc: runc}", "absolute path"),
        ] {
            std::fs::write(&path, text).unwrap();
            let refused = format!("{:#}", ConfigFile::read(Some(&path)).unwrap_err());
            assert!(refused.contains(said), "{refused}");
        }
    }
}
