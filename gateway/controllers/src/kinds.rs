//! Objects of any kind: those of the table of kinds, and those that CustomResourceDefinitions define at run time.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use carob_api::kind::{Kind as Row, Scope};
use carob_api::kinds;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Client;
use kube::api::{Api, ApiResource, DynamicObject, PartialObjectMeta};

/// A kind whose objects are stored, can be listed, watched and deleted.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Kind {
    pub(crate) group: String,
    pub(crate) version: String,
    pub(crate) name: String,
    pub(crate) plural: String,
    pub(crate) namespaced: bool,
}

/// All kinds that there are now. Clones share them.
#[derive(Clone)]
pub(crate) struct Kinds {
    known: Arc<RwLock<ByGroupKind>>,
}

/// Kinds by group and name.
type ByGroupKind = BTreeMap<(String, String), Arc<Kind>>;

impl Kinds {
    /// The built-in ones; each once, whatever groups it is served in.
    pub(crate) fn builtin() -> Self {
        let deletable = |row: &&Row| {
            row.stored_as.is_none() && ["delete", "list", "watch"].iter().all(|verb| row.verbs.contains(verb))
        };
        let mut known = BTreeMap::new();
        for row in kinds::builtin().filter(deletable) {
            // The first version is the preferred one.
            known.entry((row.group.to_owned(), row.kind.to_owned())).or_insert_with(|| Arc::new(Kind::of_row(row)));
        }
        Self { known: Arc::new(RwLock::new(known)) }
    }

    pub(crate) fn all(&self) -> Vec<Arc<Kind>> {
        self.known.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// A group and kind, whatever the version.
    pub(crate) fn get(&self, group: &str, name: &str) -> Option<Arc<Kind>> {
        let key = (group.to_owned(), name.to_owned());
        self.known.read().unwrap_or_else(PoisonError::into_inner).get(&key).cloned()
    }

    pub(crate) fn add(&self, kind: Arc<Kind>) {
        let key = (kind.group.clone(), kind.name.clone());
        self.known.write().unwrap_or_else(PoisonError::into_inner).insert(key, kind);
    }

    pub(crate) fn remove(&self, kind: &Kind) {
        let key = (kind.group.clone(), kind.name.clone());
        self.known.write().unwrap_or_else(PoisonError::into_inner).remove(&key);
    }
}

impl Kind {
    fn of_row(row: &Row) -> Self {
        Self {
            group: row.group.to_owned(),
            version: row.version.to_owned(),
            name: row.kind.to_owned(),
            plural: row.plural.to_owned(),
            namespaced: row.scope == Scope::Namespaced,
        }
    }

    /// What a definition defines, once it is served.
    pub(crate) fn of_definition(definition: &CustomResourceDefinition) -> Option<Self> {
        let conditions = definition.status.as_ref()?.conditions.as_deref().unwrap_or_default();
        let established = conditions.iter().any(|known| known.type_ == "Established" && known.status == "True");
        let version = definition.spec.versions.iter().find(|version| version.served)?;
        established.then(|| Self {
            group: definition.spec.group.clone(),
            version: version.name.clone(),
            name: definition.spec.names.kind.clone(),
            plural: definition.spec.names.plural.clone(),
            namespaced: definition.spec.scope == "Namespaced",
        })
    }

    /// `apps/v1`
    pub(crate) fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.clone() } else { format!("{}/{}", self.group, self.version) }
    }

    /// `deployments.apps`, `pods.`: as Kubernetes writes a resource and its group.
    pub(crate) fn group_resource(&self) -> String {
        format!("{}.{}", self.plural, self.group)
    }

    /// The API of the kind, in one namespace, or everywhere if it is empty.
    pub(crate) fn api(&self, client: &Client, namespace: &str) -> Api<DynamicObject> {
        if namespace.is_empty() {
            Api::all_with(client.clone(), &self.resource())
        } else {
            Api::namespaced_with(client.clone(), namespace, &self.resource())
        }
    }

    /// The same everywhere, with nothing but metadata.
    pub(crate) fn metadata_api(&self, client: &Client) -> Api<PartialObjectMeta> {
        Api::all_with(client.clone(), &self.resource())
    }

    fn resource(&self) -> ApiResource {
        ApiResource {
            group: self.group.clone(),
            version: self.version.clone(),
            api_version: self.api_version(),
            kind: self.name.clone(),
            plural: self.plural.clone(),
        }
    }
}
