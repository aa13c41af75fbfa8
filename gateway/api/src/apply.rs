//! Server-side apply: a client says which fields it wants, and owns those from then on.
//!
//! The rules are those of `sigs.k8s.io/structured-merge-diff`. Fields that an applier no longer applies go, unless
//! someone else owns them; fields that others own and have different values are conflicts, unless forced.

mod conflict;
mod last_applied;
mod merge;
mod prune;
mod scale;
mod validate;

use serde_json::{Value, json};

use crate::kind::Kind;
use crate::managed_fields::entries::{self, Managed, ManagerId, Owned};
use crate::managed_fields::owned::{Reach, server_fields};
use crate::managed_fields::typed::{Comparison, Shape, compare, field, fields, shape};
use crate::managed_fields::{Conflict, before_first_apply, conflicts, drop_unknown_versions, take_over};
pub use crate::managed_fields::{Manager, Operation, keep_times, track_update};
use crate::schema::{Schema, Type, schema_of};
use crate::status::Status;
pub use scale::{Scaled, apply_scale};

/// What came of an apply.
#[derive(Clone, Debug, PartialEq)]
pub struct Applied {
    /// The object to store; not yet defaulted or validated.
    pub object: Value,
    /// Whether it differs from the live one. Defaults may undo a difference: [`keep_times`] sees to that.
    pub changed: bool,
}

/// Applies `config` to the live object, or creates one.
///
/// 400 if the config is of another kind or has `managedFields`; 500 without a reason, as in Kubernetes, if it doesn't
/// fit the schema; 409 with a cause per field if others own what it changes and it isn't forced.
pub fn apply(
    kind: &Kind,
    live: Option<&Value>,
    config: &Value,
    manager: &Manager<'_>,
    force: bool,
) -> Result<Applied, Status> {
    check(kind, config)?;
    let mut object = live.cloned().unwrap_or_else(|| json!({}));
    let mut owners = Managed::read(&object)
        .map_err(|error| Status::generic(500, "", format!("failed to decode managed fields: {error}")))?;
    entries::remove(&mut object);
    if owners.is_empty() && live.is_some() {
        owners = before_first_apply(kind, &object, manager);
    }
    let attempt = Attempt { kind, schema: schema_of(kind), live: &object, config, manager };
    let (merged, owners) = match attempt.run(owners.clone(), force) {
        Ok(done) => done,
        Err(conflicts) if manager.name == "kubectl" => attempt.upgrade(owners, conflicts)?,
        Err(conflicts) => return Err(conflict::status(&conflicts)),
    };
    let mut new = merged.unwrap_or_else(|| object.clone());
    if manager.name == "kubectl" {
        last_applied::renew(&mut new, config);
    }
    owners.write(&mut new);
    if let Some(live) = live {
        keep_times(live, &mut new);
    }
    let changed = live != Some(&new);
    Ok(Applied { object: new, changed })
}

/// An object with what a mutating policy says of it: merged like an applied configuration, but nobody comes to own
/// anything, and what is owned as a whole may not be said.
///
/// # Errors
/// Why the configuration doesn't fit, as Kubernetes words it.
pub fn overlay(kind: &Kind, object: &Value, config: &Value) -> Result<Value, String> {
    let schema = schema_of(kind);
    validate::check(schema, config).map_err(|why| format!("failed to convert patch object to typed object: {why}"))?;
    let mut atomic = Vec::new();
    find_atomic(Some(schema), config, "", &mut atomic);
    if !atomic.is_empty() {
        let fields = atomic.join(", ");
        return Err(format!("invalid ApplyConfiguration: may not mutate atomic arrays, maps or structs: {fields}"));
    }
    let mut merged = merge::merge(Some(schema), object, config);
    drop_nulls(Some(schema), &mut merged);
    Ok(merged)
}

/// Paths of the lists and maps of a configuration that are owned as a whole.
fn find_atomic(node: Option<&Schema>, value: &Value, path: &str, found: &mut Vec<String>) {
    match (shape(node, Some(value)), value) {
        (Shape::AtomicList(_) | Shape::AtomicMap(_), Value::Array(_) | Value::Object(_)) => found.push(path.to_owned()),
        (Shape::Map(node), Value::Object(fields)) => {
            for (name, value) in fields {
                find_atomic(field(node, name), value, &format!("{path}.{name}"), found);
            }
        }
        (Shape::List(_, items), Value::Array(all)) => {
            for (index, item) in all.iter().enumerate() {
                find_atomic(items, item, &format!("{path}[{index}]"), found);
            }
        }
        _ => {}
    }
}

