//! Ports of the machine that pods ask for: of two pods that ask for the same one, a node takes one.

use k8s_openapi::api::core::v1::{Container, ContainerPort, PodSpec};

/// A port of the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    address: String,
    protocol: String,
    number: i32,
}

impl HostPort {
    /// Whether one of the two is not to be had beside the other.
    pub fn collides(&self, other: &Self) -> bool {
        let any = |address: &str| matches!(address, "0.0.0.0" | "::");
        let addresses = self.address == other.address || any(&self.address) || any(&other.address);
        addresses && self.protocol == other.protocol && self.number == other.number
    }
}

/// The containers that hold ports of the machine: an init container that ends holds none.
pub fn holders(spec: &PodSpec) -> impl Iterator<Item = &Container> {
    let sidecars = spec.init_containers.iter().flatten();
    let sidecars = sidecars.filter(|container| container.restart_policy.as_deref() == Some("Always"));
    spec.containers.iter().chain(sidecars)
}

/// Those that a pod asks for.
pub fn host_ports(spec: &PodSpec) -> Vec<HostPort> {
    let ports = holders(spec).flat_map(|container| container.ports.iter().flatten());
    let wanted = |port: &ContainerPort| {
        Some(HostPort {
            number: port.host_port.filter(|number| *number > 0)?,
            address: port.host_ip.clone().filter(|ip| !ip.is_empty()).unwrap_or_else(|| "0.0.0.0".to_owned()),
            protocol: port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
        })
    };
    ports.filter_map(wanted).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_of_every_address_collides_with_that_of_one() {
        let port = |address: &str, number| HostPort { address: address.to_owned(), protocol: "TCP".to_owned(), number };
        assert!(port("0.0.0.0", 80).collides(&port("10.0.0.1", 80)));
        assert!(!port("10.0.0.2", 80).collides(&port("10.0.0.1", 80)));
        assert!(!port("0.0.0.0", 80).collides(&port("0.0.0.0", 81)));
    }
}
