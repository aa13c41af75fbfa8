//! Addresses for the pods of nodes that joined: each gets a block of the pods' range. Workers of the gateway's own process
//! take theirs from the beginning of the range, so these are given from its end.

use std::collections::HashMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;
use tokio::sync::Mutex;

use crate::cluster::Cluster;
use crate::controller::{Controller, Setup};
use crate::events::Voice;
use crate::informer::Key;
use crate::queue::{Again, Queue};
use crate::replica_set::tolerate_gone;

/// Whence nodes' blocks are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeRanges {
    /// The first address.
    pub first: Ipv4Addr,
    /// The first address of the pods' IPv6 range, in a dual-stack cluster: a pod's of it ends in its IPv4 one.
    pub first6: Option<Ipv6Addr>,
    /// How long the prefix of all pods' addresses is.
    pub prefix: u8,
    /// How long that of one node's is.
    pub block: u8,
    /// So many blocks at the beginning are not given.
    pub reserved: u32,
}

impl NodeRanges {
    fn blocks(&self) -> u32 {
        1_u32.checked_shl(u32::from(self.block.saturating_sub(self.prefix))).unwrap_or(0)
    }

    /// A block, of each family.
    fn block(&self, index: u32) -> Vec<String> {
        let first = u32::from(self.first) + (index << (32 - u32::from(self.block)));
        let first6 = self.first6.map(|range| Ipv6Addr::from(u128::from(range) | u128::from(first)));
        let mut block = vec![format!("{}/{}", Ipv4Addr::from(first), self.block)];
        block.extend(first6.map(|first| format!("{first}/{}", 96 + self.block)));
        block
    }

    /// All blocks that are given.
    pub fn given(&self) -> impl Iterator<Item = Vec<String>> {
        (self.reserved..self.blocks()).map(|index| self.block(index))
    }

    /// The last block that nobody has.
    fn free(&self, taken: impl Fn(&str) -> bool) -> Option<Vec<String>> {
        (self.reserved..self.blocks()).rev().map(|index| self.block(index)).find(|block| !taken(&block[0]))
    }
}

pub(crate) struct Ranges {
    cluster: Cluster,
    voice: Voice,
    whole: Option<NodeRanges>,
    /// Blocks that were given, by node, until the informer knows.
    given: Mutex<HashMap<String, String>>,
}

impl Controller for Ranges {
    /// A node.
    type Item = String;
    const NAME: &'static str = "node-controller";

    fn new(setup: &Setup<'_>) -> Self {
        Self {
            cluster: setup.cluster.clone(),
            voice: setup.voice.clone(),
            whole: setup.options.node_ranges,
            given: Mutex::default(),
        }
    }

    fn listen(self: &Arc<Self>, _: &Setup<'_>, queue: &Queue<String>) {
        if self.whole.is_none() {
            return;
        }
        let queue = queue.clone();
        self.cluster.nodes.on_change(move |change| {
            if let Some(node) = change.new.or(change.old) {
                queue.add(node.metadata.name.clone().unwrap_or_default());
            }
        });
    }

    async fn reconcile(&self, name: String) -> Result<Again, kube::Error> {
        let mut given = self.given.lock().await;
        let node = self.cluster.nodes.get(&Key::new("", &name));
        let (Some(ranges), Some(node)) = (self.whole, node.filter(|node| range(node).is_none())) else {
            given.remove(&name);
            return Ok(None);
        };
        let taken = |block: &str| {
            given.iter().any(|(owner, given)| *owner != name && overlap(given, block))
                || !self.cluster.nodes.list(|other| range(other).is_some_and(|other| overlap(other, block))).is_empty()
        };
        let Some(block) = ranges.free(taken) else {
            let why = format!("Node {name} status is now: CIDRNotAvailable");
            self.voice.normal(&*node, "CIDRNotAvailable", why);
            return Ok(None);
        };
        let api: Api<Node> = Api::all(self.cluster.client.clone());
        let patch = json!({"spec": {"podCIDR": block[0], "podCIDRs": block}});
        let patched = api.patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await;
        given.extend(block.into_iter().next().map(|first| (name, first)));
        tolerate_gone(patched.map(drop)).map(|()| None)
    }
}

fn range(node: &Node) -> Option<&str> {
    node.spec.as_ref()?.pod_cidr.as_deref().filter(|range| !range.is_empty())
}

/// Whether two ranges of IPv4 have addresses in common.
fn overlap(one: &str, other: &str) -> bool {
    let read = |text: &str| {
        let (first, bits) = text.split_once('/')?;
        Some((u32::from(first.parse::<Ipv4Addr>().ok()?), bits.parse::<u32>().ok()?))
    };
    let (Some((one, bits)), Some((other, more))) = (read(one), read(other)) else { return false };
    (one ^ other).checked_shr(32_u32.saturating_sub(bits.min(more))).unwrap_or(0) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_given_from_the_end_and_the_first_ones_never() {
        let ranges =
            NodeRanges { first: Ipv4Addr::new(10, 42, 0, 0), first6: None, prefix: 20, block: 22, reserved: 2 };
        let first = |free: Option<Vec<String>>| free.map(|free| free.join(" "));
        assert_eq!(first(ranges.free(|_| false)).as_deref(), Some("10.42.12.0/22"));
        assert_eq!(first(ranges.free(|block| block == "10.42.12.0/22")).as_deref(), Some("10.42.8.0/22"));
        assert_eq!(ranges.free(|block| block != "10.42.4.0/22"), None);
        let one = NodeRanges { prefix: 24, block: 24, reserved: 1, ..ranges };
        assert_eq!(one.free(|_| false), None);
        let both = NodeRanges { first6: Some("fd42::".parse().unwrap()), ..ranges };
        assert_eq!(first(both.free(|_| false)).as_deref(), Some("10.42.12.0/22 fd42::a2a:c00/118"));
    }

    #[test]
    fn a_part_of_a_block_is_of_the_block() {
        for (other, overlaps) in [
            ("10.42.248.0/21", true),
            ("10.42.128.0/17", true),
            ("10.42.249.0/24", true),
            ("0.0.0.0/0", true),
            ("128.0.0.0/1", false),
            ("10.42.240.0/21", false),
            ("fd42::/64", false),
        ] {
            assert_eq!(overlap("10.42.248.0/21", other), overlaps, "{other}");
            assert_eq!(overlap(other, "10.42.248.0/21"), overlaps, "{other}");
        }
    }
}
