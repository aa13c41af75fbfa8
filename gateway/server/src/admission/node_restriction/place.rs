//! Where a node says it is, and which addresses its pods have: all others believe it. They lead packets there, the gateway asks
//! it there for logs, and what it shows to who asks is signed for its addresses. So a node that joined can't say what means
//! something else in the cluster. (Kubernetes has no such check: there, addresses come from who made the machine.)
//!
//! Nodes of the gateway's own process say what the gateway told them.

use std::net::IpAddr;

use carob_api::status::Status;
use carob_store::KeyRange;
use ipnet::IpNet;
use jiff::Timestamp;
use serde_json::Value;
use tokio::sync::OwnedMutexGuard;

use super::{LEASE_NAMESPACE, Operation, Request, refuse};
use crate::PodRange;
use crate::authn::MASTERS;
use crate::authz::node;
use crate::call::Call;
use crate::objects::{self, store_failure, text};

/// The annotation with the address of the machine that a node shares with others.
const MACHINE_ADDRESS: &str = "carob.dev/machine-address";
/// Ends of names that the cluster's DNS answers for, or that mean the machine itself.
const OWN_DOMAINS: [&str; 3] = ["svc", "cluster.local", "localhost"];
/// No namespace's name: turns of namespaces are others.
const TURN: &str = "/nodes";

/// Names and addresses that are no node's that joins, and the blocks of addresses for pods that such nodes get.
pub(crate) struct Reserved {
    /// Those of the API server.
    names: Vec<String>,
    /// Those of pods and Services.
    ranges: Vec<IpNet>,
    /// None where nobody said.
    blocks: Option<Vec<Vec<IpNet>>>,
}

impl Reserved {
    /// In a cluster whose API server has these names and addresses.
    pub fn new(names: &[String], services: impl IntoIterator<Item = IpNet>, pods: Option<PodRange>) -> Self {
        let names = names.iter().map(|name| canonical(name)).collect();
        let (whole, blocks) = pods.map_or_else(Default::default, |pods| (pods.whole, Some(pods.blocks)));
        Self { names, ranges: services.into_iter().chain(whole).collect(), blocks }
    }

    /// What a name or an address is, if it can't be a node's.
    pub fn problem(&self, name: &str) -> Option<String> {
        let name = canonical(name);
        if self.names.contains(&name) {
            return Some("the API server's".to_owned());
        }
        let Ok(address) = name.parse::<IpAddr>() else {
            let within =
                |domain: &&str| name.strip_suffix(*domain).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
            let domain = OWN_DOMAINS.iter().find(|domain| within(domain))?;
            return Some(format!("one of the cluster's own names, which end in {domain}"));
        };
        if is_of_no_machine(address) {
            return Some("no address at which others find one machine".to_owned());
        }
        let range = self.ranges.iter().find(|range| range.contains(&address))?;
        Some(format!("one of {range}, from which pods and Services have theirs"))
    }

    /// Whether nodes that join get such ranges for their pods: a block, or its first family.
    fn gives(&self, ranges: &[IpNet]) -> bool {
        self.blocks.as_ref().is_none_or(|blocks| blocks.iter().any(|block| block.starts_with(ranges)))
    }
}

/// Of the ways to write one name or address, always the same.
fn canonical(name: &str) -> String {
    match name.parse::<IpAddr>() {
        Ok(address) => address.to_canonical().to_string(),
        Err(_) => name.trim_end_matches('.').to_ascii_lowercase(),
    }
}

fn is_of_no_machine(address: IpAddr) -> bool {
    let special = address.is_unspecified() || address.is_loopback() || address.is_multicast();
    special
        || match address {
            IpAddr::V4(address) => address.is_link_local() || address.is_broadcast(),
            IpAddr::V6(address) => address.is_unicast_link_local(),
        }
}

/// Refuses what a node that joined may not say of itself.
pub(super) async fn check(request: &Request<'_>, node: &str) -> Result<(), Status> {
    let call = request.call;
    if call.identity.inside || !matches!(request.operation, Operation::Create | Operation::Update) {
        return Ok(());
    }
    let reserved = &call.server.reserved;
    if request.operation == Operation::Create
        && let Some(what) = reserved.problem(node)
    {
        return refuse(request, format!("node {node:?} is not allowed to have this name: it is {what}"));
    }
    let old = request.old.unwrap_or(&Value::Null);
    let told = machine_address(&request.object);
    if told.is_some() && told != machine_address(old) {
        return refuse(request, format!("node {node:?} is not allowed to set the annotation {MACHINE_ADDRESS}"));
    }
    if request.subresource == "status" || request.operation == Operation::Create {
        addresses_of_its_own(request, node, old).await?;
        the_same_machine(request, node, old).await?;
    }
    if request.subresource.is_empty() {
        block_that_is_given(request, node, old)?;
    }
    Ok(())
}

