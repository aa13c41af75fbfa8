//! What an object of a kind may hold: structural schemas, with the markers that patches and apply go by.
//!
//! Shapes come from `k8s-openapi`; list types, merge keys, defaults and required fields, which it doesn't carry, from
//! the tables in `data/`. All schemas of the built-in kinds are built together at the first use and kept for good: a few
//! hundred kilobytes, without the descriptions. Those of custom resources ([`custom`]) live as long as their kind.

pub(crate) mod build;
pub(crate) mod custom;
mod types;

use std::borrow::Cow;
use std::ops::Deref;
use std::sync::{Arc, OnceLock};

use serde_json::Value;

use crate::kind::Kind;

/// What a value is in JSON, and what it means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    /// An object with known fields.
    Object,
    /// An object whose keys are data.
    Map,
    /// A list.
    Array,
    /// A string.
    String,
    /// A string holding base64 (`[]byte` in Go).
    Bytes,
    /// A string holding an RFC 3339 time in seconds.
    Time,
    /// A string holding an RFC 3339 time in microseconds.
    MicroTime,
    /// A number of 32 bits.
    Int32,
    /// A number of 64 bits.
    Int64,
    /// A floating-point number.
    Double,
    /// true or false.
    Boolean,
    /// A number or a string.
    IntOrString,
    /// A resource quantity: a string, or a number on the way in.
    Quantity,
    /// Anything: nothing below is known.
    Any,
}

/// How the items of a list are told apart (`x-kubernetes-list-type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListType {
    /// They aren't: the list is one value.
    Atomic,
    /// By themselves.
    Set,
    /// By these fields of theirs.
    Map(&'static [&'static str]),
}

/// Whether the entries of a map or the fields of an object are owned one by one (`x-kubernetes-map-type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapType {
    /// One by one.
    Granular,
    /// As one value.
    Atomic,
}

/// What a strategic merge patch does with a field (`x-kubernetes-patch-strategy`, `x-kubernetes-patch-merge-key`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PatchStrategy {
    /// A list is merged and not replaced.
    pub merge: bool,
    /// Items are the same if this field is the same; none for a list of scalars.
    pub merge_key: Option<&'static str>,
    /// The object is replaced and not merged.
    pub replace: bool,
    /// Fields that `$retainKeys` doesn't list are dropped.
    pub retain_keys: bool,
}

/// How Go's encoder writes a field, which decides what an object looks like after a server has read and written it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// A pointer that is left out if nil: zero values stay.
    Pointer,
    /// A pointer that is written as null if nil.
    PointerAlways,
    /// A list or map that is left out if empty.
    Collection,
    /// A list or map that is written as null if empty.
    CollectionAlways,
    /// A list that is left out if nil. An empty one stays until validation has refused it, for it is none that wasn't
    /// said, which has a default or another error.
    CollectionAsSaid,
    /// A string, number or boolean that is left out if it is zero.
    Scalar,
    /// A string, number or boolean that is always written.
    ScalarAlways,
    /// A struct, which is always written.
    Struct,
    /// A time that is written as null if there is none.
    Time,
    /// A time that is left out if there is none.
    TimeOrNothing,
    /// A quantity or an int-or-string that is always written.
    Number,
}

/// A part of a schema: kept for good, or shared by those who hold it.
#[derive(Debug)]
enum Held<T: 'static> {
    Kept(&'static T),
    Shared(Arc<T>),
}

impl<T> Clone for Held<T> {
    fn clone(&self) -> Self {
        match self {
            Self::Kept(kept) => Self::Kept(kept),
            Self::Shared(shared) => Self::Shared(Arc::clone(shared)),
        }
    }
}

impl<T> Deref for Held<T> {
    type Target = T;

    fn deref(&self) -> &T {
        match self {
            Self::Kept(kept) => kept,
            Self::Shared(shared) => shared,
        }
    }
}

