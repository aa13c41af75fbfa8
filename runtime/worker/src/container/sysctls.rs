//! Which of the kernel's settings a pod may change: the safe ones, of namespaces that are its own.

use k8s_openapi::api::core::v1::PodSpec;

/// Kubernetes' safe set ("Using sysctls in a Kubernetes Cluster").
const SAFE: [&str; 12] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_wmem",
];

/// Why the node doesn't take the pod, in the kubelet's words; `None` when nothing is forbidden.
/// `allowed` are names beyond the safe ones, or beginnings of names followed by `*`.
pub(crate) fn forbidden(spec: &PodSpec, allowed: &[String]) -> Option<String> {
    let allowed = |name: &str| {
        allowed.iter().any(|pattern| match pattern.strip_suffix('*') {
            Some(beginning) => name.starts_with(&beginning.replace('/', ".")),
            None => name == pattern.replace('/', "."),
        })
    };
    let asked = spec.security_context.iter().flat_map(|context| context.sysctls.iter().flatten());
    for name in asked.map(|sysctl| sysctl.name.as_str()) {
        let dotted = name.replace('/', ".");
        if dotted.starts_with("net.") && spec.host_network == Some(true) {
            return Some(format!("forbidden sysctl: {name:?} not allowed with host net enabled"));
        }
        if dotted.starts_with("kernel.") && spec.host_ipc == Some(true) {
            return Some(format!("forbidden sysctl: {name:?} not allowed with host ipc enabled"));
        }
        if !SAFE.contains(&dotted.as_str()) && !allowed(&dotted) {
            return Some(format!("forbidden sysctl: {name:?} not allowlisted"));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn unsafe_ones_and_the_hosts_are_forbidden() {
        let of = |name: &str, host_network: bool| {
            let spec = json!({"containers": [], "hostNetwork": host_network,
                "securityContext": {"sysctls": [{"name": name, "value": "1"}]}});
            let allowed = ["kernel.msg*".to_owned(), "net/core/somaxconn".to_owned()];
            forbidden(&serde_json::from_value(spec).unwrap(), &allowed)
        };
        assert_eq!(of("kernel.shm_rmid_forced", false), None);
        assert_eq!(of("net/ipv4/tcp_syncookies", false), None);
        assert_eq!(of("kernel.shmmax", false).unwrap(), "forbidden sysctl: \"kernel.shmmax\" not allowlisted");
        assert_eq!((of("kernel.msgmax", false), of("net.core.somaxconn", false)), (None, None));
        assert!(of("net.ipv4.tcp_syncookies", true).unwrap().ends_with("not allowed with host net enabled"));
    }
}