fn machine_address(object: &Value) -> Option<&str> {
    object.pointer("/metadata/annotations")?.get(MACHINE_ADDRESS)?.as_str()
}

/// Type and address of each.
fn addresses(object: &Value) -> Vec<(&str, &str)> {
    let all = object.pointer("/status/addresses").and_then(Value::as_array).into_iter().flatten();
    all.map(|address| (text(address, "/type"), text(address, "/address"))).collect()
}

async fn addresses_of_its_own(request: &Request<'_>, node: &str, old: &Value) -> Result<(), Status> {
    let known = addresses(old);
    let new: Vec<_> = addresses(&request.object).into_iter().filter(|address| !known.contains(address)).collect();
    if new.is_empty() {
        return Ok(());
    }
    let refuse = |kind: &str, address: &str, why: &str| {
        refuse(request, format!("node {node:?} is not allowed to have the address {kind} {address:?}: it is {why}"))
    };
    for (kind, address) in &new {
        match *kind {
            "InternalIP" | "ExternalIP" if address.parse::<IpAddr>().is_err() => {
                return refuse(kind, address, "no IP address");
            }
            "InternalIP" | "ExternalIP" => {
                if let Some(what) = request.call.server.reserved.problem(address) {
                    return refuse(kind, address, &what);
                }
            }
            _ if *address != node => return refuse(kind, address, "not the node's name"),
            _ => {}
        }
    }
    for other in nodes(request.call).await?.iter().filter(|other| text(other, "/metadata/name") != node) {
        let of_other: Vec<String> =
            addresses(other).iter().map(|(_, address)| *address).chain(machine_address(other)).map(canonical).collect();
        if let Some((kind, address)) = new.iter().find(|(_, address)| of_other.contains(&canonical(address))) {
            let name = text(other, "/metadata/name");
            return refuse(kind, address, &format!("that of node {name:?} (if that one is gone, delete it)"));
        }
    }
    Ok(())
}

/// A node moves to another machine once nothing was heard of it where it was: until then, that one is a copy.
async fn the_same_machine(request: &Request<'_>, node: &str, old: &Value) -> Result<(), Status> {
    const MACHINE: &str = "/status/nodeInfo/machineID";
    let (before, now) = (text(old, MACHINE), text(&request.object, MACHINE));
    if before.is_empty() || now.is_empty() || before == now {
        return Ok(());
    }
    let key = format!("/coordination.k8s.io/leases/{LEASE_NAMESPACE}/{node}");
    let lease = request.call.server.store.get(&key).await.map_err(|error| store_failure(&error))?;
    let Some(lease) = lease.map(|lease| objects::decode(&lease.value)).transpose()? else { return Ok(()) };
    let renewed = text(&lease, "/spec/renewTime").parse::<Timestamp>();
    let lasts = lease.pointer("/spec/leaseDurationSeconds").and_then(Value::as_i64).unwrap_or(0);
    match renewed {
        Ok(renewed) if Timestamp::now().as_second() <= renewed.as_second().saturating_add(lasts) => refuse(
            request,
            format!("node {node:?} is another machine: its machineID is {before:?}, and it was heard of at {renewed}"),
        ),
        _ => Ok(()),
    }
}

/// The ranges of a node's pods; none if they can't be read.
fn ranges(object: &Value) -> Option<Vec<IpNet>> {
    let one = text(object, "/spec/podCIDR");
    let many = object.pointer("/spec/podCIDRs").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let texts: Vec<&str> = many.iter().filter_map(Value::as_str).collect();
    let texts = match texts.first() {
        _ if one.is_empty() => texts,
        None => vec![one],
        Some(first) if *first == one => texts,
        Some(_) => return None,
    };
    texts.into_iter().map(|text| text.parse().ok()).collect()
}

fn block_that_is_given(request: &Request<'_>, node: &str, old: &Value) -> Result<(), Status> {
    let new = ranges(&request.object);
    if new == ranges(old) {
        return Ok(());
    }
    match new {
        Some(new) if new.is_empty() || request.call.server.reserved.gives(&new) => Ok(()),
        _ => refuse(
            request,
            format!("node {node:?} is not allowed to have this spec.podCIDR: nodes that join get no such block"),
        ),
    }
}

