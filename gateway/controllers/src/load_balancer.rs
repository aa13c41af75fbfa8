//! Services of type LoadBalancer get an address of the configured pool, one of each of their families. Those of another class are somebody else's.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::{LoadBalancerIngress, LoadBalancerStatus, Service, ServiceSpec, ServiceStatus};

use crate::cluster::Cluster;
use crate::controller::{Controller, Setup, each};
use crate::events::Voice;
use crate::informer::Key;
use crate::queue::{Again, Queue};
use crate::status;

/// `spec.loadBalancerClass` of those that the pool is for, beside Services that name none.
pub const CLASS: &str = "carob.dev/pool";
/// How long until somebody who got no address is looked at again: another may have given one back.
const RETRY: Duration = Duration::from_secs(5);

pub(crate) struct LoadBalancers {
    cluster: Cluster,
    voice: Voice,
    /// From the first address to the last of each range.
    pool: Vec<(IpAddr, IpAddr)>,
    /// Addresses that were given, until the informer knows.
    given: Mutex<HashMap<IpAddr, Key>>,
}

impl Controller for LoadBalancers {
    type Item = Key;
    const NAME: &'static str = "service-controller";

    fn new(setup: &Setup<'_>) -> Self {
        Self {
            cluster: setup.cluster.clone(),
            voice: setup.voice.clone(),
            pool: setup.options.load_balancers.clone(),
            given: Mutex::default(),
        }
    }

    fn listen(self: &Arc<Self>, _: &Setup<'_>, queue: &Queue<Key>) {
        if !self.pool.is_empty() {
            each(&self.cluster.services, queue);
        }
    }

    async fn reconcile(&self, key: Key) -> Result<Again, kube::Error> {
        let service = self.cluster.services.get(&key).filter(|service| is_ours(service));
        let Some(service) = service.filter(|service| service.metadata.deletion_timestamp.is_none()) else {
            self.given().retain(|_, owner| *owner != key);
            return Ok(None);
        };
        let spec = service.spec.clone().unwrap_or_default();
        let families = families(&spec);
        let (kept, lost): (Vec<IpAddr>, Vec<IpAddr>) = addresses(&service)
            .filter(|address| self.contains(*address))
            .partition(|address| families.contains(&Family::of(*address)));
        let lacks: Vec<Family> =
            families.iter().copied().filter(|family| !kept.iter().any(|ip| Family::of(*ip) == *family)).collect();
        if lacks.is_empty() && lost.is_empty() {
            return Ok(None);
        }
        let wish = Wish::of(&spec, &families);
        let chosen = self.choose(&key, &lacks, wish.as_ref());
        let refused = lacks.iter().filter(|family| !chosen.iter().any(|ip| Family::of(*ip) == **family));
        let refused: Vec<Family> = refused.copied().collect();
        let outcome = self.tell(&key, &service, kept.into_iter().chain(chosen), &families).await;
        if !matches!(outcome, Ok(true)) {
            self.given().retain(|_, owner| *owner != key);
        }
        outcome?;
        let settles = spec.ip_family_policy.as_deref() == Some("PreferDualStack") && refused.len() < families.len();
        Ok(self.complain(&service, &refused, wish.as_ref(), settles))
    }
}

/// A family of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

impl Family {
    fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }
}

/// The address that a Service asks for.
struct Wish {
    text: String,
    /// Nothing where it is none that the Service could have.
    address: Option<IpAddr>,
}

impl Wish {
    fn of(spec: &ServiceSpec, families: &[Family]) -> Option<Self> {
        let text = spec.load_balancer_ip.clone().filter(|text| !text.is_empty())?;
        let address = text.parse().ok().filter(|address| families.contains(&Family::of(*address)));
        Some(Self { text, address })
    }

    /// Whether it says which address of a family is to be had.
    fn concerns(&self, family: Family) -> bool {
        self.address.is_none_or(|address| Family::of(address) == family)
    }
}

/// The families of which a Service has addresses, in its order.
fn families(spec: &ServiceSpec) -> Vec<Family> {
    let named = spec.ip_families.iter().flatten();
    let named: Vec<Family> = named.map(|name| if name == "IPv6" { Family::V6 } else { Family::V4 }).collect();
    if named.is_empty() { vec![Family::V4] } else { named }
}

impl LoadBalancers {
    fn given(&self) -> std::sync::MutexGuard<'_, HashMap<IpAddr, Key>> {
        self.given.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn contains(&self, address: IpAddr) -> bool {
        self.pool.iter().any(|(first, last)| (*first..=*last).contains(&address))
    }

    fn has(&self, family: Family) -> bool {
        self.pool.iter().any(|(first, _)| Family::of(*first) == family)
    }

    /// Addresses that no other Service has, one of each family where there is one: the one that is wished for, or the first.
    fn choose(&self, key: &Key, families: &[Family], wish: Option<&Wish>) -> Vec<IpAddr> {
        let others = self.cluster.services.list(|service| is_ours(service) && Key::of(service) != *key);
        let taken: HashSet<IpAddr> = others.iter().flat_map(|service| addresses(service).collect::<Vec<_>>()).collect();
        let mut given = self.given();
        given.retain(|address, owner| !taken.contains(address) && *owner != *key);
        let free = |address: &IpAddr| !taken.contains(address) && !given.contains_key(address);
        let choose = |family: &Family| {
            if let Some(wish) = wish.filter(|wish| wish.concerns(*family)) {
                return wish.address.filter(|address| self.contains(*address) && free(address));
            }
            let ranges = self.pool.iter().filter(|(first, _)| Family::of(*first) == *family);
            ranges.flat_map(|(first, last)| between(*first, *last)).find(free)
        };
        let chosen: Vec<IpAddr> = families.iter().filter_map(choose).collect();
        given.extend(chosen.iter().map(|address| (*address, key.clone())));
        chosen
    }

