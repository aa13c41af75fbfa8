//! One pod's network namespace: made, linked to the bridge, addressed.

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex};

use ipnet::Ipv6Net;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkInfo};
use nix::sched::{CloneFlags, setns, unshare};

use crate::address::Addresses;
use crate::netlink::{self, Ipv6, Mode, Netlink};
use crate::{Error, TrafficCounters, address6, bridge, lock};

/// Name of a pod's interface, as everywhere in Kubernetes.
pub(crate) const INTERFACE: &str = "eth0";

/// Every namespace is born with its loopback interface at this index.
pub(crate) const LOOPBACK: u32 = 1;

/// A namespace that is ready for a pod.
#[derive(Debug)]
pub(crate) struct Made {
    pub(crate) netns: OwnedFd,
    pub(crate) address: Ipv4Addr,
}

/// What is needed to make namespaces. Works on a thread of its own, because the thread ends up in the last one made.
pub(crate) struct Maker {
    pub(crate) instance: String,
    pub(crate) gateway: Ipv4Addr,
    /// Where pods' IPv6 addresses come from, if they have any.
    pub(crate) cidr6: Option<Ipv6Net>,
    pub(crate) mtu: u32,
    pub(crate) addresses: Arc<Mutex<Addresses>>,
    pub(crate) traffic: TrafficCounters,
}

impl Maker {
    /// Makes one namespace, or links the one that is given. `host` is a socket in the machine's namespace.
    pub(crate) fn make(
        &self,
        host: &mut Netlink,
        host_links: &HostLinks,
        given: Option<OwnedFd>,
    ) -> Result<Made, Error> {
        let address = lock(&self.addresses)
            .take(|address| host_links.index(&bridge::port_name(&self.instance, address)).is_some())?;
        // Without the thread, no pod would have a network ever again.
        let made = carob_keep::survive("netns", || self.make_with(host, host_links, given, address));
        let made = made.unwrap_or(Err(Error::Closed));
        if made.is_err() {
            lock(&self.addresses).free(address);
        }
        made
    }

    /// The address of a namespace that nobody wants any more.
    pub(crate) fn take_back(&self, made: &Made) {
        lock(&self.addresses).free(made.address);
    }

    fn make_with(
        &self,
        host: &mut Netlink,
        host_links: &HostLinks,
        given: Option<OwnedFd>,
        address: Ipv4Addr,
    ) -> Result<Made, Error> {
        let enter = || match &given {
            Some(netns) => setns(netns, CloneFlags::CLONE_NEWNET),
            None => unshare(CloneFlags::CLONE_NEWNET),
        };
        enter().map_err(io::Error::from).map_err(Error::kernel("make a network namespace"))?;
        let netns = given.map_or_else(current, Ok).map_err(Error::kernel("open a network namespace"))?;
        let mut inside = Netlink::open().map_err(Error::kernel("open a netlink socket"))?;
        let ipv6 = if self.cidr6.is_some() { Ipv6::Given } else { Ipv6::Off };
        // An interface that tries to get an address by itself costs packets and time.
        ipv6.set_to_come().map_err(Error::kernel("set up a network namespace"))?;
        self.traffic.begin(address)?;
        let port = bridge::port_name(&self.instance, address);
        host.request(vec![(veth(&netns, (address, self.gateway), &port, self.mtu), Mode::Create)])
            .and_then(|()| host_links.set_ipv6(&port, ipv6))
            .and_then(|()| host.request(vec![(netlink::up_by_name(&port), Mode::Change)]))
            .map_err(Error::kernel(format!("make the link of {address}")))?;
        let port = host_links
            .index(&port)
            .ok_or_else(|| Error::kernel(format!("find link {port}"))(io::ErrorKind::NotFound.into()))?;
        let index = netlink::index_of(INTERFACE)
            .ok_or_else(|| Error::kernel("find a pod's interface")(io::ErrorKind::NotFound.into()))?;
        let mut outside = Vec::new();
        let mut within = vec![(netlink::up(LOOPBACK), Mode::Change), (netlink::up(index), Mode::Change)];
        for End { pod, machine } in self.ends(address) {
            outside.push((netlink::route_to(pod, port, Some(machine)), Mode::Create));
            if pod.is_ipv6() {
                outside.push((netlink::neighbour(pod, port, bridge::mac(address)), Mode::Create));
                within.push((netlink::neighbour(machine, index, bridge::mac(self.gateway)), Mode::Create));
            }
            let prefix = if pod.is_ipv4() { 32 } else { 128 };
            within.extend([
                (netlink::address(index, pod, prefix), Mode::Create),
                (netlink::route_to(machine, index, None), Mode::Create),
                (netlink::default_route(machine), Mode::Create),
            ]);
        }
        host.request(outside).map_err(Error::kernel(format!("route {address} to its link")))?;
        inside.request(within).map_err(Error::kernel(format!("give a pod the address {address}")))?;
        Ok(Made { netns, address })
    }

