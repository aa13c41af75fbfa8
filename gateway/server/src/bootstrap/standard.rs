//! What every cluster has besides roles: the classes of the system's pods, how requests are sorted and queued, the API
//! groups as objects, the range of addresses of Services.

use std::sync::Arc;

use carob_api::kind::Part;
use carob_api::status::Status;
use carob_api::strategy::flow_control;
use carob_api::strategy::priority_class::SYSTEM_CLASSES;
use ipnet::{Ipv4Net, Ipv6Net};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{Existing, ensure, server_call, write_options};
use crate::handlers::update::{self, Change};
use crate::objects::{self, text};
use crate::{ApiService, SERVICE_RANGE, Server};

const FLOW_GROUP: &str = "flowcontrol.apiserver.k8s.io";
/// With the value `true` an object is brought up to date at a start.
const AUTOUPDATE: &str = "apf.kubernetes.io/autoupdate-spec";

const API_GROUP: &str = "apiregistration.k8s.io";
/// An APIService that the server keeps itself, from its start.
const AUTOMANAGED: &str = "kube-aggregator.kubernetes.io/automanaged";
/// Group, version, and where they stand in discovery: higher numbers come first.
const APIS: [(&str, &str, i64, i64); 21] = [
    ("", "v1", 18000, 1),
    ("admissionregistration.k8s.io", "v1", 16700, 15),
    ("apiextensions.k8s.io", "v1", 16700, 15),
    ("apps", "v1", 17800, 15),
    ("authentication.k8s.io", "v1", 17700, 15),
    ("authorization.k8s.io", "v1", 17600, 15),
    ("autoscaling", "v1", 17500, 15),
    ("autoscaling", "v2", 17500, 30),
    ("batch", "v1", 17400, 15),
    ("certificates.k8s.io", "v1", 17300, 15),
    ("coordination.k8s.io", "v1", 16500, 15),
    ("discovery.k8s.io", "v1", 16200, 15),
    ("events.k8s.io", "v1", 17750, 15),
    ("flowcontrol.apiserver.k8s.io", "v1", 16100, 21),
    ("networking.k8s.io", "v1", 17200, 15),
    ("node.k8s.io", "v1", 16300, 15),
    ("policy", "v1", 17100, 15),
    ("rbac.authorization.k8s.io", "v1", 17000, 15),
    ("resource.k8s.io", "v1", 16200, 21),
    ("scheduling.k8s.io", "v1", 16600, 15),
    ("storage.k8s.io", "v1", 16800, 15),
];

/// The parts of a control plane, and how a healthy one answers. Here they are one process: who asks is answered by it.
const COMPONENTS: [&str; 3] = ["controller-manager", "scheduler", "etcd-0"];

/// Reason and message of the condition of an API that this server serves itself.
const LOCAL: (&str, &str) = ("Local", "Local APIServices are always available");
const RANGE_READY: (&str, &str) = ("", "Kubernetes Service CIDR is ready");

/// Makes what is missing, and repairs what must not be otherwise.
pub(super) async fn reconcile(server: &Arc<Server>, api: Option<&ApiService>) -> Result<(), Status> {
    ensure(server, ("scheduling.k8s.io", "v1", "priorityclasses"), classes(), |_, _| Existing::Keep).await?;
    ensure(server, ("", "v1", "componentstatuses"), components(), |_, _| Existing::Keep).await?;
    ensure(server, (FLOW_GROUP, "v1", "prioritylevelconfigurations"), levels(), settle_flow).await?;
    ensure(server, (FLOW_GROUP, "v1", "flowschemas"), schemas(), settle_flow).await?;
    ensure(server, (API_GROUP, "v1", "apiservices"), apis(), settle_spec).await?;
    let local = APIS.map(|(group, version, ..)| {
        let name = format!("{version}.{group}");
        async move { set_status(server, (API_GROUP, "v1", "apiservices"), &name, "Available", LOCAL).await }
    });
    futures::future::try_join_all(local).await?;
    let range = api.map_or(SERVICE_RANGE, |api| api.range);
    let ranges = ranges(range, api.and_then(|api| api.range6));
    ensure(server, ("networking.k8s.io", "v1", "servicecidrs"), ranges, settle_ranges).await?;
    set_status(server, ("networking.k8s.io", "v1", "servicecidrs"), "kubernetes", "Ready", RANGE_READY).await
}

fn components() -> Vec<Value> {
    let healthy = json!([{ "type": "Healthy", "status": "True", "message": "ok" }]);
    let component = |name: &&str| json!({ "kind": "ComponentStatus", "apiVersion": "v1", "metadata": { "name": name }, "conditions": healthy });
    COMPONENTS.iter().map(component).collect()
}

fn classes() -> Vec<Value> {
    let class = |(name, value, description): &(&str, i64, &str)| {
        json!({
            "kind": "PriorityClass", "apiVersion": "scheduling.k8s.io/v1", "metadata": { "name": name },
            "value": value, "description": description, "preemptionPolicy": "PreemptLowerPriority",
        })
    };
    SYSTEM_CLASSES.iter().map(class).collect()
}

