//! The table of the resources that are built in: one row each. Adding a kind is adding a row.

mod cluster;
mod core;
mod extension;
mod identity;
mod networking;
mod resource;
mod storage;
mod workloads;

use std::sync::{Arc, OnceLock};

use serde_json::Value;

use crate::kind::{Kind, KindRef, Scope, Subresource};
use crate::strategy;
use crate::table;

/// What clients may do with an ordinary resource.
const ALL_VERBS: &[&str] = &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];
/// What clients may do with a part of an object behind a path of its own.
const PART_VERBS: &[&str] = &["get", "patch", "update"];
const READ_VERBS: &[&str] = &["get", "list"];
const CREATE: &[&str] = &["create"];
const CONNECT: &[&str] = &["create", "get"];
const PROXY_VERBS: &[&str] = &["create", "delete", "get", "patch", "update"];

const SCALE: Subresource = Subresource { name: "scale", gvk: ("autoscaling", "v1", "Scale"), verbs: PART_VERBS };

const fn part(name: &'static str, gvk: (&'static str, &'static str, &'static str)) -> Subresource {
    Subresource { name, gvk, verbs: PART_VERBS }
}

const fn with_verbs(
    name: &'static str,
    gvk: (&'static str, &'static str, &'static str),
    verbs: &'static [&'static str],
) -> Subresource {
    Subresource { name, gvk, verbs }
}

/// What rows have in common unless they say otherwise.
const ROW: Kind = Kind {
    group: "",
    version: "v1",
    kind: "",
    plural: "",
    singular: "",
    short_names: &[],
    categories: &[],
    scope: Scope::Namespaced,
    verbs: ALL_VERBS,
    subresources: &[],
    columns: table::DEFAULT_COLUMNS,
    schema: "",
    stored_as: None,
    strategy: strategy::BASE,
    custom: None,
};

/// The tables, in the order of discovery within a group.
static TABLES: &[&[Kind]] = &[
    core::ROWS,
    workloads::ROWS,
    networking::ROWS,
    identity::ROWS,
    storage::ROWS,
    cluster::ROWS,
    extension::ROWS,
    resource::ROWS,
];

/// Types that only subresources and deletes take. They have no path of their own.
static PARTS: &[Kind] = &[
    Kind {
        kind: "DeleteOptions",
        singular: "deleteoptions",
        schema: "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions",
        verbs: &[],
        ..ROW
    },
    Kind {
        group: "authentication.k8s.io",
        kind: "TokenRequest",
        singular: "tokenrequest",
        schema: "io.k8s.api.authentication.v1.TokenRequest",
        verbs: &[],
        ..ROW
    },
    Kind {
        group: "autoscaling",
        kind: "Scale",
        singular: "scale",
        schema: "io.k8s.api.autoscaling.v1.Scale",
        columns: table::scale::COLUMNS,
        verbs: &[],
        ..ROW
    },
    Kind {
        group: "policy",
        kind: "Eviction",
        singular: "eviction",
        schema: "io.k8s.api.policy.v1.Eviction",
        verbs: &[],
        ..ROW
    },
];

/// Types that are taken and given, but have no path of their own: Scale, Eviction, `DeleteOptions`, …
pub fn parts() -> &'static [Kind] {
    PARTS
}

/// The built-in resources, in the order of discovery.
pub fn builtin() -> impl Iterator<Item = &'static Kind> {
    TABLES.iter().copied().flatten()
}

/// Resources that are served only if the cluster's owner says so.
pub fn optional() -> impl Iterator<Item = &'static Kind> {
    extension::OPTIONAL.iter()
}

/// The resources that are served at one moment.
#[derive(Debug)]
pub struct Registry {
    kinds: Vec<KindRef>,
}

impl Registry {
    /// The built-in resources.
    pub fn builtin() -> &'static Arc<Self> {
        static REGISTRY: OnceLock<Arc<Registry>> = OnceLock::new();
        REGISTRY.get_or_init(|| Arc::new(Self { kinds: builtin().map(KindRef::from).collect() }))
    }

    /// The built-in resources and these: some of [`optional`], and custom ones.
    pub fn with(optional: &[&'static Kind], custom: impl IntoIterator<Item = Arc<Kind>>) -> Self {
        let mut custom: Vec<Arc<Kind>> = custom.into_iter().collect();
        custom.sort_by(|a, b| {
            let by_version = crate::custom::version_order(a.version, b.version);
            a.group.cmp(b.group).then(by_version).then(a.plural.cmp(b.plural))
        });
        let fixed = builtin().chain(optional.iter().copied());
        Self { kinds: fixed.map(KindRef::from).chain(custom.into_iter().map(KindRef::Custom)).collect() }
    }

    /// The resource behind a path.
    pub fn by_resource(&self, group: &str, version: &str, plural: &str) -> Option<&KindRef> {
        self.iter().find(|kind| kind.plural == plural && kind.group == group && kind.version == version)
    }

    /// The resource whose objects have this kind.
    pub fn by_gvk(&self, group: &str, version: &str, kind: &str) -> Option<&KindRef> {
        self.iter().find(|row| row.kind == kind && row.group == group && row.version == version)
    }

    /// The kind of what a subresource takes and gives (Scale, Eviction, …), or of a resource.
    pub fn type_of(&self, group: &str, version: &str, kind: &str) -> Option<&Kind> {
        let part = || PARTS.iter().find(|row| row.kind == kind && row.group == group && row.version == version);
        self.by_gvk(group, version, kind).map(|found| &**found).or_else(part)
    }

    /// All resources, in the order of discovery.
    pub fn iter(&self) -> impl Iterator<Item = &KindRef> {
        self.kinds.iter()
    }
}

