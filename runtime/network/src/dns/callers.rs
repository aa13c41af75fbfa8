//! Who has connections to the DNS server, or questions that others are asked: each of them costs memory and a descriptor,
//! and a pod may have many.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// How many there may be of all callers.
const ALL: usize = 1024;

/// Those that there are.
#[derive(Debug, Clone)]
pub(super) struct Callers {
    one: usize,
    counts: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

/// One's place, until it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    callers: Callers,
    caller: IpAddr,
}

impl Callers {
    /// Of one caller there may be so many.
    pub fn new(one: usize) -> Self {
        Self { one, counts: Arc::default() }
    }

    fn counts(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `None` when there are enough.
    pub fn admit(&self, caller: IpAddr) -> Option<Place> {
        let mut counts = self.counts();
        if counts.values().sum::<usize>() >= ALL || counts.get(&caller).is_some_and(|count| *count >= self.one) {
            return None;
        }
        *counts.entry(caller).or_default() += 1;
        Some(Place { callers: self.clone(), caller })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.callers.counts();
        if let Some(count) = counts.get_mut(&self.caller) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.caller);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: usize = 32;

    #[test]
    fn one_caller_leaves_places_to_others_and_all_together_have_a_bound() {
        let callers = Callers::new(ONE);
        let caller = |number: u32| IpAddr::from(number.to_be_bytes());
        let mut places: Vec<Place> = (0..ONE).filter_map(|_| callers.admit(caller(1))).collect();
        assert_eq!(places.len(), ONE);
        assert!(callers.admit(caller(1)).is_none());
        assert!(callers.admit(caller(2)).is_some());
        places.pop();
        places.extend(callers.admit(caller(1)));
        assert_eq!(places.len(), ONE);
        for number in 2..100 {
            places.extend((0..ONE).filter_map(|_| callers.admit(caller(number))));
        }
        assert_eq!(places.len(), ALL);
        places.clear();
        assert!(callers.counts().is_empty());
    }
}
