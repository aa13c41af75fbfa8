//! How fast a pod may send and receive. Token buckets (tc-tbf(8)) let packets wait; only packets that leave a link can. What the
//! pod receives leaves the machine's end of its link; what it sends arrives there, and is led to a link that exists only so
//! that it can leave it (an intermediate functional block).

use std::io;
use std::net::Ipv4Addr;

use netlink_packet_core::DefaultNla;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage};
use netlink_packet_route::tc::{
    TcAction, TcActionAttribute, TcActionGeneric, TcActionMirrorOption, TcActionOption, TcActionType, TcAttribute,
    TcFilterU32Option, TcHandle, TcHeader, TcMessage, TcMirror, TcMirrorActionType, TcOption, TcU32Key, TcU32Selector,
    TcU32SelectorFlags,
};

use crate::bridge;
use crate::netlink::{self, Ipv6, Mode, Netlink};

/// Bits per second from and to a pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bandwidth {
    /// What it may receive.
    pub ingress: Option<u64>,
    /// What it may send.
    pub egress: Option<u64>,
}

/// Packets that wait for longer are dropped.
const LATENCY_MS: u64 = 25;
/// What may leave at once: this part of a second's…
const BURST_PART: u64 = 50;
/// … but some packets at least, or slow links never get a large one.
const BURST_LEAST: u64 = 32 << 10;

/// Limits the pod that has this address.
pub(crate) fn shape(instance: &str, pod: Ipv4Addr, bandwidth: Bandwidth) -> io::Result<()> {
    let port = bridge::port_name(instance, pod);
    let port = netlink::index_of(&port).ok_or(io::ErrorKind::NotFound)?;
    let mut netlink = Netlink::open()?;
    if let Some(rate) = bandwidth.ingress {
        netlink.request(vec![(token_bucket(port, rate), Mode::Create)])?;
    }
    if let Some(rate) = bandwidth.egress {
        let name = block_name(instance, pod);
        // Another pod's that had this address.
        remove_link(&mut netlink, &name)?;
        let mut block = netlink::link(&name);
        block.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Ifb)]));
        netlink.make_link(&name, RouteNetlinkMessage::NewLink(block), Ipv6::Off)?;
        let block = netlink::index_of(&name).ok_or(io::ErrorKind::NotFound)?;
        netlink.request(vec![
            (token_bucket(block, rate), Mode::Create),
            (ingress(port), Mode::Create),
            (redirect(port, block), Mode::Create),
        ])?;
    }
    Ok(())
}

/// Removes what was made beside the pod's own link.
pub(crate) fn release(instance: &str, pod: Ipv4Addr) -> io::Result<()> {
    let name = block_name(instance, pod);
    if netlink::index_of(&name).is_none() {
        return Ok(());
    }
    remove_link(&mut Netlink::open()?, &name)
}

/// Removes what pods left that are gone with their links.
pub(crate) fn remove_orphans(instance: &str) -> io::Result<()> {
    let mut netlink = Netlink::open()?;
    let links: Vec<String> = netlink
        .dump(RouteNetlinkMessage::GetLink(LinkMessage::default()))?
        .into_iter()
        .filter_map(|message| match message {
            RouteNetlinkMessage::NewLink(link) => bridge::name_of(&link).cloned(),
            _ => None,
        })
        .collect();
    let (blocks, ports) = (block_prefix(instance), bridge::port_prefix(instance));
    for name in &links {
        let Some(address) = name.strip_prefix(&blocks).filter(|address| address.len() == 8) else { continue };
        if !links.contains(&format!("{ports}{address}")) {
            remove_link(&mut netlink, name)?;
        }
    }
    Ok(())
}

/// How the names of all of an instance's blocks begin.
pub(crate) fn block_prefix(instance: &str) -> String {
    format!("i{}", &instance[..instance.len().min(6)])
}

fn block_name(instance: &str, pod: Ipv4Addr) -> String {
    format!("{}{:08x}", block_prefix(instance), u32::from(pod))
}

