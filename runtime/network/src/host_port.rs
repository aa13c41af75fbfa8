//! Ports of this machine that lead to a pod.

use std::net::{Ipv4Addr, SocketAddrV4};

use crate::firewall::Side;
use crate::services::{Backend, Frontend, Protocol};

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