    /// Writes the addresses that a Service has, in the order of its families. Gives whether that was necessary.
    async fn tell(
        &self,
        key: &Key,
        service: &Arc<Service>,
        addresses: impl Iterator<Item = IpAddr>,
        families: &[Family],
    ) -> Result<bool, kube::Error> {
        let mut addresses: Vec<IpAddr> = addresses.collect();
        addresses.sort_by_key(|address| families.iter().position(|family| *family == Family::of(*address)));
        let ingress = |address: &IpAddr| LoadBalancerIngress {
            ip: Some(address.to_string()),
            ip_mode: Some("VIP".to_owned()),
            ..LoadBalancerIngress::default()
        };
        let ingress: Vec<LoadBalancerIngress> = addresses.iter().map(ingress).collect();
        let old = service.status.as_ref();
        if ingress.is_empty() && self::addresses(service).next().is_none() {
            return Ok(false);
        }
        let new = ServiceStatus {
            load_balancer: Some(LoadBalancerStatus { ingress: Some(ingress).filter(|all| !all.is_empty()) }),
            ..old.cloned().unwrap_or_default()
        };
        let written = status::write(&self.cluster.client, &self.cluster.services, &**service, old, &new).await?;
        if written && !addresses.is_empty() {
            tracing::debug!(service = key.name, ?addresses, "a load balancer has addresses");
            let all: Vec<String> = addresses.iter().map(ToString::to_string).collect();
            self.voice.normal(
                &**service,
                "EnsuredLoadBalancer",
                format!("Ensured load balancer at {}", all.join(" and ")),
            );
        }
        Ok(written)
    }

    /// Says why a Service has no address of some families; gives when to look again. Who prefers two families `settles` for
    /// the one that the pool has.
    fn complain(&self, service: &Arc<Service>, refused: &[Family], wish: Option<&Wish>, settles: bool) -> Again {
        let mut again = None;
        for family in refused {
            let (name, has) = (family.name(), self.has(*family));
            let note = match wish.filter(|wish| wish.concerns(*family)) {
                Some(wish) => {
                    format!("The address {} is not in the pool, or another Service has it", wish.text)
                }
                None if has => format!("All {name} addresses of the pool are taken"),
                None if settles => continue,
                None => format!("The pool has no {name} addresses"),
            };
            // What the pool doesn't have at all will not be there later.
            again = again.or(has.then_some(RETRY));
            self.voice.warning(&**service, "SyncLoadBalancerFailed", note);
        }
        again
    }
}

/// The addresses from one to another of the same family.
fn between(first: IpAddr, last: IpAddr) -> Box<dyn Iterator<Item = IpAddr>> {
    match (first, last) {
        (IpAddr::V4(first), IpAddr::V4(last)) => {
            Box::new((u32::from(first)..=u32::from(last)).map(|number| Ipv4Addr::from(number).into()))
        }
        (IpAddr::V6(first), IpAddr::V6(last)) => {
            Box::new((u128::from(first)..=u128::from(last)).map(|number| Ipv6Addr::from(number).into()))
        }
        _ => Box::new(std::iter::empty()),
    }
}

fn is_ours(service: &Service) -> bool {
    let Some(spec) = &service.spec else { return false };
    let class = spec.load_balancer_class.as_deref();
    spec.type_.as_deref() == Some("LoadBalancer") && class.is_none_or(|class| class == CLASS)
}

/// The addresses that a Service has been given.
fn addresses(service: &Service) -> impl Iterator<Item = IpAddr> {
    let balancer = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let ingress = balancer.and_then(|balancer| balancer.ingress.as_ref()).into_iter().flatten();
    ingress.filter_map(|ingress| ingress.ip.as_ref()?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_wish_is_for_an_address_of_the_services_families() {
        let wish = |spec: serde_json::Value| {
            let spec: ServiceSpec = serde_json::from_value(spec).unwrap();
            let families = families(&spec);
            let wish = Wish::of(&spec, &families)?;
            Some((wish.concerns(Family::V4), wish.concerns(Family::V6), wish.address.is_some()))
        };
        assert_eq!(wish(json!({})), None);
        let both = json!(["IPv6", "IPv4"]);
        assert_eq!(wish(json!({"loadBalancerIP": "2001:db8::1", "ipFamilies": both})), Some((false, true, true)));
        assert_eq!(wish(json!({"loadBalancerIP": "192.0.2.1", "ipFamilies": both})), Some((true, false, true)));
        // It has none, rather than another.
        assert_eq!(wish(json!({"loadBalancerIP": "2001:db8::1"})), Some((true, true, false)));
        assert_eq!(wish(json!({"loadBalancerIP": "x"})), Some((true, true, false)));
    }

    #[test]
    fn ranges_of_either_family_are_counted_through() {
        let all = |first: &str, last: &str| -> Vec<String> {
            between(first.parse().unwrap(), last.parse().unwrap()).map(|address| address.to_string()).collect()
        };
        assert_eq!(all("192.0.2.255", "192.0.3.1"), ["192.0.2.255", "192.0.3.0", "192.0.3.1"]);
        assert_eq!(all("2001:db8::ffff", "2001:db8::1:0"), ["2001:db8::ffff", "2001:db8::1:0"]);
    }
}
