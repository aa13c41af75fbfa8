//! The other nodes: which way to their pods, and which of their ports are closed to pods.
//!
//! A node on a network of this machine's is routed to. To one further away the packets go in UDP (VXLAN), by a device whose
//! neighbours are all computed: a node's hardware address there follows from the block of its pods.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};

use ipnet::Ipv4Net;
use netlink_packet_route::link::{InfoData, InfoKind, InfoVxlan, LinkAttribute, LinkInfo};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::netlink::{self, Mode, Netlink};
use crate::{Error, address, bridge};

/// The number of the network in the packets, and IANA's port.
const NETWORK: u32 = 0x00ca_70b0;
pub(crate) const PORT: u16 = 4789;
/// What packing costs: outer IP, UDP, VXLAN and inner Ethernet.
const OVERHEAD: u32 = 50;

/// The way to other nodes' pods: the block of each, and the address of its machine.
pub type Ways = BTreeMap<Ipv4Net, Ipv4Addr>;

/// Where a node's worker answers the gateway, which is nobody else's business.
pub type Doors = BTreeSet<SocketAddrV4>;

/// The name of the device for nodes further away.
pub(crate) fn device(instance: &str) -> String {
    format!("cx-{}", &instance[..instance.len().min(8)])
}

/// A worker's place among the others.
pub(crate) struct Here<'a> {
    pub(crate) instance: &'a str,
    /// Its address among the pods.
    pub(crate) gateway: Ipv4Addr,
    pub(crate) mtu: u32,
}

impl Here<'_> {
    /// Routes to these and to no others; gives those that can't be had.
    pub(crate) fn set_ways(&self, wanted: &Ways) -> Result<Vec<(Ipv4Net, Error)>, Error> {
        let mut netlink = Netlink::open().map_err(Error::kernel("open a netlink socket"))?;
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
        }
        let left: BTreeSet<Ipv4Net> = self.known(&mut netlink)?.iter().map(|route| route.block).collect();
        let missing = wanted.iter().filter(|(block, _)| !left.contains(block));
        Ok(missing.filter_map(|(block, via)| Some((*block, self.add(&mut netlink, *block, *via).err()?))).collect())
    }

    fn add(&self, netlink: &mut Netlink, block: Ipv4Net, via: Ipv4Addr) -> Result<(), Error> {
        let direct = netlink::route_via(block, None, via, self.gateway);
        match netlink.request(vec![(direct, Mode::Create)]) {
            Ok(()) => Ok(()),
            // It is on no network of this machine's.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENETUNREACH | libc::EINVAL)) => {
                self.pack(netlink, block, via).map_err(Error::kernel(format!("reach {block} by way of {via}")))
            }
            Err(error) => Err(Error::kernel(format!("route {block} by way of {via}"))(error)),
        }
    }

    /// By way of the device, whose neighbour the node is.
    fn pack(&self, netlink: &mut Netlink, block: Ipv4Net, via: Ipv4Addr) -> io::Result<()> {
        let name = device(self.instance);
        let device = match netlink::index_of(&name) {
            Some(device) => device,
            None => self.make_device(netlink, &name)?,
        };
        let peer = address::gateway(block).map_err(io::Error::other)?;
        let mac = bridge::mac(peer);
        let neighbour = |family, flags, attributes| {
            let mut message = NeighbourMessage::default();
            message.header.family = family;
            message.header.ifindex = device;
            message.header.state = NeighbourState::Permanent;
            message.header.flags = flags;
            message.attributes = attributes;
            (RouteNetlinkMessage::NewNeighbour(message), Mode::Replace)
        };
        let hardware = NeighbourAttribute::LinkLayerAddress(mac.to_vec());
        netlink.request(vec![
            neighbour(
                AddressFamily::Bridge,
                NeighbourFlags::Own,
                vec![hardware.clone(), NeighbourAttribute::Destination(NeighbourAddress::Inet(via))],
            ),
            neighbour(
                AddressFamily::Inet,
                NeighbourFlags::empty(),
                vec![hardware, NeighbourAttribute::Destination(NeighbourAddress::Inet(peer))],
            ),
            (netlink::route_via(block, Some(device), peer, self.gateway), Mode::Create),
        ])
    }

    fn make_device(&self, netlink: &mut Netlink, name: &str) -> io::Result<u32> {
        let mut message = netlink::link(name);
        message.attributes.push(LinkAttribute::Mtu(self.mtu.saturating_sub(OVERHEAD)));
        message.attributes.push(LinkAttribute::Address(bridge::mac(self.gateway).to_vec()));
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Vxlan),
            LinkInfo::Data(InfoData::Vxlan(vec![
                InfoVxlan::Id(NETWORK),
                InfoVxlan::Port(PORT),
                InfoVxlan::Learning(false),
            ])),
        ]));
        netlink.make_link(name, RouteNetlinkMessage::NewLink(message))?;
        netlink::index_of(name).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// The routes to other nodes that are there: those by way of somebody that this worker's address is the source of.
    fn known(&self, netlink: &mut Netlink) -> Result<Vec<Known>, Error> {
        let mut query = RouteMessage::default();
        query.header.address_family = AddressFamily::Inet;
        let routes = netlink.dump(RouteNetlinkMessage::GetRoute(query)).map_err(Error::kernel("list routes"))?;
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
                RouteAttribute::PrefSource(RouteAddress::Inet(address)) => source = Some(*address),
                RouteAttribute::Gateway(RouteAddress::Inet(address)) => via = Some(*address),
                RouteAttribute::Destination(RouteAddress::Inet(address)) => block = Some(*address),
                RouteAttribute::Oif(index) => link = Some(*index),
                _ => {}
            }
        }
        let block = Ipv4Net::new(block?, message.header.destination_prefix_length).ok()?;
        (source? == self.gateway).then_some(Known { block, via: via?, link: link?, message })
    }
}

/// A route that is there.
struct Known {
    block: Ipv4Net,
    via: Ipv4Addr,
    link: u32,
    message: RouteMessage,
}

impl Known {
    /// The address of the machine that it leads to.
    fn machine(&self, netlink: &mut Netlink, here: &Here<'_>) -> Ipv4Addr {
        if netlink::index_of(&device(here.instance)) != Some(self.link) {
            return self.via;
        }
        let mut query = NeighbourMessage::default();
        query.header.family = AddressFamily::Bridge;
        query.header.ifindex = self.link;
        let wanted = NeighbourAttribute::LinkLayerAddress(bridge::mac(self.via).to_vec());
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
