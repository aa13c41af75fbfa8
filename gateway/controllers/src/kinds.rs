//! Objects of any kind, by their row in the table of kinds.

use carob_api::kind::{Kind, Scope};
use carob_api::kinds;
use kube::Client;
use kube::api::{Api, ApiResource, DynamicObject, PartialObjectMeta};

/// The kinds whose objects are stored, can be listed and deleted; each once, whatever groups it is served in.
pub(crate) fn deletable() -> impl Iterator<Item = &'static Kind> {
    kinds::builtin().filter(|kind| {
        kind.stored_as.is_none() && ["delete", "list", "watch"].iter().all(|verb| kind.verbs.contains(verb))
    })
}

/// The row of a group and kind, whatever its version.
pub(crate) fn by_group_kind(group: &str, name: &str) -> Option<&'static Kind> {
    deletable().find(|kind| kind.group == group && kind.kind == name)
}

pub(crate) fn is_namespaced(kind: &Kind) -> bool {
    kind.scope == Scope::Namespaced
}

/// `apps/v1`
pub(crate) fn api_version(kind: &Kind) -> String {
    if kind.group.is_empty() { kind.version.to_owned() } else { format!("{}/{}", kind.group, kind.version) }
}

/// `deployments.apps`, `pods.`: as Kubernetes writes a resource and its group.
pub(crate) fn group_resource(kind: &Kind) -> String {
    format!("{}.{}", kind.plural, kind.group)
}

/// The API of a kind, in one namespace, or everywhere if it is empty.
pub(crate) fn api(client: &Client, kind: &Kind, namespace: &str) -> Api<DynamicObject> {
    let resource = resource(kind);
    if namespace.is_empty() {
        Api::all_with(client.clone(), &resource)
    } else {
        Api::namespaced_with(client.clone(), namespace, &resource)
    }
}

/// The same everywhere, with nothing but metadata.
pub(crate) fn metadata_api(client: &Client, kind: &Kind) -> Api<PartialObjectMeta> {
    Api::all_with(client.clone(), &resource(kind))
}

fn resource(kind: &Kind) -> ApiResource {
    ApiResource {
        group: kind.group.to_owned(),
        version: kind.version.to_owned(),
        api_version: api_version(kind),
        kind: kind.kind.to_owned(),
        plural: kind.plural.to_owned(),
    }
}
