//! Paths by their elements, and what becomes of them in rewrites.

/// A prefix as it is compared: without the slash at its end, so that `/` is empty.
pub fn trimmed(prefix: &str) -> &str {
    prefix.strip_suffix('/').unwrap_or(prefix)
}

/// Whether a path lies under a [`trimmed`] prefix, element by element: `/foo/bar` does under `/foo`, `/foobar` doesn't.
pub fn lies_under(path: &str, prefix: &str) -> bool {
    path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// How a path is replaced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathChange {
    /// By this one, whatever it was.
    Full(String),
    /// Only the prefix that matched.
    Prefix(String),
}

impl PathChange {
    /// The path instead of `path`, of which `matched` is the [`trimmed`] prefix that matched.
    pub fn apply(&self, path: &str, matched: &str) -> String {
        match self {
            Self::Full(new) => absolute(new),
            Self::Prefix(new) => {
                let rest = path.strip_prefix(matched).unwrap_or(path);
                let new = trimmed(new);
                let slash = if rest.is_empty() || rest.starts_with('/') { "" } else { "/" };
                absolute(&format!("{new}{slash}{rest}"))
            }
        }
    }
}

fn absolute(path: &str) -> String {
    if path.starts_with('/') { path.to_owned() } else { format!("/{path}") }
}
