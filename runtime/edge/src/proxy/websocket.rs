//! WebSockets of clients that speak HTTP/2 (RFC 8441): endpoints see them as those of HTTP/1.1 (RFC 6455).

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http::header::{CONNECTION, CONTENT_LENGTH, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, TRANSFER_ENCODING, UPGRADE};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, StatusCode, Version};
use hyper::ext::Protocol;

const WEBSOCKET: &str = "websocket";
/// What a server that understands adds to the key (RFC 6455, 1.3).
const UNDERSTOOD: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// What an endpoint that speaks WebSocket answers: there is no such thing in HTTP/2, so it goes no further than here.
pub struct Proof(HeaderValue);

/// Makes a request of HTTP/1.1 of one that opens a WebSocket by HTTP/2. Nothing if it is another request.
///
/// # Errors
/// The status, if it is to open anything else: by HTTP/3's rules for the same (RFC 9220, 3), for HTTP/2 has none.
pub fn translate(parts: &mut Parts) -> Result<Option<Proof>, StatusCode> {
    let Some(protocol) = parts.extensions.remove::<Protocol>() else { return Ok(None) };
    if !protocol.as_str().eq_ignore_ascii_case(WEBSOCKET) {
        return Err(StatusCode::NOT_IMPLEMENTED);
    }
    let mut key = [0; 16];
    aws_lc_rs::rand::fill(&mut key).map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)?;
    let key = BASE64_STANDARD.encode(key);
    let proof = proof(key.as_bytes()).ok_or(StatusCode::INTERNAL_SERVER_ERROR)?;
    let key = HeaderValue::from_str(&key).map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)?;
    parts.method = Method::GET;
    parts.version = Version::HTTP_11;
    parts.headers.remove(CONTENT_LENGTH);
    parts.headers.remove(TRANSFER_ENCODING);
    parts.headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    parts.headers.insert(UPGRADE, HeaderValue::from_static(WEBSOCKET));
    parts.headers.insert(SEC_WEBSOCKET_KEY, key);
    Ok(Some(proof))
}

fn proof(key: &[u8]) -> Option<Proof> {
    let digest = digest(&SHA1_FOR_LEGACY_USE_ONLY, &[key, UNDERSTOOD].concat());
    HeaderValue::from_str(&BASE64_STANDARD.encode(digest)).ok().map(Proof)
}

impl Proof {
    /// Whether an endpoint that switched protocols did what it was asked for.
    pub fn is_in(&self, headers: &HeaderMap) -> bool {
        let protocol = headers.get(UPGRADE).and_then(|value| value.to_str().ok());
        protocol.is_some_and(|protocol| protocol.eq_ignore_ascii_case(WEBSOCKET))
            && headers.get(SEC_WEBSOCKET_ACCEPT) == Some(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn opening(protocol: &str) -> Parts {
        let request = Request::builder().method(Method::CONNECT).version(Version::HTTP_2).uri("https://a.com/chat?x=1");
        let request = request.header("sec-websocket-version", "13").extension(Protocol::from(protocol));
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn a_websocket_of_http2_is_asked_for_as_one_of_http1() {
        let mut parts = opening("websocket");
        let proof = translate(&mut parts).unwrap().unwrap();
        assert_eq!((&parts.method, parts.version, parts.uri.path()), (&Method::GET, Version::HTTP_11, "/chat"));
        assert_eq!(
            (&parts.headers["upgrade"], &parts.headers["connection"]),
            (&"websocket".parse().unwrap(), &"upgrade".parse().unwrap())
        );
        assert_eq!(parts.headers["sec-websocket-version"], "13");
        let key = &parts.headers["sec-websocket-key"];
        assert_eq!(BASE64_STANDARD.decode(key).unwrap().len(), 16);
        let answer = |upgrade: &'static str, accept: HeaderValue| {
            let upgrade = (UPGRADE, HeaderValue::from_static(upgrade));
            HeaderMap::from_iter([upgrade, (SEC_WEBSOCKET_ACCEPT, accept)])
        };
        let accept = super::proof(key.as_bytes()).unwrap().0;
        assert!(proof.is_in(&answer("WebSocket", accept.clone())));
        assert!(!proof.is_in(&answer("other", accept)));
        assert!(!proof.is_in(&answer("websocket", HeaderValue::from_static("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="))));
        let other = translate(&mut opening("websocket")).unwrap().unwrap();
        assert_ne!(other.0, proof.0, "each has a key of its own");
    }

    #[test]
    fn the_proof_is_the_specifications() {
        assert_eq!(proof(b"dGhlIHNhbXBsZSBub25jZQ==").unwrap().0, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn nothing_else_is_opened() {
        assert_eq!(translate(&mut opening("connect-udp")).err(), Some(StatusCode::NOT_IMPLEMENTED));
        let mut plain = Request::connect("a.com:443").body(()).unwrap().into_parts().0;
        assert!(translate(&mut plain).unwrap().is_none());
        assert_eq!(plain.method, Method::CONNECT);
    }
}
