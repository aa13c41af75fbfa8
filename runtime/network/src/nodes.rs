//! The other nodes: which way to their pods, and which of their ports are closed to pods.
//!
//! A node on a network of this machine's is routed to. To one further away the packets go in UDP (VXLAN), by a device whose
//! neighbours are all computed: a node's hardware address there follows from the block of its pods. IPv6 addresses of other
//! nodes' pods always lie by way of that device, whatever addresses the machines have.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use netlink_packet_route::link::{InfoData, InfoKind, InfoVxlan, LinkAttribute, LinkInfo, LinkMessage};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::family::Family;
use crate::firewall::{self, Table};
use crate::netlink::{self, Ipv6, Mode, Netlink};
use crate::{Error, address6, block6, bridge};

/// The number of the network in the packets, and IANA's port.
const NETWORK: u32 = 0x00ca_70b0;
pub(crate) const PORT: u16 = 4789;
/// What packing costs: outer IP, UDP, VXLAN and inner Ethernet.
const OVERHEAD: u32 = 50;

/// The way to other nodes' pods: the block of each, and the address of its machine.
pub type Ways = BTreeMap<Ipv4Net, Ipv4Addr>;

/// Where a node's worker answers the gateway, which is nobody else's business.
pub type Doors = BTreeSet<SocketAddr>;

/// The name of the device for nodes further away.
pub(crate) fn device(instance: &str) -> String {
    format!("cx-{}", &instance[..instance.len().min(8)])
}

/// A worker's place among the others.
pub(crate) struct Here<'a> {
    pub(crate) instance: &'a str,
    /// Its address among the pods.
    pub(crate) gateway: Ipv4Addr,
    /// Where pods' IPv6 addresses come from, if they have any.
    pub(crate) cidr6: Option<Ipv6Net>,
    /// The machine's address, by which other nodes know it.
    pub(crate) machine: Option<Ipv4Addr>,
    pub(crate) mtu: u32,
}

