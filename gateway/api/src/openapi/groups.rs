//! The documents of `/api`, `/apis` and `/apis/GROUP`: discovery itself, described.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{APIGroup, APIGroupList, APIVersions};
use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use super::components::{Dialect, definition};
use crate::kinds::Registry;
use crate::schema::build::Markers;

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";

/// The paths of these documents: `api`, `apis`, `apis/apps`, …
pub(super) fn paths(registry: &Registry) -> Vec<String> {
    let groups = registry.iter().map(|kind| kind.group).filter(|group| !group.is_empty());
    let mut paths: Vec<String> = groups.map(|group| format!("apis/{group}")).collect();
    paths.extend(["api".to_owned(), "apis".to_owned()]);
    paths.sort_unstable();
    paths.dedup();
    paths
}

/// The paths and schemas of such a document; none for another path.
pub(super) fn document(registry: &Registry, path: &str) -> Option<(Value, Map<String, Value>)> {
    if !paths(registry).iter().any(|known| known == path) {
        return None;
    }
    let (kind, schemas) = match path {
        "api" => ("APIVersions", schemas::<APIVersions>()),
        "apis" => ("APIGroupList", schemas::<APIGroupList>()),
        _ => ("APIGroup", schemas::<APIGroup>()),
    };
    let schema = json!({"$ref": Dialect::V3.path(&format!("{META}.{kind}"))});
    let content = |media: &str| (media.to_owned(), json!({"schema": schema}));
    let media = ["application/json", "application/yaml", "application/vnd.kubernetes.protobuf"];
    let content: Map<String, Value> = media.into_iter().map(content).collect();
    let get = json!({
        "description": "What is served here.",
        "responses": {"200": {"description": "OK", "content": content}, "401": {"description": "Unauthorized"}},
    });
    let address = format!("/{path}/");
    Some((json!({ address: {"get": get} }), schemas))
}

fn schemas<T: JsonSchema>() -> Map<String, Value> {
    let mut generator = SchemaSettings::openapi3().into_generator();
    generator.subschema_for::<T>();
    let markers = Markers::read();
    generator
        .take_definitions(true)
        .into_iter()
        .map(|(name, shape)| {
            let written = definition(&name, shape, &markers, Dialect::V3);
            (name, written)
        })
        .collect()
}
