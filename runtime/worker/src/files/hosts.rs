//! /etc/hosts as the kubelet writes it.

use crate::addresses::Addresses;
use k8s_openapi::api::core::v1::HostAlias;
use std::fmt::Write;

/// Names that every pod resolves.
const LOCAL: &str = "127.0.0.1\tlocalhost\n\
::1\tlocalhost ip6-localhost ip6-loopback\n\
fe00::\tip6-localnet\n\
fe00::\tip6-mcastprefix\n\
fe00::1\tip6-allnodes\n\
fe00::2\tip6-allrouters\n";

/// `host` is the host's own file, for pods on its network; others get loopback names and their own address.
pub(crate) fn content(
    host: Option<&str>,
    addresses: Option<Addresses>,
    hostname: &str,
    domain: Option<&str>,
    aliases: &[HostAlias],
) -> String {
    let mut out = String::new();
    if let Some(host) = host {
        out.push_str("# Kubernetes-managed hosts file (host network).\n");
        out.push_str(host);
    } else {
        out.push_str("# Kubernetes-managed hosts file.\n");
        out.push_str(LOCAL);
        for address in addresses.into_iter().flat_map(Addresses::all) {
            let names = domain.map_or_else(|| hostname.to_owned(), |domain| format!("{domain}\t{hostname}"));
            let _infallible = writeln!(out, "{address}\t{names}");
        }
    }
    if !aliases.is_empty() {
        out.push_str("\n# Entries added by HostAliases.\n");
        for alias in aliases {
            let names = alias.hostnames.as_deref().unwrap_or_default().join("\t");
            let _infallible = writeln!(out, "{}\t{names}", alias.ip);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pods_address_and_aliases_follow_the_loopback_names() {
        let alias = HostAlias { ip: "1.2.3.4".into(), hostnames: Some(vec!["a".into(), "b".into()]) };
        let text = content(None, Some("10.0.0.5".parse().unwrap()), "web", None, std::slice::from_ref(&alias));
        assert!(text.starts_with("# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n"));
        assert!(text.ends_with("10.0.0.5\tweb\n\n# Entries added by HostAliases.\n1.2.3.4\ta\tb\n"));
        let text = content(None, Some("10.0.0.5".parse().unwrap()), "web", Some("web.sub.ns.svc.c"), &[]);
        assert!(text.ends_with("10.0.0.5\tweb.sub.ns.svc.c\tweb\n"));
        let text = content(None, Some("10.0.0.5,fd00::5".parse().unwrap()), "web", None, &[]);
        assert!(text.ends_with("\n10.0.0.5\tweb\nfd00::5\tweb\n"));
    }

    #[test]
    fn pods_on_the_hosts_network_get_the_hosts_file() {
        let text = content(Some("127.0.0.1 me\n"), None, "me", None, &[]);
        assert_eq!(text, "# Kubernetes-managed hosts file (host network).\n127.0.0.1 me\n");
    }
}
