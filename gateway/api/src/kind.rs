//! A kind is a row: everything that sets one Kubernetes resource apart from the others.

use serde_json::Value;

use crate::field::ErrorList;

/// Whether objects live in a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// They do.
    Namespaced,
    /// They don't.
    Cluster,
}

/// One resource that the API serves.
#[derive(Debug)]
pub struct Kind {
    /// API group; empty for the core group.
    pub group: &'static str,
    /// `v1`
    pub version: &'static str,
    /// `Deployment`
    pub kind: &'static str,
    /// `deployments`: the path segment.
    pub plural: &'static str,
    /// `deployment`
    pub singular: &'static str,
    /// `deploy`
    pub short_names: &'static [&'static str],
    /// `all`
    pub categories: &'static [&'static str],
    /// Where objects live.
    pub scope: Scope,
    /// What clients may do with the resource itself.
    pub verbs: &'static [&'static str],
    /// `status`, `scale`, `log`, …
    pub subresources: &'static [Subresource],
    /// Columns of a Table, without which `kubectl get` shows name and age.
    pub columns: &'static [Column],
    /// Name of the OpenAPI definition, `io.k8s.api.apps.v1.Deployment`.
    pub schema: &'static str,
    /// The resource under whose key objects are stored, if another's: group and plural (Events of `events.k8s.io` are core Events).
    pub stored_as: Option<(&'static str, &'static str)>,
    /// What this kind does differently.
    pub strategy: Strategy,
}

/// A path below an object.
#[derive(Debug)]
pub struct Subresource {
    /// `scale`
    pub name: &'static str,
    /// Group, version and kind of what it takes and gives.
    pub gvk: (&'static str, &'static str, &'static str),
    /// What clients may do with it.
    pub verbs: &'static [&'static str],
}

/// A column of a Table.
#[derive(Debug)]
pub struct Column {
    /// `Ready`
    pub name: &'static str,
    /// `string`, `integer`, `date`, …
    pub type_: &'static str,
    /// `name` for the first one, else empty.
    pub format: &'static str,
    /// 0 is always shown, 1 only with `-o wide`.
    pub priority: i32,
    /// As `kubectl explain` has it.
    pub description: &'static str,
    /// The cell of an object as of now.
    pub cell: fn(&Value, jiff::Timestamp) -> Value,
}

/// What an update changes: the object itself or a part behind a subresource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The main resource: everything but what the status subresource owns.
    Main,
    /// `/status`: only status (and some metadata).
    Status,
    /// `/ephemeralcontainers` of a Pod.
    EphemeralContainers,
    /// `/resize` of a Pod.
    Resize,
    /// `/finalize` of a Namespace.
    Finalize,
}

/// What a kind does differently from the generic handler. All work on the JSON of the object.
#[derive(Clone, Copy, Debug)]
pub struct Strategy {
    /// Fills in Kubernetes' defaults (idempotent).
    pub default: fn(&mut Value),
    /// Before validation of a new object: drops what a client may not set (status), sets generation, …
    pub prepare_create: fn(&mut Value),
    /// Before validation of an update (`new`, `old`): keeps what this part may not change, bumps generation, …
    pub prepare_update: fn(&mut Value, &Value, Part),
    /// Everything that is wrong with a new object, metadata excepted.
    pub validate: fn(&Value) -> ErrorList,
    /// Everything that is wrong with a change (`new`, `old`), metadata excepted.
    pub validate_update: fn(&Value, &Value, Part) -> ErrorList,
    /// What is wrong with a name; the messages, without the value.
    pub validate_name: fn(&str) -> Vec<String>,
    /// Texts for Warning headers on create and update (deprecated fields and the like, as Kubernetes').
    pub warnings: fn(&Value) -> Vec<String>,
    /// The value of a field that selectors may use, or none if they may not.
    pub field: fn(&Value, &str) -> Option<String>,
    /// The grace period of a delete without one: only Pods have it.
    pub default_grace_seconds: Option<fn(&Value) -> i64>,
    /// Whether an update may create.
    pub create_on_update: bool,
    /// Whether an update without a resourceVersion is taken.
    pub unconditional_update: bool,
}
