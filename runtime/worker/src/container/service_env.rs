//! Environment variables of Services: `NAME_SERVICE_HOST` and its companions, and the older ones of Docker's links.
//!
//! Kubernetes, "Discovering services": a container has them for the Services that were there, with an address, when it
//! started.

use k8s_openapi::api::core::v1::Service;
use std::net::IpAddr;

/// A Service as variables see it.
struct Link<'a> {
    name: &'a str,
    address: &'a str,
    /// Name, protocol and number.
    ports: Vec<(Option<&'a str>, &'a str, i32)>,
}

/// Variables of the API's own Service.
pub(crate) fn of_api(address: IpAddr, port: u16) -> Vec<(String, String)> {
    variables(&Link {
        name: "kubernetes",
        address: &address.to_string(),
        ports: vec![(Some("https"), "TCP", i32::from(port))],
    })
}

/// Variables of a namespace's Services, by name. Those without an address of their own have none.
pub(crate) fn of_services(services: &[Service]) -> Vec<(String, String)> {
    services.iter().filter_map(link).flat_map(|link| variables(&link)).collect()
}

fn link(service: &Service) -> Option<Link<'_>> {
    let spec = service.spec.as_ref()?;
    let address = spec.cluster_ip.as_deref().filter(|address| !address.is_empty() && *address != "None")?;
    let ports = spec.ports.iter().flatten();
    Some(Link {
        name: service.metadata.name.as_deref()?,
        address,
        ports: ports
            .map(|port| {
                let name = port.name.as_deref().filter(|name| !name.is_empty());
                (name, port.protocol.as_deref().unwrap_or("TCP"), port.port)
            })
            .collect(),
    })
}

fn variables(link: &Link<'_>) -> Vec<(String, String)> {
    let upper = |text: &str| text.to_uppercase().replace('-', "_");
    let name = upper(link.name);
    let host = if link.address.contains(':') { format!("[{}]", link.address) } else { link.address.to_owned() };
    let url = |protocol: &str, port: i32| format!("{}://{host}:{port}", protocol.to_lowercase());
    let mut all = vec![(format!("{name}_SERVICE_HOST"), link.address.to_owned())];
    if let Some((_, protocol, port)) = link.ports.first() {
        all.push((format!("{name}_SERVICE_PORT"), port.to_string()));
        all.push((format!("{name}_PORT"), url(protocol, *port)));
    }
    for (port_name, protocol, port) in &link.ports {
        if let Some(port_name) = port_name {
            all.push((format!("{name}_SERVICE_PORT_{}", upper(port_name)), port.to_string()));
        }
        let prefix = format!("{name}_PORT_{port}_{protocol}");
        all.extend([
            (prefix.clone(), url(protocol, *port)),
            (format!("{prefix}_PROTO"), protocol.to_lowercase()),
            (format!("{prefix}_PORT"), port.to_string()),
            (format!("{prefix}_ADDR"), link.address.to_owned()),
        ]);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_service_with_an_address_gives_its_host_its_ports_and_its_links() {
        let service = |name: &str, address: &str, ports| -> Service {
            serde_json::from_value(json!({"metadata": {"name": name}, "spec": {"clusterIP": address, "ports": ports}}))
                .unwrap()
        };
        let ports = json!([{"name": "a-b", "port": 80, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}]);
        let all = of_services(&[
            service("the-web", "10.0.0.9", ports),
            service("headless", "None", json!([{"port": 1}])),
            service("alias", "", json!([])),
        ]);
        let lines: Vec<String> = all.iter().map(|(name, value)| format!("{name}={value}")).collect();
        assert_eq!(
            lines,
            [
                "THE_WEB_SERVICE_HOST=10.0.0.9",
                "THE_WEB_SERVICE_PORT=80",
                "THE_WEB_PORT=tcp://10.0.0.9:80",
                "THE_WEB_SERVICE_PORT_A_B=80",
                "THE_WEB_PORT_80_TCP=tcp://10.0.0.9:80",
                "THE_WEB_PORT_80_TCP_PROTO=tcp",
                "THE_WEB_PORT_80_TCP_PORT=80",
                "THE_WEB_PORT_80_TCP_ADDR=10.0.0.9",
                "THE_WEB_PORT_53_UDP=udp://10.0.0.9:53",
                "THE_WEB_PORT_53_UDP_PROTO=udp",
                "THE_WEB_PORT_53_UDP_PORT=53",
                "THE_WEB_PORT_53_UDP_ADDR=10.0.0.9",
            ]
        );
    }

    #[test]
    fn an_address_of_version_6_is_bracketed_where_a_port_follows() {
        let all = of_api("fd00::1".parse().unwrap(), 443);
        let of = |name: &str| all.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
        assert_eq!(of("KUBERNETES_SERVICE_HOST"), Some("fd00::1"));
        assert_eq!(of("KUBERNETES_PORT_443_TCP"), Some("tcp://[fd00::1]:443"));
        assert_eq!(of("KUBERNETES_SERVICE_PORT_HTTPS"), Some("443"));
    }
}
