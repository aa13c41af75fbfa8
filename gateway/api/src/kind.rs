//! A kind is a row: everything that sets one Kubernetes resource apart from the others.

use std::ops::Deref;
use std::sync::Arc;

use serde_json::Value;

use crate::custom::Custom;
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
    /// The form in which objects are stored, if it is another kind's (Events of `events.k8s.io` are core Events).
    pub stored_as: Option<&'static StoredForm>,
    /// What this kind does differently. Ask the kind itself ([`Kind::validate`] and so on): a custom one does more.
    pub strategy: Strategy,
    /// What a kind has that was made of a CustomResourceDefinition; none for one that is built in.
    pub custom: Option<Arc<Custom>>,
}

/// The form of another kind, in which a kind's objects are stored.
#[derive(Debug)]
pub struct StoredForm {
    /// API group of that kind.
    pub group: &'static str,
    /// Its version.
    pub version: &'static str,
    /// Its path segment.
    pub plural: &'static str,
    /// From the kind's own form.
    pub to: fn(&Value) -> Value,
    /// Back into the kind's own form.
    pub from: fn(&Value) -> Value,
}

/// A kind that is served: built in, or made at run time. Cheap to clone.
#[derive(Clone, Debug)]
pub enum KindRef {
    /// A row of the table.
    BuiltIn(&'static Kind),
    /// One version of a CustomResourceDefinition.
    Custom(Arc<Kind>),
}

impl Deref for KindRef {
    type Target = Kind;

    fn deref(&self) -> &Kind {
        match self {
            Self::BuiltIn(kind) => kind,
            Self::Custom(kind) => kind,
        }
    }
}

impl From<&'static Kind> for KindRef {
    fn from(kind: &'static Kind) -> Self {
        Self::BuiltIn(kind)
    }
}

impl From<&KindRef> for KindRef {
    fn from(kind: &KindRef) -> Self {
        kind.clone()
    }
}

/// A path below an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
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
    /// `/approval` of a CertificateSigningRequest.
    Approval,
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
    /// Whether a change (`new`, `old`) is one after which these texts are told again.
    pub warns_again: fn(&Value, &Value) -> bool,
    /// The value of a field that selectors may use, or none if they may not.
    pub field: fn(&Value, &str) -> Option<String>,
    /// The grace period of a delete without one: only Pods have it.
    pub default_grace_seconds: Option<fn(&Value) -> i64>,
    /// Whether an update may create.
    pub create_on_update: bool,
    /// Whether an update without a resourceVersion is taken.
    pub unconditional_update: bool,
}

/// The strategy, as it applies to this kind.
impl Kind {
    /// Fills in defaults (idempotent).
    pub fn default(&self, object: &mut Value) {
        match &self.custom {
            Some(custom) => custom.default(object),
            None => (self.strategy.default)(object),
        }
    }

    /// Prepares a new object for validation: see [`Strategy::prepare_create`].
    pub fn prepare_create(&self, object: &mut Value) {
        match &self.custom {
            Some(custom) => custom.prepare_create(object),
            None => (self.strategy.prepare_create)(object),
        }
    }

    /// Prepares a changed object for validation: see [`Strategy::prepare_update`].
    pub fn prepare_update(&self, new: &mut Value, old: &Value, part: Part) {
        match &self.custom {
            Some(custom) => custom.prepare_update(new, old, part),
            None => (self.strategy.prepare_update)(new, old, part),
        }
    }

    /// Everything that is wrong with a new object, metadata excepted.
    pub fn validate(&self, object: &Value) -> ErrorList {
        match &self.custom {
            Some(custom) => custom.validate(object),
            None => (self.strategy.validate)(object),
        }
    }

    /// Everything that is wrong with a change, metadata excepted.
    pub fn validate_update(&self, new: &Value, old: &Value, part: Part) -> ErrorList {
        match &self.custom {
            Some(custom) => custom.validate_update(new, old, part),
            None => (self.strategy.validate_update)(new, old, part),
        }
    }

    /// Texts for Warning headers on create.
    pub fn warnings(&self, object: &Value) -> Vec<String> {
        match &self.custom {
            Some(_) => Vec::new(),
            None => (self.strategy.warnings)(object),
        }
    }

    /// The same on update: see [`Strategy::warns_again`].
    pub fn update_warnings(&self, new: &Value, old: &Value) -> Vec<String> {
        if (self.strategy.warns_again)(new, old) { self.warnings(new) } else { Vec::new() }
    }

    /// The value of a field that selectors may use, or none if they may not.
    pub fn field(&self, object: &Value, field: &str) -> Option<String> {
        match &self.custom {
            Some(custom) => custom.field(object, field),
            None => (self.strategy.field)(object, field),
        }
    }

    /// Where the scale subresource finds its numbers.
    pub fn scale_paths(&self) -> ScalePaths<'_> {
        self.custom.as_ref().map_or(ScalePaths::BUILT_IN, |custom| custom.scale_paths())
    }
}

/// JSON pointers to what the scale subresource shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScalePaths<'a> {
    /// The wanted number.
    pub spec_replicas: &'a str,
    /// The number there is.
    pub status_replicas: &'a str,
    /// The selector: an object of type `LabelSelector`, or a text.
    pub selector: Option<&'a str>,
}

impl ScalePaths<'static> {
    const BUILT_IN: Self =
        Self { spec_replicas: "/spec/replicas", status_replicas: "/status/replicas", selector: Some("/spec/selector") };
}