/// Whether the config is one for this kind.
fn check(kind: &Kind, config: &Value) -> Result<(), Status> {
    let text = |name: &str| config.get(name).and_then(Value::as_str).unwrap_or_default();
    let (api_version, name) = (text("apiVersion"), text("kind"));
    if api_version != kind.api_version() || name != kind.kind {
        let (group, version) = api_version.rsplit_once('/').unwrap_or(("", api_version));
        return Err(Status::bad_request(format!("invalid object type: {group}/{version}, Kind={name}")));
    }
    if config.pointer("/metadata/managedFields").is_some_and(|entries| !entries.is_null()) {
        return Err(Status::bad_request("metadata.managedFields must be nil"));
    }
    validate::check(schema_of(kind), config).map_err(|errors| {
        let metadata =
            |name: &str| config.pointer(&format!("/metadata/{name}")).and_then(Value::as_str).unwrap_or_default();
        let object = format!("{}/{}", metadata("namespace"), metadata("name"));
        let message = format!(
            "failed to create typed patch object ({object}; {}/{}, Kind={}): {errors}",
            kind.group, kind.version, kind.kind
        );
        Status::generic(500, "", message)
    })
}

/// One apply to one object.
struct Attempt<'a> {
    kind: &'a Kind,
    schema: &'a Schema,
    live: &'a Value,
    config: &'a Value,
    manager: &'a Manager<'a>,
}

impl Attempt<'_> {
    fn id(&self) -> ManagerId {
        self.manager.id(self.kind, Operation::Apply)
    }

    /// The merged object, none if it is the live one, and who owns what then.
    fn run(&self, mut owners: Managed, force: bool) -> Result<(Option<Value>, Managed), Vec<Conflict>> {
        let (id, node, reach) = (self.id(), Some(self.schema), Reach::of(self.kind, self.manager.subresource));
        drop_unknown_versions(self.kind, &mut owners);
        let last = owners.remove(&id);
        let time = last.as_ref().and_then(|owned| owned.time.clone());
        let applied = reach.filter(&fields(node, self.config));
        owners.insert(id.clone(), Owned { fields: applied, api_version: self.kind.api_version(), time });

        let merged = merge::merge(node, self.live, self.config);
        let mut merged = match &last {
            Some(last) if !last.fields.is_empty() => prune::prune(node, &merged, &owners, &last.fields),
            _ => merged,
        };
        drop_nulls(node, &mut merged);

        let comparison: Comparison = reach.filter_comparison(&compare(node, self.live, &merged));
        let conflicts = conflicts(&owners, &comparison, &id);
        if !force && !conflicts.is_empty() {
            return Err(conflicts);
        }
        take_over(&mut owners, &comparison, Some(&id));
        let is_changed = *self.live != merged;
        if let Some(mut owned) = owners.remove(&id) {
            owned.fields = owned.fields.difference(server_fields());
            if is_changed {
                owned.time = Some(self.manager.time.to_owned());
            }
            owners.insert(id, owned);
            owners.drop_empty();
        }
        Ok((is_changed.then_some(merged), owners))
    }

    /// kubectl takes over what it applied from the client's side before, without a conflict.
    fn upgrade(&self, owners: Managed, conflicts: Vec<Conflict>) -> Result<(Option<Value>, Managed), Status> {
        let allowed = last_applied::owned(self.kind, self.live);
        let left: Vec<Conflict> = match allowed {
            Some(allowed) => conflicts.into_iter().filter(|(_, path)| !allowed.has(path)).collect(),
            None => conflicts,
        };
        if !left.is_empty() {
            return Err(conflict::status(&left));
        }
        self.run(owners, true).map_err(|conflicts| conflict::status(&conflicts))
    }
}

/// Drops null fields that merging and pruning left: only times may be null, and what is always there is empty instead.
fn drop_nulls(node: Option<&Schema>, value: &mut Value) {
    match value {
        Value::Object(fields) => fields.retain(|name, value| {
            let Some(field) = node.and_then(|schema| schema.property(name)) else { return true };
            if !value.is_null() {
                drop_nulls(Some(field), value);
            } else if field.type_() == Type::Object && field.default_value().is_some() {
                *value = json!({});
            }
            !value.is_null() || matches!(field.type_(), Type::Time | Type::MicroTime | Type::Any)
        }),
        Value::Array(items) => items.iter_mut().for_each(|item| drop_nulls(node.and_then(Schema::items), item)),
        _ => {}
    }
}

#[cfg(test)]
mod tests;