/// Sees to it that nobody gets addresses for pods that another node has: neither a node that joined and says so, nor one that is
/// given them meanwhile. One such request at a time; keep what this gives until the node is stored.
pub(crate) async fn claim(
    call: &Call,
    new: &Value,
    old: Option<&Value>,
) -> Result<Option<OwnedMutexGuard<()>>, Status> {
    let identity = &call.identity;
    let trusted = identity.is_in(MASTERS) || (identity.inside && node::of(identity).is_some());
    if trusted || (call.kind.group, call.kind.plural) != ("", "nodes") {
        return Ok(None);
    }
    let Some(wanted) = ranges(new).filter(|new| !new.is_empty() && Some(new) != old.and_then(ranges).as_ref()) else {
        return Ok(None);
    };
    let turn = call.server.turns.take(TURN).await;
    let name = text(new, "/metadata/name");
    for other in nodes(call).await?.iter().filter(|other| text(other, "/metadata/name") != name) {
        let has = ranges(other).unwrap_or_default();
        let overlap = |range: &IpNet| has.iter().any(|other| other.contains(range) || range.contains(other));
        if let Some(range) = wanted.iter().find(|range| overlap(range)) {
            let other = text(other, "/metadata/name");
            let why = format!("node {other:?} has addresses of {range} for its pods");
            return Err(Status::forbidden(&call.resource(), name, why));
        }
    }
    Ok(Some(turn))
}

async fn nodes(call: &Call) -> Result<Vec<Value>, Status> {
    let range = KeyRange::prefix("/core/nodes/");
    let page = call.server.store.range(&range, None, None).await.map_err(|error| store_failure(&error))?;
    page.entries.iter().map(|entry| objects::decode(&entry.value)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_means_something_else_is_no_nodes() {
        let names = ["kubernetes", "carob", "192.0.2.1", "2001:db8::1"].map(str::to_owned);
        let range = |text: &str| text.parse::<IpNet>().expect("a range");
        let pods = PodRange {
            whole: vec![range("10.42.0.0/16"), range("fd42::/64")],
            blocks: vec![vec![range("10.42.248.0/21"), range("fd42::a2a:f800/117")]],
        };
        let reserved = Reserved::new(&names, [range("10.96.0.0/16")], Some(pods));
        for (name, what) in [
            ("Kubernetes.", "the API server's"),
            ("192.0.2.1", "the API server's"),
            ("::ffff:192.0.2.1", "the API server's"),
            ("2001:db8:0::1", "the API server's"),
            ("web.default.svc", "one of the cluster's own names, which end in svc"),
            ("web.default.svc.cluster.local", "one of the cluster's own names, which end in cluster.local"),
            ("localhost", "one of the cluster's own names, which end in localhost"),
            ("127.0.0.1", "no address at which others find one machine"),
            ("169.254.169.254", "no address at which others find one machine"),
            ("fe80::1", "no address at which others find one machine"),
            ("0.0.0.0", "no address at which others find one machine"),
            ("10.42.3.4", "one of 10.42.0.0/16, from which pods and Services have theirs"),
            ("fd42::a2a:304", "one of fd42::/64, from which pods and Services have theirs"),
            ("10.96.0.10", "one of 10.96.0.0/16, from which pods and Services have theirs"),
        ] {
            assert_eq!(reserved.problem(name).as_deref(), Some(what), "{name}");
        }
        for name in ["far", "far.example.com", "mysvc", "192.0.2.2", "10.43.0.1", "2001:db8::2"] {
            assert_eq!(reserved.problem(name), None, "{name}");
        }
        let gives = |ranges: &[&str]| reserved.gives(&ranges.iter().map(|text| range(text)).collect::<Vec<_>>());
        assert!(gives(&["10.42.248.0/21"]) && gives(&["10.42.248.0/21", "fd42::a2a:f800/117"]));
        for wrong in [&["128.0.0.0/1"][..], &["10.42.248.0/22"], &["10.42.0.0/21"], &["10.42.248.0/21", "fd42::/117"]] {
            assert!(!gives(wrong), "{wrong:?}");
        }
    }

    #[test]
    fn two_fields_that_differ_are_no_ranges() {
        let of = |spec: Value| ranges(&serde_json::json!({"spec": spec})).map(|all| all.len());
        assert_eq!(of(serde_json::json!({})), Some(0));
        assert_eq!(of(serde_json::json!({"podCIDR": "10.0.0.0/24"})), Some(1));
        assert_eq!(
            of(serde_json::json!({"podCIDR": "10.0.0.0/24", "podCIDRs": ["10.0.0.0/24", "fd00::/120"]})),
            Some(2)
        );
        assert_eq!(of(serde_json::json!({"podCIDR": "128.0.0.0/1", "podCIDRs": ["10.0.0.0/24"]})), None);
        assert_eq!(of(serde_json::json!({"podCIDRs": ["10.0.0.0"]})), None);
    }
}
