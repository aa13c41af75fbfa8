//! Whose token is this: TokenReview.

use carob_api::status::Status;
use serde_json::{Value, json};

use super::user_info;
use crate::authn;
use crate::call::Call;
use crate::objects::text;

/// Whether a token holds for one of the audiences, and whose it is.
pub(super) async fn review(call: &Call, review: Value) -> Result<Value, Status> {
    let token = text(&review, "/spec/token");
    if token.is_empty() {
        return Err(Status::bad_request("token is required for TokenReview in authentication"));
    }
    let audiences = review.pointer("/spec/audiences").and_then(Value::as_array).into_iter().flatten();
    let audiences: Vec<&str> = audiences.filter_map(Value::as_str).collect();
    let status = match authn::of_token(&call.server, token, &audiences).await? {
        Ok(found) => {
            let mut status = json!({ "authenticated": true, "user": user_info(&found.identity) });
            if !found.audiences.is_empty() {
                status["audiences"] = found.audiences.into();
            }
            status
        }
        Err(why) => json!({ "user": {}, "error": why }),
    };
    Ok(json!({
        "kind": "TokenReview",
        "apiVersion": "authentication.k8s.io/v1",
        "metadata": review.get("metadata").cloned().unwrap_or_else(|| json!({})),
        "spec": review["spec"],
        "status": status,
    }))
}
