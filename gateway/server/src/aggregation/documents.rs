//! What other API servers serve, in the documents by which clients find it.

use std::cmp::Reverse;
use std::sync::{Arc, PoisonError};

use carob_api::custom;
use carob_api::discovery;
use carob_api::kinds::Registry;
use serde_json::{Map, Value, json};

use super::delegate::Document;
use super::openapi::{self, Described};
use super::{Aggregation, Delegate, Registered, Table};
use crate::Server;

/// How the aggregated form is asked for; those who don't know it answer with the plain one.
const ACCEPT: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json";
/// Where groups stand that are said to be nowhere: those of custom resources that have no APIService yet.
const UNSAID_PRIORITY: i64 = 1000;

/// What another server said that it serves.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Documents {
    /// The version as aggregated discovery has it, with its freshness.
    version: Value,
    pub described: Described,
}

impl Documents {
    /// Asks for them; `resources` is the plain discovery document.
    pub async fn read(server: &Server, one: &Registered, delegate: &Arc<Delegate>, resources: &Document) -> Self {
        let aggregated = delegate.ask(server, "/apis", ACCEPT).await.ok();
        let version = aggregated.and_then(|document| of_aggregated(&document, &one.group, &one.version));
        let version = version.or_else(|| of_plain(resources, &one.group, &one.version));
        let mut version = version.unwrap_or_else(|| json!({ "version": one.version, "resources": [] }));
        version["freshness"] = "Current".into();
        Self { version, described: openapi::read(server, delegate, &one.group).await }
    }

    fn stale(&self, version: &str) -> Self {
        let mut stale = self.clone();
        if !stale.version.is_object() {
            stale.version = json!({ "version": version });
        }
        stale.version["freshness"] = "Stale".into();
        stale
    }
}

/// The version in an APIGroupDiscoveryList.
fn of_aggregated(document: &Document, group: &str, version: &str) -> Option<Value> {
    if !document.media.contains("as=APIGroupDiscoveryList") {
        return None;
    }
    let list: Value = serde_json::from_slice(&document.bytes).ok()?;
    let groups = list["items"].as_array()?;
    let versions = groups.iter().find(|known| known["metadata"]["name"] == group)?["versions"].as_array()?;
    versions.iter().find(|known| known["version"] == version).cloned()
}

/// The same made of an APIResourceList.
fn of_plain(document: &Document, group: &str, version: &str) -> Option<Value> {
    let list: Value = serde_json::from_slice(&document.bytes).ok()?;
    let resources = list["resources"].as_array()?;
    let kind_of = |resource: &Value| {
        let or =
            |field: &str, own: &str| resource[field].as_str().filter(|text| !text.is_empty()).unwrap_or(own).to_owned();
        json!({ "group": or("group", group), "version": or("version", version), "kind": resource["kind"] })
    };
    let mut made: Vec<Value> = Vec::new();
    for resource in resources {
        let name = resource["name"].as_str().unwrap_or_default();
        let Some((parent, part)) = name.split_once('/') else {
            let mut one = Map::new();
            one.insert("resource".into(), name.into());
            one.insert("responseKind".into(), kind_of(resource));
            one.insert("scope".into(), if resource["namespaced"] == true { "Namespaced" } else { "Cluster" }.into());
            one.insert("singularResource".into(), resource["singularName"].clone());
            for field in ["verbs", "shortNames", "categories"] {
                if let Some(value) = resource.get(field) {
                    one.insert(field.into(), value.clone());
                }
            }
            made.push(Value::Object(one));
            continue;
        };
        let part = json!({ "subresource": part, "responseKind": kind_of(resource), "verbs": resource["verbs"] });
        if let Some(parent) = made.iter_mut().find(|known| known["resource"] == parent) {
            match parent["subresources"].as_array_mut() {
                Some(parts) => parts.push(part),
                None => parent["subresources"] = json!([part]),
            }
        }
    }
    Some(json!({ "version": version, "resources": made }))
}

