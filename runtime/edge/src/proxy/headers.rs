//! Headers on their way: what is of one connection stays behind, and the endpoint learns who asks.

use std::net::{IpAddr, SocketAddr};

use http::header::{CONNECTION, CONTENT_LENGTH, COOKIE, HOST, HeaderName, TE, TRANSFER_ENCODING, UPGRADE};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Version};
use ipnet::IpNet;

/// Headers of one connection, which are not passed on.
const OF_CONNECTION: [&str; 8] = [
    "connection",
    "proxy-connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "te",
    "transfer-encoding",
    "upgrade",
];
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
const REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");
/// Through whom a request came (RFC 8586). Unlike `Via`, it is there for nothing else.
const LOOP: HeaderName = HeaderName::from_static("cdn-loop");
/// This proxy in it, and how often it may be: a pod or another proxy may send requests here once more for good reason.
const ME: &str = "carob";
const PASSES: usize = 8;
/// What is said of a copy: one that came back would be copied again, each time twice as often.
const COPY: &str = "carob; copy";

/// What a request's head says of its host; nothing if it says none, or two things at once.
pub fn host(parts: &Parts) -> Option<String> {
    let mut named = parts.headers.get_all(HOST).iter();
    let header = named.next();
    if named.next().is_some() {
        return None;
    }
    // The target of the request is stronger than the header.
    match parts.uri.authority() {
        Some(authority) => Some(authority.as_str().to_owned()),
        None => header.and_then(|header| header.to_str().ok()).map(str::to_owned),
    }
}

/// Whether two readers could disagree on where the body ends.
pub fn is_ambiguous(parts: &Parts) -> bool {
    let headers = &parts.headers;
    let chunked = headers.contains_key(TRANSFER_ENCODING);
    let twice = codings(headers).filter(|coding| coding.eq_ignore_ascii_case("chunked")).count() > 1;
    let lengths = headers.get_all(CONTENT_LENGTH).iter().count();
    twice || (chunked && lengths > 0) || lengths > 1 || (chunked && parts.version == Version::HTTP_10)
}

/// Whether a request goes round in circles.
pub fn is_looping(headers: &HeaderMap) -> bool {
    let said = headers.get_all(LOOP).iter().filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(','));
    let mine = said.map(str::trim).filter(|one| one.split(';').next().unwrap_or_default().trim_end() == ME);
    let passes = mine.map(|one| if one == COPY { PASSES } else { 1 });
    passes.sum::<usize>() >= PASSES
}

/// Says that a request came through here.
pub fn tell_pass(headers: &mut HeaderMap, is_copy: bool) {
    headers.append(LOOP, HeaderValue::from_static(if is_copy { COPY } else { ME }));
}

/// The protocol that a client wants to change to.
pub fn upgrade(parts: &Parts) -> Option<HeaderValue> {
    let wanted = parts.headers.get(UPGRADE)?;
    let options = parts.headers.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
    let asked = options.flat_map(|value| value.split(',')).any(|option| option.trim().eq_ignore_ascii_case("upgrade"));
    // HTTP/2 is for connections, not for a request on its way through.
    let plain = wanted.to_str().is_ok_and(|protocol| !protocol.to_ascii_lowercase().contains("h2c"));
    (asked && plain && parts.version == Version::HTTP_11).then(|| wanted.clone())
}

/// Takes away what is of one connection; `TE: trailers` has a meaning beyond it.
pub fn strip(headers: &mut HeaderMap) {
    let trailers = headers.get_all(TE).iter().any(|value| value.to_str().is_ok_and(|value| value.contains("trailers")));
    if headers.contains_key(CONNECTION) {
        let options = headers.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
        let named: Vec<String> =
            options.flat_map(|value| value.split(',')).map(|name| name.trim().to_owned()).collect();
        for name in named.iter().filter(|name| !name.is_empty()) {
            headers.remove(name.as_str());
        }
    }
    for name in OF_CONNECTION {
        headers.remove(name);
    }
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
}

/// Makes one header of cookies that HTTP/2 has split (RFC 9113, 8.2.3): in HTTP/1.1 there is but one.
pub fn join_cookies(headers: &mut HeaderMap) {
    let all: Vec<&[u8]> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if all.len() > 1
        && let Ok(joined) = HeaderValue::from_bytes(&all.join(&b"; "[..]))
    {
        headers.insert(COOKIE, joined);
    }
}

/// Whether a body is coded in a way that the proxy does not undo. What it passes on is no more than in pieces.
pub fn is_coded(headers: &HeaderMap) -> bool {
    codings(headers).any(|coding| !coding.eq_ignore_ascii_case("chunked"))
}

