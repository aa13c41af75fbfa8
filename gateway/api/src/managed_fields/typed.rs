//! Values seen through their schema: what is one field, what has fields of its own, and what differs.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::element::{Element, same};
use super::set::Set;
use crate::schema::{ListType, MapType, Schema, Type};

/// A schema; none where nothing is known: then objects are maps and lists are atomic.
pub(crate) type Node<'a> = Option<&'a Schema>;

/// Types that are owned as a whole wherever they stand. Fields of these types are marked in the schema; items of lists
/// of them are not.
const ATOMIC_TYPES: [&str; 4] = [
    "io.k8s.api.admissionregistration.v1.Variable",
    "io.k8s.api.core.v1.LocalObjectReference",
    "io.k8s.api.core.v1.ObjectReference",
    "io.k8s.apimachinery.pkg.apis.meta.v1.OwnerReference",
];

const EMBEDDED: &str = "runtime.RawExtension";

/// How a value is owned.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Shape<'a> {
    /// As one field.
    Scalar,
    /// A list as one field.
    AtomicList(Node<'a>),
    /// A list item by item.
    List(ListType, Node<'a>),
    /// A map or object as one field.
    AtomicMap(Node<'a>),
    /// A map or object field by field.
    Map(Node<'a>),
}

/// The shape of a value; where the schema doesn't tell, the value does.
pub(crate) fn shape<'a>(node: Node<'a>, value: Option<&Value>) -> Shape<'a> {
    // Embedded objects are foreign to their surroundings and owned as a whole.
    if node.is_some_and(|schema| schema.go_type() == EMBEDDED) {
        return match value {
            Some(Value::Array(_)) => Shape::AtomicList(None),
            Some(Value::Object(_) | Value::Null) | None => Shape::AtomicMap(None),
            Some(_) => Shape::Scalar,
        };
    }
    let Some(schema) = node.filter(|schema| schema.type_() != Type::Any) else {
        return match value {
            Some(Value::Array(_)) => Shape::AtomicList(None),
            Some(Value::Object(_) | Value::Null) | None => Shape::Map(None),
            Some(_) => Shape::Scalar,
        };
    };
    match schema.type_() {
        Type::Object | Type::Map => {
            let atomic =
                schema.map_type() == MapType::Atomic || schema.name().is_some_and(|name| ATOMIC_TYPES.contains(&name));
            if atomic { Shape::AtomicMap(node) } else { Shape::Map(node) }
        }
        Type::Array => match schema.list_type() {
            ListType::Atomic => Shape::AtomicList(schema.items()),
            kind => Shape::List(kind, schema.items()),
        },
        _ => Shape::Scalar,
    }
}

/// The schema of a field of an object or an entry of a map.
pub(crate) fn field<'a>(node: Node<'a>, name: &str) -> Node<'a> {
    node.and_then(|schema| schema.property(name))
}

/// Whether the schema names the field; entries of maps it doesn't.
pub(crate) fn is_declared(node: Node<'_>, name: &str) -> bool {
    node.is_some_and(|schema| schema.type_() == Type::Object && schema.property(name).is_some())
}

/// The step that leads to an item of a list.
pub(crate) fn element_of(kind: ListType, items: Node<'_>, item: &Value) -> Result<Element, String> {
    let ListType::Map(keys) = kind else {
        return match item {
            Value::Object(_) => Err("associative list without keys has an element that's a map type".to_owned()),
            Value::Array(_) => Err("not supported: associative list with lists as elements".to_owned()),
            Value::Null => Err("associative list without keys has an element that's an explicit null".to_owned()),
            scalar => Ok(Element::Value(scalar.clone())),
        };
    };
    let fields = match item {
        Value::Object(fields) => fields,
        Value::Null => return Err("associative list with keys may not have a null element".to_owned()),
        _ => return Err("associative list with keys may not have non-map elements".to_owned()),
    };
    let mut found = Vec::with_capacity(keys.len());
    for key in keys {
        let default = || field(items, key).and_then(Schema::default_value);
        if let Some(value) = fields.get(*key).or_else(default) {
            found.push(((*key).to_owned(), value.clone()));
        }
    }
    if found.is_empty() {
        let keys: Vec<_> = keys.iter().map(|key| format!("\"{key}\"")).collect();
        return Err(format!(
            "associative list with keys has an element that omits all key fields [{}] (and doesn't have default values \
             for any key fields)",
            keys.join(" ")
        ));
    }
    Ok(Element::key(found))
}

/// What one value has that another hasn't.
#[derive(Clone, Debug, Default)]
pub(crate) struct Comparison {
    pub(crate) added: Set,
    pub(crate) modified: Set,
    pub(crate) removed: Set,
}

