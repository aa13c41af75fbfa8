//! What others need to verify tokens of service accounts: the discovery document of OpenID Connect and the keys.

use axum::response::Response;
use http::header::CACHE_CONTROL;
use http::{HeaderValue, StatusCode};
use serde_json::json;

use crate::{Server, response};

const DOCUMENT: &str = "/.well-known/openid-configuration";
const KEYS: &str = "/openid/v1/jwks";

/// Answers a path, if it is one of these.
pub(crate) fn answer(server: &Server, path: &str, address: &str) -> Option<Response> {
    let tokens = &server.authn.tokens;
    let (content_type, document) = match path {
        DOCUMENT => {
            let document = json!({
                "issuer": tokens.issuer(),
                "jwks_uri": format!("https://{address}{KEYS}"),
                "response_types_supported": ["id_token"],
                "subject_types_supported": ["public"],
                "id_token_signing_alg_values_supported": ["ES256"],
            });
            ("application/json", document)
        }
        KEYS => ("application/jwk-set+json", tokens.key_set()),
        _ => return None,
    };
    let mut answer = response::finished(StatusCode::OK, content_type, response::to_json(&document));
    answer.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("public, max-age=3600"));
    Some(answer)
}
