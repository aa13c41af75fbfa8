//! What clients may have open at a time: all of them, and one, so that none takes everything from the others and all
//! together leave descriptors to the rest of the process.
//!
//! A place stands for a descriptor. A client's connection takes one, and so does each request under way: it may have a
//! connection to an endpoint, and HTTP/2 has many requests on one connection.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// One client may have this part of all places,
const PART: usize = 8;
/// but so many even where there are few.
const FEW: usize = 32;

/// The places of one thread.
pub struct Shares {
    most: usize,
    taken: Mutex<Taken>,
}

#[derive(Default)]
struct Taken {
    all: usize,
    by: HashMap<IpAddr, usize>,
}

/// A place, until it is dropped.
pub struct Place {
    shares: Arc<Shares>,
    /// A client that has a share of its own.
    whose: Option<IpAddr>,
}

impl Shares {
    pub fn new(most: usize) -> Self {
        Self { most, taken: Mutex::default() }
    }

    /// A place for a client; none when there are enough. Who is trusted speaks for many and has no bound of its own.
    pub fn take(self: &Arc<Self>, client: IpAddr, trusted: bool) -> Option<Place> {
        let whose = (!trusted).then(|| person(client));
        let mut taken = self.taken();
        if taken.all >= self.most {
            return None;
        }
        if let Some(whose) = whose {
            let own = taken.by.entry(whose).or_default();
            if *own >= (self.most / PART).max(FEW) {
                return None;
            }
            *own += 1;
        }
        taken.all += 1;
        Some(Place { shares: Arc::clone(self), whose })
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.shares.taken();
        taken.all -= 1;
        let Some(whose) = self.whose else { return };
        if let Some(own) = taken.by.get_mut(&whose) {
            *own -= 1;
            if *own == 0 {
                taken.by.remove(&whose);
            }
        }
    }
}

/// Who has an address: of IPv6, anybody has 64 bits of them.
fn person(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() >> 64 << 64).into(),
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_client_leaves_places_to_others_and_all_together_have_a_bound() {
        let shares = Arc::new(Shares::new(800));
        let client = |number: u32| IpAddr::from(number.to_be_bytes());
        let take = |number| shares.take(client(number), false);
        let mut places: Vec<Place> = (0..800).filter_map(|_| take(1)).collect();
        assert_eq!(places.len(), 100);
        places.pop();
        places.extend([take(1), take(1), take(2)].into_iter().flatten());
        assert_eq!(places.len(), 101);
        places.extend((0..1000).filter_map(|_| shares.take(client(3), true)));
        assert_eq!(places.len(), 800, "who is trusted has all that is left");
        assert!(take(4).is_none());
        places.clear();
        let taken = shares.taken();
        assert!(taken.all == 0 && taken.by.is_empty());
    }

    #[test]
    fn a_network_of_ipv6_is_one_client() {
        let person = |text: &str| person(text.parse().unwrap());
        assert_eq!(person("2001:db8::1"), person("2001:db8::ffff:1"));
        assert_ne!(person("2001:db8::1"), person("2001:db8:0:1::1"));
        assert_eq!(person("::ffff:10.0.0.1"), person("10.0.0.1"));
    }
}