/// Compares two values of one type.
pub(crate) fn compare(node: Node<'_>, old: &Value, new: &Value) -> Comparison {
    let mut comparison = Comparison::default();
    comparison.walk(node, Some(old), Some(new), &mut Vec::new());
    comparison
}

impl Comparison {
    fn walk(&mut self, node: Node<'_>, old: Option<&Value>, new: Option<&Value>, path: &mut Vec<Element>) {
        let none_below = is_hollow(old) && is_hollow(new);
        match shape(node, new.or(old)) {
            Shape::Map(node) if !none_below => self.walk_map(node, old, new, path),
            Shape::List(kind, items) if !none_below => self.walk_list(kind, items, old, new, path),
            _ => {
                match (old, new) {
                    (None, Some(_)) => self.added.insert(path),
                    (Some(_), None) => self.removed.insert(path),
                    (Some(old), Some(new)) if !same(old, new) => self.modified.insert(path),
                    _ => {}
                }
                return;
            }
        }
        if old.is_none() {
            self.added.insert(path);
        } else if new.is_none() {
            self.removed.insert(path);
        }
    }

    fn walk_map(&mut self, node: Node<'_>, old: Option<&Value>, new: Option<&Value>, path: &mut Vec<Element>) {
        let (old, new) = (fields_of(old), fields_of(new));
        for (key, value) in old.into_iter().flatten() {
            path.push(Element::field(key));
            self.walk(field(node, key), Some(value), new.and_then(|new| new.get(key)), path);
            path.pop();
        }
        for (key, value) in new.into_iter().flatten().filter(|(key, _)| !old.is_some_and(|old| old.contains_key(*key)))
        {
            path.push(Element::field(key));
            self.walk(field(node, key), None, Some(value), path);
            path.pop();
        }
    }

    /// Items that share a key are compared as a whole.
    fn walk_list(
        &mut self,
        kind: ListType,
        items: Node<'_>,
        old: Option<&Value>,
        new: Option<&Value>,
        path: &mut Vec<Element>,
    ) {
        for (element, (old, new)) in by_element(kind, items, old, new) {
            path.push(element);
            match (old.len(), new.len()) {
                (0 | 1, 0 | 1) => self.walk(items, old.first().copied(), new.first().copied(), path),
                (2.., 2..) => {
                    if differ(&old, &new) {
                        self.modified.insert(path);
                    }
                }
                (2.., _) => {
                    if let Some(new) = new.first() {
                        self.walk(items, None, Some(new), path);
                    }
                    self.removed.insert(path);
                }
                _ => {
                    if let Some(old) = old.first() {
                        self.walk(items, Some(old), None, path);
                    }
                    self.added.insert(path);
                }
            }
            path.pop();
        }
    }
}

/// What [`compare`] calls added or modified, in one walk: all that matters of an object that nobody manages yet.
pub(crate) fn touched(node: Node<'_>, old: &Value, new: &Value) -> Set {
    below(node, Some(old), new).1
}

/// Whether the value itself is touched, and what below it is.
fn below(node: Node<'_>, old: Option<&Value>, new: &Value) -> (bool, Set) {
    let mut set = Set::default();
    let none_below = is_hollow(old) && is_hollow(Some(new));
    match shape(node, Some(new)) {
        Shape::Map(node) if !none_below => {
            let old = fields_of(old);
            for (key, value) in fields_of(Some(new)).into_iter().flatten() {
                let (member, below) = below(field(node, key), old.and_then(|old| old.get(key)), value);
                if member || !below.is_empty() {
                    set.put(Element::field(key), member, below);
                }
            }
        }
        Shape::List(kind, items) if !none_below => {
            for (element, (old, new)) in by_element(kind, items, old, Some(new)) {
                let (member, below) = match (old.as_slice(), new.as_slice()) {
                    ([] | [_, _, ..], [new]) => below(items, None, new),
                    ([old], [new]) => below(items, Some(*old), new),
                    ([_, _, ..], [_, _, ..]) => (differ(&old, &new), Set::default()),
                    (_, [_, _, ..]) => (true, Set::default()),
                    (_, []) => (false, Set::default()),
                };
                set.put(element, member, below);
            }
        }
        _ => return (old.is_none_or(|old| !same(old, new)), set),
    }
    (old.is_none(), set)
}

