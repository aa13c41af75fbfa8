//! Ports of this machine that lead to a pod.

use std::net::{Ipv4Addr, SocketAddrV4};

use crate::firewall::Side;
use crate::services::{Backend, Frontend, Protocol};
use crate::{Error, bridge};

/// A port of this machine, and the pod's port that it leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostPort {
    /// Which of this machine's addresses; none means all of them.
    pub address: Option<Ipv4Addr>,
    /// The protocol.
    pub protocol: Protocol,
    /// The machine's port.
    pub port: u16,
    /// The pod's port.
    pub pod_port: u16,
}

/// Those on addresses that this machine has, and the others: who makes a pod could else take what is sent to anybody.
/// `gateway` is the machine's address among the pods.
pub(crate) fn on_this_machine(
    ports: Vec<HostPort>,
    gateway: Ipv4Addr,
) -> Result<(Vec<HostPort>, Vec<HostPort>), Error> {
    if ports.iter().all(|port| port.address.is_none_or(|address| address.is_loopback())) {
        return Ok((ports, Vec::new()));
    }
    let own = bridge::own_addresses(gateway)?;
    let is_here = |port: &HostPort| port.address.is_none_or(|address| address.is_loopback() || own.contains(&address));
    Ok(ports.into_iter().partition(is_here))
}

impl HostPort {
    pub(crate) fn is_on_loopback(&self) -> bool {
        self.address.is_none_or(|address| address.is_loopback())
    }

    /// Where clients find it: pods, the machine and others by its addresses, the machine by its loopback addresses too.
    pub(crate) fn frontends(&self, pod: Ipv4Addr) -> impl Iterator<Item = (Frontend, Backend)> + use<> {
        let sides: &[Side] = match self.address {
            None => &Side::ALL,
            Some(address) if address.is_loopback() => &[Side::Loopback],
            Some(_) => &[Side::Inside, Side::Outside],
        };
        let Self { address, protocol, port, pod_port } = *self;
        let endpoints = vec![SocketAddrV4::new(pod, pod_port)];
        let backend = Backend::Endpoints { endpoints, affinity: None, clients: None };
        sides.iter().map(move |side| (Frontend { side: *side, address, protocol, port }, backend.clone()))
    }
}
