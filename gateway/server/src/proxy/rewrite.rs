//! What a target says of its own paths, as the client must ask for them: `Location` headers and links in HTML pages.

use super::path;

/// Elements that have links, and the attributes that these are in.
const LINKS: [(&str, &[&str]); 26] = [
    ("a", &["href"]),
    ("applet", &["codebase"]),
    ("area", &["href"]),
    ("audio", &["src"]),
    ("base", &["href"]),
    ("blockquote", &["cite"]),
    ("body", &["background"]),
    ("button", &["formaction"]),
    ("command", &["icon"]),
    ("del", &["cite"]),
    ("embed", &["src"]),
    ("form", &["action"]),
    ("frame", &["longdesc", "src"]),
    ("head", &["profile"]),
    ("html", &["manifest"]),
    ("iframe", &["longdesc", "src"]),
    ("img", &["longdesc", "src", "usemap"]),
    ("input", &["src", "usemap", "formaction"]),
    ("ins", &["cite"]),
    ("link", &["href"]),
    ("object", &["classid", "codebase", "data", "usemap"]),
    ("q", &["cite"]),
    ("script", &["src"]),
    ("source", &["src"]),
    ("track", &["src"]),
    ("video", &["poster", "src"]),
];
/// Elements whose content is text, whatever it looks like.
const RAW: [&str; 9] = ["iframe", "noembed", "noframes", "noscript", "script", "style", "textarea", "title", "xmp"];

/// How a target's paths are those of the gateway.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Rewriting {
    /// What stands before the target's paths.
    pub prefix: String,
    /// The target's `host:port`.
    pub target: String,
    /// The `Host` that the client sent.
    pub host: String,
}

/// The parts of a URL that matter here.
struct Url<'a> {
    scheme: &'a str,
    host: Option<&'a str>,
    path: &'a str,
    /// Query and fragment.
    rest: &'a str,
}

impl<'a> Url<'a> {
    fn read(text: &'a str) -> Self {
        let (scheme, behind) = match text.split_once(':') {
            Some((scheme, behind)) if is_scheme(scheme) => (scheme, behind),
            _ => ("", text),
        };
        let end_of = |text: &str, stops: &[char]| text.find(stops).unwrap_or(text.len());
        let (host, behind) = match behind.strip_prefix("//") {
            Some(behind) => {
                let (host, behind) = behind.split_at(end_of(behind, &['/', '?', '#']));
                (Some(host), behind)
            }
            None => (None, behind),
        };
        let (path, rest) = behind.split_at(end_of(behind, &['?', '#']));
        Self { scheme, host, path, rest }
    }
}

fn is_scheme(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'))
}

impl Rewriting {
    /// A URL as the client must ask for it, if it is the target's own and not relative.
    pub fn url(&self, text: &str) -> Option<String> {
        let url = Url::read(text);
        let elsewhere = url.host.is_some_and(|host| !host.is_empty() && host != self.target && host != self.host);
        if elsewhere || !url.path.starts_with('/') {
            return None;
        }
        let origin = match url.host {
            Some(host) if host == self.host && !host.is_empty() => match url.scheme {
                "" => format!("//{host}"),
                scheme => format!("{scheme}://{host}"),
            },
            _ => String::new(),
        };
        let path =
            if url.path.starts_with(&self.prefix) { url.path.to_owned() } else { path::join(&self.prefix, url.path) };
        Some(format!("{origin}{path}{}", url.rest)).filter(|new| new != text)
    }

    /// A page with its links rewritten. All else stays as it is.
    pub fn page(&self, page: &str) -> String {
        let mut out = String::with_capacity(page.len() + page.len() / 8);
        let mut rest = page;
        while let Some(at) = rest.find('<') {
            out.push_str(&rest[..at]);
            rest = &rest[at..];
            let Some(tag) = Tag::read(rest) else {
                let length = markup_length(rest);
                out.push_str(&rest[..length]);
                rest = &rest[length..];
                continue;
            };
            self.write_tag(&tag, rest, &mut out);
            rest = &rest[tag.length..];
            if RAW.contains(&tag.name.as_str()) {
                let end = end_of_text(rest, &tag.name);
                out.push_str(&rest[..end]);
                rest = &rest[end..];
            }
        }
        out.push_str(rest);
        out
    }

    fn write_tag(&self, tag: &Tag, text: &str, out: &mut String) {
        let links = LINKS.iter().find(|(name, _)| *name == tag.name).map_or(&[][..], |(_, links)| links);
        let mut written = 0;
        for attribute in tag.attributes.iter().filter(|attribute| links.contains(&attribute.name.as_str())) {
            let old = &text[attribute.start..attribute.end];
            let Some(new) = self.url(&unescape(old)) else { continue };
            out.push_str(&text[written..attribute.start]);
            let escaped = escape(&new);
            if attribute.quoted {
                out.push_str(&escaped);
            } else {
                out.extend(["\"", &escaped, "\""]);
            }
            written = attribute.end;
        }
        out.push_str(&text[written..tag.length]);
    }
}

/// A start tag.
struct Tag {
    /// In lower case.
    name: String,
    attributes: Vec<Attribute>,
    /// From `<` to `>`, in bytes.
    length: usize,
}

