//! Parts of an object taken from its stored bytes, without decoding the rest.
//!
//! How objects are written is known ([`objects::encode`](crate::objects::encode)): kind, apiVersion and metadata come
//! first, and managedFields is metadata's last. Bytes of any other form are not an error: these functions find nothing
//! in them, and the caller decodes.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::Value;

/// What comes behind the metadata's other fields.
const MANAGED: &[u8] = b",\"managedFields\":";

/// The metadata's JSON.
pub(crate) fn metadata(stored: &[u8]) -> Option<&[u8]> {
    let begin = metadata_begin(stored)?;
    let end = begin + object_end(stored.get(begin..)?)?;
    Some(&stored[begin..end])
}

/// The labels, if the metadata can be found; null if there are none.
pub(crate) fn labels(stored: &[u8]) -> Option<Value> {
    #[derive(Deserialize)]
    struct Labels {
        #[serde(default)]
        labels: Value,
    }
    let known: Labels = serde_json::from_slice(metadata(stored)?).ok()?;
    Some(known.labels)
}

/// The object without its managedFields, for whoever doesn't look at them: they are a large part of many.
pub(crate) fn without_managed_fields(stored: &[u8]) -> Cow<'_, [u8]> {
    let cut = || {
        let metadata = metadata(stored)?;
        let begin = metadata_begin(stored)?;
        let at = begin + member_at(metadata, MANAGED)?;
        // Behind the list, only the metadata's closing brace is left.
        let end = begin + metadata.len() - 1;
        Some([&stored[..at], &stored[end..]].concat())
    };
    cut().map_or(Cow::Borrowed(stored), Cow::Owned)
}

/// Where the metadata's brace is.
fn metadata_begin(stored: &[u8]) -> Option<usize> {
    let mut rest = stored;
    for name in [&b"{\"kind\":\""[..], b",\"apiVersion\":\""] {
        rest = rest.strip_prefix(name)?;
        let end = rest.iter().position(|byte| matches!(byte, b'"' | b'\\'))?;
        rest = rest[end..].strip_prefix(b"\"")?;
    }
    rest = rest.strip_prefix(b",\"metadata\":")?;
    (rest.first() == Some(&b'{')).then(|| stored.len() - rest.len())
}

/// How long the object is with which the text begins.
fn object_end(text: &[u8]) -> Option<usize> {
    walk(text, |_, _| false)
}

/// Where an object has a member that begins so.
fn member_at(object: &[u8], name: &[u8]) -> Option<usize> {
    let mut found = None;
    walk(object, |at, depth| {
        if depth == 1 && object[at..].starts_with(name) {
            found = Some(at);
        }
        found.is_some()
    });
    found
}

/// Goes over the commas and braces of an object that are no text; ends behind it, or where it is told to.
fn walk(text: &[u8], mut stop: impl FnMut(usize, usize) -> bool) -> Option<usize> {
    let mut depth = 0_usize;
    let mut at = 0;
    while let Some(byte) = text.get(at) {
        match byte {
            b'"' => at = text_end(text, at + 1)?,
            b'{' | b'[' => depth += 1,
            b'}' | b']' => {
                depth = depth.checked_sub(1)?;
                if depth == 0 {
                    return Some(at + 1);
                }
            }
            b',' if stop(at, depth) => return None,
            _ => {}
        }
        at += 1;
    }
    None
}

/// Where the quote is that ends a text.
fn text_end(text: &[u8], begin: usize) -> Option<usize> {
    let mut at = begin;
    loop {
        at += text.get(at..)?.iter().position(|byte| matches!(byte, b'"' | b'\\'))?;
        if text[at] == b'"' {
            return Some(at);
        }
        at += 2;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::objects;

    /// Any JSON, with texts that look like structure.
    fn any_json() -> impl Strategy<Value = Value> {
        let text = prop_oneof![
            ".{0,12}",
            Just(",\"managedFields\":[".to_owned()),
            Just("}\\\"]".to_owned()),
            Just("\\".to_owned()),
        ];
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            text.clone().prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 40, 5, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                prop::collection::btree_map(prop_oneof![text.clone(), Just("managedFields".to_owned())], inner, 0..5)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_is_sliced_is_what_decoding_finds(
            labels in any_json(),
            annotations in any_json(),
            managed in proptest::option::of(any_json()),
            spec in any_json(),
        ) {
            let mut object = json!({
                "kind": "Pod",
                "apiVersion": "v1",
                "metadata": { "name": "a", "labels": labels, "annotations": annotations },
                "spec": spec,
            });
            if let Some(managed) = managed {
                object["metadata"]["managedFields"] = managed;
            }
            let stored = objects::encode(&object).render(42);
            let decoded: Value = serde_json::from_slice(&stored).expect("JSON");
            let sliced: Value = serde_json::from_slice(metadata(&stored).expect("found")).expect("JSON");
            prop_assert_eq!(&sliced, &decoded["metadata"]);
            prop_assert_eq!(super::labels(&stored).expect("found"), decoded["metadata"]["labels"].clone());
            let mut shorter = decoded.clone();
            shorter["metadata"].as_object_mut().expect("an object").shift_remove("managedFields");
            let cut: Value = serde_json::from_slice(&without_managed_fields(&stored)).expect("JSON");
            prop_assert_eq!(cut, shorter);
        }

        #[test]
        fn other_bytes_are_no_metadata_and_no_panic(bytes in prop::collection::vec(any::<u8>(), 0..60), cut in 0..200_usize) {
            let _ = metadata(&bytes);
            let stored = objects::encode(&json!({"kind": "A", "apiVersion": "v1", "metadata": {"name": "\"{"}})).render(1);
            let part = &stored[..cut.min(stored.len())];
            prop_assert_eq!(metadata(part).is_some(), part.len() + 1 >= stored.len());
            prop_assert_eq!(&*without_managed_fields(part), part);
        }
    }
}
