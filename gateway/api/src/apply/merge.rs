//! Merging a config into the live object: what it says counts, what it doesn't mention stays.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use crate::managed_fields::element::Element;
use crate::managed_fields::typed::{Node, Shape, element_of, field, fields_of, is_hollow, items_of, shape};
use crate::schema::ListType;

/// The live value with what the config says.
pub(super) fn merge(node: Node<'_>, live: &Value, config: &Value) -> Value {
    merged(node, Some(live), Some(config)).unwrap_or(Value::Null)
}

fn merged(node: Node<'_>, live: Option<&Value>, config: Option<&Value>) -> Option<Value> {
    if !(is_hollow(live) && is_hollow(config)) {
        match shape(node, config.or(live)) {
            Shape::Map(node) => return Some(merge_maps(node, fields_of(live), fields_of(config))),
            Shape::List(kind, items) => return Some(merge_lists(kind, items, items_of(live), items_of(config))),
            _ => {}
        }
    }
    config.or(live).cloned()
}

fn merge_maps(node: Node<'_>, live: Option<&Map<String, Value>>, config: Option<&Map<String, Value>>) -> Value {
    let mut out = Map::new();
    for (key, value) in live.into_iter().flatten() {
        let wanted = config.and_then(|config| config.get(key));
        if let Some(value) = merged(field(node, key), Some(value), wanted) {
            out.insert(key.clone(), value);
        }
    }
    for (key, value) in config.into_iter().flatten() {
        if !live.is_some_and(|live| live.contains_key(key))
            && let Some(value) = merged(field(node, key), None, Some(value))
        {
            out.insert(key.clone(), value);
        }
    }
    Value::Object(out)
}

/// Items that both have stand in the order of the config; those of the live list alone keep their place before the
/// item that they preceded.
fn merge_lists(kind: ListType, items: Node<'_>, live: &[Value], config: &[Value]) -> Value {
    let elements = |list: &[Value]| -> Vec<Element> {
        list.iter().map(|item| element_of(kind, items, item).unwrap_or(Element::Index(-1))).collect()
    };
    let (live_elements, config_elements) = (elements(live), elements(config));
    // Items of the live list that share a key are replaced, not merged.
    let mut live_items: BTreeMap<&Element, Option<&Value>> = BTreeMap::new();
    for (element, item) in live_elements.iter().zip(live) {
        live_items.entry(element).and_modify(|known| *known = None).or_insert(Some(item));
    }
    let wanted: BTreeSet<&Element> = config_elements.iter().collect();
    let mut shared = config_elements.iter().filter(|element| live_items.contains_key(element)).peekable();

    let mut out = Vec::with_capacity(live.len().max(config.len()));
    let mut done: BTreeSet<&Element> = BTreeSet::new();
    let (mut l, mut c) = (0, 0);
    while l < live.len() || c < config.len() {
        if l < live.len() && c < config.len() && wanted.contains(&live_elements[l]) {
            let element = &live_elements[l];
            if *element != config_elements[c] && shared.peek().is_some_and(|next| *next != element) {
                l += 1; // it comes later in the config's order
                continue;
            }
        }
        if l < live.len() {
            let element = &live_elements[l];
            if !wanted.contains(element) {
                out.extend(merged(items, Some(&live[l]), None));
                l += 1;
                continue;
            }
            if done.contains(element) || config_elements.get(c) == Some(element) {
                l += 1;
            }
        }
        if c < config.len() {
            let element = &config_elements[c];
            done.insert(element);
            out.extend(merged(items, live_items.get(element).copied().flatten(), Some(&config[c])));
            if shared.peek().is_some_and(|next| *next == element) {
                shared.next();
            }
            c += 1;
        }
    }
    Value::Array(out)
}
