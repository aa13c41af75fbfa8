//! Ports of this machine that lead to a pod's: `hostPort` and `hostIP` of its containers.

use super::frontends::protocol;
use carob_api::host_port::holders;
use carob_network::HostPort;
use k8s_openapi::api::core::v1::Pod;
use std::net::{IpAddr, Ipv4Addr};

/// The host ports of a pod that has a network of its own, each once.
pub(crate) fn of(pod: &Pod) -> Vec<HostPort> {
    let Some(spec) = pod.spec.as_ref().filter(|spec| spec.host_network != Some(true)) else { return Vec::new() };
    let mut all = Vec::new();
    for port in holders(spec).flat_map(|container| container.ports.iter().flatten()) {
        let number = |number: i32| u16::try_from(number).ok().filter(|number| *number > 0);
        let Some(machine) = port.host_port.and_then(number) else { continue };
        let (Some(pod_port), Some(protocol)) = (number(port.container_port), protocol(port.protocol.as_deref())) else {
            continue;
        };
        let address = match port.host_ip.as_deref().unwrap_or_default() {
            "" | "0.0.0.0" | "::" => None,
            text => match text.parse::<IpAddr>() {
                Ok(address) => Some(address),
                Err(_) => continue,
            },
        };
        let port = HostPort { address, protocol, port: machine, pod_port };
        if !all.contains(&port) {
            all.push(port);
        }
    }
    all
}

/// Says of ports that no connection comes to that it is so: they are on addresses of others, or of a kind that pods don't
/// have.
pub(crate) fn without_way(elsewhere: &[HostPort]) -> Vec<String> {
    let one = |port: &HostPort| {
        let (port, address) = (port.port, port.address?);
        Some(format!(
            "hostPort {port} leads nowhere: hostIP {address} is no address of this machine that pods can be led to by"
        ))
    };
    elsewhere.iter().filter_map(one).collect()
}

/// As a sandbox's annotation: `TCP/0.0.0.0/8080/80`, with commas between.
pub(crate) fn to_text(ports: &[HostPort]) -> String {
    let one = |port: &HostPort| {
        let address = port.address.unwrap_or(Ipv4Addr::UNSPECIFIED.into());
        format!("{}/{address}/{}/{}", port.protocol.name(), port.port, port.pod_port)
    };
    ports.iter().map(one).collect::<Vec<_>>().join(",")
}

/// What [`to_text`] wrote.
pub(crate) fn from_text(text: &str) -> Vec<HostPort> {
    let one = |text: &str| {
        let mut parts = text.split('/');
        let protocol = protocol(parts.next())?;
        let address: IpAddr = parts.next()?.parse().ok()?;
        let address = Some(address).filter(|address| !address.is_unspecified());
        Some(HostPort { address, protocol, port: parts.next()?.parse().ok()?, pod_port: parts.next()?.parse().ok()? })
    };
    text.split(',').filter_map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use carob_network::Protocol;
    use serde_json::json;

    #[test]
    fn host_ports_are_read_and_survive_as_text() {
        let ports = json!([
            {"containerPort": 80}, {"containerPort": 80, "hostPort": 8080},
            {"containerPort": 53, "hostPort": 53, "protocol": "UDP", "hostIP": "127.0.0.1"},
            {"containerPort": 1, "hostPort": 1, "hostIP": "2001:db8::1"}
        ]);
        let taken = json!([{"containerPort": 1, "hostPort": 443}]);
        let mut pod: Pod = serde_json::from_value(json!({"spec": {"containers": [{"name": "c", "ports": ports}],
            "initContainers": [{"name": "i", "ports": taken}]}}))
        .unwrap();
        let expected = [
            HostPort { address: None, protocol: Protocol::Tcp, port: 8080, pod_port: 80 },
            HostPort { address: Some(Ipv4Addr::LOCALHOST.into()), protocol: Protocol::Udp, port: 53, pod_port: 53 },
            HostPort { address: Some("2001:db8::1".parse().unwrap()), protocol: Protocol::Tcp, port: 1, pod_port: 1 },
        ];
        assert_eq!(of(&pod), expected);
        assert_eq!(from_text(&to_text(&expected)), expected);
        assert!(from_text("").is_empty());
        let other = HostPort { address: Some([192, 0, 2, 9].into()), ..expected[0] };
        let said = without_way(&[other, expected[0]]);
        assert!(said.len() == 1 && said[0].contains("8080 leads nowhere: hostIP 192.0.2.9"), "{said:?}");
        pod.spec.as_mut().unwrap().host_network = Some(true);
        assert!(of(&pod).is_empty(), "its ports are the machine's already");
    }
}