impl Kind {
    /// `apps/v1`, `v1`
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.to_owned() } else { format!("{}/{}", self.group, self.version) }
    }

    /// The resource as messages name it.
    pub fn group_resource(&self) -> crate::status::GroupResource {
        crate::status::GroupResource::new(self.group, self.plural)
    }

    /// Turns an object of this kind into the form in which it is stored: that of [`Kind::stored_as`], if it has one.
    pub fn to_stored(&self, object: &mut Value) {
        if let Some(form) = self.stored_as {
            *object = (form.to)(object);
        }
        if let Some(custom) = &self.custom {
            object["apiVersion"] = format!("{}/{}", self.group, custom.storage_version).into();
            custom.prune_for_storage(object);
        }
    }

    /// Turns a stored object into the form of this kind; the inverse of [`Kind::to_stored`].
    pub fn from_stored(&self, object: &mut Value) {
        if let Some(form) = self.stored_as {
            *object = (form.from)(object);
        }
        if let Some(custom) = &self.custom {
            object["apiVersion"] = self.api_version().into();
            custom.read(object);
        }
    }

    /// The subresource of this name.
    pub fn subresource(&self, name: &str) -> Option<&'static Subresource> {
        let subresources: &'static [Subresource] = self.subresources;
        subresources.iter().find(|subresource| subresource.name == name)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::schema;

    #[test]
    fn every_row_has_a_schema_of_its_kind() {
        for row in builtin().chain(optional()).chain(PARTS) {
            let schema = schema::schema_of(row);
            assert!(schema.property("metadata").is_some() || row.kind == "DeleteOptions", "{} has metadata", row.kind);
            assert!(row.schema.ends_with(&format!(".{}.{}", row.version, row.kind)));
        }
    }

    #[test]
    fn every_subresource_leads_to_a_known_type_or_to_connect_options() {
        let registry = Registry::builtin();
        for row in builtin() {
            for subresource in row.subresources {
                let (group, version, kind) = subresource.gvk;
                assert!(kind.ends_with("Options") || registry.type_of(group, version, kind).is_some(), "{kind}");
            }
        }
    }

    #[test]
    fn an_event_of_the_newer_group_is_stored_as_a_core_event_and_comes_back_the_same() {
        let kind = Registry::builtin().by_gvk("events.k8s.io", "v1", "Event").unwrap();
        let mut original = json!({"apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"name": "e"},
            "note": "m", "regarding": {"kind": "Pod"}, "reportingController": "c", "reportingInstance": "i"});
        crate::decode::normalize(kind, &mut original);
        let mut object = original.clone();
        kind.to_stored(&mut object);
        assert_eq!(object["apiVersion"], "v1");
        assert_eq!(object["involvedObject"], json!({"kind": "Pod"}));
        assert_eq!(object["message"], "m");
        kind.from_stored(&mut object);
        assert_eq!(object, original);
    }

    #[test]
    fn a_form_in_which_objects_are_stored_is_that_of_a_kind_which_stores_its_own() {
        let registry = Registry::builtin();
        for form in builtin().filter_map(|row| row.stored_as) {
            let stored = registry.by_resource(form.group, form.version, form.plural).unwrap();
            assert!(stored.stored_as.is_none(), "{}", stored.kind);
        }
    }

    #[test]
    fn resources_are_found_by_path_and_by_kind() {
        let registry = Registry::builtin();
        assert_eq!(registry.by_resource("apps", "v1", "deployments").unwrap().kind, "Deployment");
        assert_eq!(registry.by_gvk("", "v1", "Pod").unwrap().plural, "pods");
        assert!(registry.by_resource("", "v1", "deployments").is_none());
        assert_eq!(registry.type_of("policy", "v1", "Eviction").unwrap().kind, "Eviction");
    }
}
