//! Network namespaces of further workers of one machine, each linked to the machine's own and routed.
//!
//! To the machine, such a worker is a host next door: one link (named as a pod's), the worker's address (the first of its
//! block) behind it, and its pods by way of that. To the worker, everything else lies by way of the machine. A namespace
//! lives as long as something is in it, which is the worker's spawner; its link goes with it.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::OwnedFd;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::namespace::{self, INTERFACE, LOOPBACK};
use crate::netlink::{self, Ipv6, Mode, Netlink};
use crate::{Error, address, address6, block6, bridge};

/// Gives the namespace of the worker whose pods have the addresses of `block`: `kept` if it is still linked, or a new one.
/// `machine` is this machine's address among the pods, `cidr6` where IPv6 addresses come from, if there are any.
pub(crate) fn prepare(
    instance: &str,
    (machine, cidr6): (Ipv4Addr, Option<Ipv6Net>),
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
    let ipv6 = if cidr6.is_some() { Ipv6::Given } else { Ipv6::Off };
    let outer = match (inner, outer) {
        (Some(_), Some(outer)) => {
            // It may be from a time without IPv6.
            ipv6.set(&port).map_err(Error::kernel(format!("set up link {port}")))?;
            outer
        }
        (_, stale) => {
            if let Some(stale) = stale {
                bridge::delete(&mut host, stale).map_err(Error::kernel(format!("remove link {port}")))?;
            }
            host.make_link(&port, namespace::veth(&netns, (worker, machine), &port, mtu), ipv6)
                .map_err(Error::kernel(format!("make the link of the worker {worker}")))?;
            netlink::index_of(&port)
                .ok_or_else(|| Error::kernel(format!("find link {port}"))(io::ErrorKind::NotFound.into()))?
        }
    };
    namespace::within(&netns, || open_inside(machine, cidr6, ipv6))?;
    let mut steps = Vec::new();
    let mut lead = |worker: IpAddr, block: IpNet, machine: IpAddr| {
        steps.push(netlink::route_to(worker, outer, Some(machine)));
        steps.push(netlink::route_by(block, outer, worker, machine));
    };
    lead(worker.into(), block.trunc().into(), machine.into());
    if let Some(range) = cidr6 {
        let six = |address| IpAddr::from(address6(range, address));
        lead(six(worker), block6(range, block.trunc()).into(), six(machine));
        steps.insert(0, netlink::neighbour(six(worker), outer, bridge::mac(worker)));
    }
    host.ensure(steps).map_err(Error::kernel(format!("route {block} to its worker")))?;
    Ok(netns)
}

/// Sets up the worker's end of the link, in its namespace. The link needs no address: the worker's is its bridge's.
fn open_inside(machine: Ipv4Addr, cidr6: Option<Ipv6Net>, ipv6: Ipv6) -> Result<(), Error> {
    // The link was born with what the namespace came with; those of its pods are born here.
    ipv6.set_to_come()
        .and_then(|()| ipv6.set(INTERFACE))
        .map_err(Error::kernel("set up a worker's network namespace"))?;
    let index = netlink::index_of(INTERFACE)
        .ok_or_else(|| Error::kernel("find a worker's interface")(io::ErrorKind::NotFound.into()))?;
    let mut inside = Netlink::open().map_err(Error::kernel("open a netlink socket"))?;
    let mut steps = Vec::new();
    let six = cidr6.map(|range| IpAddr::from(address6(range, machine)));
    steps.extend(six.map(|six| netlink::neighbour(six, index, bridge::mac(machine))));
    for machine in std::iter::once(machine.into()).chain(six) {
        steps.extend([netlink::route_to(machine, index, None), netlink::default_route(machine)]);
    }
    inside
        .request(vec![(netlink::up(LOOPBACK), Mode::Change), (netlink::up(index), Mode::Change)])
        .and_then(|()| inside.ensure(steps))
        .map_err(Error::kernel("give a worker its way out"))
}
