//! Requests to the kernel's routing netlink, blocking: each takes microseconds and waits for its answer.
//!
//! A socket belongs to the network namespace in which it was opened, wherever its thread goes afterwards.

use std::io;
use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

/// How the kernel is to treat a message.
#[derive(Clone, Copy)]
pub(crate) enum Mode {
    /// Fails where the object exists.
    Create,
    /// Makes it, or makes what exists so.
    Replace,
    /// Changes or deletes what exists.
    Change,
}

/// A socket to the routing tables of one network namespace.
pub(crate) struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    /// Opens a socket in the current thread's network namespace.
    pub(crate) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Sends messages in one go and waits until each was carried out; the first refusal is returned.
    pub(crate) fn request(&mut self, messages: Vec<(RouteNetlinkMessage, Mode)>) -> io::Result<()> {
        let first = self.sequence + 1;
        let count = messages.len();
        let mut buffer = Vec::with_capacity(512);
        for (message, mode) in messages {
            self.sequence += 1;
            let flags = match mode {
                Mode::Create => NLM_F_CREATE | NLM_F_EXCL,
                Mode::Replace => NLM_F_CREATE | NLM_F_REPLACE,
                Mode::Change => 0,
            };
            append(&mut buffer, message, self.sequence, flags | NLM_F_REQUEST | NLM_F_ACK);
        }
        self.socket.send(&buffer, 0)?;
        let mut outcome = Ok(());
        let mut answered = 0;
        while answered < count {
            for message in self.receive()? {
                let NetlinkPayload::Error(answer) = message.payload else { continue };
                if message.header.sequence_number < first {
                    continue;
                }
                answered += 1;
                if answer.code.is_some() && outcome.is_ok() {
                    outcome = Err(answer.to_io());
                }
            }
        }
        outcome
    }

    /// Carries these out one after the other; what is there already is fine.
    pub(crate) fn ensure(&mut self, messages: impl IntoIterator<Item = RouteNetlinkMessage>) -> io::Result<()> {
        for message in messages {
            match self.request(vec![(message, Mode::Create)]) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// Makes a link of this machine, in this thread's namespace, and sets it up.
    pub(crate) fn make_link(&mut self, name: &str, message: RouteNetlinkMessage, ipv6: Ipv6) -> io::Result<()> {
        self.request(vec![(message, Mode::Create)])?;
        ipv6.set(name)?;
        self.request(vec![(up_by_name(name), Mode::Change)])
    }

    /// All objects that a GET message matches.
    pub(crate) fn dump(&mut self, message: RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.sequence += 1;
        let mut buffer = Vec::new();
        append(&mut buffer, message, self.sequence, NLM_F_REQUEST | NLM_F_DUMP);
        self.socket.send(&buffer, 0)?;
        let mut found = Vec::new();
        loop {
            for message in self.receive()? {
                match message.payload {
                    NetlinkPayload::InnerMessage(inner) => found.push(inner),
                    NetlinkPayload::Done(_) => return Ok(found),
                    NetlinkPayload::Error(error) => return Err(error.to_io()),
                    _ => {}
                }
            }
        }
    }

    fn receive(&mut self) -> io::Result<Vec<NetlinkMessage<RouteNetlinkMessage>>> {
        let (datagram, _) = self.socket.recv_from_full()?;
        let mut messages = Vec::new();
        let mut rest = datagram.as_slice();
        while rest.len() >= 16 {
            let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest).map_err(io::Error::other)?;
            let length = (message.header.length as usize).next_multiple_of(4);
            messages.push(message);
            rest = rest.get(length..).unwrap_or_default();
        }
        Ok(messages)
    }
}

fn append(buffer: &mut Vec<u8>, message: RouteNetlinkMessage, sequence: u32, flags: u16) {
    let mut message = NetlinkMessage::from(message);
    message.header.flags = flags;
    message.header.sequence_number = sequence;
    message.finalize();
    let start = buffer.len();
    buffer.resize(start + message.buffer_len(), 0);
    message.serialize(&mut buffer[start..]);
}

/// A link message with a name, to be filled in further.
pub(crate) fn link(name: &str) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    message
}

/// A message about an existing link.
pub(crate) fn link_at(index: u32) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message
}

/// Sets a link up.
pub(crate) fn up(index: u32) -> RouteNetlinkMessage {
    let mut message = link_at(index);
    set_up(&mut message);
    RouteNetlinkMessage::SetLink(message)
}

fn set_up(message: &mut LinkMessage) {
    message.header.flags |= LinkFlags::Up;
    message.header.change_mask |= LinkFlags::Up;
}

/// Sets the link of that name up.
pub(crate) fn up_by_name(name: &str) -> RouteNetlinkMessage {
    let mut message = link(name);
    set_up(&mut message);
    RouteNetlinkMessage::SetLink(message)
}

/// What a link has to do with IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ipv6 {
    /// Nothing: it drops its packets.
    Off,
    /// It carries packets, and has the addresses that it is given. It makes none up, and learns nothing from what pods say:
    /// one could else send this machine router advertisements, and have its packets.
    Given,
}

