//! What there is: the documents by which clients find groups, versions and resources.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use crate::kind::{Kind, Scope, Subresource};
use crate::kinds::Registry;

/// Groups by their priority.
const ORDER: [&str; 21] = [
    "",
    "apiregistration.k8s.io",
    "apps",
    "events.k8s.io",
    "authentication.k8s.io",
    "authorization.k8s.io",
    "autoscaling",
    "batch",
    "certificates.k8s.io",
    "networking.k8s.io",
    "policy",
    "rbac.authorization.k8s.io",
    "storage.k8s.io",
    "admissionregistration.k8s.io",
    "apiextensions.k8s.io",
    "scheduling.k8s.io",
    "coordination.k8s.io",
    "node.k8s.io",
    "discovery.k8s.io",
    "resource.k8s.io",
    "flowcontrol.apiserver.k8s.io",
];

/// Kinds that Kubernetes stores in an older version, which clients see in the hash of that version.
const STORED_IN: [(&str, &str, &str); 1] = [("storage.k8s.io", "VolumeAttributesClass", "v1beta1")];

/// `/api`: the versions of the core group. `server_address` is `host:port`.
pub fn api_versions(server_address: &str) -> Value {
    json!({
        "kind": "APIVersions",
        "versions": ["v1"],
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": server_address}],
    })
}

/// `/apis`: the named groups.
pub fn group_list(registry: &Registry) -> Value {
    let groups: Vec<Value> =
        groups(registry).into_iter().filter(|group| !group.is_empty()).map(|name| describe(registry, name)).collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

/// `/apis/GROUP`
pub fn group(registry: &Registry, name: &str) -> Option<Value> {
    let name = groups(registry).into_iter().find(|known| *known == name && !known.is_empty())?;
    let mut document = Map::new();
    document.insert("kind".into(), "APIGroup".into());
    document.insert("apiVersion".into(), "v1".into());
    if let Value::Object(fields) = describe(registry, name) {
        document.extend(fields);
    }
    Some(Value::Object(document))
}

/// `/apis/GROUP/VERSION` and `/api/v1` (empty group): the resources and subresources.
pub fn resources(registry: &Registry, group: &str, version: &str) -> Option<Value> {
    let mut resources = Vec::new();
    for kind in members(registry, group, version) {
        resources.push(resource(kind));
        resources.extend(kind.subresources.iter().map(|part| subresource(kind, part)));
    }
    if resources.is_empty() {
        return None;
    }
    let mut document = Map::new();
    document.insert("kind".into(), "APIResourceList".into());
    if !group.is_empty() {
        document.insert("apiVersion".into(), "v1".into());
    }
    document.insert("groupVersion".into(), group_version(group, version).into());
    document.insert("resources".into(), resources.into());
    Some(Value::Object(document))
}

/// `/api` or `/apis` as one document (`APIGroupDiscoveryList`, `apidiscovery.k8s.io/v2`).
pub fn aggregated(registry: &Registry, core: bool) -> Value {
    let items: Vec<Value> = groups(registry)
        .into_iter()
        .filter(|group| group.is_empty() == core)
        .map(|group| {
            let versions: Vec<Value> = versions(registry, group)
                .into_iter()
                .map(|version| {
                    let resources: Vec<Value> = members(registry, group, version).map(aggregated_resource).collect();
                    json!({"version": version, "resources": resources, "freshness": "Current"})
                })
                .collect();
            let metadata = if core { json!({}) } else { json!({"name": group}) };
            json!({"metadata": metadata, "versions": versions})
        })
        .collect();
    json!({"kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items})
}

/// The groups, each once: the built-in ones in Kubernetes' order, then others by name.
fn groups(registry: &Registry) -> Vec<&'static str> {
    let mut groups = distinct(registry.iter().map(|kind| kind.group));
    let rank = |group: &str| ORDER.iter().position(|known| *known == group).unwrap_or(ORDER.len());
    groups.sort_by_key(|group| (rank(group), *group));
    groups
}

/// The versions of a group, the preferred one first.
fn versions(registry: &Registry, group: &str) -> Vec<&'static str> {
    distinct(registry.iter().filter(|kind| kind.group == group).map(|kind| kind.version))
}

fn distinct(names: impl Iterator<Item = &'static str>) -> Vec<&'static str> {
    names.fold(Vec::new(), |mut seen, name| {
        if !seen.contains(&name) {
            seen.push(name);
        }
        seen
    })
}

fn members<'a>(registry: &'a Registry, group: &'a str, version: &'a str) -> impl Iterator<Item = &'a Kind> {
    registry.iter().map(|kind| &**kind).filter(move |kind| kind.group == group && kind.version == version)
}

fn group_version(group: &str, version: &str) -> String {
    if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") }
}

fn describe(registry: &Registry, group: &'static str) -> Value {
    let versions: Vec<Value> = versions(registry, group)
        .into_iter()
        .map(|version| json!({"groupVersion": group_version(group, version), "version": version}))
        .collect();
    let preferred = versions.first().cloned().unwrap_or_default();
    json!({"name": group, "versions": versions, "preferredVersion": preferred})
}

fn resource(kind: &Kind) -> Value {
    let mut resource = Map::new();
    resource.insert("name".into(), kind.plural.into());
    resource.insert("singularName".into(), kind.singular.into());
    resource.insert("namespaced".into(), (kind.scope == Scope::Namespaced).into());
    resource.insert("kind".into(), kind.kind.into());
    resource.insert("verbs".into(), kind.verbs.into());
    insert_names(&mut resource, kind);
    // What cannot be read is not stored.
    if kind.verbs.contains(&"get") && kind.verbs.contains(&"create") {
        resource.insert("storageVersionHash".into(), storage_version_hash(kind).into());
    }
    Value::Object(resource)
}

