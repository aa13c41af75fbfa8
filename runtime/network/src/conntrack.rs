//! What the kernel remembers of flows, and forgetting it.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};

use crate::netfilter::{ACKNOWLEDGE, Messages, attribute, dump, send_each};

/// `NFNL_SUBSYS_CTNETLINK` with `IPCTNL_MSG_CT_GET` and `IPCTNL_MSG_CT_DELETE`
const GET: u16 = 1 << 8 | 1;
const DELETE: u16 = 1 << 8 | 2;
/// `CTA_TUPLE_ORIG`, `CTA_TUPLE_REPLY`, `CTA_ID`
const ORIGINAL: u16 = 1;
const REPLY: u16 = 2;
const ID: u16 = 12;
const UDP: u8 = 17;

/// A flow of datagrams.
pub(crate) struct Flow {
    /// Where the client sends to.
    pub(crate) destination: SocketAddrV4,
    /// Where the answers come from: another address, if the destination was translated.
    pub(crate) answers_from: SocketAddrV4,
}

/// Has the kernel forget the flows of datagrams that `is_stale` chooses.
pub(crate) fn forget(is_stale: impl Fn(&Flow) -> bool) -> io::Result<()> {
    forget_between(|original, reply| {
        // Numbers of CTA_IP_V4_{SRC,DST} and CTA_PROTO_{SRC,DST}_PORT.
        let (Some(destination), Some(answers_from)) = (end(original, 2, 3), end(reply, 1, 2)) else { return false };
        is_stale(&Flow { destination, answers_from })
    })
}

/// Has the kernel forget all flows, of whatever protocol, that begin or end at an address.
pub(crate) fn forget_address(address: Ipv4Addr) -> io::Result<()> {
    let has = |tuple: &[u8], end| attribute(tuple, 1).and_then(|ip| attribute(ip, end)) == Some(&address.octets()[..]);
    forget_between(|original, reply| [original, reply].into_iter().any(|tuple| has(tuple, 1) || has(tuple, 2)))
}

/// Has the kernel forget the flows that `is_stale` chooses by their two tuples, the first packet's and the answer's.
fn forget_between(is_stale: impl Fn(&[u8], &[u8]) -> bool) -> io::Result<()> {
    let mut deletions = Messages::default();
    dump(GET, |attributes| {
        let (Some(original), Some(reply)) = (attribute(attributes, ORIGINAL), attribute(attributes, REPLY)) else {
            return;
        };
        if is_stale(original, reply) {
            deletions.begin(DELETE, ACKNOWLEDGE, 0);
            deletions.bytes(ORIGINAL | 1 << 15, original);
            if let Some(id) = attribute(attributes, ID) {
                deletions.bytes(ID, id);
            }
        }
    })?;
    // It may have ended by itself.
    send_each(deletions, libc::ENOENT)
}

/// One end of a flow of datagrams over IPv4.
fn end(tuple: &[u8], address: u16, port: u16) -> Option<SocketAddrV4> {
    let protocol = attribute(tuple, 2)?;
    if attribute(protocol, 1)? != [UDP] {
        return None;
    }
    let address: [u8; 4] = attribute(attribute(tuple, 1)?, address)?.try_into().ok()?;
    let port: [u8; 2] = attribute(protocol, port)?.try_into().ok()?;
    Some(SocketAddrV4::new(Ipv4Addr::from(address), u16::from_be_bytes(port)))
}
