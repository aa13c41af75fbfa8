//! Who owns what: controller references, adoption of objects that match a selector, release of those that no longer do.

use carob_api::selector::LabelSelector;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector as Written, OwnerReference};
use kube::api::{Api, ObjectMeta, Patch, PatchParams};
use kube::{Client, Resource};
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

    pub(crate) fn matches(&self, meta: &ObjectMeta) -> bool {
        self.0.as_ref().is_some_and(|selector| selector.matches(Some(&json!(meta.labels))))
    }
}

/// Makes `owner` the controller of an object that has none.
pub(crate) async fn adopt<O, K>(client: &Client, owner: &O, object: &K) -> Result<(), kube::Error>
where
    O: Resource<DynamicType = ()>,
    K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
        + Clone
        + std::fmt::Debug
        + DeserializeOwned,
{
    let mut owners = json!(object.meta().owner_references.clone().unwrap_or_default());
    if let Value::Array(owners) = &mut owners {
        owners.push(json!(reference(owner)));
    }
    set_owners(client, object, owners).await
}

/// Takes `owner` off an object that it no longer selects.
pub(crate) async fn release<O, K>(client: &Client, owner: &O, object: &K) -> Result<(), kube::Error>
where
    O: Resource<DynamicType = ()>,
    K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
        + Clone
        + std::fmt::Debug
        + DeserializeOwned,
{
    let others =
        object.meta().owner_references.iter().flatten().filter(|known| Some(&known.uid) != owner.meta().uid.as_ref());
    let others: Vec<&OwnerReference> = others.collect();
    set_owners(client, object, json!(others)).await
}

async fn set_owners<K>(client: &Client, object: &K, owners: Value) -> Result<(), kube::Error>
where
    K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
        + Clone
        + std::fmt::Debug
        + DeserializeOwned,
{
    let meta = object.meta();
    let api: Api<K> = Api::namespaced(client.clone(), meta.namespace.as_deref().unwrap_or_default());
    // uid and version: only the very object that was looked at.
    let patch = json!({"metadata": {
        "uid": meta.uid, "resourceVersion": meta.resource_version, "ownerReferences": owners,
    }});
    api.patch_metadata(meta.name.as_deref().unwrap_or_default(), &PatchParams::default(), &Patch::Merge(patch)).await?;
    Ok(())
}
