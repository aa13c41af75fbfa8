//! CertificateSigningRequest: what is asked never changes; approval and status have paths of their own.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::{Timestamp, Unit};
use serde_json::{Value, json};

use super::{BASE, at, keep_field, keep_generation};
use crate::field::{ErrorList, Path};
use crate::kind::{Part, Strategy};
use crate::validation::json::{dig, get, int, items, str_at, texts};
use crate::validation::names;

/// What is peculiar to CertificateSigningRequests.
pub const STRATEGY: Strategy = Strategy {
    prepare_create: |object| object["status"] = json!({}),
    prepare_update,
    validate,
    validate_update,
    validate_name: names::path_segment,
    field: |object, field| matches!(field, "metadata.name" | "spec.signerName").then(|| at(object, field)),
    ..BASE
};

const LEGACY_SIGNER: &str = "kubernetes.io/legacy-unknown";
const SHORTEST_SECONDS: i64 = 600;
/// Conditions that are never anything but True.
const FINAL: [&str; 3] = ["Approved", "Denied", "Failed"];
/// Those that only `/approval` sets.
const DECISIONS: [&str; 2] = ["Approved", "Denied"];

const USAGES: [&str; 23] = [
    "any",
    "cert sign",
    "client auth",
    "code signing",
    "content commitment",
    "crl sign",
    "data encipherment",
    "decipher only",
    "digital signature",
    "email protection",
    "encipher only",
    "ipsec end system",
    "ipsec tunnel",
    "ipsec user",
    "key agreement",
    "key encipherment",
    "microsoft sgc",
    "netscape sgc",
    "ocsp signing",
    "s/mime",
    "server auth",
    "signing",
    "timestamping",
];

/// The request stays, and so does what the path isn't for.
fn prepare_update(new: &mut Value, old: &Value, part: Part) {
    keep_generation(new, old, part);
    keep_field(new, old, "spec");
    match part {
        Part::Status => {
            keep_decisions(new, old);
            fill_in_times(new, old);
        }
        Part::Approval => {
            let certificate = dig(old, &["status", "certificate"]).cloned();
            let conditions = dig(new, &["status", "conditions"]).cloned();
            let fields = [("conditions", conditions), ("certificate", certificate)];
            let kept = fields.into_iter().filter_map(|(field, value)| Some((field.to_owned(), value?)));
            new["status"] = Value::Object(kept.collect());
            fill_in_times(new, old);
        }
        _ => keep_field(new, old, "status"),
    }
}

/// Approval and denial stand as they stood, wherever the client put its own.
fn keep_decisions(new: &mut Value, old: &Value) {
    let of_old = |kind: &str| {
        let status = old.get("status").unwrap_or(&Value::Null);
        items(status, "conditions").iter().find(|condition| condition["type"] == kind).cloned()
    };
    let conditions = new.pointer_mut("/status/conditions").and_then(Value::as_array_mut);
    for condition in conditions.into_iter().flatten() {
        let kind = str_at(condition, "type").to_owned();
        if let Some(before) = DECISIONS.contains(&kind.as_str()).then(|| of_old(&kind)).flatten() {
            *condition = before;
        }
    }
}

fn fill_in_times(new: &mut Value, old: &Value) {
    let now = Timestamp::now().round(Unit::Second).unwrap_or_else(|_| Timestamp::now()).to_string();
    let before = items(old.get("status").unwrap_or(&Value::Null), "conditions");
    let conditions = new.pointer_mut("/status/conditions").and_then(Value::as_array_mut);
    for condition in conditions.into_iter().flatten() {
        let same = before.iter().find(|one| one["type"] == condition["type"] && one["status"] == condition["status"]);
        let since = same.and_then(|one| get(one, "lastTransitionTime")).cloned();
        let Some(fields) = condition.as_object_mut() else { continue };
        super::set_default(fields, "lastUpdateTime", now.as_str());
        super::set_default(fields, "lastTransitionTime", since.unwrap_or_else(|| now.as_str().into()));
    }
}

fn validate(object: &Value) -> ErrorList {
    let path = Path::new("spec");
    let spec = object.get("spec").unwrap_or(&Value::Null);
    let mut errors = ErrorList::new();
    let request = str_at(spec, "request");
    if let Some(why) = request_problem(request) {
        let shown = if request.is_empty() { Value::Null } else { request.into() };
        errors.push(path.child("request").invalid(shown, why));
    }
    errors.extend(usage_errors(spec, &path.child("usages")));
    let signer = str_at(spec, "signerName");
    let field = path.child("signerName");
    if signer == LEGACY_SIGNER {
        errors.push(field.invalid(signer, "the legacy signerName is not allowed via this API version"));
    } else {
        errors.extend(signer_errors(signer, &field));
    }
    if let Some(seconds) = int(spec, "expirationSeconds").filter(|seconds| *seconds < SHORTEST_SECONDS) {
        let why = "may not specify a duration less than 600 seconds (10 minutes)";
        errors.push(path.child("expirationSeconds").invalid(seconds, why));
    }
    errors.extend(condition_errors(object));
    errors
}

