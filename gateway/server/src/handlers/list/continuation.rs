//! Tokens by which a list goes on where its last page ended.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use carob_api::status::Status;
use serde_json::{Value, json};

/// Where a paged list goes on.
pub(super) struct Continuation {
    /// The state that the list shows; -1 for the newest.
    pub revision: i64,
    /// The first key, without the prefix.
    pub start: String,
}

impl Continuation {
    pub fn token(&self) -> String {
        let token = json!({ "v": "meta.k8s.io/v1", "rv": self.revision, "start": self.start });
        URL_SAFE_NO_PAD.encode(token.to_string())
    }

    pub fn parse(token: &str) -> Result<Self, Status> {
        let bad =
            |why: String| Status::bad_request(format!("invalid continue token: continue key is not valid: {why}"));
        let bytes = URL_SAFE_NO_PAD.decode(token).map_err(|error| {
            let offset = match error {
                base64::DecodeError::InvalidByte(offset, _) => offset,
                _ => token.len().saturating_sub(1),
            };
            bad(format!("illegal base64 data at input byte {offset}"))
        })?;
        let value: Value = serde_json::from_slice(&bytes).map_err(|_| {
            let first = bytes.first().map_or_else(String::new, |byte| match byte {
                0x20..0x7f => char::from(*byte).to_string(),
                byte => format!("\\u{byte:04x}"),
            });
            bad(format!("invalid character '{first}' looking for beginning of value"))
        })?;
        if value["v"] != "meta.k8s.io/v1" {
            let version = value["v"].as_str().unwrap_or_default();
            return Err(bad(format!("server does not recognize this encoded version {version}")));
        }
        match (value["rv"].as_i64(), value["start"].as_str()) {
            (Some(_), Some(start)) if start.split('/').any(|part| part == "..") => Err(bad(start.to_owned())),
            (Some(revision), Some(start)) if revision != 0 && !start.is_empty() => {
                Ok(Self { revision, start: start.to_owned() })
            }
            _ => Err(bad("incorrect encoded start resourceVersion (version meta.k8s.io/v1)".to_owned())),
        }
    }

    pub fn start(&self, prefix: &str) -> (Option<String>, Option<u64>) {
        // The start lies behind the prefix by construction: a token cannot lead into another kind or namespace.
        (Some(format!("{prefix}{}", self.start)), u64::try_from(self.revision).ok())
    }
}

/// 410 with a token that goes on where the list stopped, in the newest state.
pub(super) fn expired(prefix: &str, start: &str) -> Value {
    let start = start.strip_prefix(prefix).unwrap_or(start).to_owned();
    let token = Continuation { revision: -1, start }.token();
    let mut status = Status::expired(
        "The provided continue parameter is too old to display a consistent list result. You can start a new list \
         without the continue parameter, or use the continue token in this response to retrieve the remainder of the \
         results. Continuing with the provided token results in an inconsistent list - objects that were created, \
         modified, or deleted between the time the first chunk was returned and now may show up in the list.",
    )
    .to_value();
    status["metadata"] = json!({ "continue": token });
    status
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_leads_back_to_where_it_was_made_and_never_out_of_its_prefix() {
        let token = Continuation { revision: 7, start: "ns/a\0".into() }.token();
        let (start, at) = Continuation::parse(&token).expect("good").start("/core/pods/");
        assert_eq!((start.as_deref(), at), (Some("/core/pods/ns/a\0"), Some(7)));
    }

    #[test]
    fn bad_tokens_are_refused_in_kubernetes_words() {
        let message = |token| Continuation::parse(token).err().expect("refused").message().to_owned();
        assert_eq!(
            message("nope"),
            "invalid continue token: continue key is not valid: invalid character '\\u009e' looking for beginning of \
             value"
        );
        assert_eq!(
            message("x"),
            "invalid continue token: continue key is not valid: illegal base64 data at input byte 0"
        );
    }
}
