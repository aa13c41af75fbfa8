//! The API described for machines: OpenAPI v2 and v3, from which `kubectl explain` prints, `kubectl apply` computes its
//! patches, and clients learn what a server can do.
//!
//! Documents are built when they are asked for and not kept: clients keep them, by the hash in the index.

mod components;
mod groups;
mod paths;
pub mod protobuf;

use std::collections::HashMap;
use std::sync::OnceLock;

use bytes::Bytes;
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha512};

use crate::kind::Kind;
use crate::kinds::{self, Registry};
use components::Dialect;

/// `/openapi/v2`: everything in one document.
pub fn openapi_v2(registry: &Registry) -> Bytes {
    let kinds: Vec<&Kind> = registry.iter().map(|kind| &**kind).collect();
    to_bytes(&json!({
        "swagger": "2.0",
        "info": info(),
        "paths": paths::paths(&kinds, Dialect::V2),
        "definitions": components::definitions(&kinds, Dialect::V2),
    }))
}

/// `/openapi/v2` in protobuf ([`protobuf::MEDIA_TYPE`]).
pub fn openapi_v2_protobuf(registry: &Registry) -> Bytes {
    let kinds: Vec<&Kind> = registry.iter().map(|kind| &**kind).collect();
    in_protobuf(&json!({ "info": info(), "definitions": components::definitions(&kinds, Dialect::V2) }))
}

/// The same of a document that was made already.
pub fn in_protobuf(document: &Value) -> Bytes {
    let empty = Map::new();
    protobuf::document("2.0", &document["info"], document["definitions"].as_object().unwrap_or(&empty)).into()
}

/// `/openapi/v3`: where the documents of the group versions are. The hash in an address changes with the document.
pub fn openapi_v3_index(registry: &Registry) -> Value {
    static BUILT_IN: OnceLock<HashMap<String, String>> = OnceLock::new();
    let of = |registry: &Registry, path: &str| {
        openapi_v3(registry, path).map(|document| hash(&document)).unwrap_or_default()
    };
    let built_in = BUILT_IN.get_or_init(|| {
        let registry = Registry::builtin();
        document_paths(registry).into_iter().map(|path| (path.clone(), of(registry, &path))).collect()
    });
    let is_custom = |path: &str| registry.iter().any(|kind| kind.custom.is_some() && document_path(kind) == path);
    let paths: Map<String, Value> = document_paths(registry)
        .into_iter()
        .map(|path| {
            let known = built_in.get(&path).filter(|_| !is_custom(&path)).cloned();
            let hash = known.unwrap_or_else(|| of(registry, &path));
            let address = format!("/openapi/v3/{path}?hash={hash}");
            (path, json!({"serverRelativeURL": address}))
        })
        .collect();
    json!({"paths": paths})
}

/// `/openapi/v3/PATH`, for example of `apis/apps/v1`.
pub fn openapi_v3(registry: &Registry, path: &str) -> Option<Bytes> {
    let kinds: Vec<&Kind> = registry.iter().map(|kind| &**kind).filter(|kind| document_path(kind) == path).collect();
    let (paths, schemas) = if kinds.is_empty() {
        groups::document(registry, path)?
    } else {
        (json!(paths::paths(&kinds, Dialect::V3)), components::definitions(&kinds, Dialect::V3))
    };
    Some(to_bytes(&json!({
        "openapi": "3.0.0",
        "info": info(),
        "paths": paths,
        "components": {"schemas": schemas},
    })))
}

fn info() -> Value {
    json!({"title": "Carob", "version": env!("CARGO_PKG_VERSION")})
}

fn document_paths(registry: &Registry) -> Vec<String> {
    let mut paths = groups::paths(registry);
    paths.extend(registry.iter().map(|kind| document_path(kind)));
    paths.sort_unstable();
    paths.dedup();
    paths
}

fn document_path(kind: &Kind) -> String {
    if kind.group.is_empty() { format!("api/{}", kind.version) } else { format!("apis/{}", kind.api_version()) }
}

/// The types that subresources of these kinds take and give.
fn parts_of(kinds: &[&Kind]) -> Vec<&'static Kind> {
    let wanted = |part: &Kind| {
        kinds.iter().flat_map(|kind| kind.subresources).any(|subresource| {
            let (group, version, name) = subresource.gvk;
            (part.group, part.version, part.kind) == (group, version, name)
        })
    };
    kinds::parts().iter().filter(|part| wanted(part)).collect()
}

fn hash(document: &[u8]) -> String {
    Sha512::digest(document).iter().map(|byte| format!("{byte:02X}")).collect()
}

