//! Pods: their spec in the order in which Kubernetes goes through it, and what only a whole pod is checked for.

use serde_json::Value;

use crate::field::{ErrorList, Path};
use crate::validation::containers::{self, Pod, each_text, label};
use crate::validation::json::{dig, get, int, items, str_at, texts};
use crate::validation::metadata;
use crate::validation::names;
use crate::validation::{pod_resources, resources, scheduling, security, volumes};

const RESTART_POLICIES: [&str; 3] = ["Always", "OnFailure", "Never"];
const DNS_POLICIES: [&str; 4] = ["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"];
/// How a controller may say which pods to delete first.
const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// What is wrong with a new pod, its metadata's general rules excepted.
pub fn validate(pod: &Value) -> ErrorList {
    let mut errors = whole(pod);
    let path = Path::new("spec");
    let spec = pod.get("spec").unwrap_or(&Value::Null);
    if !items(spec, "ephemeralContainers").is_empty() {
        errors.push(path.child("ephemeralContainers").forbidden("cannot be set on create"));
    }
    if !str_at(spec, "nodeName").is_empty() && !items(spec, "schedulingGates").is_empty() {
        let why = "cannot be set until all schedulingGates have been cleared";
        errors.push(path.child("nodeName").forbidden(why));
    }
    errors
}

/// What is wrong with a pod, new or changed.
pub fn whole(pod: &Value) -> ErrorList {
    let metadata = pod.get("metadata").unwrap_or(&Value::Null);
    let mut errors = annotations(metadata, &Path::new("metadata").child("annotations"));
    errors.extend(spec(pod.get("spec").unwrap_or(&Value::Null), metadata, &Path::new("spec")));
    errors
}

/// Annotations of a pod or a template whose values have a meaning.
pub fn annotations(metadata: &Value, path: &Path) -> ErrorList {
    match dig(metadata, &["annotations", DELETION_COST]).and_then(Value::as_str) {
        Some(cost) if cost.parse::<i32>().is_err() || cost.starts_with('+') => {
            vec![path.key(DELETION_COST).invalid(cost, "must be a 32bit integer")]
        }
        _ => ErrorList::new(),
    }
}

/// What is wrong with the spec of a pod or of a template at `path`.
pub fn spec(spec: &Value, _metadata: &Value, path: &Path) -> ErrorList {
    let (good_volumes, mut errors) = volumes::volumes(spec, &path.child("volumes"));
    errors.extend(containers::resource_claims(spec, &path.child("resourceClaims")));
    let pod = Pod {
        spec,
        volumes: good_volumes.into_iter().map(|volume| (str_at(volume, "name"), volume)).collect(),
        claims: containers::claim_names(spec),
        grace: int(spec, "terminationGracePeriodSeconds").unwrap_or(30),
    };
    errors.extend(containers::all(&pod, path));
    errors.extend(pod_resources::validate(spec, &pod.claims, &path.child("resources")));
    errors.extend(containers::host_network_ports(spec, path));
    errors.extend(one_of(spec, "restartPolicy", &RESTART_POLICIES, path));
    errors.extend(one_of(spec, "dnsPolicy", &DNS_POLICIES, path));
    errors.extend(metadata::labels(spec, "nodeSelector", &path.child("nodeSelector")));
    errors.extend(security::pod(spec, path));
    errors.extend(scheduling::affinity(spec, path));
    errors.extend(dns_config(spec, &path.child("dnsConfig")));
    errors.extend(scheduling::gates(spec, path));
    errors.extend(scheduling::topology_spread(spec, &path.child("topologySpreadConstraints")));
    errors.extend(security::host_users(spec, path));
    errors.extend(named(spec, "serviceAccountName", names::dns1123_subdomain, path));
    errors.extend(named(spec, "nodeName", names::dns1123_subdomain, path));
    if let Some(seconds) = int(spec, "activeDeadlineSeconds")
        && !(1..=i64::from(i32::MAX)).contains(&seconds)
    {
        let why = names::in_range(1, i64::from(i32::MAX));
        errors.push(path.child("activeDeadlineSeconds").invalid(seconds, why));
    }
    for field in ["hostname", "subdomain"] {
        let text = str_at(spec, field);
        if !text.is_empty() {
            errors.extend(label(text, &path.child(field)));
        }
    }
    errors.extend(scheduling::tolerations(spec, &path.child("tolerations")));
    errors.extend(host_aliases(spec, &path.child("hostAliases")));
    errors.extend(named(spec, "priorityClassName", names::dns1123_subdomain, path));
    errors.extend(named(spec, "runtimeClassName", names::dns1123_subdomain, path));
    if get(spec, "preemptionPolicy").is_some() {
        errors.extend(one_of(spec, "preemptionPolicy", &["PreemptLowerPriority", "Never"], path));
    }
    errors.extend(resources::amounts(spec, "overhead", &path.child("overhead")));
    errors.extend(security::os(spec, path));
    errors
}

