//! The interface that has a worker's own address among the pods, and the names of their links.
//!
//! It is a bridge, because every kernel has that, but no link hangs on it: pods are routed to.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use ipnet::{IpNet, Ipv4Net};
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::netlink::{self, Ipv6, Mode, Netlink};
use crate::{Error, shaping};

/// How the names of all bridges of Carobs begin.
const PREFIX: &str = "cb-";

/// The name of an instance's bridge.
pub(crate) fn name(instance: &str) -> String {
    format!("{PREFIX}{}", &instance[..instance.len().min(8)])
}

/// The name of the host's end of a pod's link: unique on the machine, and it tells instance and address.
pub(crate) fn port_name(instance: &str, address: Ipv4Addr) -> String {
    format!("{}{:08x}", port_prefix(instance), u32::from(address))
}

/// How the names of all of an instance's links begin.
pub(crate) fn port_prefix(instance: &str) -> String {
    format!("v{}", &instance[..instance.len().min(6)])
}

/// Makes the bridge with its addresses, or takes the one that is there; returns its index. Nobody else may have anything
/// of `ranges`.
pub(crate) fn ensure(instance: &str, own: Ipv4Net, own6: Option<Ipv6Addr>, ranges: &[IpNet]) -> Result<u32, Error> {
    let name = name(instance);
    for wanted in ranges {
        if let Some((taken, interface)) = overlap(instance, *wanted)? {
            return Err(Error::Overlap { wanted: *wanted, taken, interface });
        }
    }
    let mut netlink = Netlink::open().map_err(Error::kernel("open a netlink socket"))?;
    let ipv6 = if own6.is_some() { Ipv6::Given } else { Ipv6::Off };
    let index = match netlink::index_of(&name) {
        Some(index) => {
            // An earlier run may have had it otherwise.
            ipv6.set(&name).map_err(Error::kernel(format!("set up {name}")))?;
            index
        }
        None => create(&mut netlink, &name, own.addr(), ipv6)?,
    };
    let four = netlink::address(index, own.addr().into(), own.prefix_len());
    let six = own6.map(|address| netlink::address(index, address.into(), 128));
    netlink
        .ensure(std::iter::once(four).chain(six))
        .map_err(Error::kernel(format!("give bridge {name} its addresses")))?;
    Ok(index)
}

/// Leads this machine's own packets for services to the bridge, where the rules get hold of them; nothing else would make
/// them leave where the machine has no way out.
pub(crate) fn route(bridge: u32, services: IpNet, source: IpAddr) -> Result<(), Error> {
    let mut netlink = Netlink::open().map_err(Error::kernel("open a netlink socket"))?;
    // Where another Carob has the same range, its services are those that this machine sees.
    netlink
        .ensure([netlink::network_route(services, bridge, Some(source))])
        .map_err(Error::kernel(format!("route {services}")))
}

/// Gives the bridge these addresses beside its own, and takes all others from it.
pub(crate) fn hold(instance: &str, own: &[IpAddr], wanted: &[IpAddr]) -> Result<(), Error> {
    let name = name(instance);
    let Some(bridge) = netlink::index_of(&name) else { return Ok(()) };
    let mut netlink = Netlink::open().map_err(Error::kernel("open a netlink socket"))?;
    let is_one = |network: &IpNet| network.prefix_len() == network.max_prefix_len();
    let held: Vec<IpAddr> = addresses(&mut netlink)?
        .iter()
        .filter_map(network_of)
        .filter(|(network, index)| *index == bridge && is_one(network) && !own.contains(&network.addr()))
        .map(|(network, _)| network.addr())
        .collect();
    let change = |netlink: &mut Netlink, message, mode, fine: i32| match netlink.request(vec![(message, mode)]) {
        Err(error) if error.raw_os_error() != Some(fine) => Err(error),
        _ => Ok(()),
    };
    for address in held.iter().filter(|address| !wanted.contains(*address)) {
        let RouteNetlinkMessage::NewAddress(message) = single(bridge, *address) else { continue };
        change(&mut netlink, RouteNetlinkMessage::DelAddress(message), Mode::Change, libc::EADDRNOTAVAIL)
            .map_err(Error::kernel(format!("take {address} from {name}")))?;
    }
    for address in wanted.iter().filter(|address| !held.contains(*address)) {
        change(&mut netlink, single(bridge, *address), Mode::Create, libc::EEXIST)
            .map_err(Error::kernel(format!("give {name} the address {address}")))?;
    }
    Ok(())
}