/// Items of two lists by the step that leads to them, which several may share.
fn by_element<'a>(
    kind: ListType,
    items: Node<'_>,
    old: Option<&'a Value>,
    new: Option<&'a Value>,
) -> BTreeMap<Element, (Vec<&'a Value>, Vec<&'a Value>)> {
    let mut all: BTreeMap<Element, (Vec<&Value>, Vec<&Value>)> = BTreeMap::new();
    for item in items_of(old) {
        if let Ok(element) = element_of(kind, items, item) {
            all.entry(element).or_default().0.push(item);
        }
    }
    for item in items_of(new) {
        if let Ok(element) = element_of(kind, items, item) {
            all.entry(element).or_default().1.push(item);
        }
    }
    all
}

fn differ(old: &[&Value], new: &[&Value]) -> bool {
    old.len() != new.len() || old.iter().zip(new).any(|(old, new)| !same(old, new))
}

/// All fields of a value, as one who applies it owns them.
pub(crate) fn fields(node: Node<'_>, value: &Value) -> Set {
    let mut set = Set::default();
    collect(node, value, &mut Vec::new(), &mut set);
    set
}

fn collect(node: Node<'_>, value: &Value, path: &mut Vec<Element>, set: &mut Set) {
    match shape(node, Some(value)) {
        Shape::Map(node) => {
            for (key, value) in fields_of(Some(value)).into_iter().flatten() {
                path.push(Element::field(key));
                collect(field(node, key), value, path, set);
                let hollow = value.is_null() || value.as_object().is_some_and(Map::is_empty);
                if hollow || !is_declared(node, key) {
                    set.insert(path);
                }
                path.pop();
            }
        }
        Shape::List(kind, items) => {
            let mut by_element: BTreeMap<Element, Vec<&Value>> = BTreeMap::new();
            for item in items_of(Some(value)) {
                if let Ok(element) = element_of(kind, items, item) {
                    by_element.entry(element).or_default().push(item);
                }
            }
            for (element, same_key) in by_element {
                path.push(element);
                if let [item] = same_key.as_slice() {
                    collect(items, item, path, set);
                }
                set.insert(path);
                path.pop();
            }
        }
        _ => set.insert(path),
    }
}

/// The set with every named field that leads to one of its paths.
pub(crate) fn with_named_fields(node: Node<'_>, set: &Set) -> Set {
    let is_named = |element: &Element| matches!(element, Element::Field(name) if is_declared(node, name));
    let members = set.members().iter().chain(set.children().keys().filter(|element| is_named(element))).cloned();
    let children = set.children().iter().map(|(element, below)| {
        let node = match element {
            Element::Field(name) => field(node, name),
            _ => node.and_then(Schema::items),
        };
        (element.clone(), with_named_fields(node, below))
    });
    Set::build(members, children)
}

pub(crate) fn fields_of(value: Option<&Value>) -> Option<&Map<String, Value>> {
    value.and_then(Value::as_object)
}

pub(crate) fn items_of(value: Option<&Value>) -> &[Value] {
    value.and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// Whether there is nothing in it: absent, null, or empty.
pub(crate) fn is_hollow(value: Option<&Value>) -> bool {
    match value {
        None | Some(Value::Null) => true,
        Some(Value::Object(fields)) => fields.is_empty(),
        Some(Value::Array(items)) => items.is_empty(),
        Some(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::schema::definition;

    /// Values whose keys the schema of a Service knows, mostly.
    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            (0..3_i32).prop_map(Value::from),
            "[ab]".prop_map(Value::from)
        ];
        const KEYS: [&str; 9] =
            ["metadata", "labels", "finalizers", "spec", "ports", "port", "name", "selector", "other"];
        leaf.prop_recursive(5, 40, 4, |inner| {
            prop_oneof![
                1 => prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                3 => prop::collection::vec((prop::sample::select(&KEYS[..]), inner), 0..4)
                    .prop_map(|fields| fields.into_iter().map(|(key, value)| (key.to_owned(), value)).collect::<Value>()),
            ]
        })
    }

    /// Ports with few different keys, so that several items share one.
    fn service() -> impl Strategy<Value = Value> {
        let port = ((80..83_i32), "[ab]")
            .prop_map(|(port, name)| serde_json::json!({"port": port, "protocol": "TCP", "name": name}));
        let ports = prop::collection::vec(port, 0..4);
        (ports, prop::collection::vec("[ab]", 0..3), value()).prop_map(|(ports, finalizers, other)| {
            serde_json::json!({"metadata": {"finalizers": finalizers, "labels": other}, "spec": {"ports": ports}})
        })
    }

    proptest! {
        #[test]
        fn one_walk_finds_what_the_comparison_finds(
            (old, new) in prop_oneof![(value(), value()), (service(), service())],
        ) {
            for node in [None, definition("io.k8s.api.core.v1.Service")] {
                let comparison = compare(node, &old, &new);
                prop_assert_eq!(touched(node, &old, &new), comparison.modified.union(&comparison.added));
            }
        }
    }
}