fn codings(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let values = headers.get_all(TRANSFER_ENCODING).iter().map(|value| value.to_str().unwrap_or("unreadable"));
    values.flat_map(|value| value.split(',')).map(str::trim)
}

/// How a request came in.
pub struct Origin<'a> {
    pub peer: IpAddr,
    pub secure: bool,
    /// The port as clients know it.
    pub port: u16,
    pub host: &'a str,
    /// Whether the peer is a proxy whose word is taken.
    pub trusted: bool,
}

/// Whether a peer's word on where a request came from is taken.
pub fn is_trusted(peer: IpAddr, trusted: &[IpNet]) -> bool {
    trusted.iter().any(|net| net.contains(&peer))
}

/// Whom a request comes from: the peer, or whom trusted proxies name. What they were told by others counts for nothing.
pub fn client(headers: &HeaderMap, peer: IpAddr, trusted: &[IpNet]) -> IpAddr {
    let mut client = peer.to_canonical();
    let named = headers.get_all(FORWARDED_FOR).iter().rev().filter_map(|value| value.to_str().ok());
    for text in named.flat_map(|value| value.rsplit(',')) {
        if !is_trusted(client, trusted) {
            break;
        }
        let Some(address) = address(text.trim()) else { break };
        client = address.to_canonical();
    }
    client
}

/// An address, which some write with its port.
fn address(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    bare.parse().or_else(|_| text.parse::<SocketAddr>().map(|socket| socket.ip())).ok()
}