/// An address of a link's own, without a network around it.
fn single(link: u32, address: IpAddr) -> RouteNetlinkMessage {
    netlink::address(link, address, IpNet::from(address).prefix_len())
}

/// The addresses of this machine's interfaces. Of those of Carobs' bridges, which are services' and other Carobs', only
/// `gateways`.
pub(crate) fn own_addresses(gateways: &[IpAddr]) -> Result<BTreeSet<IpAddr>, Error> {
    let all = local_addresses()?.into_iter();
    let own = all.filter(|(local, link)| gateways.contains(local) || !interface(*link).starts_with(PREFIX));
    Ok(own.map(|(local, _)| local).collect())
}

/// The addresses of all of this machine's interfaces, with their indices.
pub(crate) fn local_addresses() -> Result<Vec<(IpAddr, u32)>, Error> {
    let mut netlink = Netlink::open().map_err(Error::kernel("open a netlink socket"))?;
    let local = |message| {
        let RouteNetlinkMessage::NewAddress(message) = message else { return None };
        // IPv6 has the one only; with IPv4, where both are there, the other may be the link's other end.
        let find = |wanted: fn(&AddressAttribute) -> Option<IpAddr>| message.attributes.iter().find_map(wanted);
        let local = find(|attribute| match attribute {
            AddressAttribute::Local(address) => Some(*address),
            _ => None,
        });
        let only = || {
            find(|attribute| match attribute {
                AddressAttribute::Address(address) => Some(*address),
                _ => None,
            })
        };
        Some((local.or_else(only)?, message.header.index))
    };
    Ok(addresses(&mut netlink)?.into_iter().filter_map(local).collect())
}

fn addresses(netlink: &mut Netlink) -> Result<Vec<RouteNetlinkMessage>, Error> {
    // Of both kinds.
    let query = AddressMessage::default();
    netlink.dump(RouteNetlinkMessage::GetAddress(query)).map_err(Error::kernel("list network addresses"))
}

/// Lets a link's packets come from and go to loopback addresses; the rules see to it that only answers do.
pub(crate) fn accept_loopback(link: &str) -> Result<(), Error> {
    let switch = format!("/proc/sys/net/ipv4/conf/{link}/route_localnet");
    std::fs::write(&switch, "1").map_err(Error::kernel(format!("write {switch}")))
}

fn create(netlink: &mut Netlink, name: &str, address: Ipv4Addr, ipv6: Ipv6) -> Result<u32, Error> {
    let mut message = netlink::link(name);
    message.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]));
    // Without an address of its own, a bridge takes its ports' lowest, which changes as pods come and go.
    message.attributes.push(LinkAttribute::Address(mac(address).to_vec()));
    netlink
        .make_link(name, RouteNetlinkMessage::NewLink(message), ipv6)
        .map_err(Error::kernel(format!("create bridge {name}")))?;
    netlink::index_of(name).ok_or_else(|| Error::kernel(format!("find bridge {name}"))(io::ErrorKind::NotFound.into()))
}