fn usage_errors(spec: &Value, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    let usages: Vec<&str> = texts(spec, "usages").collect();
    if usages.is_empty() {
        errors.push(path.required(""));
    }
    for (index, usage) in usages.iter().enumerate() {
        if !USAGES.contains(usage) {
            errors.push(path.index(index).not_supported(*usage, &USAGES));
        }
    }
    for (index, usage) in usages.iter().enumerate().filter(|(index, usage)| usages[..*index].contains(usage)) {
        errors.push(path.index(index).duplicate(*usage));
    }
    errors
}

/// Why a text (base64 of PEM) isn't a PKCS#10 request.
fn request_problem(base64: &str) -> Option<&'static str> {
    let pem = STANDARD.decode(base64).ok().and_then(|bytes| String::from_utf8(bytes).ok()).unwrap_or_default();
    let wrong_block = Some("PEM block type must be CERTIFICATE REQUEST");
    let Some((_, rest)) = pem.split_once("-----BEGIN CERTIFICATE REQUEST-----") else { return wrong_block };
    let Some((body, _)) = rest.split_once("-----END CERTIFICATE REQUEST-----") else { return wrong_block };
    let body: String = body.split_whitespace().collect();
    let Ok(der) = STANDARD.decode(body) else { return wrong_block };
    if is_request(&der) { None } else { Some("asn1: syntax error: sequence truncated") }
}

/// Whether the bytes are a sequence of what is requested (a sequence), an algorithm (a sequence) and a signature (bits).
fn is_request(der: &[u8]) -> bool {
    const SEQUENCE: u8 = 0x30;
    const BITS: u8 = 0x03;
    let Some((SEQUENCE, whole, [])) = element(der) else { return false };
    let Some((SEQUENCE, _, rest)) = element(whole) else { return false };
    let Some((SEQUENCE, _, rest)) = element(rest) else { return false };
    matches!(element(rest), Some((BITS, _, [])))
}

/// Tag and content of the first element, and what follows it.
fn element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (tag, rest) = der.split_first()?;
    let (first, rest) = rest.split_first()?;
    let (length, rest) = if *first < 0x80 {
        (usize::from(*first), rest)
    } else {
        let count = usize::from(*first & 0x7f);
        if !(1..=4).contains(&count) || rest.len() < count {
            return None;
        }
        let (digits, rest) = rest.split_at(count);
        (digits.iter().fold(0, |length, digit| length << 8 | usize::from(*digit)), rest)
    };
    (length <= rest.len()).then(|| (*tag, &rest[..length], &rest[length..]))
}

/// What is wrong with the name of a signer: `DOMAIN/NAME`.
fn signer_errors(signer: &str, path: &Path) -> ErrorList {
    if signer.is_empty() {
        return vec![path.required("")];
    }
    let parts: Vec<&str> = signer.split('/').collect();
    let [domain, name] = parts.as_slice() else {
        let why = "must be a fully qualified domain and path of the form 'example.com/signer-name'";
        return vec![path.invalid(signer, why)];
    };
    let mut errors = ErrorList::new();
    if domain.len() > 253 {
        errors.push(path.too_long(253));
    }
    let labels: Vec<&str> = domain.split('.').collect();
    for label in &labels {
        let wrong = names::dns1123_label(label).into_iter();
        errors.extend(wrong.map(|why| path.invalid(*domain, format!("validating label {label:?}: {why}"))));
    }
    if labels.len() < 2 {
        errors.push(path.invalid(*domain, "should be a domain with at least two segments separated by dots"));
    }
    for label in name.split('.') {
        let wrong = names::dns1123_subdomain(label).into_iter();
        errors.extend(wrong.map(|why| path.invalid(*name, format!("validating label {label:?}: {why}"))));
    }
    errors
}

fn conditions(object: &Value) -> &[Value] {
    items(object.get("status").unwrap_or(&Value::Null), "conditions")
}

fn condition_errors(object: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let path = Path::new("status").child("conditions");
    let all = conditions(object);
    for (index, condition) in all.iter().enumerate() {
        let path = path.index(index);
        let (kind, status) = (str_at(condition, "type"), str_at(condition, "status"));
        if kind.is_empty() {
            errors.push(path.child("type").required(""));
        }
        let allowed: &[&str] = if FINAL.contains(&kind) { &["True"] } else { &["False", "True", "Unknown"] };
        if status.is_empty() {
            errors.push(path.child("status").required(""));
        } else if !allowed.contains(&status) {
            errors.push(path.child("status").not_supported(status, allowed));
        }
        let earlier = |wanted: &str| all[..index].iter().any(|one| one["type"] == wanted);
        if matches!(kind, "Approved" if earlier("Denied")) || matches!(kind, "Denied" if earlier("Approved")) {
            errors.push(path.child("type").invalid(kind, "Approved and Denied conditions are mutually exclusive"));
        }
        if earlier(kind) {
            errors.push(path.child("type").duplicate(kind));
        }
    }
    errors
}