impl Aggregation {
    /// From now on another server's documents are these.
    pub(super) fn keep_documents(&self, server: &Server, name: &str, documents: Documents) {
        let mut known = self.documents.lock().unwrap_or_else(PoisonError::into_inner);
        if known.get(name).is_some_and(|known| **known == documents) {
            return;
        }
        known.insert(name.to_owned(), Arc::new(documents));
        drop(known);
        server.live.renew();
    }

    /// Another server doesn't answer: its documents are what it said last.
    pub(super) fn mark_stale(&self, server: &Server, one: &Registered) {
        let stale = self.documents(&one.name).stale(&one.version);
        self.keep_documents(server, &one.name, stale);
    }

    /// Forgets the documents of servers that are no longer named.
    pub(super) fn forget(&self, table: &Table, server: &Server) {
        let mut known = self.documents.lock().unwrap_or_else(PoisonError::into_inner);
        let before = known.len();
        known.retain(|name, _| table.all.iter().any(|one| one.delegate.is_some() && one.name == *name));
        let changed = known.len() != before;
        drop(known);
        if changed {
            server.live.renew();
        }
    }

    fn documents(&self, name: &str) -> Arc<Documents> {
        let known = self.documents.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(name).cloned().unwrap_or_default()
    }

    /// What other servers describe in OpenAPI.
    pub fn described(&self) -> Vec<Described> {
        let table = self.now();
        let delegated = table.all.iter().filter(|one| one.delegate.is_some());
        delegated.map(|one| self.documents(&one.name).described.clone()).collect()
    }

    /// Whether another server serves this version of the group.
    pub fn delegates(&self, group: &str, version: &str) -> bool {
        self.now().is_delegated(group, version)
    }

    /// An APIGroup with the versions that other servers have; none if none has any.
    pub fn group(&self, registry: &Registry, name: &str) -> Option<Value> {
        let table = self.now();
        if !table.delegated.keys().any(|(group, _)| group == name) {
            return None;
        }
        let mut document = json!({ "kind": "APIGroup", "apiVersion": "v1" });
        let fields = document.as_object_mut()?;
        fields.extend(table.describe(registry, name).as_object()?.clone());
        Some(document)
    }

    /// Adds what other servers have to the groups of an APIGroupList.
    pub fn add_to_list(&self, registry: &Registry, groups: &mut Vec<Value>) {
        let table = self.now();
        for name in table.delegated_groups() {
            groups.retain(|known| known["name"] != *name);
            groups.push(table.describe(registry, name));
        }
        table.sort(groups, |group| group["name"].as_str());
    }

    /// Adds what other servers have to the groups of an APIGroupDiscoveryList.
    pub fn add_to_aggregated(&self, registry: &Registry, groups: &mut Vec<Value>) {
        let table = self.now();
        for name in table.delegated_groups() {
            let at = groups.iter().position(|known| known["metadata"]["name"] == *name);
            let mut group = at.map(|at| groups.remove(at)).unwrap_or(json!({ "metadata": { "name": name } }));
            let own = group["versions"].as_array().cloned().unwrap_or_default();
            let versions = table.versions(registry, name).into_iter().filter_map(|version| {
                let delegated = table.delegated.get(&(name.to_owned(), version.clone()));
                match delegated {
                    Some(one) => {
                        let documents = self.documents(&one.name);
                        let known = Some(&documents.version).filter(|known| known.is_object()).cloned();
                        Some(known.unwrap_or_else(|| json!({ "version": version, "freshness": "Stale" })))
                    }
                    None => own.iter().find(|known| known["version"] == *version).cloned(),
                }
            });
            group["versions"] = versions.collect();
            groups.push(group);
        }
        table.sort(groups, |group| group["metadata"]["name"].as_str());
    }
}

impl Table {
    fn is_delegated(&self, group: &str, version: &str) -> bool {
        self.delegated.contains_key(&(group.to_owned(), version.to_owned()))
    }