/// The packet size of the machine's way out; larger packets of pods would not get through. 1500 where there is none.
pub(crate) fn uplink_mtu() -> Result<u32, Error> {
    let mut netlink = Netlink::open().map_err(Error::kernel("open a netlink socket"))?;
    let mut query = RouteMessage::default();
    query.header.address_family = AddressFamily::Inet;
    let routes = netlink.dump(RouteNetlinkMessage::GetRoute(query)).map_err(Error::kernel("list routes"))?;
    let uplink = routes.iter().find_map(|message| match message {
        RouteNetlinkMessage::NewRoute(route) if route.header.destination_prefix_length == 0 => {
            route.attributes.iter().find_map(|attribute| match attribute {
                RouteAttribute::Oif(index) => Some(*index),
                _ => None,
            })
        }
        _ => None,
    });
    // Not from /sys, which shows the network namespace in which it was mounted.
    let links = netlink
        .dump(RouteNetlinkMessage::GetLink(LinkMessage::default()))
        .map_err(Error::kernel("list network links"))?;
    let mtu = links.iter().find_map(|message| match message {
        RouteNetlinkMessage::NewLink(link) if Some(link.header.index) == uplink => {
            link.attributes.iter().find_map(|attribute| match attribute {
                LinkAttribute::Mtu(mtu) => Some(*mtu),
                _ => None,
            })
        }
        _ => None,
    });
    Ok(mtu.unwrap_or(1500))
}

/// A locally administered hardware address that goes with an IP address.
pub(crate) fn mac(address: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    [0x0a, 0x58, a, b, c, d]
}

/// Removes the bridge and the links that hang on it.
pub(crate) fn remove(instance: &str) -> Result<(), Error> {
    let mut netlink = Netlink::open().map_err(Error::kernel("open a netlink socket"))?;
    crate::nodes::remove(&mut netlink, instance)?;
    let (ports, blocks) = (port_prefix(instance), shaping::block_prefix(instance));
    let bridge = name(instance);
    let links = netlink
        .dump(RouteNetlinkMessage::GetLink(LinkMessage::default()))
        .map_err(Error::kernel("list network links"))?;
    for link in links {
        let RouteNetlinkMessage::NewLink(link) = link else { continue };
        let Some(name) = name_of(&link) else { continue };
        let of_a_pod = |prefix: &str| name.strip_prefix(prefix).is_some_and(|address| address.len() == 8);
        if *name == bridge || of_a_pod(&ports) || of_a_pod(&blocks) {
            delete(&mut netlink, link.header.index).map_err(Error::kernel(format!("remove link {name}")))?;
        }
    }
    Ok(())
}

/// Removes a link; one that is already gone is fine.
pub(crate) fn delete(netlink: &mut Netlink, index: u32) -> io::Result<()> {
    match netlink.request(vec![(RouteNetlinkMessage::DelLink(netlink::link_at(index)), Mode::Change)]) {
        Err(error) if error.raw_os_error() != Some(libc::ENODEV) => Err(error),
        _ => Ok(()),
    }
}

/// A link's name.
pub(crate) fn name_of(link: &LinkMessage) -> Option<&String> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name),
        _ => None,
    })
}

/// The network and the interface other than the instance's own bridge whose addresses overlap, if there are any. Ranges
/// that other Carobs lead to their bridges count.
pub(crate) fn overlap(instance: &str, wanted: IpNet) -> Result<Option<(IpNet, String)>, Error> {
    let mut netlink = Netlink::open().map_err(Error::kernel("open a netlink socket"))?;
    let own = netlink::index_of(&name(instance));
    let addresses = addresses(&mut netlink)?;
    let query = RouteNetlinkMessage::GetRoute(RouteMessage::default());
    let routes = netlink.dump(query).map_err(Error::kernel("list routes"))?;
    for message in addresses.iter().chain(&routes) {
        let Some((taken, index)) = network_of(message) else { continue };
        if Some(index) != own && (taken.contains(&wanted) || wanted.contains(&taken)) {
            let interface = interface(index);
            if matches!(message, RouteNetlinkMessage::NewAddress(_)) || interface.starts_with(PREFIX) {
                return Ok(Some((taken, interface)));
            }
        }
    }
    Ok(None)
}

