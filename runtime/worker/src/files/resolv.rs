//! /etc/resolv.conf of a pod: cluster DNS, the host's resolvers, or what the spec says.

use k8s_openapi::api::core::v1::PodDNSConfig;
use std::fmt::Write;
use std::net::IpAddr;

/// The parts of a resolv.conf.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Resolver {
    pub servers: Vec<String>,
    pub searches: Vec<String>,
    pub options: Vec<String>,
}

/// What the cluster's DNS needs to know of a pod.
pub(crate) struct Cluster<'a> {
    pub namespace: &'a str,
    pub domain: &'a str,
    pub servers: &'a [IpAddr],
}

/// The host's own resolvers. Where its file names a stub on loopback (systemd-resolved), which pods cannot reach, the
/// servers behind the stub are taken.
pub(crate) fn host() -> Resolver {
    let read = |path: &str| std::fs::read_to_string(path).map(|text| parse(&text)).unwrap_or_default();
    let own = read("/etc/resolv.conf");
    let only_loopback = own.servers.iter().all(|server| server.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback()));
    if only_loopback {
        let upstream = read("/run/systemd/resolve/resolv.conf");
        if !upstream.servers.is_empty() {
            return upstream;
        }
    }
    own
}

/// Reads a resolv.conf; the last `search` or `domain` line counts (resolv.conf(5)).
pub(crate) fn parse(text: &str) -> Resolver {
    let mut resolver = Resolver::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let Some(keyword) = words.next() else { continue };
        let rest = words.map(str::to_owned);
        match keyword {
            "nameserver" => resolver.servers.extend(rest.take(1)),
            "search" | "domain" => resolver.searches = rest.filter(|domain| domain != ".").collect(),
            "options" => resolver.options.extend(rest),
            _ => {}
        }
    }
    resolver
}

/// The pod's file by its `dnsPolicy` and `dnsConfig`. Without cluster DNS servers, ClusterFirst is the host's resolvers.
pub(crate) fn content(
    policy: &str,
    host_network: bool,
    config: Option<&PodDNSConfig>,
    cluster: &Cluster<'_>,
    host: &Resolver,
) -> String {
    let use_cluster = policy == "ClusterFirstWithHostNet" || (policy == "ClusterFirst" && !host_network);
    let mut resolver = match policy {
        "None" => Resolver::default(),
        _ if use_cluster && !cluster.servers.is_empty() => {
            let (namespace, domain) = (cluster.namespace, cluster.domain);
            let mut searches = vec![format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.to_owned()];
            searches.extend(host.searches.iter().cloned());
            Resolver {
                servers: cluster.servers.iter().map(ToString::to_string).collect(),
                searches,
                options: vec!["ndots:5".to_owned()],
            }
        }
        _ => host.clone(),
    };
    if let Some(config) = config {
        add(&mut resolver, config);
    }
    let mut out = String::new();
    let line = |out: &mut String, keyword: &str, words: &str| {
        let _infallible = writeln!(out, "{keyword} {words}");
    };
    if !resolver.searches.is_empty() {
        line(&mut out, "search", &resolver.searches.join(" "));
    }
    for server in &resolver.servers {
        line(&mut out, "nameserver", server);
    }
    if !resolver.options.is_empty() {
        line(&mut out, "options", &resolver.options.join(" "));
    }
    out
}

/// `dnsConfig` over what the policy gave: servers and searches are added, options of the same name replaced.
fn add(resolver: &mut Resolver, config: &PodDNSConfig) {
    let merge = |list: &mut Vec<String>, more: &Option<Vec<String>>| {
        for item in more.iter().flatten() {
            if !list.contains(item) {
                list.push(item.clone());
            }
        }
    };
    merge(&mut resolver.servers, &config.nameservers);
    merge(&mut resolver.searches, &config.searches);
    for option in config.options.iter().flatten() {
        let Some(name) = option.name.as_deref() else { continue };
        let text = option.value.as_ref().map_or_else(|| name.to_owned(), |value| format!("{name}:{value}"));
        resolver.options.retain(|existing| existing.split(':').next() != Some(name));
        resolver.options.push(text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn host_resolver() -> Resolver {
        parse("# comment\nnameserver 192.168.1.1\nsearch lan home\noptions edns0\n")
    }

    fn cluster(servers: &[IpAddr]) -> Cluster<'_> {
        Cluster { namespace: "shop", domain: "cluster.local", servers }
    }

    #[test]
    fn cluster_first_searches_the_pods_namespace_before_the_hosts_domains() {
        let servers = ["10.96.0.10".parse().unwrap()];
        let text = content("ClusterFirst", false, None, &cluster(&servers), &host_resolver());
        assert_eq!(
            text,
            "search shop.svc.cluster.local svc.cluster.local cluster.local lan home\nnameserver 10.96.0.10\noptions ndots:5\n"
        );
    }

    #[test]
    fn without_cluster_dns_or_on_the_hosts_network_the_hosts_resolvers_hold() {
        let expected = "search lan home\nnameserver 192.168.1.1\noptions edns0\n";
        assert_eq!(content("ClusterFirst", false, None, &cluster(&[]), &host_resolver()), expected);
        let servers = ["10.96.0.10".parse().unwrap()];
        assert_eq!(content("ClusterFirst", true, None, &cluster(&servers), &host_resolver()), expected);
        assert_eq!(content("Default", false, None, &cluster(&servers), &host_resolver()), expected);
    }

    #[test]
    fn dns_config_adds_servers_and_replaces_options() {
        let config: PodDNSConfig = serde_json::from_value(json!({
            "nameservers": ["1.1.1.1"], "searches": ["my.domain"],
            "options": [{"name": "ndots", "value": "2"}, {"name": "single-request"}]
        }))
        .unwrap();
        let text = content("None", false, Some(&config), &cluster(&[]), &host_resolver());
        assert_eq!(text, "search my.domain\nnameserver 1.1.1.1\noptions ndots:2 single-request\n");
        let servers = ["10.96.0.10".parse().unwrap()];
        let text = content("ClusterFirst", false, Some(&config), &cluster(&servers), &host_resolver());
        assert!(text.ends_with("nameserver 10.96.0.10\nnameserver 1.1.1.1\noptions ndots:2 single-request\n"));
    }
}
