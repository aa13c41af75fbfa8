//! What the fuzz targets (`tests/fuzz`) reach of this crate, and what nobody else should use.

use crate::dns::{Dns, Read};
use crate::netfilter;

/// The number of attributes in a netlink message, and in those.
pub fn attributes(bytes: &[u8]) -> usize {
    netfilter::attributes(bytes).map(|(_, value)| 1 + netfilter::attributes(value).count()).sum()
}

/// What is answered to a datagram if nobody has to be asked.
pub fn dns(server: &Dns, datagram: &[u8]) -> Option<Vec<u8>> {
    match server.read(datagram) {
        Read::Answer(answer) => Some(answer),
        Read::Nothing | Read::Ask(..) => None,
    }
}