/// A document of strings and numbers always serializes.
fn to_bytes(document: &Value) -> Bytes {
    Bytes::from(serde_json::to_vec(document).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(path: &str) -> Value {
        serde_json::from_slice(&openapi_v3(Registry::builtin(), path).expect("a document")).expect("JSON")
    }

    #[test]
    fn the_index_leads_to_every_group_version() {
        let index = openapi_v3_index(Registry::builtin());
        for path in index["paths"].as_object().unwrap().keys() {
            assert!(openapi_v3(Registry::builtin(), path).is_some(), "{path}");
        }
        let address = index["paths"]["apis/apps/v1"]["serverRelativeURL"].as_str().unwrap();
        assert!(address.starts_with("/openapi/v3/apis/apps/v1?hash="));
        assert!(openapi_v3(Registry::builtin(), "apis/nope/v1").is_none());
    }

    #[test]
    fn explain_finds_kind_and_description_of_a_resource() {
        let document = document("api/v1");
        let get = &document["paths"]["/api/v1/namespaces/{namespace}/pods/{name}"]["get"];
        assert_eq!(get["x-kubernetes-group-version-kind"], json!({"group": "", "version": "v1", "kind": "Pod"}));
        let pod = &document["components"]["schemas"]["io.k8s.api.core.v1.Pod"];
        assert_eq!(pod["x-kubernetes-group-version-kind"], json!([{"group": "", "version": "v1", "kind": "Pod"}]));
        assert!(pod["description"].is_string());
        assert_eq!(
            pod["properties"]["spec"]["allOf"],
            json!([{"$ref": "#/components/schemas/io.k8s.api.core.v1.PodSpec"}])
        );
    }

    #[test]
    fn apply_finds_merge_keys_and_the_parameters_of_patch() {
        let document = document("apis/apps/v1");
        let containers = &document["components"]["schemas"]["io.k8s.api.core.v1.PodSpec"]["properties"]["containers"];
        assert_eq!(containers["x-kubernetes-list-type"], "map");
        assert_eq!(containers["x-kubernetes-list-map-keys"], json!(["name"]));
        assert_eq!(containers["x-kubernetes-patch-strategy"], "merge");
        assert_eq!(containers["x-kubernetes-patch-merge-key"], "name");
        let patch = &document["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"];
        let names: Vec<&str> =
            patch["parameters"].as_array().unwrap().iter().filter_map(|parameter| parameter["name"].as_str()).collect();
        assert!(names.contains(&"fieldValidation") && names.contains(&"dryRun"));
    }

    #[test]
    fn every_reference_of_a_document_is_in_it() {
        fn references(value: &Value, found: &mut Vec<String>) {
            match value {
                Value::Object(fields) => fields.iter().for_each(|(name, value)| match value.as_str() {
                    Some(text) if name == "$ref" => found.push(text.rsplit('/').next().unwrap_or_default().to_owned()),
                    _ => references(value, found),
                }),
                Value::Array(items) => items.iter().for_each(|item| references(item, found)),
                _ => {}
            }
        }
        let check = |document: &Value, definitions: &Value| {
            let mut found = Vec::new();
            references(document, &mut found);
            assert!(!found.is_empty());
            for name in found {
                assert!(definitions.get(&name).is_some(), "{name}");
            }
        };
        for path in document_paths(Registry::builtin()) {
            let document = document(&path);
            check(&document, &document["components"]["schemas"]);
        }
        let v2: Value = serde_json::from_slice(&openapi_v2(Registry::builtin())).unwrap();
        check(&v2, &v2["definitions"]);
    }

    #[test]
    fn documents_are_the_same_each_time() {
        assert_eq!(openapi_v2(Registry::builtin()), openapi_v2(Registry::builtin()));
    }

    #[test]
    fn custom_resources_have_the_metadata_of_all_objects_and_what_is_said_of_it() {
        let definition = json!({"spec": {"group": "e.x", "scope": "Cluster", "names": {"plural": "xs", "kind": "X"},
            "versions": [{"name": "v1", "served": true, "storage": true,
                "schema": {"openAPIV3Schema": {"type": "object"}}}]}});
        let kinds = crate::custom::kinds_of(&definition);
        let kinds: Vec<&Kind> = kinds.iter().map(|kind| &**kind).collect();
        let all = components::definitions(&kinds, Dialect::V3);
        let meta = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";
        assert!(all[meta]["properties"]["creationTimestamp"]["description"].is_string());
        let fields = &all[kinds[0].schema]["properties"];
        assert_eq!(fields["metadata"]["allOf"][0]["$ref"], format!("#/components/schemas/{meta}"));
        assert!(fields["metadata"]["description"].is_string() && fields["apiVersion"]["description"].is_string());
        assert!(!all.contains_key("io.k8s.api.core.v1.ConfigMap"));
    }
}
