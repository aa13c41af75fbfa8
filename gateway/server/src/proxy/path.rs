//! Paths as Go's `path` and `net/url` treat them, on which what a target sees depends.

/// The shortest path that is the same: no empty segments, no `.` and `..`. Of nothing, nothing.
pub(crate) fn clean(path: &str) -> String {
    let mut segments: Vec<&str> = Vec::new();
    for segment in path.split('/') {
        match segment {
            "" | "." => {}
            ".." => drop(segments.pop()),
            segment => segments.push(segment),
        }
    }
    let rooted = if path.starts_with('/') { "/" } else { "" };
    format!("{rooted}{}", segments.join("/"))
}

/// Both in one, with one slash between them, and the trailing slash of the second.
pub(crate) fn join(prefix: &str, path: &str) -> String {
    let mut joined = match (prefix, path) {
        ("", path) => clean(path),
        (prefix, path) => clean(&format!("{prefix}/{path}")),
    };
    if path.ends_with('/') && !joined.ends_with('/') {
        joined.push('/');
    }
    joined
}

/// A path as it is written in a URL.
pub(crate) fn encode(path: &str) -> String {
    const HEX: [char; 16] = ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'A', 'B', 'C', 'D', 'E', 'F'];
    let mut encoded = String::with_capacity(path.len());
    for byte in path.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~$&+,/:;=@".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.extend(['%', HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_cannot_lead_above_its_root() {
        assert_eq!(join("", "/a/../../b//c/"), "/b/c/");
        assert_eq!(join("/x", "/"), "/x/");
        assert_eq!(join("", ""), "");
        assert_eq!(join("/api/v1/proxy", "/a"), "/api/v1/proxy/a");
    }

    #[test]
    fn what_has_a_meaning_in_urls_is_encoded() {
        assert_eq!(encode("/a b?c#d%é"), "/a%20b%3Fc%23d%25%C3%A9");
    }
}