fn subresource(kind: &Kind, part: &Subresource) -> Value {
    let (group, version, part_kind) = part.gvk;
    let mut resource = Map::new();
    resource.insert("name".into(), format!("{}/{}", kind.plural, part.name).into());
    resource.insert("singularName".into(), "".into());
    resource.insert("namespaced".into(), (kind.scope == Scope::Namespaced).into());
    if (group, version) != (kind.group, kind.version) {
        resource.insert("group".into(), group.into());
        resource.insert("version".into(), version.into());
    }
    resource.insert("kind".into(), part_kind.into());
    resource.insert("verbs".into(), part.verbs.into());
    Value::Object(resource)
}

fn aggregated_resource(kind: &Kind) -> Value {
    let mut resource = Map::new();
    resource.insert("resource".into(), kind.plural.into());
    resource.insert("responseKind".into(), response_kind(kind, (kind.group, kind.version, kind.kind)));
    resource.insert("scope".into(), if kind.scope == Scope::Namespaced { "Namespaced" } else { "Cluster" }.into());
    resource.insert("singularResource".into(), kind.singular.into());
    resource.insert("verbs".into(), kind.verbs.into());
    insert_names(&mut resource, kind);
    if !kind.subresources.is_empty() {
        let parts: Vec<Value> = kind
            .subresources
            .iter()
            .map(|part| {
                json!({"subresource": part.name, "responseKind": response_kind(kind, part.gvk), "verbs": part.verbs})
            })
            .collect();
        resource.insert("subresources".into(), parts.into());
    }
    Value::Object(resource)
}

/// Group and version are left empty where they are those of the document.
fn response_kind(kind: &Kind, (group, version, name): (&str, &str, &str)) -> Value {
    if (group, version) == (kind.group, kind.version) {
        json!({"group": "", "version": "", "kind": name})
    } else {
        json!({"group": group, "version": version, "kind": name})
    }
}

fn insert_names(resource: &mut Map<String, Value>, kind: &Kind) {
    if !kind.short_names.is_empty() {
        resource.insert("shortNames".into(), kind.short_names.into());
    }
    if !kind.categories.is_empty() {
        resource.insert("categories".into(), kind.categories.into());
    }
}

/// Tells clients whether two resources are stored in one form.
fn storage_version_hash(kind: &Kind) -> String {
    let (group, version) = kind.stored_as.map_or((kind.group, kind.version), |form| (form.group, form.version));
    let older = STORED_IN.iter().find(|(group, name, _)| (*group, *name) == (kind.group, kind.kind));
    let version = older.map_or(version, |(_, _, version)| version);
    let digest = Sha256::digest(format!("{group}/{version}/{}", kind.kind));
    STANDARD.encode(&digest[..8])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registry() -> &'static Registry {
        Registry::builtin()
    }

    #[test]
    fn a_group_names_its_versions() {
        assert_eq!(
            group(registry(), "apps").unwrap(),
            json!({"kind": "APIGroup", "apiVersion": "v1", "name": "apps",
                "versions": [{"groupVersion": "apps/v1", "version": "v1"}],
                "preferredVersion": {"groupVersion": "apps/v1", "version": "v1"}})
        );
        assert!(group(registry(), "").is_none());
        assert!(group(registry(), "nope").is_none());
    }

    #[test]
    fn resources_come_with_their_subresources() {
        let list = resources(registry(), "apps", "v1").unwrap();
        let named = |name: &str| {
            let all = list["resources"].as_array().unwrap();
            all.iter().find(|resource| resource["name"] == name).unwrap().clone()
        };
        assert_eq!(
            named("deployments"),
            json!({"name": "deployments", "singularName": "deployment", "namespaced": true, "kind": "Deployment",
                "verbs": ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"],
                "shortNames": ["deploy"], "categories": ["all"], "storageVersionHash": "8aSe+NMegvE="})
        );
        assert_eq!(
            named("deployments/scale"),
            json!({"name": "deployments/scale", "singularName": "", "namespaced": true, "group": "autoscaling",
                "version": "v1", "kind": "Scale", "verbs": ["get", "patch", "update"]})
        );
        assert!(resources(registry(), "apps", "v9").is_none());
    }

    #[test]
    fn events_of_both_groups_are_stored_in_one_form() {
        let hash = |group| {
            resources(registry(), group, "v1").unwrap()["resources"]
                .as_array()
                .and_then(|all| all.iter().find(|resource| resource["name"] == "events").cloned())
                .unwrap()["storageVersionHash"]
                .clone()
        };
        assert_eq!(hash(""), hash("events.k8s.io"));
        assert_eq!(hash(""), "r2yiGXH7wu8=");
    }

    #[test]
    fn aggregated_discovery_leaves_the_documents_own_group_out_of_response_kinds() {
        let list = aggregated(registry(), false);
        let groups = list["items"].as_array().unwrap();
        let apps = groups.iter().find(|group| group["metadata"] == json!({"name": "apps"})).unwrap();
        let resources = apps["versions"][0]["resources"].as_array().unwrap();
        let deployments = resources.iter().find(|resource| resource["resource"] == "deployments").unwrap();
        assert_eq!(deployments["responseKind"], json!({"group": "", "version": "", "kind": "Deployment"}));
        assert_eq!(
            deployments["subresources"][0]["responseKind"],
            json!({"group": "autoscaling", "version": "v1", "kind": "Scale"})
        );
        assert_eq!(aggregated(registry(), true)["items"][0]["metadata"], json!({}));
    }
}