/// Tells the endpoint where a request came from.
pub fn tell_origin(headers: &mut HeaderMap, origin: &Origin<'_>) {
    let peer = origin.peer.to_canonical().to_string();
    let value = |text: &str| HeaderValue::from_str(text).ok();
    if !origin.trusted {
        for name in [FORWARDED_FOR, FORWARDED_HOST, FORWARDED_PROTO, FORWARDED_PORT, REAL_IP] {
            headers.remove(name);
        }
        // The newer form of the same.
        headers.remove("forwarded");
    }
    let before: Vec<&str> = headers.get_all(FORWARDED_FOR).iter().filter_map(|value| value.to_str().ok()).collect();
    let chain = if before.is_empty() { value(&peer) } else { value(&format!("{}, {peer}", before.join(", "))) };
    let scheme = if origin.secure { "https" } else { "http" };
    let told = [
        (FORWARDED_HOST, value(origin.host)),
        (FORWARDED_PROTO, Some(HeaderValue::from_static(scheme))),
        (FORWARDED_PORT, Some(HeaderValue::from(origin.port))),
        (REAL_IP, value(&peer)),
    ];
    if let Some(chain) = chain {
        headers.insert(FORWARDED_FOR, chain);
    }
    for (name, value) in told {
        if let Some(value) = value
            && !headers.contains_key(&name)
        {
            headers.insert(name, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn parts(headers: &[(&str, &str)]) -> Parts {
        let mut request = Request::get("/");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn names(headers: &HeaderMap) -> Vec<&str> {
        let mut names: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        names
    }

    #[test]
    fn headers_of_the_connection_are_left_behind_and_those_that_it_names() {
        let mut headers = parts(&[
            ("connection", "keep-alive, x-hop"),
            ("x-hop", "1"),
            ("keep-alive", "timeout=5"),
            ("proxy-authorization", "Basic x"),
            ("te", "gzip, trailers"),
            ("upgrade", "websocket"),
            ("authorization", "Bearer x"),
        ])
        .headers;
        strip(&mut headers);
        assert_eq!(names(&headers), ["authorization", "te"]);
        assert_eq!(headers["te"], "trailers");
    }

    #[test]
    fn what_a_client_says_of_its_origin_counts_only_if_it_is_trusted() {
        let origin = |trusted| Origin { peer: [10, 0, 0, 1].into(), secure: true, port: 443, host: "a.com", trusted };
        let said = [("x-forwarded-for", "1.2.3.4"), ("x-forwarded-proto", "http"), ("forwarded", "for=1.2.3.4")];
        let mut headers = parts(&said).headers;
        tell_origin(&mut headers, &origin(false));
        assert_eq!(
            (&headers["x-forwarded-for"], &headers["x-forwarded-proto"]),
            (&"10.0.0.1".parse().unwrap(), &"https".parse().unwrap())
        );
        assert_eq!(
            (&headers["x-forwarded-host"], &headers["x-forwarded-port"]),
            (&"a.com".parse().unwrap(), &"443".parse().unwrap())
        );
        assert!(!headers.contains_key("forwarded"));
        // An address of IPv6 stands there as it is: brackets are for where a port may follow.
        let mut headers = parts(&said).headers;
        let far = Origin { peer: "2001:db8::1".parse().unwrap(), host: "[fd00::7]:8443", ..origin(true) };
        tell_origin(&mut headers, &far);
        assert_eq!(headers["x-forwarded-for"], "1.2.3.4, 2001:db8::1");
        assert_eq!(
            (&headers["x-real-ip"], &headers["x-forwarded-host"]),
            (&"2001:db8::1".parse().unwrap(), &"[fd00::7]:8443".parse().unwrap())
        );
        let mut headers = parts(&said).headers;
        tell_origin(&mut headers, &origin(true));
        assert_eq!(headers["x-forwarded-for"], "1.2.3.4, 10.0.0.1");
        assert_eq!(headers["x-forwarded-proto"], "http");
    }

    #[test]
    fn the_client_is_whom_the_outermost_trusted_proxy_names() {
        let trusted: Vec<IpNet> = vec!["10.0.0.0/8".parse().unwrap(), "2001:db8:1::/48".parse().unwrap()];
        let client = |peer: &str, said: &[&str]| {
            let said: Vec<_> = said.iter().map(|text| ("x-forwarded-for", *text)).collect();
            super::client(&parts(&said).headers, peer.parse().unwrap(), &trusted).to_string()
        };
        for (peer, said, expected) in [
            ("192.0.2.1", &["1.2.3.4"][..], "192.0.2.1"),
            ("10.0.0.1", &[], "10.0.0.1"),
            ("10.0.0.1", &["1.2.3.4"], "1.2.3.4"),
            ("::ffff:10.0.0.1", &["::ffff:1.2.3.4"], "1.2.3.4"),
            ("10.0.0.1", &["6.6.6.6, 1.2.3.4, 10.0.0.2"], "1.2.3.4"),
            ("10.0.0.1", &["6.6.6.6, 1.2.3.4", "2001:db8:1::7 ,10.0.0.2"], "1.2.3.4"),
            ("10.0.0.1", &["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
            ("10.0.0.1", &["6.6.6.6, unknown, 10.0.0.2"], "10.0.0.2"),
            ("2001:db8:1::1", &["2001:db8::9"], "2001:db8::9"),
            ("2001:db8:2::1", &["2001:db8::9"], "2001:db8:2::1"),
            ("10.0.0.1", &["[2001:db8::9]"], "2001:db8::9"),
            ("10.0.0.1", &["[2001:db8::9]:4711"], "2001:db8::9"),
            ("10.0.0.1", &["1.2.3.4:4711"], "1.2.3.4"),
        ] {
            assert_eq!(client(peer, said), expected, "{peer} {said:?}");
        }
    }

    #[test]
    fn a_request_may_come_back_a_few_times_and_its_copy_never() {
        let mut headers = parts(&[("cdn-loop", "other; x=carob, carobs")]).headers;
        for _ in 0..PASSES {
            assert!(!is_looping(&headers));
            tell_pass(&mut headers, false);
        }
        assert!(is_looping(&headers));
        let mut copy = HeaderMap::new();
        tell_pass(&mut copy, true);
        assert!(is_looping(&copy));
        assert!(is_looping(&parts(&[("cdn-loop", &["carob"; PASSES].join(" , "))]).headers));
    }

    #[test]
    fn bodies_whose_end_is_unclear_are_noticed() {
        assert!(is_ambiguous(&parts(&[("transfer-encoding", "chunked"), ("content-length", "3")])));
        assert!(is_ambiguous(&parts(&[("content-length", "3"), ("content-length", "4")])));
        assert!(!is_ambiguous(&parts(&[("content-length", "3")])));
    }

    #[test]
    fn a_change_of_protocol_is_asked_for_by_a_word_of_connection_and_never_to_http2() {
        assert!(upgrade(&parts(&[("connection", "keep-alive, Upgrade"), ("upgrade", "websocket")])).is_some());
        assert!(upgrade(&parts(&[("upgrade", "websocket")])).is_none());
        assert!(upgrade(&parts(&[("connection", "Upgrade, HTTP2-Settings"), ("upgrade", "h2c")])).is_none());
    }

    #[test]
    fn one_host_is_named() {
        assert_eq!(host(&parts(&[("host", "a.com:80")])).as_deref(), Some("a.com:80"));
        assert_eq!(host(&parts(&[("host", "a.com"), ("host", "b.com")])), None);
        assert_eq!(host(&parts(&[])), None);
    }
}
