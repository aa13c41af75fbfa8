//! The files that every container of a pod finds in its /etc: hosts, hostname and resolv.conf.

pub(crate) mod hosts;
pub(crate) mod resolv;

use crate::addresses::Addresses;
use crate::container::mounts::PodFile;
use crate::context::ClusterInfo;
use k8s_openapi::api::core::v1::{Pod, PodSpec};
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

/// The machine's resolvers as they are now.
pub(crate) fn host_resolvers() -> Vec<IpAddr> {
    resolv::host().servers.iter().filter_map(|server| server.parse().ok()).collect()
}

/// Where a pod's files are.
#[derive(Debug, Clone)]
pub(crate) struct PodFiles {
    directory: PathBuf,
}

const FILES: [(&str, &str); 3] =
    [("etc-hosts", "/etc/hosts"), ("hostname", "/etc/hostname"), ("resolv.conf", "/etc/resolv.conf")];

impl PodFiles {
    /// Files of an earlier [`PodFiles::write`].
    pub fn existing(pod_directory: &Path) -> Self {
        Self { directory: pod_directory.to_owned() }
    }

    /// Writes the three files into the pod's directory, which exists.
    pub fn write(
        pod_directory: &Path,
        pod: &Pod,
        names: &Names,
        address: Option<Addresses>,
        cluster: &ClusterInfo,
    ) -> io::Result<Self> {
        let spec = pod.spec.clone().unwrap_or_default();
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let host_network = spec.host_network == Some(true);
        let host_hosts = if host_network { std::fs::read_to_string("/etc/hosts").ok() } else { None };
        let aliases = spec.host_aliases.as_deref().unwrap_or_default();
        let hosts = hosts::content(host_hosts.as_deref(), address, &names.short, names.full.as_deref(), aliases);
        let resolv = resolv::content(
            spec.dns_policy.as_deref().unwrap_or("ClusterFirst"),
            host_network,
            spec.dns_config.as_ref(),
            &resolv::Cluster { namespace, domain: &cluster.cluster_domain, servers: &cluster.dns_servers },
            &resolv::host(),
        );
        let contents = [hosts, format!("{}\n", names.hostname), resolv];
        for ((file, _), content) in FILES.iter().zip(contents) {
            std::fs::write(pod_directory.join(file), content)?;
        }
        Ok(Self::existing(pod_directory))
    }

    /// What to mount, and where.
    pub fn mounts(&self) -> Vec<PodFile> {
        let destinations = FILES.iter().map(|(_, destination)| destination);
        destinations.zip(self.paths()).map(|(destination, source)| PodFile { destination, source }).collect()
    }

    /// Where they lie.
    pub fn paths(&self) -> impl Iterator<Item = PathBuf> {
        FILES.iter().map(|(file, _)| self.directory.join(file))
    }
}

/// What a pod is called on its network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Names {
    /// What `hostname` prints in its containers.
    pub hostname: String,
    /// Its name without a domain.
    pub short: String,
    /// With the domain that its subdomain makes.
    pub full: Option<String>,
}

/// The longest name that the kernel takes.
const HOSTNAME_MAX: usize = 64;

/// The pod's names: the spec's, or the pod's name cut to what a host name may be; the node's on the host's network. A full
/// name that is too long for `setHostnameAsFQDN` is an error in the kubelet's words.
pub(crate) fn names(pod: &Pod, node: &str, cluster_domain: &str) -> Result<Names, String> {
    let default = PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&default);
    let alone = |name: String| Names { hostname: name.clone(), short: name, full: None };
    if spec.host_network == Some(true) {
        return Ok(alone(node.to_owned()));
    }
    let given = |name: &Option<String>| name.clone().filter(|name| !name.is_empty());
    let cut = |name: String, most: usize| {
        let cut: String = name.chars().take(most).collect();
        cut.trim_end_matches(['-', '.']).to_owned()
    };
    if let Some(name) = given(&spec.hostname_override) {
        return Ok(alone(cut(name, HOSTNAME_MAX)));
    }
    let short = given(&spec.hostname).or_else(|| pod.metadata.name.clone()).unwrap_or_default();
    let short = cut(short, HOSTNAME_MAX - 1);
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let full = given(&spec.subdomain).map(|subdomain| format!("{short}.{subdomain}.{namespace}.svc.{cluster_domain}"));
    let hostname = match &full {
        Some(full) if spec.set_hostname_as_fqdn == Some(true) => full,
        _ => &short,
    };
    if hostname.len() > HOSTNAME_MAX {
        return Err(format!(
            "failed to construct FQDN from pod hostname and cluster domain, FQDN {hostname} is too long \
             ({HOSTNAME_MAX} characters is the max, {} characters requested)",
            hostname.len()
        ));
    }
    Ok(Names { hostname: hostname.clone(), short, full })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn host_names_are_cut_to_63_characters_without_a_trailing_dash() {
        let name = format!("{}-{}", "a".repeat(62), "b".repeat(10));
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": name}, "spec": {"containers": []}})).unwrap();
        assert_eq!(names(&pod, "node", "c").unwrap().hostname, "a".repeat(62));
        let pod: Pod =
            serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": {"containers": [], "hostNetwork": true}}))
                .unwrap();
        assert_eq!(names(&pod, "node", "c").unwrap().hostname, "node");
    }

    #[test]
    fn a_full_name_is_the_host_name_where_the_spec_says_so_and_it_fits() {
        let of = |spec: serde_json::Value| {
            let pod = json!({"metadata": {"name": "p", "namespace": "ns"}, "spec": spec});
            names(&serde_json::from_value(pod).unwrap(), "node", "cluster.local")
        };
        let full = "web.sub.ns.svc.cluster.local";
        let found = of(json!({"containers": [], "hostname": "web", "subdomain": "sub"})).unwrap();
        assert_eq!((found.hostname.as_str(), found.full.as_deref()), ("web", Some(full)));
        let found = of(json!({"containers": [], "hostname": "web", "subdomain": "sub", "setHostnameAsFQDN": true}));
        let found = found.unwrap();
        assert_eq!((found.hostname.as_str(), found.short.as_str()), (full, "web"));
        let long = "a".repeat(60);
        let error = of(json!({"containers": [], "subdomain": long, "setHostnameAsFQDN": true})).unwrap_err();
        assert!(error.ends_with("is too long (64 characters is the max, 83 characters requested)"), "{error}");
        let found = of(json!({"containers": [], "hostnameOverride": "other.example.com"})).unwrap();
        assert_eq!((found.hostname.as_str(), found.full), ("other.example.com", None));
    }
}
