//! An object's way through the server: decoded, defaulted, prepared, validated, shown.

use carob_api::decode::{FieldValidation, decode_json, normalize};
use carob_api::kind::{Kind, Part};
use carob_api::managed_fields::{Manager, Operation, track_update};
use carob_api::status::Status;
use carob_api::support;
use carob_api::table::{IncludeObject, Rows};
use carob_api::validation::metadata;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::objects;
use crate::source::Source;

/// Everything that a create, an unchanged update and a list do with an object.
pub fn life(data: &[u8]) {
    let mut source = Source::new(data);
    let kind = objects::kind(&mut source);
    let Some(object) = stored(&mut source, kind) else { return };
    let mut errors = metadata::validate_create(kind, &object);
    let mistakes = kind.validate(&object);
    let is_valid = mistakes.is_empty();
    errors.extend(mistakes);
    if !errors.is_empty() {
        let status = Status::invalid((kind.group, kind.kind), "a", errors).to_value();
        assert_eq!((&status["code"], &status["reason"]), (&json!(422), &json!("Invalid")));
    }
    let _ = metadata::validate_update(kind, &object, &object);
    let mut same = object.clone();
    kind.prepare_update(&mut same, &object, Part::Main);
    let mistakes = kind.validate_update(&same, &object, Part::Main);
    assert!(!is_valid || mistakes.is_empty(), "{} is valid, but not as it was: {mistakes:?}\n{object}", kind.kind);
    for part in [Part::Status, Part::EphemeralContainers, Part::Resize, Part::Finalize, Part::Approval] {
        let mut new = object.clone();
        kind.prepare_update(&mut new, &object, part);
        let _ = kind.validate_update(&new, &object, part);
    }
    let _ = (kind.warnings(&object), support::warnings(kind, &object));
    let _ = kind.field(&object, "metadata.name");
    shown(kind, &object);
    let manager = Manager { name: "fuzz", operation: Operation::Update, subresource: "", time: "2026-01-02T03:04:05Z" };
    let mut owned = object;
    track_update(kind, None, &mut owned, &manager);
    let before = owned.clone();
    track_update(kind, Some(&before), &mut owned, &manager);
    assert_eq!(owned, before, "who changes nothing owns nothing new");
}

/// An object as a create would store it; none if it can't be decoded.
pub(crate) fn stored(source: &mut Source<'_>, kind: &Kind) -> Option<Value> {
    let sent = objects::object(source, kind);
    let mut object = decode_json(kind, sent.to_string().as_bytes(), FieldValidation::Ignore).ok()?.value;
    kind.default(&mut object);
    let once = object.clone();
    kind.default(&mut object);
    assert_eq!(object, once, "defaults of {} are filled in once", kind.kind);
    kind.prepare_create(&mut object);
    kind.default(&mut object);
    normalize(kind, &mut object);
    let once = object.clone();
    normalize(kind, &mut object);
    assert_eq!(object, once, "the shape of {} is settled", kind.kind);
    let text = object.to_string();
    let again = decode_json(kind, text.as_bytes(), FieldValidation::Strict);
    let again = again.unwrap_or_else(|status| panic!("{}: {}\n{text}", kind.kind, status.message()));
    assert_eq!(again.value, object, "what is stored can be sent again");
    Some(object)
}

fn shown(kind: &Kind, object: &Value) {
    let now = "2026-06-01T00:00:00Z".parse::<Timestamp>().expect("a time");
    for include in [IncludeObject::None, IncludeObject::Metadata, IncludeObject::Object] {
        let table = Rows { include, version: "v1", now }.table(kind, &[object, object], json!({}), true);
        let columns = table["columnDefinitions"].as_array().map_or(0, Vec::len);
        for row in table["rows"].as_array().expect("rows") {
            assert_eq!(row["cells"].as_array().map(Vec::len), Some(columns), "{}", kind.kind);
        }
    }
}
