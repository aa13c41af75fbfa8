//! Clients that stay with one endpoint: a Service's `sessionAffinity: ClientIP`.
//!
//! A client's first endpoint is a matter of its address alone (rendezvous hashing), so it is the same on every thread and
//! after a restart. It is remembered, so that endpoints that come later take nobody away from theirs.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use crate::route::{Affinity, Backend};

/// When so many clients are remembered, those that weren't seen since as many others came are forgotten: they get their
/// first endpoint again.
const MANY: usize = 1 << 16;

/// Which endpoints clients were sent to.
#[derive(Default)]
pub struct Affinities(Mutex<Seen>);

#[derive(Default)]
struct Seen {
    lately: HashMap<Who, Last>,
    before: HashMap<Who, Last>,
}

/// A client of a Service's port.
type Who = (Arc<str>, IpAddr);

#[derive(Clone, Copy)]
struct Last {
    endpoint: SocketAddr,
    at: Instant,
}

impl Affinities {
    /// The endpoints in the order in which a request of this client tries them.
    pub fn order(&self, backend: &Backend, affinity: &Affinity, client: IpAddr, now: Instant) -> Vec<SocketAddr> {
        let Some(first) = self.endpoint(backend, affinity, client, now) else { return Vec::new() };
        // When it can't be connected to, they all go to the same one, too.
        let others = backend.endpoints.iter().copied().filter(|other| *other != first);
        let mut order: Vec<SocketAddr> = std::iter::once(first).chain(others).collect();
        let rest = &mut order[1..];
        if !rest.is_empty() {
            rest.rotate_left(usize::try_from(hash(client) % rest.len() as u64).unwrap_or(0));
        }
        order
    }

    fn endpoint(&self, backend: &Backend, affinity: &Affinity, client: IpAddr, now: Instant) -> Option<SocketAddr> {
        let who = (Arc::clone(&affinity.whose), client);
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let last = seen.lately.get(&who).or_else(|| seen.before.get(&who));
        let last = last.filter(|last| now.saturating_duration_since(last.at) < affinity.time);
        let kept = last.map(|last| last.endpoint).filter(|endpoint| backend.endpoints.contains(endpoint));
        let endpoint = kept.or_else(|| first(backend, client))?;
        if seen.lately.len() >= MANY {
            seen.before = std::mem::take(&mut seen.lately);
        }
        seen.lately.insert(who, Last { endpoint, at: now });
        Some(endpoint)
    }
}

/// Which endpoint a client goes to that was never here.
fn first(backend: &Backend, client: IpAddr) -> Option<SocketAddr> {
    backend.endpoints.iter().copied().max_by_key(|endpoint| hash((client, endpoint)))
}

fn hash(of: impl Hash) -> u64 {
    // It has no key: all threads come to the same.
    let mut hasher = DefaultHasher::new();
    of.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::time::Duration;

    use super::*;
    use crate::route::Protocol;

    const TIME: Duration = Duration::from_secs(60);

    fn affinity() -> Affinity {
        Affinity { whose: "default/web:80".into(), time: TIME }
    }

    fn backend(last: impl IntoIterator<Item = u8>) -> Backend {
        let endpoints = last.into_iter().map(|last| SocketAddr::from(([10, 0, 0, last], 80))).collect();
        Backend::new(endpoints, Protocol::Guess)
    }

    fn client(number: u32) -> IpAddr {
        IpAddr::from((0xc000_0200 + number).to_be_bytes())
    }

    #[test]
    fn a_client_stays_when_others_come_and_leaves_only_what_is_gone() {
        let (affinities, now) = (Affinities::default(), Instant::now());
        let at = |backend: &Backend, number| affinities.order(backend, &affinity(), client(number), now)[0];
        let (few, many) = (backend(1..=3), backend(1..=6));
        let before: Vec<_> = (0..100).map(|number| at(&few, number)).collect();
        assert_eq!(before.iter().collect::<BTreeSet<_>>().len(), 3, "all of them have clients");
        let after: Vec<_> = (0..100).map(|number| at(&many, number)).collect();
        assert_eq!(before, after);
        let without = backend(2..=6);
        for (number, was) in before.into_iter().enumerate() {
            let is = at(&without, u32::try_from(number).unwrap());
            assert!(is == was || was == few.endpoints[0], "{was} is there, and its client was sent to {is}");
        }
        assert!(affinities.order(&backend([]), &affinity(), client(1), now).is_empty());
    }

    #[test]
    fn a_client_is_remembered_for_its_time_after_its_last_request() {
        let (affinities, begin) = (Affinities::default(), Instant::now());
        let (one, many) = (backend([1]), backend(1..=200));
        // With so many endpoints it is hardly the first one's by itself.
        let stranger =
            (0..1000).map(client).find(|client| first(&many, *client) != one.endpoints.first().copied()).unwrap();
        let at = |backend: &Backend, after| affinities.order(backend, &affinity(), stranger, begin + after)[0];
        assert_eq!(at(&one, Duration::ZERO), one.endpoints[0]);
        assert_eq!(at(&many, TIME / 2), one.endpoints[0]);
        assert_eq!(at(&many, TIME * 5 / 4), one.endpoints[0], "it was seen again meanwhile");
        assert_ne!(at(&many, TIME * 3), one.endpoints[0]);
        let other = Affinity { whose: "default/other:80".into(), time: TIME };
        let there = affinities.order(&one, &other, stranger, begin + TIME * 3)[0];
        assert_eq!((there, Some(at(&many, TIME * 3))), (one.endpoints[0], first(&many, stranger)), "to each its own");
    }

    #[test]
    fn all_endpoints_are_tried_and_the_memory_has_a_bound() {
        let (affinities, now) = (Affinities::default(), Instant::now());
        let many = backend(1..=5);
        let order = affinities.order(&many, &affinity(), client(7), now);
        assert_eq!(order.iter().collect::<BTreeSet<_>>(), many.endpoints.iter().collect());
        for number in 0..3 * u32::try_from(MANY).unwrap() {
            affinities.order(&many, &affinity(), client(number), now);
        }
        let seen = affinities.0.lock().unwrap();
        assert!(seen.lately.len() <= MANY && seen.before.len() <= MANY);
    }
}