fn remove_link(netlink: &mut Netlink, name: &str) -> io::Result<()> {
    netlink::index_of(name).map_or(Ok(()), |index| bridge::delete(netlink, index))
}

fn message(index: u32, handle: TcHandle, parent: TcHandle, kind: &str, options: Vec<TcOption>) -> TcMessage {
    let header = TcHeader { index: index.cast_signed(), handle, parent, ..TcHeader::default() };
    let mut attributes = vec![TcAttribute::Kind(kind.to_owned())];
    if !options.is_empty() {
        attributes.push(TcAttribute::Options(options));
    }
    TcMessage::from_parts(header, attributes)
}

/// The queue of what leaves a link.
fn token_bucket(index: u32, bits: u64) -> RouteNetlinkMessage {
    /// Attributes of `TCA_OPTIONS` (linux/pkt_sched.h).
    const PARAMETERS: u16 = 1;
    const RATE: u16 = 4;
    const BURST: u16 = 6;
    let bytes = bits / 8;
    let burst = narrow((bytes / BURST_PART).max(BURST_LEAST));
    let limit = narrow(bytes * LATENCY_MS / 1000).saturating_add(burst);
    let mut options = vec![(PARAMETERS, parameters(narrow(bytes), limit)), (BURST, burst.to_ne_bytes().to_vec())];
    if bytes > u64::from(u32::MAX) {
        options.push((RATE, bytes.to_ne_bytes().to_vec()));
    }
    let options = options.into_iter().map(|(kind, value)| TcOption::Other(DefaultNla::new(kind, value))).collect();
    RouteNetlinkMessage::NewQueueDiscipline(message(
        index,
        TcHandle { major: 1, minor: 0 },
        TcHandle::ROOT,
        "tbf",
        options,
    ))
}

/// `struct tc_tbf_qopt`: two rates, of which the peak is none, the queue's length, and two numbers that others stand for.
fn parameters(rate: u32, limit: u32) -> Vec<u8> {
    /// Ethernet: the kernel then reckons by itself instead of asking for a table.
    const LINK_LAYER: u8 = 1;
    let mut bytes = vec![0, LINK_LAYER, 0, 0, 0, 0, 0, 0];
    bytes.extend(rate.to_ne_bytes());
    bytes.extend([0; 12]);
    bytes.extend(limit.to_ne_bytes());
    bytes.extend([0; 8]);
    bytes
}

fn narrow(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

const INGRESS: TcHandle = TcHandle { major: 0xffff, minor: 0 };

/// What arrives at a link can be led elsewhere.
fn ingress(index: u32) -> RouteNetlinkMessage {
    RouteNetlinkMessage::NewQueueDiscipline(message(index, INGRESS, TcHandle::INGRESS, "ingress", Vec::new()))
}

/// All that arrives at a link leaves by another one first.
fn redirect(from: u32, to: u32) -> RouteNetlinkMessage {
    /// Any of them.
    const PROTOCOL: u16 = 0x0003;
    const PRIORITY: u32 = 1;
    let mut selector = TcU32Selector::default();
    selector.flags = TcU32SelectorFlags::Terminal;
    selector.nkeys = 1;
    selector.keys = vec![TcU32Key::default()];
    let mut generic = TcActionGeneric::default();
    generic.action = TcActionType::Stolen;
    let mut mirror = TcMirror::default();
    (mirror.generic, mirror.eaction, mirror.ifindex) = (generic, TcMirrorActionType::EgressRedir, to);
    let mut action = TcAction::default();
    action.attributes = vec![
        TcActionAttribute::Kind("mirred".to_owned()),
        TcActionAttribute::Options(vec![TcActionOption::Mirror(TcActionMirrorOption::Parms(mirror))]),
    ];
    let options = vec![
        TcOption::U32(TcFilterU32Option::Selector(selector)),
        TcOption::U32(TcFilterU32Option::Action(vec![action])),
    ];
    let mut filter = message(from, TcHandle::default(), INGRESS, "u32", options);
    filter.header.info = PRIORITY << 16 | u32::from(PROTOCOL.to_be());
    RouteNetlinkMessage::NewTrafficFilter(filter)
}