fn interface(index: u32) -> String {
    nix::net::if_::if_indextoname(index).map_or_else(|_| index.to_string(), |name| name.to_string_lossy().into_owned())
}

/// The network that a message is about, and the interface it is at.
fn network_of(message: &RouteNetlinkMessage) -> Option<(IpNet, u32)> {
    match message {
        RouteNetlinkMessage::NewAddress(message) => {
            let address = message.attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Address(address) => Some(*address),
                _ => None,
            })?;
            Some((IpNet::new(address, message.header.prefix_len).ok()?.trunc(), message.header.index))
        }
        RouteNetlinkMessage::NewRoute(message) => {
            let address = message.attributes.iter().find_map(|attribute| match attribute {
                RouteAttribute::Destination(RouteAddress::Inet(address)) => Some(IpAddr::V4(*address)),
                RouteAttribute::Destination(RouteAddress::Inet6(address)) => Some(IpAddr::V6(*address)),
                _ => None,
            })?;
            let index = message.attributes.iter().find_map(|attribute| match attribute {
                RouteAttribute::Oif(index) => Some(*index),
                _ => None,
            })?;
            let network = IpNet::new(address, message.header.destination_prefix_length).ok()?;
            Some((network.trunc(), index))
        }
        _ => None,
    }
}

/// Lets the machine pass packets on between its interfaces, which a pod's way out needs.
pub(crate) fn enable_forwarding(ipv6: bool) -> Result<(), Error> {
    switch_on("/proc/sys/net/ipv4/ip_forward")?;
    if ipv6 {
        const FORWARDING: &str = "/proc/sys/net/ipv6/conf/all/forwarding";
        if !is_on(Path::new(FORWARDING)) {
            keep_advertisements()?;
        }
        switch_on(FORWARDING)?;
    }
    Ok(())
}

fn switch_on(switch: &str) -> Result<(), Error> {
    let now = std::fs::read_to_string(switch).map_err(Error::kernel(format!("read {switch}")))?;
    if now.trim() == "1" {
        return Ok(());
    }
    tracing::info!("switching on {switch}, which pods' way out needs");
    std::fs::write(switch, "1").map_err(Error::kernel(format!("write {switch}")))
}

/// A machine that passes packets on takes no more router advertisements, unless it is told to: those interfaces that have
/// their way out from them would lose it.
fn keep_advertisements() -> Result<(), Error> {
    const INTERFACES: &str = "/proc/sys/net/ipv6/conf";
    let interfaces = std::fs::read_dir(INTERFACES).map_err(Error::kernel(format!("read {INTERFACES}")))?;
    for interface in interfaces.flatten().map(|interface| interface.path()) {
        let of_all = ["all", "default"].iter().any(|name| interface.ends_with(name));
        let switch = interface.join("accept_ra");
        if !of_all && !is_on(&interface.join("forwarding")) && is_on(&switch) {
            std::fs::write(&switch, "2").map_err(Error::kernel(format!("write {}", switch.display())))?;
        }
    }
    Ok(())
}

fn is_on(switch: &Path) -> bool {
    std::fs::read_to_string(switch).is_ok_and(|now| now.trim() == "1")
}

/// Whether a bridge can be made here; tried in a namespace of its own.
pub(crate) fn probe() -> Result<(), Error> {
    crate::namespace::in_new_namespace(|| {
        let mut netlink = Netlink::open().map_err(Error::kernel("open a netlink socket"))?;
        create(&mut netlink, "cb-probe", Ipv4Addr::new(192, 0, 2, 1), Ipv6::Off).map(|_| ())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_the_kernels_fifteen_characters() {
        assert!(name("0123456789abcdef").len() <= 15);
        assert_eq!(port_name("0123456789abcdef", Ipv4Addr::BROADCAST), "v012345ffffffff");
    }
}