impl Ipv6 {
    /// Sets a link of this thread's namespace so. (The kernel takes these settings only for a link that exists.)
    pub(crate) fn set(self, link: &str) -> io::Result<()> {
        /// `IN6_ADDR_GEN_MODE_NONE`
        const NO_ADDRESSES: &str = "1";
        let settings: &[_] = match self {
            Self::Off => &[("disable_ipv6", "1")],
            Self::Given => {
                &[("addr_gen_mode", NO_ADDRESSES), ("accept_ra", "0"), ("accept_redirects", "0"), ("disable_ipv6", "0")]
            }
        };
        for (name, value) in settings {
            match std::fs::write(format!("/proc/sys/net/ipv6/conf/{link}/{name}"), value) {
                // A kernel without IPv6.
                Err(error) if error.kind() == io::ErrorKind::NotFound && self == Self::Off => {}
                outcome => outcome?,
            }
        }
        Ok(())
    }

    /// Sets the links so that are born in this thread's namespace from now on.
    pub(crate) fn set_to_come(self) -> io::Result<()> {
        self.set("default")
    }
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

fn route_address(address: IpAddr) -> RouteAddress {
    match address {
        IpAddr::V4(address) => RouteAddress::Inet(address),
        IpAddr::V6(address) => RouteAddress::Inet6(address),
    }
}

/// Gives a link an address.
pub(crate) fn address(index: u32, address: IpAddr, prefix: u8) -> RouteNetlinkMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(address);
    message.header.prefix_len = prefix;
    message.header.index = index;
    message.attributes.push(AddressAttribute::Address(address));
    message.attributes.push(AddressAttribute::Local(address));
    match address {
        // A single address has no network around it to cast to.
        IpAddr::V4(address) => {
            if let Some(hosts) = u32::MAX.checked_shr(prefix.into()) {
                let broadcast = u32::from(address) | hosts;
                message.attributes.push(AddressAttribute::Broadcast(broadcast.into()));
            }
        }
        // It is nobody else's: the link needs not be asked for a second.
        IpAddr::V6(_) => message.header.flags |= AddressHeaderFlags::Nodad,
    }
    RouteNetlinkMessage::NewAddress(message)
}

/// Tells the hardware address of a neighbour for good, so that nobody need be asked for it, or could answer falsely.
pub(crate) fn neighbour(address: IpAddr, link: u32, hardware: [u8; 6]) -> RouteNetlinkMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family(address);
    message.header.ifindex = link;
    message.header.state = NeighbourState::Permanent;
    let address = match address {
        IpAddr::V4(address) => NeighbourAddress::Inet(address),
        IpAddr::V6(address) => NeighbourAddress::Inet6(address),
    };
    message.attributes =
        vec![NeighbourAttribute::LinkLayerAddress(hardware.to_vec()), NeighbourAttribute::Destination(address)];
    RouteNetlinkMessage::NewNeighbour(message)
}

/// The default route by way of `gateway`.
pub(crate) fn default_route(gateway: IpAddr) -> RouteNetlinkMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(gateway);
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Boot;
    message.header.scope = RouteScope::Universe;
    message.header.kind = RouteType::Unicast;
    message.attributes.push(RouteAttribute::Gateway(route_address(gateway)));
    RouteNetlinkMessage::NewRoute(message)
}

/// The way to one address: directly behind a link. `source` is what this machine sends from when it starts to talk.
pub(crate) fn route_to(address: IpAddr, link: u32, source: Option<IpAddr>) -> RouteNetlinkMessage {
    network_route(IpNet::from(address), link, source)
}

/// The way to a network behind a link.
pub(crate) fn network_route(network: IpNet, link: u32, source: Option<IpAddr>) -> RouteNetlinkMessage {
    RouteNetlinkMessage::NewRoute(unicast_route(network, Some(link), source))
}

/// The way to a network by way of a neighbour behind a link.
pub(crate) fn route_by(network: IpNet, link: u32, neighbour: IpAddr, source: IpAddr) -> RouteNetlinkMessage {
    RouteNetlinkMessage::NewRoute(gateway_route(network, Some(link), neighbour, source))
}

/// The way to a network by way of another machine: one on a network of this machine's, or a neighbour behind `link`.
pub(crate) fn route_via(network: IpNet, link: Option<u32>, machine: IpAddr, source: IpAddr) -> RouteNetlinkMessage {
    let mut message = gateway_route(network, link, machine, source);
    message.header.protocol = RouteProtocol::Static;
    if link.is_some() {
        message.header.flags |= RouteFlags::Onlink;
    }
    RouteNetlinkMessage::NewRoute(message)
}

fn gateway_route(network: IpNet, link: Option<u32>, gateway: IpAddr, source: IpAddr) -> RouteMessage {
    let mut message = unicast_route(network, link, Some(source));
    message.header.scope = RouteScope::Universe;
    message.attributes.push(RouteAttribute::Gateway(route_address(gateway)));
    message
}

fn unicast_route(network: IpNet, link: Option<u32>, source: Option<IpAddr>) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(network.addr());
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Boot;
    message.header.scope = RouteScope::Link;
    message.header.kind = RouteType::Unicast;
    message.header.destination_prefix_length = network.prefix_len();
    message.attributes.push(RouteAttribute::Destination(route_address(network.network())));
    message.attributes.extend(link.map(RouteAttribute::Oif));
    message.attributes.extend(source.map(|source| RouteAttribute::PrefSource(route_address(source))));
    message
}

/// The index of a link of this thread's namespace, if there is one of that name.
pub(crate) fn index_of(name: &str) -> Option<u32> {
    nix::net::if_::if_nametoindex(name).ok()
}