    /// The groups of which other servers have a version.
    fn delegated_groups(&self) -> Vec<&str> {
        let mut groups: Vec<&str> = self.delegated.keys().map(|(group, _)| group.as_str()).collect();
        groups.sort_unstable();
        groups.dedup();
        groups
    }

    /// The versions of a group, wherever they are served, the preferred one first.
    fn versions(&self, registry: &Registry, group: &str) -> Vec<String> {
        let local = discovery::group(registry, group).unwrap_or_default();
        let local = local["versions"].as_array().into_iter().flatten().filter_map(|known| known["version"].as_str());
        let mut versions: Vec<String> = local.map(str::to_owned).collect();
        let delegated = self.delegated.keys().filter(|(known, _)| known == group);
        versions.extend(delegated.map(|(_, version)| version.clone()));
        let priority = |version: &str| {
            let one = self.all.iter().find(|one| one.group == group && one.version == version);
            one.map_or(0, |one| one.version_priority)
        };
        versions.sort_by(|a, b| priority(b).cmp(&priority(a)).then_with(|| custom::version_order(a, b)));
        versions.dedup();
        versions
    }

    fn describe(&self, registry: &Registry, group: &str) -> Value {
        let versions: Vec<Value> = self
            .versions(registry, group)
            .into_iter()
            .map(|version| json!({ "groupVersion": format!("{group}/{version}"), "version": version }))
            .collect();
        let preferred = versions.first().cloned().unwrap_or_default();
        json!({ "name": group, "versions": versions, "preferredVersion": preferred })
    }

    /// By priority, and otherwise as they are.
    fn sort(&self, groups: &mut [Value], name: impl Fn(&Value) -> Option<&str>) {
        if self.delegated.is_empty() {
            return;
        }
        let priority = |group: Option<&str>| match group {
            // It is what the others are registered in.
            Some("apiregistration.k8s.io") => i64::MAX,
            group => {
                let own = self.all.iter().filter(|one| Some(one.group.as_str()) == group);
                own.map(|one| one.group_priority).max().unwrap_or(UNSAID_PRIORITY)
            }
        };
        groups.sort_by_key(|group| Reverse(priority(name(group))));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(media: &str, value: &Value) -> Document {
        Document { media: media.to_owned(), bytes: value.to_string().into() }
    }

    #[test]
    fn a_plain_list_becomes_a_version_of_aggregated_discovery() {
        let list = json!({"kind": "APIResourceList", "groupVersion": "e.x/v1", "resources": [
            {"name": "things", "singularName": "thing", "namespaced": true, "kind": "Thing", "verbs": ["get"],
                "shortNames": ["th"]},
            {"name": "things/scale", "singularName": "", "namespaced": true, "kind": "Scale", "group": "autoscaling",
                "version": "v1", "verbs": ["get"]}]});
        assert_eq!(
            of_plain(&document("application/json", &list), "e.x", "v1"),
            Some(json!({"version": "v1", "resources": [{"resource": "things",
                "responseKind": {"group": "e.x", "version": "v1", "kind": "Thing"}, "scope": "Namespaced",
                "singularResource": "thing", "verbs": ["get"], "shortNames": ["th"], "subresources": [
                    {"subresource": "scale", "responseKind": {"group": "autoscaling", "version": "v1", "kind": "Scale"},
                    "verbs": ["get"]}]}]}))
        );
    }

    #[test]
    fn the_version_is_found_in_an_aggregated_list_and_stays_when_it_is_stale() {
        let version = json!({"version": "v1", "resources": []});
        let list = json!({"items": [{"metadata": {"name": "e.x"}, "versions": [version]}]});
        let media = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
        assert_eq!(of_aggregated(&document(media, &list), "e.x", "v1"), Some(version.clone()));
        assert_eq!(of_aggregated(&document("application/json", &list), "e.x", "v1"), None);
        let known = Documents { version, ..Documents::default() };
        assert_eq!(known.stale("v1").version, json!({"version": "v1", "resources": [], "freshness": "Stale"}));
        assert_eq!(Documents::default().stale("v1").version, json!({"version": "v1", "freshness": "Stale"}));
    }
}