impl Here<'_> {
    /// Routes to these and to no others; gives those that can't be had.
    pub(crate) fn set_ways(&self, wanted: &Ways) -> Result<Vec<(IpNet, Error)>, Error> {
        let mut netlink = Netlink::open().map_err(Error::kernel("open a netlink socket"))?;
        let four = wanted.iter().map(|(block, machine)| (IpNet::V4(*block), *machine));
        let six = self
            .cidr6
            .into_iter()
            .flat_map(|range| wanted.iter().map(move |(block, machine)| (IpNet::V6(block6(range, *block)), *machine)));
        let wanted: BTreeMap<IpNet, Ipv4Addr> = four.chain(six).collect();
        self.renew_device(&mut netlink).map_err(Error::kernel("set up the link to nodes further away"))?;
        let known = self.known(&mut netlink)?;
        for route in &known {
            if wanted.get(&route.block) == Some(&route.machine(&mut netlink, self)) {
                continue;
            }
            match netlink.request(vec![(RouteNetlinkMessage::DelRoute(route.message.clone()), Mode::Change)]) {
                Err(error) if error.raw_os_error() != Some(libc::ESRCH) => {
                    return Err(Error::kernel(format!("remove the route to {}", route.block))(error));
                }
                _ => {}
            }
            // Its worker's own, by which an IPv6 block is reached, goes with it. A block of IPv4 has none.
            if route.via.is_ipv6()
                && let RouteNetlinkMessage::NewRoute(own) = netlink::route_to(route.via, route.link, None)
            {
                let _gone_already = netlink.request(vec![(RouteNetlinkMessage::DelRoute(own), Mode::Change)]);
            }
        }
        let left: BTreeSet<IpNet> = self.known(&mut netlink)?.iter().map(|route| route.block).collect();
        let missing = wanted.iter().filter(|(block, _)| !left.contains(block));
        let refused =
            missing.filter_map(|(block, via)| Some((*block, self.add(&mut netlink, *block, *via).err()?))).collect();
        let unpacks = netlink::index_of(&device(self.instance)).is_some();
        firewall::unpack_for_nodes(&Table::of(self.instance, Family::V4), unpacks)?;
        Ok(refused)
    }

    fn add(&self, netlink: &mut Netlink, block: IpNet, via: Ipv4Addr) -> Result<(), Error> {
        let pack = |netlink: &mut Netlink| {
            self.pack(netlink, block, via).map_err(Error::kernel(format!("reach {block} by way of {via}")))
        };
        if matches!(block, IpNet::V6(_)) {
            return pack(netlink);
        }
        let direct = netlink::route_via(block, None, via.into(), self.gateway.into());
        match netlink.request(vec![(direct, Mode::Create)]) {
            Ok(()) => Ok(()),
            // It is on no network of this machine's.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENETUNREACH | libc::EINVAL)) => pack(netlink),
            Err(error) => Err(Error::kernel(format!("route {block} by way of {via}"))(error)),
        }
    }

    /// By way of the device, whose neighbour the node is.
    fn pack(&self, netlink: &mut Netlink, block: IpNet, via: Ipv4Addr) -> io::Result<()> {
        let name = device(self.instance);
        let device = match netlink::index_of(&name) {
            Some(device) => device,
            None => self.make_device(netlink, &name)?,
        };
        let peer = first_host(block);
        let mac = bridge::mac(last_bits(peer));
        let mut forward = NeighbourMessage::default();
        forward.header.family = AddressFamily::Bridge;
        forward.header.ifindex = device;
        forward.header.state = NeighbourState::Permanent;
        forward.header.flags = NeighbourFlags::Own;
        forward.attributes = vec![
            NeighbourAttribute::LinkLayerAddress(mac.to_vec()),
            NeighbourAttribute::Destination(NeighbourAddress::Inet(via)),
        ];
        let mut steps = vec![
            (RouteNetlinkMessage::NewNeighbour(forward), Mode::Replace),
            (netlink::neighbour(peer, device, mac), Mode::Replace),
        ];
        if peer.is_ipv6() {
            // A gateway has to be on a network that is known; with IPv4, to be told that it is is enough.
            steps.push((netlink::route_to(peer, device, None), Mode::Replace));
        }
        steps.push((netlink::route_via(block, Some(device), peer, self.own(block)), Mode::Create));
        netlink.request(steps)
    }

    /// This worker's address of the kind that a block's are of.
    fn own(&self, block: IpNet) -> IpAddr {
        match (block, self.cidr6) {
            (IpNet::V6(_), Some(range)) => address6(range, self.gateway).into(),
            _ => self.gateway.into(),
        }
    }

    /// Takes the device of an earlier run over, unless it sends from another address: then it goes, and its routes with it.
    fn renew_device(&self, netlink: &mut Netlink) -> io::Result<()> {
        let name = device(self.instance);
        let Some(device) = netlink::index_of(&name) else { return Ok(()) };
        let links = netlink.dump(RouteNetlinkMessage::GetLink(LinkMessage::default()))?;
        let from = links.iter().find_map(|message| match message {
            RouteNetlinkMessage::NewLink(link) if link.header.index == device => source_of(link),
            _ => None,
        });
        if self.machine.is_some() && from != self.machine {
            return bridge::delete(netlink, device);
        }
        self.ipv6().set(&name)
    }

    fn ipv6(&self) -> Ipv6 {
        if self.cidr6.is_some() { Ipv6::Given } else { Ipv6::Off }
    }

    fn make_device(&self, netlink: &mut Netlink, name: &str) -> io::Result<u32> {
        let mut settings = vec![InfoVxlan::Id(NETWORK), InfoVxlan::Port(PORT), InfoVxlan::Learning(false)];
        // Others unpack only what comes from an address that they know.
        settings.extend(self.machine.map(InfoVxlan::Local));
        let mut message = netlink::link(name);
        message.attributes.push(LinkAttribute::Mtu(self.mtu.saturating_sub(OVERHEAD)));
        message.attributes.push(LinkAttribute::Address(bridge::mac(self.gateway).to_vec()));
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Vxlan),
            LinkInfo::Data(InfoData::Vxlan(settings)),
        ]));
        netlink.make_link(name, RouteNetlinkMessage::NewLink(message), self.ipv6())?;
        netlink::index_of(name).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// The routes to other nodes that are there: those by way of somebody that this worker's address is the source of.
    fn known(&self, netlink: &mut Netlink) -> Result<Vec<Known>, Error> {
        let query = RouteNetlinkMessage::GetRoute(RouteMessage::default());
        let routes = netlink.dump(query).map_err(Error::kernel("list routes"))?;
        Ok(routes.into_iter().filter_map(|message| self.is_ours(message)).collect())
    }

    fn is_ours(&self, message: RouteNetlinkMessage) -> Option<Known> {
        let RouteNetlinkMessage::NewRoute(message) = message else { return None };
        if message.header.protocol != RouteProtocol::Static {
            return None;
        }
        let (mut source, mut via, mut block, mut link) = (None, None, None, None);
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::PrefSource(address) => source = ip(address),
                RouteAttribute::Gateway(address) => via = ip(address),
                RouteAttribute::Destination(address) => block = ip(address),
                RouteAttribute::Oif(index) => link = Some(*index),
                _ => {}
            }
        }
        let block = IpNet::new(block?, message.header.destination_prefix_length).ok()?;
        (source? == self.own(block)).then_some(Known { block, via: via?, link: link?, message })
    }
}

