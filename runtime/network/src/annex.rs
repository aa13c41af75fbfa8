//! Network namespaces of further workers of one machine, each linked to the machine's own and routed.
//!
//! To the machine, such a worker is a host next door: one link (named as a pod's), the worker's address (the first of its
//! block) behind it, and its pods by way of that. To the worker, everything else lies by way of the machine. A namespace
//! lives as long as something is in it, which is the worker's spawner; its link goes with it.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;

use ipnet::Ipv4Net;

use crate::namespace::{self, INTERFACE, LOOPBACK};
use crate::netlink::{self, Mode, Netlink};
use crate::{Error, address, bridge};

/// Gives the namespace of the worker whose pods have the addresses of `block`: `kept` if it is still linked, or a new one.
/// `machine` is this machine's address among the pods.
pub(crate) fn prepare(
    instance: &str,
    machine: Ipv4Addr,
    mtu: u32,
    block: Ipv4Net,
    kept: Option<OwnedFd>,
) -> Result<OwnedFd, Error> {
    let worker = address::gateway(block)?;
    let port = bridge::port_name(instance, worker);
    let mut host = Netlink::open().map_err(Error::kernel("open a netlink socket"))?;
    let netns = match kept {
        Some(netns) => netns,
        None => namespace::make()?,
    };
    let inner = namespace::within(&netns, || Ok(netlink::index_of(INTERFACE)))?;
    let outer = netlink::index_of(&port);
    let outer = match (inner, outer) {
        (Some(_), Some(outer)) => outer,
        (_, stale) => {
            if let Some(stale) = stale {
                bridge::delete(&mut host, stale).map_err(Error::kernel(format!("remove link {port}")))?;
            }
            host.make_link(&port, namespace::veth(&netns, worker, &port, mtu))
                .map_err(Error::kernel(format!("make the link of the worker {worker}")))?;
            namespace::within(&netns, || open_inside(machine))?;
            netlink::index_of(&port)
                .ok_or_else(|| Error::kernel(format!("find link {port}"))(io::ErrorKind::NotFound.into()))?
        }
    };
    let mut route = |message| match host.request(vec![(message, Mode::Create)]) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    };
    route(netlink::route_to(worker, outer, Some(machine)))
        .and_then(|()| route(netlink::route_by(block.trunc(), outer, worker, machine)))
        .map_err(Error::kernel(format!("route {block} to its worker")))?;
    Ok(netns)
}

/// Sets up the worker's end of the link, in its namespace. The link needs no address: the worker's is its bridge's.
fn open_inside(machine: Ipv4Addr) -> Result<(), Error> {
    // Links of its pods are born here: none is to look for IPv6 addresses.
    std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").ok();
    let index = netlink::index_of(INTERFACE)
        .ok_or_else(|| Error::kernel("find a worker's interface")(io::ErrorKind::NotFound.into()))?;
    let mut inside = Netlink::open().map_err(Error::kernel("open a netlink socket"))?;
    inside
        .request(vec![
            (netlink::up(LOOPBACK), Mode::Change),
            (netlink::up(index), Mode::Change),
            (netlink::route_to(machine, index, None), Mode::Create),
            (netlink::default_route(machine), Mode::Create),
        ])
        .map_err(Error::kernel("give a worker its way out"))
}
