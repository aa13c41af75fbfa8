//! Who set which field: `metadata.managedFields`, kept up to date by every write.
//!
//! The rules are those of `sigs.k8s.io/structured-merge-diff`: a manager owns the fields it set last; a field that
//! someone else changes or removes is lost to it.

pub(crate) mod element;
pub(crate) mod entries;
pub(crate) mod owned;
pub(crate) mod set;
pub(crate) mod typed;
mod zero;

use serde_json::Value;

use crate::kind::Kind;
use crate::schema::schema_of;
use element::Element;
use entries::{Managed, ManagerId, Owned};
use owned::{Reach, server_fields};
use typed::{Comparison, compare, touched};

/// How a manager sets fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    /// By server-side apply.
    Apply,
    /// By create, update and the other patches.
    Update,
}

impl Operation {
    /// As entries name it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Apply => "Apply",
            Self::Update => "Update",
        }
    }
}

/// Who makes a request, and how.
#[derive(Clone, Copy, Debug)]
pub struct Manager<'a> {
    /// `fieldManager` of the request, or what stands before the slash of its User-Agent; `unknown` if empty.
    pub name: &'a str,
    /// How fields are set.
    pub operation: Operation,
    /// `status`, `scale`, …; empty for the object itself.
    pub subresource: &'a str,
    /// Now, as RFC 3339 in seconds.
    pub time: &'a str,
}

impl Manager<'_> {
    pub(crate) fn id(&self, kind: &Kind, operation: Operation) -> ManagerId {
        let name = if self.name.is_empty() { "unknown" } else { self.name };
        ManagerId::new(name, operation, &kind.api_version(), self.subresource)
    }
}

/// Rewrites `managedFields` of a new object for a create, an update or a patch other than apply.
///
/// `new` is the object as the client wants it, with defaults but before mutating admission and before the server fills
/// in anything else: what those set is nobody's. `old` is the stored object, none for a create.
pub fn track_update(kind: &Kind, old: Option<&Value>, new: &mut Value, manager: &Manager<'_>) {
    let before = old.map(|old| Managed::read(old).unwrap_or_default()).unwrap_or_default();
    let mut owners = if !manager.subresource.is_empty() {
        before
    } else if is_reset(new) {
        Managed::default()
    } else {
        match Managed::read(new) {
            Ok(sent) if !sent.is_empty() => sent,
            _ => before,
        }
    };
    entries::remove(new);
    if owners.is_empty() && old.is_some() {
        return; // managers of an existing object are only tracked from its first apply on
    }
    let zero = old.is_none().then(|| zero::zero_of(kind));
    let live = old.or(zero.as_deref()).unwrap_or(&Value::Null);
    update(kind, live, new, &mut owners, manager, &manager.id(kind, Operation::Update));
    owners.cap_updaters();
    owners.write(new);
}

/// The managers of an object that has none: all of it belongs to `before-first-apply`.
pub(crate) fn before_first_apply(kind: &Kind, live: &Value, manager: &Manager<'_>) -> Managed {
    let mut owners = Managed::default();
    let earlier = Manager { name: "before-first-apply", ..*manager };
    let id = earlier.id(kind, Operation::Update);
    update(kind, &zero::zero_of(kind), live, &mut owners, &earlier, &id);
    owners
}

/// Gives what changed between the objects to the manager.
fn update(kind: &Kind, live: &Value, new: &Value, owners: &mut Managed, manager: &Manager<'_>, id: &ManagerId) {
    drop_unknown_versions(kind, owners);
    let reach = Reach::of(kind, manager.subresource);
    let changed = if owners.is_empty() {
        touched(Some(schema_of(kind)), live, new)
    } else {
        let comparison = compare(Some(schema_of(kind)), live, new);
        take_over(owners, &reach.filter_comparison(&comparison), None);
        comparison.modified.union(&comparison.added)
    };
    let mut fields = reach.narrow(changed);
    fields.subtract(server_fields());
    if fields.is_empty() {
        return;
    }
    let earlier = owners.remove(id).map(|owned| owned.fields).unwrap_or_default();
    let owned =
        Owned { fields: fields.union(&earlier), api_version: kind.api_version(), time: Some(manager.time.to_owned()) };
    owners.insert(id.clone(), owned);
}

/// A field that a manager would lose to another.
pub(crate) type Conflict = (ManagerId, Vec<Element>);

/// What others own and the change touches.
pub(crate) fn conflicts(owners: &Managed, comparison: &Comparison, workflow: &ManagerId) -> Vec<Conflict> {
    let touched = comparison.modified.clone().union(&comparison.added);
    let others = owners.iter().filter(|(id, _)| *id != workflow);
    others
        .flat_map(|(id, owned)| {
            owned.fields.intersection(&touched).paths().into_iter().map(|path| (id.clone(), path)).collect::<Vec<_>>()
        })
        .collect()
}

/// Takes what changed and what is gone from all managers but one.
pub(crate) fn take_over(owners: &mut Managed, comparison: &Comparison, workflow: Option<&ManagerId>) {
    let touched = comparison.modified.clone().union(&comparison.added).union(&comparison.removed);
    for (_, owned) in owners.iter_mut().filter(|(id, _)| Some(*id) != workflow) {
        owned.fields = owned.fields.difference(&touched);
    }
    owners.drop_empty();
}

/// Entries in versions that the kind hasn't cannot be understood any more.
pub(crate) fn drop_unknown_versions(kind: &Kind, owners: &mut Managed) {
    let own = kind.api_version();
    owners.retain(|_, owned| owned.api_version == own || is_version_of(kind, &owned.api_version));
}

/// Whether objects of the kind have such a version, too. A version is all of `v1`, `v2beta1`, …
fn is_version_of(kind: &Kind, api_version: &str) -> bool {
    let (group, version) = api_version.rsplit_once('/').unwrap_or(("", api_version));
    if let Some(custom) = &kind.custom {
        return group == kind.group && custom.versions.iter().any(|known| known == version);
    }
    crate::kinds::Registry::builtin().by_gvk(group, version, kind.kind).is_some()
}

/// If nothing changed but times in `managedFields`, puts the old ones back, so that the write can be left out.
///
/// To be called with the object as it would be stored.
pub fn keep_times(old: &Value, new: &mut Value) {
    let entries = |object: &Value| object.pointer("/metadata/managedFields").cloned().unwrap_or(Value::Null);
    let timeless = |mut entries: Value| {
        for entry in entries.as_array_mut().into_iter().flatten() {
            if let Some(entry) = entry.as_object_mut() {
                entry.shift_remove("time");
            }
        }
        let mut entries = entries.as_array().cloned().unwrap_or_default();
        entries.sort_by_key(ToString::to_string);
        entries
    };
    let (before, after) = (entries(old), entries(new));
    if before == after || timeless(before.clone()) != timeless(after) {
        return;
    }
    let rest = |object: &Value| {
        let mut object = object.clone();
        entries::remove(&mut object);
        object
    };
    if rest(old) == rest(new)
        && let Some(metadata) = new.get_mut("metadata").and_then(Value::as_object_mut)
    {
        metadata.insert("managedFields".to_owned(), before);
    }
}

/// Whether the client wants to have no managers: an empty list, or one empty entry.
fn is_reset(object: &Value) -> bool {
    match object.pointer("/metadata/managedFields").and_then(Value::as_array).map(Vec::as_slice) {
        Some([]) => true,
        Some([entry]) => entry.as_object().is_some_and(serde_json::Map::is_empty),
        _ => false,
    }
}

#[cfg(test)]
mod tests;