/// An attribute; where its value is in the text.
struct Attribute {
    name: String,
    start: usize,
    end: usize,
    quoted: bool,
}

impl Tag {
    /// The start tag that the text begins with; none if it begins with something else, or ends before the tag does.
    fn read(text: &str) -> Option<Self> {
        let bytes = text.as_bytes();
        if !bytes.get(1)?.is_ascii_alphabetic() {
            return None;
        }
        let name_ends = |byte: u8| byte.is_ascii_whitespace() || matches!(byte, b'/' | b'>');
        let find = |from: usize, stop: &dyn Fn(u8) -> bool| {
            bytes[from..].iter().position(|byte| stop(*byte)).map(|length| from + length)
        };
        let mut at = find(1, &name_ends)?;
        let name = text[1..at].to_ascii_lowercase();
        let mut attributes = Vec::new();
        loop {
            at = find(at, &|byte| !byte.is_ascii_whitespace() && byte != b'/')?;
            if bytes[at] == b'>' {
                return Some(Self { name, attributes, length: at + 1 });
            }
            let begin = at;
            at = find(at + 1, &|byte| name_ends(byte) || byte == b'=')?;
            let name = text[begin..at].to_ascii_lowercase();
            let next = find(at, &|byte| !byte.is_ascii_whitespace())?;
            if bytes[next] != b'=' {
                continue;
            }
            let value = find(next + 1, &|byte| !byte.is_ascii_whitespace())?;
            let (start, end, quoted) = match bytes[value] {
                quote @ (b'"' | b'\'') => (value + 1, find(value + 1, &|byte| byte == quote)?, true),
                _ => (value, find(value, &|byte| byte.is_ascii_whitespace() || byte == b'>')?, false),
            };
            attributes.push(Attribute { name, start, end, quoted });
            at = if quoted { end + 1 } else { end };
        }
    }
}

/// How long what isn't a start tag is: a comment, an end tag, or a `<` that means itself.
fn markup_length(text: &str) -> usize {
    let ends = |end: &str| text.find(end).map_or(text.len(), |at| at + end.len());
    if text.starts_with("<!--") {
        ends("-->")
    } else if text.starts_with("</") || text.starts_with("<!") || text.starts_with("<?") {
        ends(">")
    } else {
        1
    }
}

/// Where the text of an element ends: at its end tag.
fn end_of_text(text: &str, name: &str) -> usize {
    let mut from = 0;
    while let Some(at) = text[from..].find("</") {
        let behind = from + at + 2;
        let found = text.as_bytes().get(behind..behind + name.len());
        if found.is_some_and(|found| found.eq_ignore_ascii_case(name.as_bytes())) {
            return from + at;
        }
        from = behind;
    }
    text.len()
}

/// Only what URLs have in attributes: other references stay as they are.
fn unescape(text: &str) -> String {
    text.replace("&#34;", "\"").replace("&#39;", "'").replace("&quot;", "\"").replace("&amp;", "&")
}

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '\'' => escaped.push_str("&#39;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&#34;"),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rewriting() -> Rewriting {
        Rewriting { prefix: "/api/v1/p/proxy".into(), target: "10.1.0.5:80".into(), host: "localhost:8001".into() }
    }

    #[test]
    fn the_targets_own_paths_get_the_prefix_and_others_stay() {
        for (text, new) in [
            ("/a", Some("/api/v1/p/proxy/a")),
            ("/a/?q=1#f", Some("/api/v1/p/proxy/a/?q=1#f")),
            ("http://10.1.0.5:80/a", Some("/api/v1/p/proxy/a")),
            ("http://localhost:8001/a", Some("http://localhost:8001/api/v1/p/proxy/a")),
            ("/api/v1/p/proxy/a", None),
            ("a/b", None),
            ("?q", None),
            ("#f", None),
            ("https://elsewhere/a", None),
            ("//cdn.example/x.js", None),
            ("mailto:a@b", None),
        ] {
            assert_eq!(rewriting().url(text).as_deref(), new, "{text}");
        }
    }

    #[test]
    fn links_of_a_page_are_rewritten_and_scripts_and_comments_stay() {
        let page = r#"<!DOCTYPE html><A class=x HREF="/a?b=1&amp;c">1 < 2</a><img src=/i.png alt='/no'><!-- <a href="/no"> --><script>"<a href='/no'>"</script><script src='/s.js'></script><br/><a href="rel">"#;
        let expected = r#"<!DOCTYPE html><A class=x HREF="/api/v1/p/proxy/a?b=1&amp;c">1 < 2</a><img src="/api/v1/p/proxy/i.png" alt='/no'><!-- <a href="/no"> --><script>"<a href='/no'>"</script><script src='/api/v1/p/proxy/s.js'></script><br/><a href="rel">"#;
        assert_eq!(rewriting().page(page), expected);
    }

    #[test]
    fn a_page_that_ends_anywhere_is_passed_on() {
        let page = r#"é<p><a href="/a">x</a><script>1</script><!-- c --><a href='/b' x>"#;
        for (end, _) in page.char_indices() {
            assert!(rewriting().page(&page[..end]).len() >= end, "{end}");
        }
    }
}
