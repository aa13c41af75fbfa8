//! The order of items in a merged list: the patch's before the server's own, each among themselves as they were.

use std::collections::HashMap;

use serde_json::Value;

use super::{PATCH, broken, no_merge_key, wrong_type};
use crate::patch::go_text;
use crate::status::{Details, Status};

/// Whether the lists are of objects. All items must be of one type, and not lists.
pub(super) fn same_kind(original: &[Value], patch: &[Value]) -> Result<bool, Status> {
    let mut items = original.iter().chain(patch);
    let Some(first) = items.next() else { return Err(broken("no elements in any of the given slices")) };
    if first.is_array() {
        return Err(Status::generic(422, "Invalid", "the server rejected our request due to an error in our request")
            .with_details(Details::default()));
    }
    if items.any(|item| kind(item) != kind(first)) {
        let lists = Value::from(vec![original.to_vec(), patch.to_vec()]);
        return Err(broken(format!("list element types are not identical: {}", go_text(&lists))));
    }
    Ok(first.is_object())
}

fn kind(value: &Value) -> u8 {
    match value {
        Value::Null => 0,
        Value::Bool(_) => 1,
        Value::Number(number) if number.is_f64() => 2,
        Value::Number(_) => 3,
        Value::String(_) => 4,
        Value::Array(_) => 5,
        Value::Object(_) => 6,
    }
}

/// Checks that the items of a patch stand in the order that `$setElementOrder` gives, and are all listed there.
pub(super) fn check(patch: &[Value], order: &[Value], key: Option<&str>) -> Result<(), Status> {
    if patch.is_empty() || order.is_empty() {
        return Ok(());
    }
    let mut wanted = order.iter();
    for item in patch {
        if key.is_some() && !item.is_object() {
            return Err(wrong_type("map[string]interface {}", item));
        }
        if item.get(PATCH).is_some() {
            continue;
        }
        loop {
            let Some(listed) = wanted.next() else {
                return Err(broken(format!(
                    "The order in patch list:\n{}\n doesn't match $setElementOrder list:\n{}\n",
                    go_text(&Value::from(patch.to_vec())),
                    go_text(&Value::from(order.to_vec()))
                )));
            };
            if identity(item, key)? == identity(listed, key)? {
                break;
            }
        }
    }
    Ok(())
}

/// Items that the order lists, and the others.
pub(super) fn partition(
    items: Vec<Value>,
    order: &[Value],
    key: Option<&str>,
) -> Result<(Vec<Value>, Vec<Value>), Status> {
    let order = ranks(order, key, false)?;
    let (mut listed, mut others) = (Vec::new(), Vec::new());
    for item in items {
        if order.contains_key(&identity(&item, key)?) { listed.push(item) } else { others.push(item) }
    }
    Ok((listed, others))
}

/// Sorts the patched items by the patch's order, the server's own by the server's, and puts the latter between the
/// former where their order in the live list tells.
pub(super) fn arrange(
    patched: Vec<Value>,
    server_only: Vec<Value>,
    patch_order: &[Value],
    server_order: &[Value],
    key: Option<&str>,
) -> Result<Vec<Value>, Status> {
    let patch_ranks = ranks(patch_order, key, true)?;
    let server_ranks = ranks(server_order, key, true)?;
    let patched = sorted(patched, &patch_ranks, key)?;
    let mut left = sorted(server_only, &server_ranks, key)?.into_iter().peekable();
    let mut merged = Vec::with_capacity(patched.len() + left.len());
    for right in patched {
        let place = server_ranks.get(&identity(&right, key)?);
        while let Some(next) = left.peek() {
            match (server_ranks.get(&identity(next, key)?), place) {
                (Some(before), Some(place)) if before < place => merged.extend(left.next()),
                _ => break,
            }
        }
        merged.push(right);
    }
    merged.extend(left);
    Ok(merged)
}

fn sorted(items: Vec<Value>, ranks: &HashMap<String, usize>, key: Option<&str>) -> Result<Vec<Value>, Status> {
    let mut ranked = Vec::with_capacity(items.len());
    for item in items {
        let rank = ranks.get(&identity(&item, key)?).copied().unwrap_or(usize::MAX);
        ranked.push((rank, item));
    }
    ranked.sort_by_key(|(rank, _)| *rank);
    Ok(ranked.into_iter().map(|(_, item)| item).collect())
}

/// The first place of each item. If not strict, items without the key are passed over.
fn ranks(order: &[Value], key: Option<&str>, strict: bool) -> Result<HashMap<String, usize>, Status> {
    let mut ranks = HashMap::with_capacity(order.len());
    for (place, item) in order.iter().enumerate() {
        match identity(item, key) {
            Ok(identity) => {
                ranks.entry(identity).or_insert(place);
            }
            Err(error) if strict => return Err(error),
            Err(_) => {}
        }
    }
    Ok(ranks)
}

/// What makes an item itself: the value of its merge key, or all of a scalar.
fn identity(item: &Value, key: Option<&str>) -> Result<String, Status> {
    let Some(key) = key else { return Ok(item.to_string()) };
    let Value::Object(fields) = item else { return Err(wrong_type("map[string]interface {}", item)) };
    fields.get(key).map(ToString::to_string).ok_or_else(|| no_merge_key(fields, key))
}
