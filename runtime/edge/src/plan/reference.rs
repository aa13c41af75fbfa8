//! References across namespaces: the other side must have agreed.

use crate::state::State;

/// Who refers: group, kind and namespace.
pub struct From<'a> {
    pub group: &'a str,
    pub kind: &'a str,
    pub namespace: &'a str,
}

/// What is referred to: group, kind, namespace and name.
pub struct To<'a> {
    pub group: &'a str,
    pub kind: &'a str,
    pub namespace: &'a str,
    pub name: &'a str,
}

/// Whether a reference may be followed.
pub fn is_permitted(state: &State, from: &From<'_>, to: &To<'_>) -> bool {
    if from.namespace == to.namespace {
        return true;
    }
    let there = state.grants.iter().filter(|grant| grant.metadata.namespace.as_deref() == Some(to.namespace));
    there.map(|grant| &grant.spec).any(|grant| {
        let from_fits = grant
            .from
            .iter()
            .any(|known| known.group == from.group && known.kind == from.kind && known.namespace == from.namespace);
        let to_fits = grant.to.iter().any(|known| {
            known.group == to.group
                && known.kind == to.kind
                && known.name.as_deref().is_none_or(|name| name.is_empty() || name == to.name)
        });
        from_fits && to_fits
    })
}
