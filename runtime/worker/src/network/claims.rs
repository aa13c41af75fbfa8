//! Which Service has an address and port that several ask for: the oldest, and when that goes the next.

use super::copy::Key;
use carob_network::{Backend, Change, Frontend};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use std::collections::{BTreeMap, HashMap, HashSet};

/// The older Service comes first.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    created: Option<Time>,
    key: Key,
}

/// What each Service asks for.
#[derive(Default)]
pub(super) struct Claims {
    by_service: HashMap<Key, (Rank, HashSet<Frontend>)>,
    by_frontend: HashMap<Frontend, BTreeMap<Rank, Backend>>,
    /// Frontends that lead elsewhere than the kernel was told last.
    moved: HashSet<Frontend>,
}

impl Claims {
    /// Takes what a Service asks for instead of what it asked for before.
    pub(super) fn set(&mut self, key: &Key, created: Option<Time>, wanted: HashMap<Frontend, Backend>) {
        let rank = Rank { created, key: key.clone() };
        if let Some((old, frontends)) = self.by_service.remove(key) {
            for frontend in frontends.iter().filter(|frontend| old != rank || !wanted.contains_key(*frontend)) {
                self.withdraw(frontend, &old);
            }
        }
        if wanted.is_empty() {
            return;
        }
        let frontends = wanted.keys().copied().collect();
        for (frontend, backend) in wanted {
            let claimants = self.by_frontend.entry(frontend).or_default();
            let changed = claimants.get(&rank) != Some(&backend);
            claimants.insert(rank.clone(), backend);
            if changed && claimants.first_key_value().is_some_and(|(first, _)| *first == rank) {
                self.moved.insert(frontend);
            }
        }
        self.by_service.insert(key.clone(), (rank, frontends));
    }

    fn withdraw(&mut self, frontend: &Frontend, rank: &Rank) {
        let Some(claimants) = self.by_frontend.get_mut(frontend) else { return };
        if claimants.first_key_value().is_some_and(|(first, _)| first == rank) {
            self.moved.insert(*frontend);
        }
        claimants.remove(rank);
        if claimants.is_empty() {
            self.by_frontend.remove(frontend);
        }
    }

    /// Everything that leads somewhere.
    pub(super) fn all(&self) -> HashMap<Frontend, Backend> {
        self.by_frontend.keys().filter_map(|frontend| Some((*frontend, self.backend(frontend)?.clone()))).collect()
    }

    /// What the kernel isn't told yet. What goes comes first.
    pub(super) fn changes(&self) -> Vec<Change> {
        let mut changes: Vec<Change> =
            self.moved.iter().map(|frontend| (*frontend, self.backend(frontend).cloned())).collect();
        changes.sort_by_key(|(_, backend)| backend.is_some());
        changes
    }

    /// Whether there is anything to tell.
    pub(super) fn moved(&self) -> bool {
        !self.moved.is_empty()
    }

    /// The kernel knows.
    pub(super) fn told(&mut self) {
        self.moved.clear();
    }

    fn backend(&self, frontend: &Frontend) -> Option<&Backend> {
        Some(self.by_frontend.get(frontend)?.first_key_value()?.1)
    }

    pub(super) fn owner(&self, frontend: &Frontend) -> Option<&Key> {
        Some(&self.by_frontend.get(frontend)?.first_key_value()?.0.key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use carob_network::{Protocol, Side};

    fn key(name: &str) -> Key {
        Key { namespace: "n".to_owned(), name: name.to_owned() }
    }

    fn at(port: u16) -> Frontend {
        let address = [192, 0, 2, 1].into();
        Frontend { side: Side::Outside, address, protocol: Protocol::Tcp, port }
    }

    fn leads_to(name: u8) -> Backend {
        let endpoints = vec![std::net::SocketAddr::from(([10, 0, 0, name], 80))];
        Backend::Endpoints { endpoints, affinity: None, clients: None }
    }

    fn created(second: i64) -> Option<Time> {
        serde_json::from_value(format!("2026-01-01T00:00:0{second}Z").into()).unwrap()
    }

    fn changes(claims: &mut Claims) -> Vec<Change> {
        let changes = claims.changes();
        claims.told();
        changes
    }

    #[test]
    fn an_address_is_the_oldest_services_until_that_goes() {
        let mut claims = Claims::default();
        claims.set(&key("young"), created(2), [(at(80), leads_to(2)), (at(81), leads_to(2))].into());
        assert_eq!(changes(&mut claims).len(), 2);
        claims.set(&key("old"), created(1), [(at(80), leads_to(1))].into());
        assert_eq!(changes(&mut claims), [(at(80), Some(leads_to(1)))]);
        // Who hasn't got it changes nothing by what it does.
        claims.set(&key("young"), created(2), [(at(80), leads_to(3))].into());
        assert_eq!(changes(&mut claims), [(at(81), None)]);
        claims.set(&key("young"), created(2), HashMap::new());
        claims.set(&key("young"), created(2), [(at(80), leads_to(3))].into());
        assert_eq!(changes(&mut claims), []);
        assert_eq!(claims.owner(&at(80)), Some(&key("old")));
        claims.set(&key("old"), None, HashMap::new());
        assert_eq!(changes(&mut claims), [(at(80), Some(leads_to(3)))]);
        assert_eq!(claims.all(), [(at(80), leads_to(3))].into());
    }

    #[test]
    fn what_was_not_told_is_told_the_next_time() {
        let mut claims = Claims::default();
        claims.set(&key("one"), created(1), [(at(80), leads_to(1))].into());
        assert_eq!(claims.changes(), claims.changes());
        claims.set(&key("one"), created(1), HashMap::new());
        assert_eq!(changes(&mut claims), [(at(80), None)]);
        // Made anew it is younger.
        claims.set(&key("one"), created(1), [(at(80), leads_to(1))].into());
        claims.set(&key("two"), created(2), [(at(80), leads_to(2))].into());
        claims.set(&key("one"), created(3), [(at(80), leads_to(1))].into());
        assert_eq!(changes(&mut claims), [(at(80), Some(leads_to(2)))]);
    }
}
