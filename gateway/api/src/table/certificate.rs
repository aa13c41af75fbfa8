//! Columns of CertificateSigningRequests.

use serde_json::Value;

use super::cells::{AGE, column, condition_true, text};
use super::{NAME, age};
use crate::kind::Column;

/// Name, age, who is to sign, who asked, for how long, how far it is.
pub const COLUMNS: &[Column] = &[
    NAME,
    AGE,
    column("SignerName", "string", 0, |object, _| text(object, "/spec/signerName").into()),
    column("Requestor", "string", 0, |object, _| text(object, "/spec/username").into()),
    column("RequestedDuration", "string", 0, |object, _| {
        let seconds = object.pointer("/spec/expirationSeconds").and_then(Value::as_i64);
        seconds.map_or_else(|| "<none>".into(), |seconds| age::human(seconds).into())
    }),
    column("Condition", "string", 0, |object, _| condition(object).into()),
];

fn condition(request: &Value) -> String {
    let mut shown = if condition_true(request, "Denied") {
        "Denied"
    } else if condition_true(request, "Approved") {
        "Approved"
    } else {
        "Pending"
    }
    .to_owned();
    if condition_true(request, "Failed") {
        shown.push_str(",Failed");
    }
    if !text(request, "/status/certificate").is_empty() {
        shown.push_str(",Issued");
    }
    shown
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_condition_says_how_far_it_is() {
        assert_eq!(condition(&json!({})), "Pending");
        let approved =
            json!({"status": {"conditions": [{"type": "Approved", "status": "True"}], "certificate": "eA=="}});
        assert_eq!(condition(&approved), "Approved,Issued");
        let failed = json!({"status": {"conditions": [{"type": "Denied", "status": "True"}, {"type": "Failed", "status": "True"}]}});
        assert_eq!(condition(&failed), "Denied,Failed");
    }
}
