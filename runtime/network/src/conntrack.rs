//! What the kernel remembers of flows, and forgetting it.

use std::io;
use std::net::{IpAddr, SocketAddr};

use crate::family::{Family, octets};
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
    pub(crate) destination: SocketAddr,
    /// Where the answers come from: another address, if the destination was translated.
    pub(crate) answers_from: SocketAddr,
}

/// `CTA_IP_V4_SRC` and `CTA_IP_V4_DST`, or those of IPv6.
fn ends(family: Family) -> (u16, u16) {
    match family {
        Family::V4 => (1, 2),
        Family::V6 => (3, 4),
    }
}

/// Has the kernel forget the flows of datagrams that `is_stale` chooses.
pub(crate) fn forget(family: Family, is_stale: impl Fn(&Flow) -> bool) -> io::Result<()> {
    let (source, destination) = ends(family);
    forget_between(family, |original, reply| {
        // Numbers of CTA_PROTO_{SRC,DST}_PORT.
        let (Some(destination), Some(answers_from)) = (end(original, destination, 3), end(reply, source, 2)) else {
            return false;
        };
        is_stale(&Flow { destination, answers_from })
    })
}

/// Has the kernel forget all flows, of whatever protocol, that begin or end at an address.
pub(crate) fn forget_address(address: IpAddr) -> io::Result<()> {
    let (family, wanted) = (Family::of(address), octets(address));
    let (source, destination) = ends(family);
    let has = |tuple: &[u8]| {
        let ip = attribute(tuple, 1).unwrap_or_default();
        [source, destination].iter().any(|end| attribute(ip, *end) == Some(&wanted[..]))
    };
    forget_between(family, |original, reply| has(original) || has(reply))
}

/// Has the kernel forget the flows that `is_stale` chooses by their two tuples, the first packet's and the answer's.
fn forget_between(family: Family, is_stale: impl Fn(&[u8], &[u8]) -> bool) -> io::Result<()> {
    let mut deletions = Messages::default();
    dump(GET, family, |attributes| {
        let (Some(original), Some(reply)) = (attribute(attributes, ORIGINAL), attribute(attributes, REPLY)) else {
            return;
        };
        if is_stale(original, reply) {
            deletions.begin(DELETE, ACKNOWLEDGE, family);
            deletions.bytes(ORIGINAL | 1 << 15, original);
            if let Some(id) = attribute(attributes, ID) {
                deletions.bytes(ID, id);
            }
        }
    })?;
    // It may have ended by itself.
    send_each(deletions, libc::ENOENT)
}

/// One end of a flow of datagrams.
fn end(tuple: &[u8], address: u16, port: u16) -> Option<SocketAddr> {
    let protocol = attribute(tuple, 2)?;
    if attribute(protocol, 1)? != [UDP] {
        return None;
    }
    let address = attribute(attribute(tuple, 1)?, address)?;
    let four = <[u8; 4]>::try_from(address).map(IpAddr::from);
    let address = four.or_else(|_| <[u8; 16]>::try_from(address).map(IpAddr::from)).ok()?;
    let port: [u8; 2] = attribute(protocol, port)?.try_into().ok()?;
    Some(SocketAddr::new(address, u16::from_be_bytes(port)))
}