/// The address that a device packs packets from.
fn source_of(link: &LinkMessage) -> Option<Ipv4Addr> {
    let infos = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => Some(infos),
        _ => None,
    })?;
    let settings = infos.iter().find_map(|info| match info {
        LinkInfo::Data(InfoData::Vxlan(settings)) => Some(settings),
        _ => None,
    })?;
    settings.iter().find_map(|setting| match setting {
        InfoVxlan::Local(address) => Some(*address),
        _ => None,
    })
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some(IpAddr::V4(*address)),
        RouteAddress::Inet6(address) => Some(IpAddr::V6(*address)),
        _ => None,
    }
}

/// The first of a block that a host can have: its worker's.
fn first_host(block: IpNet) -> IpAddr {
    match block {
        IpNet::V4(block) => IpAddr::V4((u32::from(block.network()) + 1).into()),
        IpNet::V6(block) => IpAddr::V6((u128::from(block.network()) + 1).into()),
    }
}

/// An IPv4 address, or the one that an IPv6 address ends in.
fn last_bits(address: IpAddr) -> Ipv4Addr {
    match address {
        IpAddr::V4(address) => address,
        IpAddr::V6(address) => {
            let [.., a, b, c, d] = address.octets();
            Ipv4Addr::new(a, b, c, d)
        }
    }
}

/// A route that is there.
struct Known {
    block: IpNet,
    via: IpAddr,
    link: u32,
    message: RouteMessage,
}

impl Known {
    /// The address of the machine that it leads to.
    fn machine(&self, netlink: &mut Netlink, here: &Here<'_>) -> Ipv4Addr {
        if netlink::index_of(&device(here.instance)) != Some(self.link) {
            return last_bits(self.via);
        }
        let mut query = NeighbourMessage::default();
        query.header.family = AddressFamily::Bridge;
        query.header.ifindex = self.link;
        let wanted = NeighbourAttribute::LinkLayerAddress(bridge::mac(last_bits(self.via)).to_vec());
        let known = netlink.dump(RouteNetlinkMessage::GetNeighbour(query)).unwrap_or_default();
        let machine = known.iter().find_map(|message| match message {
            RouteNetlinkMessage::NewNeighbour(neighbour)
                if neighbour.header.ifindex == self.link && neighbour.attributes.contains(&wanted) =>
            {
                neighbour.attributes.iter().find_map(|attribute| match attribute {
                    NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => Some(*address),
                    _ => None,
                })
            }
            _ => None,
        });
        machine.unwrap_or(Ipv4Addr::UNSPECIFIED)
    }
}

/// Removes the device, if it is there.
pub(crate) fn remove(netlink: &mut Netlink, instance: &str) -> Result<(), Error> {
    let name = device(instance);
    match netlink::index_of(&name) {
        Some(index) => bridge::delete(netlink, index).map_err(Error::kernel(format!("remove link {name}"))),
        None => Ok(()),
    }
}
