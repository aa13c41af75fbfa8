//! Who owns what: controller references, adoption of objects that match a selector, release of those that no longer do.

use std::collections::BTreeMap;
use std::sync::Arc;

use carob_api::selector::LabelSelector;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector as Written, OwnerReference};
use kube::api::{Api, ObjectMeta, Patch, PatchParams, PostParams};
use kube::{Client, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// The reference to the controller of an object.
pub(crate) fn controller_of(meta: &ObjectMeta) -> Option<&OwnerReference> {
    meta.owner_references.iter().flatten().find(|owner| owner.controller == Some(true))
}

/// Whether `owner` controls an object.
pub(crate) fn is_controlled_by<K: Resource>(meta: &ObjectMeta, owner: &K) -> bool {
    controller_of(meta).is_some_and(|reference| Some(&reference.uid) == owner.meta().uid.as_ref())
}

/// The reference that makes `owner` the controller of what it creates.
pub(crate) fn reference<K: Resource<DynamicType = ()>>(owner: &K) -> OwnerReference {
    OwnerReference {
        api_version: K::api_version(&()).into_owned(),
        kind: K::kind(&()).into_owned(),
        name: owner.meta().name.clone().unwrap_or_default(),
        uid: owner.meta().uid.clone().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// A selector as it is written in a spec. One that can't be read was refused by validation and selects nothing here.
pub(crate) struct Selector(Option<LabelSelector>);

impl Selector {
    pub(crate) fn read(written: Option<&Written>) -> Self {
        let selector = written.and_then(|written| LabelSelector::from_object(&json!(written)).ok());
        Self(selector.filter(|selector| !selector.is_everything()))
    }

    /// The same where an empty selector, though not a missing one, selects everything.
    pub(crate) fn read_or_everything(written: Option<&Written>) -> Self {
        Self(written.and_then(|written| LabelSelector::from_object(&json!(written)).ok()))
    }

    /// All of these labels.
    pub(crate) fn of_labels(labels: BTreeMap<String, String>) -> Self {
        Self::read(Some(&Written { match_labels: Some(labels), match_expressions: None }))
    }

    pub(crate) fn matches(&self, meta: &ObjectMeta) -> bool {
        self.0.as_ref().is_some_and(|selector| selector.matches(Some(&json!(meta.labels))))
    }
}

/// What can be adopted: objects in namespaces.
pub(crate) trait Owned:
    Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
    + Clone
    + std::fmt::Debug
    + DeserializeOwned
    + Serialize
{
}

impl<K> Owned for K where
    K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
        + Clone
        + std::fmt::Debug
        + DeserializeOwned
        + Serialize
{
}

/// Makes `owner` the controller of an object that has none, and puts `finalizer` on it if there is one. Whether it was
/// done: an owner that is being deleted meanwhile adopts nothing, else its orphans would be collected.
pub(crate) async fn adopt<O: Owned, K: Owned>(
    client: &Client,
    owner: &O,
    object: &K,
    finalizer: Option<&str>,
) -> Result<bool, kube::Error> {
    let owners: Api<O> = Api::namespaced(client.clone(), owner.meta().namespace.as_deref().unwrap_or_default());
    let live = owners.get_metadata_opt(owner.meta().name.as_deref().unwrap_or_default()).await?;
    if !live.is_some_and(|live| live.metadata.uid == owner.meta().uid && live.metadata.deletion_timestamp.is_none()) {
        return Ok(false);
    }
    let mut owners = object.meta().owner_references.clone().unwrap_or_default();
    owners.push(reference(owner));
    let mut finalizers = object.meta().finalizers.clone().unwrap_or_default();
    finalizers
        .extend(finalizer.filter(|finalizer| !finalizers.iter().any(|known| known == finalizer)).map(str::to_owned));
    set_metadata(client, object, json!({"ownerReferences": owners, "finalizers": finalizers})).await
}

/// Takes `owner` off an object that it no longer selects, and `finalizer` with it.
pub(crate) async fn release<O: Owned, K: Owned>(
    client: &Client,
    owner: &O,
    object: &K,
    finalizer: Option<&str>,
) -> Result<bool, kube::Error> {
    let others =
        object.meta().owner_references.iter().flatten().filter(|known| Some(&known.uid) != owner.meta().uid.as_ref());
    let others: Vec<&OwnerReference> = others.collect();
    let finalizers = object.meta().finalizers.iter().flatten().filter(|known| Some(known.as_str()) != finalizer);
    let finalizers: Vec<&String> = finalizers.collect();
    set_metadata(client, object, json!({"ownerReferences": others, "finalizers": finalizers})).await
}

/// Changes the very object that was looked at; not one that has changed meanwhile, which the watch will tell of.
async fn set_metadata<K: Owned>(client: &Client, object: &K, mut metadata: Value) -> Result<bool, kube::Error> {
    let meta = object.meta();
    metadata["uid"] = json!(meta.uid);
    metadata["resourceVersion"] = json!(meta.resource_version);
    let api: Api<K> = Api::namespaced(client.clone(), meta.namespace.as_deref().unwrap_or_default());
    let patch = Patch::Merge(json!({"metadata": metadata}));
    match api.patch_metadata(meta.name.as_deref().unwrap_or_default(), &PatchParams::default(), &patch).await {
        Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => Ok(false),
        Err(error) => Err(error),
        Ok(_) => Ok(true),
    }
}

/// Creates an object; that it is there already is fine, and so is a namespace that has begun to go.
pub(crate) async fn create_if_missing<K: Owned + Serialize>(
    client: &Client,
    namespace: &str,
    object: &K,
) -> Result<(), kube::Error> {
    let api: Api<K> = Api::namespaced(client.clone(), namespace);
    match api.create(&PostParams::default(), object).await {
        Err(kube::Error::Api(status)) if status.code == 409 || status.code == 404 || is_terminating(&status) => Ok(()),
        outcome => outcome.map(|_| ()),
    }
}

/// Whether something was refused because its namespace is being deleted.
pub(crate) fn is_terminating(status: &kube::core::Status) -> bool {
    let causes = status.details.iter().flat_map(|details| &details.causes);
    status.code == 403 && causes.into_iter().any(|cause| cause.reason == "NamespaceTerminating")
}

/// Those of the candidates that `owner` controls and selects; orphans that match are adopted where `adoptable` says so,
/// and what no longer matches is let go.
pub(crate) async fn claim<O: Owned, K: Owned>(
    client: &Client,
    owner: &O,
    selector: &Selector,
    candidates: Vec<Arc<K>>,
    adoptable: impl Fn(&K) -> bool,
) -> Result<Vec<Arc<K>>, kube::Error> {
    let ending = owner.meta().deletion_timestamp.is_some();
    let mut own = Vec::new();
    for object in candidates {
        let matches = selector.matches(object.meta());
        if is_controlled_by(object.meta(), owner) {
            if matches || ending {
                own.push(object);
            } else {
                release(client, owner, &*object, None).await?;
            }
        } else if matches
            && !ending
            && controller_of(object.meta()).is_none()
            && object.meta().deletion_timestamp.is_none()
            && adoptable(&object)
            && adopt(client, owner, &*object, None).await?
        {
            own.push(object);
        }
    }
    Ok(own)
}
