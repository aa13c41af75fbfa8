//! Kinds that are on their way out: every answer about them says so.

use carob_api::kind::Kind;

/// Group, version, kind, and what clients are told.
const DEPRECATED: [(&str, &str, &str, &str); 2] = [
    ("", "v1", "ComponentStatus", "v1 ComponentStatus is deprecated in v1.19+"),
    ("", "v1", "Endpoints", "v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice"),
];

/// What a client is told that uses this kind.
pub(crate) fn warning(kind: &Kind) -> Option<&str> {
    if let Some(custom) = &kind.custom {
        return custom.deprecation.as_deref();
    }
    let (group, version, name): (&str, &str, &str) = (kind.group, kind.version, kind.kind);
    let known = DEPRECATED.iter().find(|row| (row.0, row.1, row.2) == (group, version, name))?;
    Some(known.3)
}
