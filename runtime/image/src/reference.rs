//! Image references, parsed and normalised as Kubernetes' container runtimes do it (distribution/reference).

use std::fmt;

use crate::Error;
use crate::digest::Digest;

const DEFAULT_REGISTRY: &str = "docker.io";
const MAX_NAME: usize = 255;
const MAX_TAG: usize = 128;
const FORMAT: &str = "invalid reference format";

/// A normalised reference: `docker.io/library/nginx:latest`, `localhost:5000/x@sha256:…`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Reference {
    /// The host with its port: `docker.io`, `localhost:5000`.
    pub registry: String,
    /// The path: `library/nginx`.
    pub repository: String,
    /// The tag; absent only when there is a digest.
    pub tag: Option<String>,
    /// `sha256:` and 64 hexadecimal digits. Where both are given, the digest decides.
    pub digest: Option<String>,
}

impl Reference {
    /// Parses and fills in `docker.io`, `library/` and `:latest`.
    pub fn parse(image: &str) -> Result<Self, Error> {
        parse(image).map_err(|problem| Error::InvalidName { image: image.to_owned(), problem })
    }

    /// Registry and repository, without tag and digest.
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }
}

impl fmt::Display for Reference {
    /// With the digest if there is one, else with the tag.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        match (&self.digest, &self.tag) {
            (Some(digest), _) => write!(f, "@{digest}"),
            (None, Some(tag)) => write!(f, ":{tag}"),
            (None, None) => Ok(()),
        }
    }
}

fn parse(image: &str) -> Result<Reference, String> {
    if image.len() == 64 && image.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
        return Err(format!("invalid repository name ({image}), cannot specify 64-byte hexadecimal strings"));
    }
    let (registry, rest) = split_registry(image);
    let (rest, digest) = match rest.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest)),
        None => (rest, None),
    };
    let (path, tag) = match rest.split_once(':') {
        Some((path, tag)) => (path, Some(tag)),
        None => (rest, None),
    };
    let repository =
        if registry == DEFAULT_REGISTRY && !path.contains('/') { format!("library/{path}") } else { path.to_owned() };
    if repository.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return Err(format!("{FORMAT}: repository name ({repository}) must be lowercase"));
    }
    let well_formed = is_host(registry)
        && repository.split('/').all(is_path_component)
        && tag.is_none_or(is_tag)
        && digest.is_none_or(|digest| !digest.is_empty());
    if !well_formed {
        return Err(FORMAT.to_owned());
    }
    if registry.len() + 1 + repository.len() > MAX_NAME {
        return Err(format!("repository name must not be more than {MAX_NAME} characters"));
    }
    let digest = match digest {
        Some(digest) => Some(Digest::parse(digest).map_err(str::to_owned)?.to_string()),
        None => None,
    };
    let tag = match (tag, &digest) {
        (None, None) => Some("latest".to_owned()),
        (tag, _) => tag.map(str::to_owned),
    };
    Ok(Reference { registry: registry.to_owned(), repository, tag, digest })
}

/// The first component is a host if it looks like one: a dot, a port, `localhost`, or capitals.
fn split_registry(image: &str) -> (&str, &str) {
    match image.split_once('/') {
        Some((first, rest))
            if first.contains(['.', ':'])
                || first == "localhost"
                || first.bytes().any(|byte| byte.is_ascii_uppercase()) =>
        {
            (if first == "index.docker.io" { DEFAULT_REGISTRY } else { first }, rest)
        }
        _ => (DEFAULT_REGISTRY, image),
    }
}

fn is_host(text: &str) -> bool {
    let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, port)) => {
            let well = !address.is_empty() && address.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b':');
            if !well {
                return false;
            }
            ("x", port.strip_prefix(':').or(if port.is_empty() { None } else { Some("") }))
        }
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    let label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    host.split('.').all(label)
        && port.is_none_or(|port| !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Lower-case letters and digits, in groups separated by `.`, `_`, `__` or dashes.
fn is_path_component(text: &str) -> bool {
    let bytes = text.as_bytes();
    let word = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else { return false };
    if !word(first) || !word(last) {
        return false;
    }
    bytes
        .split(word)
        .all(|separator| matches!(separator, b"" | b"." | b"_" | b"__") || separator.iter().all(|byte| *byte == b'-'))
}

fn is_tag(text: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    text.len() <= MAX_TAG
        && text.bytes().next().is_some_and(word)
        && text.bytes().all(|byte| word(byte) || matches!(byte, b'.' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn names_are_normalised_as_kubernetes_does() {
        let digest = format!("@sha256:{HEX}");
        for (given, normal) in [
            ("nginx", "docker.io/library/nginx:latest".to_owned()),
            ("nginx:1.27", "docker.io/library/nginx:1.27".to_owned()),
            ("user/app", "docker.io/user/app:latest".to_owned()),
            ("index.docker.io/nginx", "docker.io/library/nginx:latest".to_owned()),
            ("localhost/x", "localhost/x:latest".to_owned()),
            ("localhost:5000/a/b:v1", "localhost:5000/a/b:v1".to_owned()),
            ("[::1]:5000/a", "[::1]:5000/a:latest".to_owned()),
            ("a__b/c-d.e_f--g", "docker.io/a__b/c-d.e_f--g:latest".to_owned()),
            (&format!("nginx{digest}"), format!("docker.io/library/nginx{digest}")),
            (&format!("quay.io/x/y:v1{digest}"), format!("quay.io/x/y{digest}")),
        ] {
            assert_eq!(Reference::parse(given).unwrap().to_string(), normal, "{given}");
        }
    }

    #[test]
    fn broken_names_are_refused_with_kubelets_text() {
        let message = |image: &str| Reference::parse(image).unwrap_err().to_string();
        assert_eq!(
            message("Nginx"),
            "Failed to apply default image tag \"Nginx\": couldn't parse image name \"Nginx\": \
             invalid reference format: repository name (library/Nginx) must be lowercase"
        );
        let long = format!("localhost/{}", "a".repeat(250));
        let tag = format!("nginx:{}", "t".repeat(129));
        for image in ["", "/", "a//b", ":", "nginx:", "nginx@", "nginx:a b", "-a", "a_", "a..b", "a___b", "../x", &tag]
        {
            assert!(message(image).ends_with(FORMAT), "{image}: {}", message(image));
        }
        assert!(message(&long).ends_with("must not be more than 255 characters"));
        assert!(message(HEX).contains("cannot specify 64-byte hexadecimal strings"));
        assert!(message("nginx@sha256:abcd").ends_with("invalid checksum digest length"));
        assert!(message("nginx@md5:e3b0c44298fc1c149afbf4c8996fb924").ends_with("unsupported digest algorithm"));
        assert_eq!(Reference::parse("Nginx").unwrap_err().reason(), "InvalidImageName");
    }
}
