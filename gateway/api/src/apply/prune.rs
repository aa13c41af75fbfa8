//! Removing what an applier applied last time and no longer applies, unless someone else owns it.

use serde_json::{Map, Value};

use crate::managed_fields::element::Element;
use crate::managed_fields::entries::Managed;
use crate::managed_fields::set::Set;
use crate::managed_fields::typed::{Node, Shape, element_of, field, fields, shape, with_named_fields};

/// The merged object without what only the last apply wanted. `owners` has the new config's fields already.
pub(super) fn prune(node: Node<'_>, merged: &Value, owners: &Managed, last: &Set) -> Value {
    let last = with_named_fields(node, last);
    let wanted = fields_with_names(node, merged);
    // What others own, and what is in the new config, stays.
    let pruned = without(node, merged, &last);
    let owned = owners.iter().fold(Set::default(), |all, (_, owned)| all.union(&owned.fields));
    let kept = fields_with_names(node, &pruned).union(&with_named_fields(node, &owned));
    let pruned = without(node, merged, &wanted.difference(&kept));
    // What nobody owns, and the applier didn't either, stays as well.
    let kept = fields_with_names(node, &pruned);
    without(node, merged, &wanted.difference(&kept).intersection(&last))
}

fn fields_with_names(node: Node<'_>, value: &Value) -> Set {
    with_named_fields(node, &fields(node, value))
}

/// A value without these fields and items; null if nothing is left of an object or a list.
fn without(node: Node<'_>, value: &Value, gone: &Set) -> Value {
    match (shape(node, Some(value)), value) {
        (Shape::Map(node), Value::Object(all)) => {
            let mut left = Map::new();
            for (key, value) in all {
                let element = Element::field(key);
                if gone.members().contains(&element) {
                    continue;
                }
                let value = match gone.child(&element) {
                    Some(below) => without(field(node, key), value, below),
                    None => value.clone(),
                };
                left.insert(key.clone(), value);
            }
            if left.is_empty() { Value::Null } else { Value::Object(left) }
        }
        (Shape::List(kind, items), Value::Array(all)) => {
            let mut left = Vec::with_capacity(all.len());
            for item in all {
                let element = element_of(kind, items, item).ok();
                if element.as_ref().is_some_and(|element| gone.members().contains(element)) {
                    continue;
                }
                left.push(match element.and_then(|element| gone.child(&element)) {
                    Some(below) => without(items, item, below),
                    None => item.clone(),
                });
            }
            if left.is_empty() { Value::Null } else { Value::Array(left) }
        }
        (Shape::Scalar, value) => value.clone(),
        _ => Value::Null,
    }
}
