//! Fields that no manager owns: the object's identity, and what the path of the request resets anyway.

use std::sync::OnceLock;

use super::element::Element;
use super::set::Set;
use super::typed::Comparison;
use crate::kind::Kind;

/// Fields that the server keeps.
pub(crate) fn server_fields() -> &'static Set {
    static FIELDS: OnceLock<Set> = OnceLock::new();
    FIELDS.get_or_init(|| {
        Set::of_fields(&[
            &["apiVersion"],
            &["kind"],
            &["metadata"],
            &["metadata", "name"],
            &["metadata", "namespace"],
            &["metadata", "creationTimestamp"],
            &["metadata", "selfLink"],
            &["metadata", "uid"],
            &["metadata", "clusterName"],
            &["metadata", "generation"],
            &["metadata", "managedFields"],
            &["metadata", "resourceVersion"],
        ])
    })
}

/// Which fields a request through one path of a resource can own.
#[derive(Clone, Debug)]
pub(crate) enum Reach {
    /// All but these and what is below them.
    Except(Set),
    /// Only what is below one of these; `*` stands for any step.
    Only(&'static [&'static [&'static str]]),
}

/// Paths that a request to this subresource resets: `(group, kind, subresource, paths)`, beyond the rule that `/status`
/// resets the spec and every other path the status.
const RESET: &[(&str, &str, &str, &[&[&str]])] = &[
    ("", "Pod", "status", &[&["metadata", "deletionTimestamp"], &["metadata", "ownerReferences"]]),
    ("apps", "Deployment", "status", &[&["metadata", "labels"]]),
    ("certificates.k8s.io", "CertificateSigningRequest", "", &[&["spec"]]),
    ("certificates.k8s.io", "CertificateSigningRequest", "approval", &[&["spec"]]),
    ("apiextensions.k8s.io", "CustomResourceDefinition", "status", &[&["metadata"]]),
];

/// Subresources that touch only a part: `(group, kind, subresource, paths)`.
const ONLY: &[(&str, &str, &str, &[&[&str]])] = &[
    ("", "Pod", "ephemeralcontainers", &[&["spec", "ephemeralContainers"]]),
    (
        "",
        "Pod",
        "resize",
        &[
            &["spec", "containers", "*", "resources"],
            &["spec", "containers", "*", "resizePolicy"],
            &["spec", "initContainers", "*", "resources"],
            &["spec", "initContainers", "*", "resizePolicy"],
        ],
    ),
];

impl Reach {
    /// The reach of a request to an object or to a subresource of it (empty for the object itself).
    pub(crate) fn of(kind: &Kind, subresource: &str) -> Self {
        let row = |rows: &[(&str, &str, &str, &'static [&'static [&'static str]])]| {
            let found = rows.iter().find(|row| (row.0, row.1, row.2) == (kind.group, kind.kind, subresource));
            found.map(|row| row.3)
        };
        if let Some(paths) = row(ONLY) {
            return Self::Only(paths);
        }
        let mut reset = Set::of_fields(row(RESET).unwrap_or_default());
        if kind.subresources.iter().any(|known| known.name == "status") {
            reset.insert(&[Element::field(if subresource == "status" { "spec" } else { "status" })]);
        }
        Self::Except(reset)
    }

    /// The part of a set that is within reach.
    pub(crate) fn filter(&self, set: &Set) -> Set {
        self.narrow(set.clone())
    }

    /// The same of a set that is not needed otherwise.
    pub(crate) fn narrow(&self, mut set: Set) -> Set {
        match self {
            Self::Except(reset) => {
                set.subtract_recursively(reset);
                set
            }
            Self::Only(paths) => {
                let mut kept = Set::default();
                for path in set.paths().iter().filter(|path| paths.iter().any(|pattern| matches(pattern, path))) {
                    kept.insert(path);
                }
                kept
            }
        }
    }

    /// The part of a comparison that is within reach.
    pub(crate) fn filter_comparison(&self, comparison: &Comparison) -> Comparison {
        Comparison {
            added: self.filter(&comparison.added),
            modified: self.filter(&comparison.modified),
            removed: self.filter(&comparison.removed),
        }
    }
}

/// Whether the path is the pattern, above it or below it.
fn matches(pattern: &[&str], path: &[Element]) -> bool {
    pattern
        .iter()
        .zip(path)
        .all(|(step, element)| *step == "*" || matches!(element, Element::Field(name) if name == step))
}
