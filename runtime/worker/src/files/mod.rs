//! The files that every container of a pod finds in its /etc: hosts, hostname and resolv.conf.

pub(crate) mod hosts;
pub(crate) mod resolv;

use crate::container::mounts::PodFile;
use crate::context::ClusterInfo;
use k8s_openapi::api::core::v1::Pod;
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
        node: &str,
        address: Option<IpAddr>,
        cluster: &ClusterInfo,
    ) -> io::Result<Self> {
        let spec = pod.spec.clone().unwrap_or_default();
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let host_network = spec.host_network == Some(true);
        let hostname = hostname(pod, node);
        let host_hosts = if host_network { std::fs::read_to_string("/etc/hosts").ok() } else { None };
        let aliases = spec.host_aliases.as_deref().unwrap_or_default();
        let domain = fully_qualified(spec.subdomain.as_deref(), &hostname, namespace, &cluster.cluster_domain);
        let hosts = hosts::content(host_hosts.as_deref(), address, &hostname, domain.as_deref(), aliases);
        let resolv = resolv::content(
            spec.dns_policy.as_deref().unwrap_or("ClusterFirst"),
            host_network,
            spec.dns_config.as_ref(),
            &resolv::Cluster { namespace, domain: &cluster.cluster_domain, servers: &cluster.dns_servers },
            &resolv::host(),
        );
        let contents = [hosts, format!("{hostname}\n"), resolv];
        for ((file, _), content) in FILES.iter().zip(contents) {
            std::fs::write(pod_directory.join(file), content)?;
        }
        Ok(Self::existing(pod_directory))
    }

    /// What to mount, and where.
    pub fn mounts(&self) -> Vec<PodFile> {
        FILES.iter().map(|(file, destination)| PodFile { destination, source: self.directory.join(file) }).collect()
    }
}

/// The pod's host name: the spec's, or the pod's name cut to what a host name may be; the node's on the host's network.
pub(crate) fn hostname(pod: &Pod, node: &str) -> String {
    let spec = pod.spec.as_ref();
    if spec.and_then(|spec| spec.host_network) == Some(true) {
        return node.to_owned();
    }
    let given = spec.and_then(|spec| spec.hostname_override.as_ref().or(spec.hostname.as_ref()));
    let name = given.filter(|name| !name.is_empty()).or(pod.metadata.name.as_ref()).cloned().unwrap_or_default();
    let cut: String = name.chars().take(63).collect();
    cut.trim_end_matches(['-', '.']).to_owned()
}

fn fully_qualified(subdomain: Option<&str>, hostname: &str, namespace: &str, domain: &str) -> Option<String> {
    let subdomain = subdomain.filter(|subdomain| !subdomain.is_empty())?;
    Some(format!("{hostname}.{subdomain}.{namespace}.svc.{domain}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn host_names_are_cut_to_63_characters_without_a_trailing_dash() {
        let name = format!("{}-{}", "a".repeat(62), "b".repeat(10));
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": name}, "spec": {"containers": []}})).unwrap();
        assert_eq!(hostname(&pod, "node"), "a".repeat(62));
        let pod: Pod =
            serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": {"containers": [], "hostNetwork": true}}))
                .unwrap();
        assert_eq!(hostname(&pod, "node"), "node");
    }
}
