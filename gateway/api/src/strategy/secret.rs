//! Secret: types and what they require, `stringData`, immutability.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::config_map::{DATA_MAX_BYTES, decoded_len, empty_for_null, immutable, key_errors};
use super::{BASE, at, metadata_field, object_at, set_default_text};
use crate::field::{ErrorList, Path};
use crate::kind::{Part, Strategy};
use crate::validation::json::{dig, entries, str_at};
use crate::validation::metadata;

/// What is peculiar to Secrets.
pub const STRATEGY: Strategy = Strategy { default, prepare_update, validate, validate_update, warnings, field, ..BASE };

/// Keys that a type requires.
const REQUIRED_KEYS: [(&str, &[&str]); 4] = [
    ("kubernetes.io/tls", &["tls.crt", "tls.key"]),
    ("kubernetes.io/ssh-auth", &["ssh-privatekey"]),
    ("kubernetes.io/dockercfg", &[".dockercfg"]),
    ("kubernetes.io/dockerconfigjson", &[".dockerconfigjson"]),
];

/// `stringData` is for writing only: it ends up in `data`.
fn default(object: &mut Value) {
    if let Some(Value::Object(texts)) = object.as_object_mut().and_then(|o| o.shift_remove("stringData"))
        && !texts.is_empty()
        && let Some(data) = object_at(object, "data")
    {
        for (key, text) in texts {
            data.insert(key, Value::from(STANDARD.encode(text.as_str().unwrap_or(""))));
        }
    }
    empty_for_null(object, "data");
    if let Some(object) = object.as_object_mut() {
        set_default_text(object, "type", "Opaque");
    }
}

/// An update without a type keeps it. Defaults come first, so a missing type reads `Opaque` here.
fn prepare_update(new: &mut Value, old: &Value, part: Part) {
    super::keep_generation(new, old, part);
    if str_at(new, "type").is_empty() {
        super::keep_field(new, old, "type");
    }
}

fn validate(object: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let path = Path::new("data");
    let mut size = 0;
    for (key, value) in entries(object, "data") {
        errors.extend(key_errors(key, &path));
        size += decoded_len(value.as_str().unwrap_or(""));
    }
    if size > DATA_MAX_BYTES {
        errors.push(path.too_long(DATA_MAX_BYTES));
    }
    errors.extend(type_errors(object, &path));
    errors
}

fn type_errors(object: &Value, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    let kind = str_at(object, "type");
    let value = |key: &str| dig(object, &["data", key]).and_then(Value::as_str);
    if kind == "kubernetes.io/service-account-token" {
        let account = "kubernetes.io/service-account.name";
        if dig(object, &["metadata", "annotations", account]).and_then(Value::as_str).unwrap_or("").is_empty() {
            errors.push(Path::new("metadata").child("annotations").key(account).required(""));
        }
    }
    if kind == "kubernetes.io/basic-auth" && value("username").is_none() && value("password").is_none() {
        errors.push(path.key("username").required(""));
        errors.push(path.key("password").required(""));
    }
    let Some((_, keys)) = REQUIRED_KEYS.iter().find(|(name, _)| *name == kind) else { return errors };
    for key in *keys {
        match value(key) {
            None => errors.push(path.key(key).required("")),
            Some("") if *key == "ssh-privatekey" => errors.push(path.key(key).required("")),
            Some(text) if key.starts_with(".docker") => {
                if let Some(problem) = json_problem(text) {
                    errors.push(path.key(key).invalid("<secret contents redacted>", problem));
                }
            }
            Some(_) => {}
        }
    }
    errors
}

/// Why a base64 text isn't a JSON object, as Go would put it where that is known.
fn json_problem(base64: &str) -> Option<String> {
    let bytes = STANDARD.decode(base64).ok()?;
    match serde_json::from_slice::<Value>(&bytes) {
        Ok(Value::Object(_) | Value::Null) => None,
        Ok(other) => {
            let kind = match other {
                Value::String(_) => "string",
                Value::Array(_) => "array",
                Value::Bool(_) => "bool",
                _ => "number",
            };
            Some(format!("json: cannot unmarshal {kind} into Go value of type map[string]interface {{}}"))
        }
        Err(error) if error.is_eof() => Some("unexpected end of JSON input".to_owned()),
        Err(_) => {
            let first = String::from_utf8_lossy(&bytes).trim_start().chars().next().unwrap_or(' ');
            Some(format!("invalid character '{first}' looking for beginning of value"))
        }
    }
}

fn validate_update(new: &Value, old: &Value, _: Part) -> ErrorList {
    let mut errors = metadata::immutable(new.get("type"), old.get("type"), &Path::new("type"));
    errors.extend(immutable(new, old, &["data"]));
    errors.extend(validate(new));
    errors
}

/// A certificate that isn't one is taken, with a warning.
fn warnings(object: &Value) -> Vec<String> {
    if str_at(object, "type") != "kubernetes.io/tls" {
        return Vec::new();
    }
    let no_pem = |key: &str| {
        let bytes = dig(object, &["data", key]).and_then(Value::as_str).and_then(|text| STANDARD.decode(text).ok());
        !String::from_utf8_lossy(&bytes.unwrap_or_default()).contains("-----BEGIN ")
    };
    let input = if no_pem("tls.crt") {
        "certificate"
    } else if no_pem("tls.key") {
        "key"
    } else {
        return Vec::new();
    };
    vec![format!("tls: failed to find any PEM data in {input} input")]
}

fn field(object: &Value, field: &str) -> Option<String> {
    match field {
        "type" => Some(at(object, field)),
        _ => metadata_field(object, field),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn causes(object: &Value) -> Vec<String> {
        validate(object).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn string_data_wins_over_data() {
        let mut object = json!({"data": {"a": "YQ=="}, "stringData": {"a": "b", "c": ""}});
        default(&mut object);
        assert_eq!(object, json!({"data": {"a": "Yg==", "c": ""}, "type": "Opaque"}));
    }

    #[test]
    fn types_require_their_keys() {
        assert_eq!(
            causes(&json!({"type": "kubernetes.io/tls", "data": {}})),
            ["data[tls.crt]: Required value", "data[tls.key]: Required value"]
        );
        assert_eq!(
            causes(&json!({"type": "kubernetes.io/ssh-auth", "data": {"x": "eQ=="}})),
            ["data[ssh-privatekey]: Required value"]
        );
        assert!(causes(&json!({"type": "bootstrap.kubernetes.io/token"})).is_empty());
        assert_eq!(
            causes(&json!({"type": "kubernetes.io/dockerconfigjson", "data": {".dockerconfigjson": ""}})),
            ["data[.dockerconfigjson]: Invalid value: \"<secret contents redacted>\": unexpected end of JSON input"]
        );
    }

    #[test]
    fn the_type_stays() {
        let errors = validate_update(&json!({"type": "other"}), &json!({"type": "my/type"}), Part::Main);
        assert_eq!(errors[0].to_string(), "type: Invalid value: \"other\": field is immutable");
    }

    #[test]
    fn an_empty_certificate_is_warned_about() {
        let secret = json!({"type": "kubernetes.io/tls", "data": {"tls.crt": "", "tls.key": ""}});
        assert_eq!(warnings(&secret), ["tls: failed to find any PEM data in certificate input"]);
    }
}