fn validate_update(new: &Value, old: &Value, part: Part) -> ErrorList {
    let mut errors = validate(new);
    let path = Path::new("status").child("conditions");
    let of = |object, kind: &str| -> Vec<Value> {
        conditions(object).iter().filter(|condition| condition["type"] == kind).cloned().collect()
    };
    for kind in FINAL {
        if of(new, kind).len() < of(old, kind).len() {
            errors.push(path.forbidden(format!("updates may not remove a condition of type {kind:?}")));
        }
    }
    for kind in DECISIONS.into_iter().filter(|_| part != Part::Approval) {
        if of(new, kind).len() > of(old, kind).len() {
            errors.push(path.forbidden(format!("updates may not add a condition of type {kind:?}")));
        }
    }
    let certificate = |object| dig(object, &["status", "certificate"]).and_then(Value::as_str).unwrap_or("").to_owned();
    let (before, now) = (certificate(old), certificate(new));
    if before != now {
        let path = Path::new("status").child("certificate");
        if part != Part::Status {
            errors.push(path.forbidden("updates may not set certificate content"));
        } else if !before.is_empty() {
            errors.push(path.forbidden("updates may not modify existing certificate content"));
        }
        if let Some(why) = certificate_problem(&now) {
            errors.push(path.invalid("<certificate data>", why));
        }
    }
    errors
}

/// Why a text (base64) isn't a chain of certificates in PEM.
fn certificate_problem(base64: &str) -> Option<&'static str> {
    if base64.is_empty() {
        return None;
    }
    let pem = STANDARD.decode(base64).ok().and_then(|bytes| String::from_utf8(bytes).ok()).unwrap_or_default();
    let mut found = false;
    let mut rest = pem.as_str();
    while let Some((_, block)) = rest.split_once("-----BEGIN ") {
        let Some((kind, body)) = block.split_once("-----") else { break };
        if kind != "CERTIFICATE" {
            return Some("only CERTIFICATE PEM blocks are allowed");
        }
        let Some((_, after)) = body.split_once("-----END CERTIFICATE-----") else { break };
        found = true;
        rest = after;
    }
    (!found).then_some("must contain at least one CERTIFICATE PEM block")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn details(errors: &ErrorList) -> Vec<&str> {
        errors.iter().map(|error| error.detail.as_str()).collect()
    }

    #[test]
    fn a_signer_has_a_domain_and_a_name() {
        let of = |name: &str| signer_errors(name, &Path::new("s")).len();
        assert_eq!(of("example.com/a.b"), 0);
        for wrong in ["", "example.com", "example/a", "a.b/c/d", "example.com/A"] {
            assert_eq!(of(wrong), 1, "{wrong}");
        }
    }

    #[test]
    fn a_request_is_a_sequence_of_three() {
        assert!(is_request(&[0x30, 7, 0x30, 0, 0x30, 0, 0x03, 1, 0]));
        assert!(!is_request(&[0x30, 4, 0x30, 0, 0x30, 0]) && !is_request(&[]) && !is_request(&[0x30, 0x84, 255]));
        assert_eq!(request_problem("eA=="), Some("PEM block type must be CERTIFICATE REQUEST"));
    }

    #[test]
    fn what_is_decided_stays_decided() {
        let old =
            json!({"status": {"conditions": [{"type": "Approved", "status": "True", "lastTransitionTime": "t"}]}});
        let new = json!({"status": {"conditions": [{"type": "Denied", "status": "True"}]}});
        let errors = validate_update(&new, &old, Part::Approval);
        assert!(details(&errors).contains(&"updates may not remove a condition of type \"Approved\""));
        let mut again = json!({"status": {"conditions": [{"type": "Approved", "status": "True", "reason": "x"}]}});
        prepare_update(&mut again, &old, Part::Status);
        assert_eq!(again["status"]["conditions"][0]["lastTransitionTime"], "t");
        assert_eq!(again["status"]["conditions"][0].get("reason"), None);
    }

    #[test]
    fn both_decisions_are_one_too_many() {
        let object = json!({"status": {"conditions": [
            {"type": "Approved", "status": "True"}, {"type": "Denied", "status": "False"}]}});
        assert_eq!(
            details(&condition_errors(&object)),
            ["supported values: \"True\"", "Approved and Denied conditions are mutually exclusive"]
        );
    }
}