fn levels() -> Vec<Value> {
    flow_objects("priorityLevelConfigurations", "PriorityLevelConfiguration")
}

fn schemas() -> Vec<Value> {
    flow_objects("flowSchemas", "FlowSchema")
}

fn flow_objects(list: &str, kind: &str) -> Vec<Value> {
    let object = |entry: &Value| {
        json!({
            "kind": kind, "apiVersion": format!("{FLOW_GROUP}/v1"),
            "metadata": { "name": entry["name"], "annotations": { AUTOUPDATE: "true" } },
            "spec": entry["spec"],
        })
    };
    flow_control::standard(list).as_array().into_iter().flatten().map(object).collect()
}

/// The spec is put back unless somebody has taken it into their own hands.
fn settle_flow(found: &Value, wanted: &Value) -> Existing {
    let mandatory = flow_control::MANDATORY.contains(&text(found, "/metadata/name"));
    let ours = found["metadata"]["annotations"][AUTOUPDATE] == "true";
    if mandatory || ours { settle_spec(found, wanted) } else { Existing::Keep }
}

fn settle_spec(found: &Value, wanted: &Value) -> Existing {
    if found["spec"] == wanted["spec"] {
        return Existing::Keep;
    }
    let mut new = found.clone();
    new["spec"] = wanted["spec"].clone();
    Existing::Change(new)
}

fn apis() -> Vec<Value> {
    let api = |(group, version, minimum, priority): (&str, &str, i64, i64)| {
        let mut spec = json!({ "version": version, "groupPriorityMinimum": minimum, "versionPriority": priority });
        if !group.is_empty() {
            spec["group"] = group.into();
        }
        json!({
            "kind": "APIService", "apiVersion": format!("{API_GROUP}/v1"),
            "metadata": { "name": format!("{version}.{group}"), "labels": { AUTOMANAGED: "onstart" } },
            "spec": spec,
        })
    };
    APIS.into_iter().map(api).collect()
}

fn ranges(range: Ipv4Net, range6: Option<Ipv6Net>) -> Vec<Value> {
    let ranges: Vec<String> = [range.to_string()].into_iter().chain(range6.map(|range| range.to_string())).collect();
    vec![json!({
        "kind": "ServiceCIDR", "apiVersion": "networking.k8s.io/v1", "metadata": { "name": "kubernetes" },
        "spec": { "cidrs": ranges },
    })]
}

/// A range of the other family is added to that of a cluster that has become dual-stack.
fn settle_ranges(found: &Value, wanted: &Value) -> Existing {
    let first = |object: &Value| object["spec"]["cidrs"][0].clone();
    let one = found["spec"]["cidrs"].as_array().is_some_and(|ranges| ranges.len() == 1);
    if one && first(found) == first(wanted) { settle_spec(found, wanted) } else { Existing::Keep }
}

/// Sets a condition to True, with its reason and message, that the object doesn't have yet.
async fn set_status(
    server: &Arc<Server>,
    resource: (&str, &str, &str),
    name: &str,
    condition: &str,
    (reason, message): (&str, &str),
) -> Result<(), Status> {
    let call = server_call(server, resource, name)?;
    let options = write_options();
    let how = Change::new(Part::Status, &options);
    update::change(&call, &how, |found| {
        let there = found.pointer("/status/conditions").and_then(Value::as_array);
        let mut new = found.clone();
        if there.is_none_or(Vec::is_empty) {
            let since = objects::timestamp(Timestamp::now());
            new["status"] = json!({ "conditions": [{
                "type": condition, "status": "True", "lastTransitionTime": since, "reason": reason, "message": message,
            }] });
        }
        Ok(new)
    })
    .await
    .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_somebody_took_over_is_left_alone_unless_it_is_needed() {
        let object = |name: &str, auto: &str, spec: u32| json!({"metadata": {"name": name, "annotations": {AUTOUPDATE: auto}}, "spec": spec});
        assert!(matches!(settle_flow(&object("probes", "false", 1), &object("probes", "true", 2)), Existing::Keep));
        let Existing::Change(new) = settle_flow(&object("probes", "true", 1), &object("probes", "true", 2)) else {
            panic!("it is brought up to date")
        };
        assert_eq!(new["spec"], 2);
        assert!(matches!(
            settle_flow(&object("exempt", "false", 1), &object("exempt", "true", 2)),
            Existing::Change(_)
        ));
    }

    #[test]
    fn the_data_has_all_levels_that_schemas_name() {
        let levels = levels();
        assert_eq!((schemas().len(), levels.len()), (11, 8));
        for schema in schemas() {
            let level = &schema["spec"]["priorityLevelConfiguration"]["name"];
            assert!(levels.iter().any(|one| one["metadata"]["name"] == *level), "{level}");
        }
    }
}