/// The fields of a type, sorted by name.
type Properties = Box<[(Cow<'static, str>, Schema)]>;

/// The schema of one value.
#[derive(Debug)]
pub struct Schema {
    type_: Type,
    presence: Presence,
    /// The type's name in Go, which error texts show.
    go_type: &'static str,
    definition: Option<Held<Definition>>,
    /// Of a list's items or a map's values.
    element: Option<Held<Schema>>,
    list: ListType,
    map: MapType,
    patch: PatchStrategy,
    default: Option<Held<Value>>,
}

/// A named type: the fields that an object has.
#[derive(Debug)]
struct Definition {
    name: &'static str,
    /// Sorted by name. Set once, after all definitions exist, since they refer to each other.
    properties: OnceLock<Properties>,
    required: &'static [&'static str],
}

impl Definition {
    fn properties(&self) -> &[(Cow<'static, str>, Schema)] {
        self.properties.get().map_or(&[], |properties| properties)
    }
}

/// The schema of the objects of a kind.
///
/// # Panics
/// If the row of the kind names a definition that [`types`] doesn't list, which a test excludes.
pub fn schema_of(kind: &Kind) -> &Schema {
    if let Some(custom) = &kind.custom {
        return custom.schema();
    }
    definition(kind.schema).unwrap_or_else(|| panic!("no schema for {}", kind.schema))
}

/// The schema of a type by its OpenAPI name, for example `io.k8s.api.core.v1.PodSpec`.
pub fn definition(name: &str) -> Option<&'static Schema> {
    build::all().get(name).copied()
}

impl Schema {
    /// What the value is.
    pub fn type_(&self) -> Type {
        self.type_
    }

    /// The schema of a field of an object, or of the value of a key of a map.
    pub fn property(&self, name: &str) -> Option<&Schema> {
        match self.definition {
            Some(_) => self.known(name).map(|(_, schema)| schema),
            None => self.additional(),
        }
    }

    /// A known field of an object: its name and its schema.
    pub fn known(&self, name: &str) -> Option<(&str, &Schema)> {
        let properties = self.fields();
        let at = properties.binary_search_by(|(known, _)| (**known).cmp(name)).ok()?;
        Some((&properties[at].0, &properties[at].1))
    }

    /// The fields of an object, sorted by name.
    pub fn properties(&self) -> impl Iterator<Item = (&str, &Schema)> {
        self.fields().iter().map(|(name, schema)| (&**name, schema))
    }

    fn fields(&self) -> &[(Cow<'static, str>, Schema)] {
        self.definition.as_ref().map_or(&[], |definition| definition.properties())
    }

    /// The schema of a list's items.
    pub fn items(&self) -> Option<&Schema> {
        self.element.as_deref().filter(|_| self.type_ == Type::Array)
    }

    /// The schema of a map's values.
    pub fn additional(&self) -> Option<&Schema> {
        self.element.as_deref().filter(|_| self.type_ == Type::Map)
    }

    /// How items of a list are told apart; atomic for everything that isn't a list.
    pub fn list_type(&self) -> ListType {
        self.list
    }

    /// Whether a map or an object is owned as a whole.
    pub fn map_type(&self) -> MapType {
        self.map
    }

    /// What a strategic merge patch does here.
    pub fn patch_strategy(&self) -> PatchStrategy {
        self.patch
    }

    /// The default that OpenAPI states for the field. It stands for Go's zero value and isn't filled in by itself.
    pub fn default_value(&self) -> Option<&Value> {
        self.default.as_deref()
    }

    /// Names of the fields of an object that OpenAPI calls required.
    pub fn required(&self) -> &'static [&'static str] {
        self.definition.as_ref().map_or(&[], |definition| definition.required)
    }

    /// The OpenAPI name of the type, for example `io.k8s.api.core.v1.PodSpec`.
    pub fn name(&self) -> Option<&'static str> {
        self.definition.as_ref().map(|definition| definition.name)
    }

    /// How Go's encoder writes the field.
    pub fn presence(&self) -> Presence {
        self.presence
    }

    /// The type's name in Go without a pointer, for example `[]v1.Container`; empty if it isn't known.
    pub fn go_type(&self) -> &'static str {
        self.go_type
    }

    /// Whether nothing is known of what is below: unknown fields are kept.
    pub fn preserves_unknown(&self) -> bool {
        self.type_ == Type::Any
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(name: &str, path: &[&str]) -> &'static Schema {
        path.iter().fold(definition(name).expect("a known type"), |schema, step| {
            if *step == "[]" { schema.items() } else { schema.property(step) }.expect("a known field")
        })
    }

    #[test]
    fn containers_of_a_pod_are_a_list_keyed_by_name() {
        let containers = at("io.k8s.api.core.v1.Pod", &["spec", "containers"]);
        assert_eq!(containers.type_(), Type::Array);
        assert_eq!(containers.list_type(), ListType::Map(&["name"]));
        assert_eq!(
            containers.patch_strategy(),
            PatchStrategy { merge: true, merge_key: Some("name"), ..PatchStrategy::default() }
        );
        assert_eq!(at("io.k8s.api.core.v1.Pod", &["spec", "containers", "[]"]).required(), ["name"]);
    }

    #[test]
    fn scalars_know_their_meaning() {
        assert_eq!(at("io.k8s.api.apps.v1.Deployment", &["spec", "replicas"]).type_(), Type::Int32);
        assert_eq!(at("io.k8s.api.core.v1.Secret", &["data", "x"]).type_(), Type::Bytes);
        assert_eq!(at("io.k8s.api.core.v1.Pod", &["metadata", "creationTimestamp"]).type_(), Type::Time);
        assert_eq!(at("io.k8s.api.coordination.v1.Lease", &["spec", "renewTime"]).type_(), Type::MicroTime);
        let container = at("io.k8s.api.core.v1.Pod", &["spec", "containers", "[]"]);
        assert_eq!(
            container.property("resources").unwrap().property("limits").unwrap().additional().unwrap().type_(),
            Type::Quantity
        );
        let port = container.property("livenessProbe").unwrap().property("tcpSocket").unwrap().property("port");
        assert_eq!(port.unwrap().type_(), Type::IntOrString);
        assert_eq!(at("io.k8s.api.core.v1.Pod", &["metadata", "managedFields", "[]", "fieldsV1"]).type_(), Type::Any);
    }

    #[test]
    fn maps_and_references_can_be_atomic() {
        assert_eq!(at("io.k8s.api.core.v1.Pod", &["spec", "nodeSelector"]).map_type(), MapType::Atomic);
        assert_eq!(at("io.k8s.api.apps.v1.Deployment", &["spec", "selector"]).map_type(), MapType::Atomic);
        assert_eq!(at("io.k8s.api.core.v1.Pod", &["metadata", "labels"]).map_type(), MapType::Granular);
        assert!(at("io.k8s.api.apps.v1.Deployment", &["spec", "strategy"]).patch_strategy().retain_keys);
    }
}
