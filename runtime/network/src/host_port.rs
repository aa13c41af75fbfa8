//! Ports of this machine that lead to a pod.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use crate::family::Family;
use crate::firewall::Side;
use crate::services::{Backend, Frontend, Protocol};
use crate::{Error, bridge};

/// A port of this machine, and the pod's port that it leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostPort {
    /// Which of this machine's addresses; none means all of them.
    pub address: Option<IpAddr>,
    /// The protocol.
    pub protocol: Protocol,
    /// The machine's port.
    pub port: u16,
    /// The pod's port.
    pub pod_port: u16,
}

/// Those on addresses that this machine has, and the others: who makes a pod could else take what is sent to anybody.
/// `gateways` are the machine's addresses among the pods.
pub(crate) fn on_this_machine(
    ports: Vec<HostPort>,
    gateways: &[IpAddr],
) -> Result<(Vec<HostPort>, Vec<HostPort>), Error> {
    let is_local = |port: &HostPort| port.address.is_none_or(|address| address.is_ipv4() && address.is_loopback());
    if ports.iter().all(is_local) {
        return Ok((ports, Vec::new()));
    }
    let own = bridge::own_addresses(gateways)?;
    // To and from the loopback address of IPv6 nothing is led elsewhere.
    let is_here = |address: IpAddr| own.contains(&address) && address != Ipv6Addr::LOCALHOST;
    let of_a_kind = |address: IpAddr| gateways.iter().any(|gateway| gateway.is_ipv4() == address.is_ipv4());
    Ok(ports
        .into_iter()
        .partition(|port| is_local(port) || port.address.is_some_and(|address| is_here(address) && of_a_kind(address))))
}

impl HostPort {
    pub(crate) fn is_on_loopback(&self) -> bool {
        self.address.is_none_or(|address| address.is_loopback())
    }

    /// Where clients find it: pods, the machine and others by its addresses, the machine by its loopback addresses too.
    /// Nobody by addresses of another kind than the pod's.
    pub(crate) fn frontends(&self, pod: IpAddr) -> impl Iterator<Item = (Frontend, Backend)> + use<> {
        let sides: &[Side] = match self.address {
            Some(address) if address.is_ipv4() != pod.is_ipv4() => &[],
            // Nothing is led from the loopback address of IPv6.
            None if pod.is_ipv6() => &[Side::Inside, Side::Outside],
            None => &Side::ALL,
            Some(address) if address.is_loopback() => &[Side::Loopback],
            Some(_) => &[Side::Inside, Side::Outside],
        };
        let Self { address, protocol, port, pod_port } = *self;
        let address = address.unwrap_or(Family::of(pod).unspecified());
        let endpoints = vec![SocketAddr::new(pod, pod_port)];
        let backend = Backend::Endpoints { endpoints, affinity: None, clients: None };
        sides.iter().map(move |side| (Frontend { side: *side, address, protocol, port }, backend.clone()))
    }
}
