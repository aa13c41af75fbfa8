//! Image references, parsed and normalised as Kubernetes' container runtimes do it (distribution/reference).

use crate::Error;

/// A normalised reference: `docker.io/library/nginx:latest`, `localhost:5000/x@sha256:…`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Reference {
    /// The host with its port: `docker.io`, `localhost:5000`.
    pub registry: String,
    /// The path: `library/nginx`.
    pub repository: String,
    /// The tag; absent only when there is a digest.
    pub tag: Option<String>,
    /// `sha256:` and 64 hexadecimal digits.
    pub digest: Option<String>,
}

impl Reference {
    /// Parses and fills in `docker.io`, `library/` and `:latest`.
    pub fn parse(image: &str) -> Result<Self, Error> {
        Err(Error::InvalidName { image: image.to_owned(), problem: "invalid reference format" })
    }
}
