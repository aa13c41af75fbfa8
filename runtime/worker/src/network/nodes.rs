//! The other nodes: packets for their pods are led to their machines, the ports at which their workers answer the gateway
//! are closed to this node's pods, and what pods exchange with them is no traffic with the internet.

use super::copy::{Copy, Key};
use crate::context::Context;
use crate::errors::chain;
use crate::node::MACHINE_ADDRESS;
use carob_network::{Doors, Ipv4Net, Ways};
use futures::TryStreamExt;
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::runtime::{WatchStreamExt, watcher};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How long after a refusal the kernel is told again.
const RETRY: Duration = Duration::from_secs(2);
/// How often the ways are looked at without a reason: they go with a link that goes down, and nobody tells.
const AGAIN: Duration = Duration::from_secs(10);

/// Follows nodes until `shutdown`, this one among them; the kernel goes on as it was told last.
pub(super) async fn run(ctx: Arc<Context>, shutdown: CancellationToken) {
    let nodes = watcher(Api::<Node>::all(ctx.services.clone()), watcher::Config::default()).default_backoff();
    let mut nodes = pin!(nodes);
    let mut known = Copy::default();
    let key = Key { namespace: String::new(), name: ctx.node.clone() };
    let (mut ways, mut doors, mut told): (Option<Ways>, _, _) = (None, Doors::new(), None);
    let mut due = None;
    loop {
        let timer = async {
            match due {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = shutdown.cancelled() => return,
            event = nodes.try_next() => match event {
                Ok(Some(event)) => {
                    known.take(event);
                    ctx.own_node.send_if_modified(|own| {
                        let now = known.get(&key).cloned();
                        let changed = now.as_ref().map(Arc::as_ptr) != own.as_ref().map(Arc::as_ptr);
                        *own = now;
                        changed
                    });
                    // What the kernel knows is better than a part of the list.
                    if known.complete() {
                        let soon = Instant::now() + super::GATHER;
                        due = Some(due.map_or(soon, |due: Instant| due.min(soon)));
                    }
                }
                Ok(None) => return,
                Err(error) => tracing::debug!(%error, "the watch of nodes is being renewed"),
            },
            () = timer => {
                let all: Vec<Arc<Node>> = known.keys().filter_map(|key: &Key| known.get(key).cloned()).collect();
                let (new_ways, new_doors) = (ways_of(&all, &ctx.node, ctx.host_ip, ctx.network.cluster_cidr()), doors_of(&all));
                due = Some(Instant::now() + AGAIN);
                match ctx.network.restore().await {
                    Ok(false) => {}
                    Ok(true) => tracing::warn!("somebody had taken the pods' network rules away: they are in force again"),
                    Err(error) => {
                        tracing::error!(error = %chain(&error), "the pods' network rules may be gone");
                        due = Some(Instant::now() + RETRY);
                    }
                }
                if new_doors != doors {
                    match ctx.network.close(new_doors.clone()).await {
                        Ok(()) => doors = new_doors,
                        Err(error) => {
                            tracing::error!(%error, "workers' ports may be open to pods");
                            due = Some(Instant::now() + RETRY);
                        }
                    }
                }
                let addresses = addresses_of(&all);
                if told.as_ref() != Some(&addresses) {
                    match ctx.network.set_nodes(addresses.clone()).await {
                        Ok(()) => told = Some(addresses),
                        Err(error) => {
                            tracing::error!(%error, "traffic with nodes may be counted as the internet's");
                            due = Some(Instant::now() + RETRY);
                        }
                    }
                }
                // Where nobody ever was elsewhere, nothing is asked of the kernel.
                if ctx.annexed || (new_ways.is_empty() && ways.as_ref().is_some_and(Ways::is_empty)) {
                    continue;
                }
                let machine = match ctx.host_ip {
                    IpAddr::V4(address) => Some(address),
                    IpAddr::V6(_) => None,
                };
                match ctx.network.set_ways(new_ways.clone(), machine).await {
                    Ok(refused) if refused.is_empty() => ways = Some(new_ways),
                    Ok(refused) => {
                        for (block, error) in refused {
                            tracing::warn!(%block, error = %chain(&error), "pods of another node can't be reached");
                        }
                        due = Some(Instant::now() + RETRY);
                    }
                    Err(error) => {
                        tracing::error!(%error, "the kernel did not take the ways to other nodes");
                        due = Some(Instant::now() + RETRY);
                    }
                }
            }
        }
    }
}

/// The blocks of nodes on other machines. Of two nodes with one block the older one has it, and nobody has what isn't
/// pods': nobody takes another's by saying so.
fn ways_of(nodes: &[Arc<Node>], own: &str, own_address: IpAddr, cluster: Ipv4Net) -> Ways {
    let mut oldest: BTreeMap<Ipv4Net, &Node> = BTreeMap::new();
    for node in nodes {
        let Some(block) = block(node).filter(|block| cluster.contains(block)) else { continue };
        let age = |node: &Node| (node.metadata.creation_timestamp.clone(), node.metadata.name.clone());
        let overlapping: Vec<Ipv4Net> =
            oldest.keys().filter(|other| other.contains(&block) || block.contains(*other)).copied().collect();
        if overlapping.iter().any(|other| age(oldest[other]) < age(node)) {
            tracing::warn!(node = node.metadata.name, %block, "another node has these addresses already");
            continue;
        }
        oldest.retain(|other, _| !overlapping.contains(other));
        oldest.insert(block, node);
    }
    let elsewhere = oldest.into_iter().filter(|(_, node)| node.metadata.name.as_deref() != Some(own));
    elsewhere
        .filter_map(|(block, node)| Some((block, machine(node)?)))
        .filter(|(_, machine)| IpAddr::V4(*machine) != own_address)
        .collect()
}

fn doors_of(nodes: &[Arc<Node>]) -> Doors {
    let door = |node: &Arc<Node>| {
        let endpoints = node.status.as_ref()?.daemon_endpoints.as_ref()?;
        let port = u16::try_from(endpoints.kubelet_endpoint.as_ref()?.port).ok().filter(|port| *port != 0)?;
        Some(addresses(node).map(|address| SocketAddr::new(address, port)).collect::<Vec<_>>())
    };
    nodes.iter().filter_map(door).flatten().collect()
}

fn block(node: &Node) -> Option<Ipv4Net> {
    node.spec.as_ref()?.pod_cidr.as_ref()?.parse().ok()
}

/// The address of the machine that a node is on: other machines reach it there.
fn machine(node: &Node) -> Option<Ipv4Addr> {
    let told = node.metadata.annotations.as_ref().and_then(|all| all.get(MACHINE_ADDRESS)?.parse().ok());
    told.or_else(|| {
        addresses(node).find_map(|address| match address {
            IpAddr::V4(address) => Some(address),
            IpAddr::V6(_) => None,
        })
    })
}

/// Where nodes are reached, by whoever.
fn addresses_of(nodes: &[Arc<Node>]) -> BTreeSet<IpAddr> {
    let told = |node: &Node| {
        let all = node.status.iter().flat_map(|status| status.addresses.iter().flatten());
        let own = all.filter_map(|address| address.address.parse().ok());
        own.chain(machine(node).map(IpAddr::from)).collect::<Vec<_>>()
    };
    nodes.iter().flat_map(|node| told(node)).collect()
}

fn addresses(node: &Node) -> impl Iterator<Item = IpAddr> {
    let all = node.status.iter().flat_map(|status| status.addresses.iter().flatten());
    all.filter(|address| address.type_ == "InternalIP").filter_map(|address| address.address.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn node(name: &str, block: &str, address: &str, created: u32) -> Arc<Node> {
        let node = json!({"metadata": {"name": name, "creationTimestamp": format!("2026-01-01T00:00:0{created}Z")},
            "spec": {"podCIDR": block}, "status": {"addresses": [{"type": "InternalIP", "address": address}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": 10250}}}});
        Arc::new(serde_json::from_value(node).unwrap())
    }

    #[test]
    fn other_machines_nodes_are_reached_by_their_addresses_and_an_older_ones_block_is_its_own() {
        let mut annexed = (*node("here-2", "10.42.4.0/22", "10.42.4.1", 1)).clone();
        annexed.metadata.annotations = Some([(MACHINE_ADDRESS.to_owned(), "192.0.2.1".to_owned())].into());
        let nodes = [
            node("here", "10.42.0.0/22", "192.0.2.1", 0),
            Arc::new(annexed),
            node("thief", "10.42.8.0/23", "192.0.2.66", 5),
            node("there", "10.42.8.0/22", "192.0.2.2", 2),
            node("greedy", "128.0.0.0/1", "192.0.2.67", 1),
        ];
        let ways = |own: &str, address: &str| -> Vec<String> {
            let cluster = "10.42.0.0/16".parse().unwrap();
            let ways = ways_of(&nodes, own, address.parse().unwrap(), cluster);
            ways.iter().map(|(block, via)| format!("{block} {via}")).collect()
        };
        assert_eq!(ways("here", "192.0.2.1"), ["10.42.8.0/22 192.0.2.2"]);
        assert_eq!(ways("there", "192.0.2.2"), ["10.42.0.0/22 192.0.2.1", "10.42.4.0/22 192.0.2.1"]);
        let all: Vec<String> = addresses_of(&nodes).iter().map(ToString::to_string).collect();
        assert_eq!(all, ["10.42.4.1", "192.0.2.1", "192.0.2.2", "192.0.2.66", "192.0.2.67"]);
        assert!(doors_of(&nodes).contains(&"10.42.4.1:10250".parse().unwrap()));
    }
}