fn one_of(spec: &Value, field: &str, allowed: &[&str], path: &Path) -> ErrorList {
    match str_at(spec, field) {
        "" => vec![path.child(field).required("")],
        text if allowed.contains(&text) => ErrorList::new(),
        other => vec![path.child(field).not_supported(other, allowed)],
    }
}

fn named(spec: &Value, field: &str, rule: fn(&str) -> Vec<String>, path: &Path) -> ErrorList {
    let name = str_at(spec, field);
    if name.is_empty() {
        return ErrorList::new();
    }
    rule(name).into_iter().map(|text| path.child(field).invalid(name, text)).collect()
}

fn dns_config(spec: &Value, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    let config = get(spec, "dnsConfig");
    if str_at(spec, "dnsPolicy") == "None" {
        let Some(config) = config else {
            return vec![path.required("must provide `dnsConfig` when `dnsPolicy` is None")];
        };
        if items(config, "nameservers").is_empty() {
            errors.push(
                path.child("nameservers").required("must provide at least one DNS nameserver when `dnsPolicy` is None"),
            );
        }
    }
    let Some(config) = config else { return errors };
    if items(config, "nameservers").len() > 3 {
        let value = config["nameservers"].clone();
        errors.push(path.child("nameservers").invalid(value, "must not have more than 3 nameservers"));
    }
    errors.extend(each_text(config, "nameservers", path, names::ip_address));
    let searches: Vec<&str> = texts(config, "searches").collect();
    let field = path.child("searches");
    if searches.len() > 32 {
        errors.push(field.invalid(config["searches"].clone(), "must not have more than 32 search paths"));
    }
    if searches.join(" ").len() > 2048 {
        errors.push(field.invalid(
            config["searches"].clone(),
            "must not have more than 2048 characters (including spaces) in the search list",
        ));
    }
    for (index, search) in searches.iter().enumerate().filter(|(_, search)| **search != ".") {
        let bare = search.strip_suffix('.').unwrap_or(search);
        errors.extend(names::dns1123_subdomain(bare).into_iter().map(|text| field.index(index).invalid(*search, text)));
    }
    for (index, option) in items(config, "options").iter().enumerate() {
        if str_at(option, "name").is_empty() {
            errors.push(path.child("options").index(index).required("must not be empty"));
        }
    }
    errors
}

fn host_aliases(spec: &Value, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    for (index, alias) in items(spec, "hostAliases").iter().enumerate() {
        let path = path.index(index);
        let address = str_at(alias, "ip");
        errors.extend(names::ip_address(address).into_iter().map(|text| path.child("ip").invalid(address, text)));
        errors.extend(each_text(alias, "hostnames", &path, names::dns1123_subdomain));
    }
    errors
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn causes(extra: &Value) -> Vec<String> {
        let mut pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "nginx"}]}});
        for (field, value) in extra.as_object().unwrap() {
            pod["spec"][field] = value.clone();
        }
        (crate::strategy::pod::STRATEGY.default)(&mut pod);
        validate(&pod).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_plain_pod_is_right() {
        assert!(causes(&json!({})).is_empty());
    }

    #[test]
    fn policies_are_known() {
        assert_eq!(
            causes(&json!({"restartPolicy": "X", "dnsPolicy": "Y"})),
            [
                "spec.restartPolicy: Unsupported value: \"X\": supported values: \"Always\", \"OnFailure\", \"Never\"",
                "spec.dnsPolicy: Unsupported value: \"Y\": supported values: \"ClusterFirstWithHostNet\", \
                 \"ClusterFirst\", \"Default\", \"None\""
            ]
        );
        assert_eq!(
            causes(&json!({"dnsPolicy": "None"})),
            ["spec.dnsConfig: Required value: must provide `dnsConfig` when `dnsPolicy` is None"]
        );
    }

    #[test]
    fn deadlines_are_positive() {
        assert_eq!(
            causes(&json!({"activeDeadlineSeconds": 0})),
            ["spec.activeDeadlineSeconds: Invalid value: 0: must be between 1 and 2147483647, inclusive"]
        );
    }

    #[test]
    fn aliases_are_addresses_and_names() {
        let causes = causes(&json!({"hostAliases": [{"ip": "x", "hostnames": ["A_"]}]}));
        assert!(causes[0].starts_with("spec.hostAliases[0].ip: Invalid value: \"x\": must be a valid IP address"));
        assert!(causes[1].starts_with("spec.hostAliases[0].hostnames[0]: Invalid value: \"A_\": a lowercase RFC 1123"));
    }

    #[test]
    fn debugging_comes_later() {
        assert_eq!(
            causes(&json!({"ephemeralContainers": [{"name": "e", "image": "x"}]})),
            ["spec.ephemeralContainers: Forbidden: cannot be set on create"]
        );
    }
}
