//! Services of type LoadBalancer get an address of the configured pool. Those of another class are somebody else's.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::{LoadBalancerIngress, LoadBalancerStatus, Service, ServiceStatus};

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
    pool: Vec<(Ipv4Addr, Ipv4Addr)>,
    /// Addresses that were given, until the informer knows.
    given: Mutex<HashMap<Ipv4Addr, Key>>,
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
        if addresses(&service).any(|address| self.contains(address)) {
            return Ok(None);
        }
        let spec = service.spec.as_ref();
        let wished = spec.and_then(|spec| spec.load_balancer_ip.as_ref()).filter(|text| !text.is_empty());
        let Some(address) = self.choose(&key, wished.map(String::as_str)) else {
            let note = match wished {
                Some(address) => format!("The address {address} is not in the pool, or another Service has it"),
                None => "All addresses of the pool are taken".to_owned(),
            };
            self.voice.warning(&*service, "SyncLoadBalancerFailed", note);
            return Ok(Some(RETRY));
        };
        let ingress = LoadBalancerIngress {
            ip: Some(address.to_string()),
            ip_mode: Some("VIP".to_owned()),
            ..LoadBalancerIngress::default()
        };
        let old = service.status.as_ref();
        let new = ServiceStatus {
            load_balancer: Some(LoadBalancerStatus { ingress: Some(vec![ingress]) }),
            ..old.cloned().unwrap_or_default()
        };
        let written = status::write(&self.cluster.client, &self.cluster.services, &*service, old, &new)
            .await
            .inspect_err(|_| {
                self.given().remove(&address);
            })?;
        if written {
            self.voice.normal(&*service, "EnsuredLoadBalancer", format!("Ensured load balancer at {address}"));
        } else {
            self.given().remove(&address);
        }
        Ok(None)
    }
}

impl LoadBalancers {
    fn given(&self) -> std::sync::MutexGuard<'_, HashMap<Ipv4Addr, Key>> {
        self.given.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn contains(&self, address: Ipv4Addr) -> bool {
        self.pool.iter().any(|(first, last)| (*first..=*last).contains(&address))
    }

    /// An address that no other Service has: the one that is wished for, or the first.
    fn choose(&self, key: &Key, wished: Option<&str>) -> Option<Ipv4Addr> {
        let others = self.cluster.services.list(|service| is_ours(service) && Key::of(service) != *key);
        let taken: Vec<Ipv4Addr> = others.iter().flat_map(|service| addresses(service).collect::<Vec<_>>()).collect();
        let mut given = self.given();
        given.retain(|address, owner| !taken.contains(address) && *owner != *key);
        let free = |address: &Ipv4Addr| !taken.contains(address) && !given.contains_key(address);
        let address = match wished {
            Some(text) => text.parse().ok().filter(|address| self.contains(*address) && free(address)),
            None => self
                .pool
                .iter()
                .flat_map(|(first, last)| (u32::from(*first)..=u32::from(*last)).map(Ipv4Addr::from))
                .find(free),
        }?;
        given.insert(address, key.clone());
        Some(address)
    }
}

fn is_ours(service: &Service) -> bool {
    let Some(spec) = &service.spec else { return false };
    let class = spec.load_balancer_class.as_deref();
    spec.type_.as_deref() == Some("LoadBalancer") && class.is_none_or(|class| class == CLASS)
}

/// The addresses that a Service has been given.
fn addresses(service: &Service) -> impl Iterator<Item = Ipv4Addr> {
    let balancer = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let ingress = balancer.and_then(|balancer| balancer.ingress.as_ref()).into_iter().flatten();
    ingress.filter_map(|ingress| ingress.ip.as_ref()?.parse().ok())
}
