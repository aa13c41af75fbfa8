//! What stored Services have.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use carob_api::validation::addresses;
use carob_store::{Entry, Revision};
use serde_json::Value;

/// Something that only one Service can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Claim {
    Address(IpAddr),
    /// On every node.
    Port(u16),
}

/// What is taken, as of the Services that were last looked at.
#[derive(Default)]
pub(super) struct Taken {
    /// By key: what was written when.
    services: HashMap<Arc<str>, (Revision, HashSet<Claim>)>,
    /// How many Services have it: more than one only if somebody wrote to the store by another way.
    claims: HashMap<Claim, usize>,
}

impl Taken {
    pub fn contains(&self, claim: &Claim) -> bool {
        self.claims.contains_key(claim)
    }

    /// Looks at all stored Services; only those that have changed since are decoded.
    pub fn follow(&mut self, entries: &[Entry]) {
        let present: HashSet<&str> = entries.iter().map(|entry| &*entry.key).collect();
        let gone: Vec<_> = self.services.keys().filter(|key| !present.contains(&***key)).cloned().collect();
        for key in gone {
            self.forget(&key);
        }
        for entry in entries {
            if self.services.get(&entry.key).is_some_and(|(revision, _)| *revision == entry.revision) {
                continue;
            }
            self.forget(&entry.key);
            let object: Value = serde_json::from_slice(&entry.value).unwrap_or_else(|error| {
                tracing::error!(%error, key = &*entry.key, "a stored Service is damaged");
                Value::Null
            });
            let claims = claims(&object);
            for claim in &claims {
                *self.claims.entry(*claim).or_default() += 1;
            }
            self.services.insert(Arc::clone(&entry.key), (entry.revision, claims));
        }
    }

    fn forget(&mut self, key: &str) {
        let Some((_, claims)) = self.services.remove(key) else { return };
        for claim in claims {
            if let Some(count) = self.claims.get_mut(&claim) {
                *count -= 1;
                if *count == 0 {
                    self.claims.remove(&claim);
                }
            }
        }
    }
}

/// What a Service has.
pub(super) fn claims(object: &Value) -> HashSet<Claim> {
    let list = |pointer: &str| object.pointer(pointer).and_then(Value::as_array).into_iter().flatten();
    let addresses = list("/spec/clusterIPs").filter_map(|ip| addresses::parse_ip(ip.as_str()?)).map(Claim::Address);
    let ports = list("/spec/ports").filter_map(|port| port.get("nodePort"));
    let ports = ports.chain(object.pointer("/spec/healthCheckNodePort")).filter_map(Value::as_u64);
    let ports = ports.filter_map(|port| u16::try_from(port).ok()).filter(|port| *port != 0).map(Claim::Port);
    addresses.chain(ports).collect()
}
