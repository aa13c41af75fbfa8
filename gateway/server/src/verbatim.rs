//! The data of a `ControllerRevision` is kept as the text that was sent, and a change of the text is a change of what may
//! not change, be it only by a space.
//!
//! Kubernetes compares the bytes. A patch has none of its own: what it doesn't touch it writes without spaces, so that
//! data that was sent with some can't be patched around.

use std::sync::OnceLock;

use carob_api::field::{FieldError, Path};
use carob_api::kind::Kind;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

const FIELD: &str = "data";

#[derive(Deserialize)]
struct Holder<'a> {
    #[serde(borrow)]
    data: Option<&'a RawValue>,
}

/// The text of a request's data, if the request is about such an object and had a whole one in JSON.
#[derive(Default)]
pub(crate) struct Sent(OnceLock<Box<str>>);

impl Sent {
    /// Takes note of a body.
    pub fn note(&self, kind: &Kind, body: &[u8]) {
        if is_verbatim(kind)
            && let Some(text) = text(body)
        {
            // A body is read once.
            let _ = self.0.set(text.into());
        }
    }

    /// What is written instead of the data's value: none where the value says the same.
    pub fn instead<'s>(&'s self, object: &Value) -> Option<(&'static str, &'s str)> {
        let text = self.0.get()?;
        let said = object.get(FIELD)?.to_string();
        (said != **text).then_some((FIELD, &**text))
    }

    /// That the text of the data is another than the stored one's, though the value is the same.
    pub fn changed(&self, kind: &Kind, stored: &[u8], new: &Value) -> Option<FieldError> {
        if !is_verbatim(kind) {
            return None;
        }
        let stored = text(stored)?;
        let same = match self.0.get() {
            Some(sent) => **sent == *stored,
            None => compact(stored) == stored,
        };
        (!same).then(|| Path::new(FIELD).invalid(new.get(FIELD).cloned().unwrap_or_default(), "field is immutable"))
    }
}

fn is_verbatim(kind: &Kind) -> bool {
    (kind.group, kind.plural) == ("apps", "controllerrevisions")
}

fn text(document: &[u8]) -> Option<&str> {
    serde_json::from_slice::<Holder<'_>>(document).ok()?.data.map(RawValue::get)
}

/// JSON without the spaces between its parts.
fn compact(text: &str) -> String {
    let (mut quoted, mut escaped) = (false, false);
    let keep = |letter: &char| {
        let kept = quoted || !letter.is_ascii_whitespace();
        if quoted && !escaped {
            quoted = *letter != '"';
            escaped = *letter == '\\';
        } else {
            quoted = quoted || *letter == '"';
            escaped = false;
        }
        kept
    };
    text.chars().filter(keep).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::objects;

    #[test]
    fn spaces_go_from_between_but_not_from_within() {
        assert_eq!(compact(r#"{ "a b" : [ 1, "c \" d", "\\" , 2 ] }"#), r#"{"a b":[1,"c \" d","\\",2]}"#);
    }

    #[test]
    fn data_stays_as_it_was_sent() {
        let registry = carob_api::kinds::Registry::builtin();
        let kind = registry.by_resource("apps", "v1", "controllerrevisions").expect("a kind");
        let body = br#"{"metadata": {"name": "r"}, "data": {"a": 1}, "revision": 1}"#;
        let object = json!({"metadata": {"name": "r"}, "data": {"a": 1}, "revision": 1});
        let sent = Sent::default();
        sent.note(kind, body);
        let document = objects::encode_with(&object, sent.instead(&object));
        let stored = document.render(7);
        assert!(String::from_utf8_lossy(&stored).contains(r#""data":{"a": 1}"#));
        assert_eq!(objects::decode(&stored).expect("JSON")["data"], object["data"]);
        assert!(sent.changed(kind, &stored, &object).is_none());
        let patched = Sent::default();
        let error = patched.changed(kind, &stored, &object).expect("another text");
        assert_eq!(error.to_string(), r#"data: Invalid value: {"a":1}: field is immutable"#);
        let plain = objects::encode(&object).render(7);
        assert!(patched.changed(kind, &plain, &object).is_none());
    }
}
