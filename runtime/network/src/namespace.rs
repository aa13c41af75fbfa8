//! One pod's network namespace: made, linked to the bridge, addressed.

use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex};

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkInfo};
use nix::sched::{CloneFlags, unshare};

use crate::address::Addresses;
use crate::netlink::{self, Mode, Netlink};
use crate::{Error, bridge, lock};

/// Name of a pod's interface, as everywhere in Kubernetes.
pub(crate) const INTERFACE: &str = "eth0";

/// A namespace that is ready for a pod.
#[derive(Debug)]
pub(crate) struct Made {
    pub(crate) netns: OwnedFd,
    pub(crate) address: Ipv4Addr,
}

/// What is needed to make namespaces. Works on a thread of its own, because the thread ends up in the last one made.
pub(crate) struct Maker {
    pub(crate) instance: String,
    pub(crate) bridge: u32,
    pub(crate) gateway: Ipv4Addr,
    pub(crate) prefix: u8,
    pub(crate) addresses: Arc<Mutex<Addresses>>,
}

impl Maker {
    /// Makes one namespace. `host` is a socket in the machine's namespace.
    pub(crate) fn make(&self, host: &mut Netlink, host_links: &HostLinks) -> Result<Made, Error> {
        let address =
            lock(&self.addresses).take(|address| host_links.exists(&bridge::port_name(&self.instance, address)))?;
        let made = self.make_with(host, address);
        if made.is_err() {
            lock(&self.addresses).free(address);
        }
        made
    }

    fn make_with(&self, host: &mut Netlink, address: Ipv4Addr) -> Result<Made, Error> {
        unshare(CloneFlags::CLONE_NEWNET)
            .map_err(io::Error::from)
            .map_err(Error::kernel("make a network namespace"))?;
        let netns = current().map_err(Error::kernel("open a network namespace"))?;
        let mut inside = Netlink::open().map_err(Error::kernel("open a netlink socket"))?;
        host.request(vec![(self.veth(&netns, address), Mode::Create)])
            .map_err(Error::kernel(format!("link {address} to the bridge")))?;
        let index = netlink::index_of(INTERFACE)
            .ok_or_else(|| Error::kernel("find a pod's interface")(io::ErrorKind::NotFound.into()))?;
        let mut loopback = netlink::link_at(1);
        netlink::set_up(&mut loopback);
        inside
            .request(vec![
                (RouteNetlinkMessage::SetLink(loopback), Mode::Change),
                (netlink::address(index, address, self.prefix), Mode::Create),
                (netlink::default_route(self.gateway), Mode::Create),
            ])
            .map_err(Error::kernel(format!("give a pod the address {address}")))?;
        Ok(Made { netns, address })
    }

    /// A pair of links: one end on the bridge, the other born in the namespace, both up.
    fn veth(&self, netns: &OwnedFd, address: Ipv4Addr) -> RouteNetlinkMessage {
        let mut peer = netlink::link(INTERFACE);
        peer.attributes.push(LinkAttribute::NetNsFd(netns.as_raw_fd()));
        peer.attributes.push(LinkAttribute::Address(bridge::mac(address).to_vec()));
        peer.attributes.push(netlink::no_ipv6_address());
        netlink::set_up(&mut peer);
        let mut port = netlink::link(&bridge::port_name(&self.instance, address));
        port.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ]));
        port.attributes.push(LinkAttribute::Controller(self.bridge));
        port.attributes.push(netlink::no_ipv6_address());
        netlink::set_up(&mut port);
        RouteNetlinkMessage::NewLink(port)
    }
}

/// Looks up links of the machine's namespace from a thread that has left it.
pub(crate) struct HostLinks(OwnedFd);

impl HostLinks {
    /// Must be made before the thread leaves the machine's namespace.
    pub(crate) fn open() -> io::Result<Self> {
        use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
        Ok(Self(socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?))
    }

    /// Whether there is a link of that name.
    pub(crate) fn exists(&self, name: &str) -> bool {
        nix::ioctl_read_bad!(interface_index, libc::SIOCGIFINDEX, libc::ifreq);
        // SAFETY: an all-zero ifreq is a valid value of this plain C struct.
        #[allow(unsafe_code)]
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes().take(libc::IFNAMSIZ - 1)) {
            *to = from.cast_signed();
        }
        // SAFETY: the descriptor is an open socket and `request` outlives the call, which writes only into it.
        #[allow(unsafe_code)]
        let found = unsafe { interface_index(self.0.as_raw_fd(), &raw mut request) };
        found.is_ok()
    }
}

/// The current thread's network namespace.
fn current() -> io::Result<OwnedFd> {
    File::open("/proc/thread-self/ns/net").map(OwnedFd::from)
}

/// Runs something in a network namespace of its own, which goes away afterwards.
pub(crate) fn in_new_namespace(work: impl FnOnce() -> Result<(), Error> + Send) -> Result<(), Error> {
    std::thread::scope(|scope| {
        scope
            .spawn(|| {
                unshare(CloneFlags::CLONE_NEWNET)
                    .map_err(io::Error::from)
                    .map_err(Error::kernel("make a network namespace"))?;
                work()
            })
            .join()
            .unwrap_or(Err(Error::Closed))
    })
}

/// Whether network namespaces can be made here.
pub(crate) fn probe() -> Result<(), Error> {
    in_new_namespace(|| Ok(()))
}