    /// The addresses at the two ends of a pod's link, of each kind.
    fn ends(&self, pod: Ipv4Addr) -> impl Iterator<Item = End> {
        let four = End { pod: pod.into(), machine: self.gateway.into() };
        let six = self
            .cidr6
            .map(|range| End { pod: address6(range, pod).into(), machine: address6(range, self.gateway).into() });
        std::iter::once(four).chain(six)
    }
}

struct End {
    pod: IpAddr,
    machine: IpAddr,
}

/// A pair of links: one end stays on the machine as `port`, the other is born in the namespace. Their hardware addresses
/// go with those of who is at either end, inside and on the machine. (An end can be set up only when both exist.)
pub(crate) fn veth(
    netns: &OwnedFd,
    (inside, machine): (Ipv4Addr, Ipv4Addr),
    port: &str,
    mtu: u32,
) -> RouteNetlinkMessage {
    let mut peer = netlink::link(INTERFACE);
    peer.attributes.push(LinkAttribute::NetNsFd(netns.as_raw_fd()));
    peer.attributes.push(LinkAttribute::Address(bridge::mac(inside).to_vec()));
    peer.attributes.push(LinkAttribute::Mtu(mtu));
    let mut port = netlink::link(port);
    port.attributes.push(LinkAttribute::Address(bridge::mac(machine).to_vec()));
    port.attributes.push(LinkAttribute::Mtu(mtu));
    port.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Veth),
        LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
    ]));
    RouteNetlinkMessage::NewLink(port)
}

/// Links of the machine's namespace, for a thread that has left it.
pub(crate) struct HostLinks {
    socket: OwnedFd,
    netns: OwnedFd,
}

impl HostLinks {
    /// Must be made before the thread leaves the machine's namespace.
    pub(crate) fn open() -> io::Result<Self> {
        use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
        let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
        Ok(Self { socket, netns: current()? })
    }

    /// Sets what the link of that name has to do with IPv6.
    fn set_ipv6(&self, name: &str, ipv6: Ipv6) -> io::Result<()> {
        within(&self.netns, || Ok(ipv6.set(name))).map_err(io::Error::other)?
    }

    /// The index of the link of that name.
    pub(crate) fn index(&self, name: &str) -> Option<u32> {
        nix::ioctl_read_bad!(interface_index, libc::SIOCGIFINDEX, libc::ifreq);
        // SAFETY: an all-zero ifreq is a valid value of this plain C struct.
        #[allow(unsafe_code)]
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes().take(libc::IFNAMSIZ - 1)) {
            *to = from.cast_signed();
        }
        // SAFETY: the descriptor is an open socket and `request` outlives the call, which writes only into it.
        #[allow(unsafe_code)]
        let found = unsafe { interface_index(self.socket.as_raw_fd(), &raw mut request) };
        found.ok()?;
        // SAFETY: a successful SIOCGIFINDEX has filled in this member of the union.
        #[allow(unsafe_code)]
        let index = unsafe { request.ifr_ifru.ifru_ifindex };
        u32::try_from(index).ok()
    }
}

/// The current thread's network namespace.
fn current() -> io::Result<OwnedFd> {
    File::open("/proc/thread-self/ns/net").map(OwnedFd::from)
}

/// A network namespace of its own for somebody.
pub(crate) fn make() -> Result<OwnedFd, Error> {
    std::thread::scope(|scope| {
        let work = || {
            unshare(CloneFlags::CLONE_NEWNET)?;
            current()
        };
        scope.spawn(work).join().map_err(|_| Error::Closed)?.map_err(Error::kernel("make a network namespace"))
    })
}

/// Runs something in a network namespace.
pub(crate) fn within<T: Send>(netns: &OwnedFd, work: impl FnOnce() -> Result<T, Error> + Send) -> Result<T, Error> {
    std::thread::scope(|scope| {
        scope
            .spawn(|| {
                nix::sched::setns(netns, CloneFlags::CLONE_NEWNET)
                    .map_err(io::Error::from)
                    .map_err(Error::kernel("enter a network namespace"))?;
                work()
            })
            .join()
            .unwrap_or(Err(Error::Closed))
    })
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
