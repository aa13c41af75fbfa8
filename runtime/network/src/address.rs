//! Which addresses of the pod CIDR are taken.

use std::collections::HashSet;
use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};

use crate::Error;

/// Hands out addresses in turn, so that a freed one rests as long as possible: neighbours may still know its old owner.
#[derive(Debug)]
pub(crate) struct Addresses {
    cidr: Ipv4Net,
    gateway: Ipv4Addr,
    taken: HashSet<Ipv4Addr>,
    next: u32,
}

impl Addresses {
    pub(crate) fn new(cidr: Ipv4Net, gateway: Ipv4Addr) -> Self {
        Self { cidr, gateway, taken: HashSet::new(), next: 0 }
    }

    /// Takes the next free address which `in_use` doesn't veto (a link of an earlier run may still be there).
    pub(crate) fn take(&mut self, in_use: impl Fn(Ipv4Addr) -> bool) -> Result<Ipv4Addr, Error> {
        let first = u32::from(self.gateway) + 1;
        let count = u32::from(self.cidr.broadcast()) - first;
        for step in 0..count {
            let offset = (self.next + step) % count;
            let address = Ipv4Addr::from(first + offset);
            if !self.taken.contains(&address) && !in_use(address) {
                self.taken.insert(address);
                self.next = offset + 1;
                return Ok(address);
            }
        }
        Err(Error::Exhausted(self.cidr))
    }

    /// Marks an address as taken that was handed out by an earlier run.
    pub(crate) fn reserve(&mut self, address: Ipv4Addr) {
        self.taken.insert(address);
    }

    /// All that are taken.
    pub(crate) fn taken(&self) -> Vec<Ipv4Addr> {
        self.taken.iter().copied().collect()
    }

    /// Gives an address back.
    pub(crate) fn free(&mut self, address: Ipv4Addr) {
        self.taken.remove(&address);
    }
}

/// The address of a range whose last 32 bits are an IPv4 address.
pub(crate) fn in_range6(range: Ipv6Net, address: Ipv4Addr) -> Ipv6Addr {
    let above = u128::from(range.network()) & !u128::from(u32::MAX);
    Ipv6Addr::from(above | u128::from(u32::from(address)))
}

/// The first host address of a CIDR.
pub(crate) fn gateway(cidr: Ipv4Net) -> Result<Ipv4Addr, Error> {
    if cidr.prefix_len() > 29 {
        return Err(Error::TooSmall(cidr));
    }
    Ok(Ipv4Addr::from(u32::from(cidr.network()) + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(cidr: &str) -> Addresses {
        let cidr: Ipv4Net = cidr.parse().unwrap();
        Addresses::new(cidr, gateway(cidr).unwrap())
    }

    #[test]
    fn network_gateway_and_broadcast_are_never_handed_out() {
        let mut pool = addresses("10.1.2.0/29");
        let all: Vec<u8> = (0..5).map(|_| pool.take(|_| false).unwrap().octets()[3]).collect();
        assert_eq!(all, [2, 3, 4, 5, 6]);
        assert!(matches!(pool.take(|_| false), Err(Error::Exhausted(_))));
    }

    #[test]
    fn a_freed_address_is_reused_last() {
        let mut pool = addresses("10.1.2.0/29");
        let first = pool.take(|_| false).unwrap();
        pool.free(first);
        assert_ne!(pool.take(|_| false).unwrap(), first);
        for _ in 0..3 {
            pool.take(|_| false).unwrap();
        }
        assert_eq!(pool.take(|_| false).unwrap(), first);
    }

    #[test]
    fn reserved_and_vetoed_addresses_are_skipped() {
        let mut pool = addresses("10.1.2.0/29");
        pool.reserve(Ipv4Addr::new(10, 1, 2, 2));
        let got = pool.take(|address| address.octets()[3] == 3).unwrap();
        assert_eq!(got, Ipv4Addr::new(10, 1, 2, 4));
    }

    #[test]
    fn a_cidr_without_room_is_refused() {
        assert!(matches!(gateway("10.0.0.0/30".parse().unwrap()), Err(Error::TooSmall(_))));
    }
}
