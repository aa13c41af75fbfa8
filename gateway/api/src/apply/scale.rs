//! Applying a Scale: what is applied is one field of the scaled object, which its managers know by another path.

use std::collections::BTreeMap;

use serde_json::Value;

use super::apply;
use crate::kind::Kind;
use crate::managed_fields::Manager;
use crate::managed_fields::element::Element;
use crate::managed_fields::entries::{Managed, ManagerId, Owned};
use crate::managed_fields::set::Set;
use crate::status::Status;

/// The wanted number in a Scale.
const REPLICAS: [&str; 2] = ["spec", "replicas"];

/// A scaled object, as the scale subresource sees it.
#[derive(Clone, Copy, Debug)]
pub struct Scaled<'a> {
    /// Of the object.
    pub kind: &'a Kind,
    /// The object.
    pub object: &'a Value,
    /// JSON pointer to the wanted number in the object.
    pub replicas: &'a str,
    /// The object's Scale.
    pub scale: &'a Value,
}

/// Applies `config`, a Scale, to the Scale of an object. Gives the new Scale, and the object with its new managers; the
/// number in the object is left to the caller.
///
/// # Errors
/// As [`apply`].
pub fn apply_scale(
    scale_kind: &Kind,
    scaled: Scaled<'_>,
    config: &Value,
    manager: &Manager<'_>,
    force: bool,
) -> Result<(Value, Value), Status> {
    let damaged = |error: String| Status::generic(500, "", format!("failed to decode managed fields: {error}"));
    let path: Vec<Element> = scaled.replicas.split('/').skip(1).map(Element::field).collect();
    let mut owners = Managed::read(scaled.object).map_err(damaged)?;
    let mut in_scale = Managed::default();
    let mut origins: BTreeMap<ManagerId, ManagerId> = BTreeMap::new();
    for (id, owned) in owners.iter().filter(|(_, owned)| owned.fields.has(&path)) {
        let own = ManagerId::new(&id.name, id.operation, &scale_kind.api_version(), &id.subresource);
        let (fields, time) = (Set::of_fields(&[&REPLICAS]), owned.time.clone());
        in_scale.insert(own.clone(), Owned { fields, api_version: scale_kind.api_version(), time });
        origins.insert(own, id.clone());
    }
    let mut live = scaled.scale.clone();
    in_scale.write(&mut live);
    let applied = apply(scale_kind, Some(&live), config, manager, force)?.object;

    let after = Managed::read(&applied).map_err(damaged)?;
    let replicas: Vec<Element> = REPLICAS.iter().map(|name| Element::field(name)).collect();
    let mut only = Set::default();
    only.insert(&path);
    let still: Vec<&ManagerId> =
        after.iter().filter(|(_, owned)| owned.fields.has(&replicas)).filter_map(|(id, _)| origins.get(id)).collect();
    for (_, owned) in owners.iter_mut().filter(|(id, _)| !still.contains(id)) {
        owned.fields = owned.fields.difference(&only);
    }
    for (id, owned) in after.iter().filter(|(_, owned)| owned.fields.has(&replicas)) {
        let api_version = scaled.kind.api_version();
        let own = origins.get(id).cloned();
        let own = own.unwrap_or_else(|| ManagerId::new(&id.name, id.operation, &api_version, &id.subresource));
        let before = owners.remove(&own).map(|owned| owned.fields).unwrap_or_default();
        owners.insert(own, Owned { fields: before.union(&only), api_version, time: owned.time.clone() });
    }
    owners.drop_empty();
    let mut object = scaled.object.clone();
    owners.write(&mut object);
    Ok((applied, object))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::kinds::Registry;
    use crate::managed_fields::Operation;

    const TIME: &str = "2026-01-01T00:00:00Z";

    fn deployment() -> Value {
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d", "managedFields": [
            {"manager": "a", "operation": "Apply", "apiVersion": "apps/v1", "time": TIME, "fieldsType": "FieldsV1",
                "fieldsV1": {"f:spec": {"f:replicas": {}, "f:paused": {}}}}]}, "spec": {"replicas": 1, "paused": true}})
    }

    fn applied(object: &Value, replicas: i64, force: bool) -> Result<(Value, Value), Status> {
        let registry = Registry::builtin();
        let kind = registry.by_gvk("apps", "v1", "Deployment").unwrap();
        let scale_kind = registry.type_of("autoscaling", "v1", "Scale").unwrap();
        let head = json!({"apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": {"name": "d"}});
        let of = |replicas: &Value| {
            let mut scale = head.clone();
            scale["spec"] = json!({"replicas": replicas});
            scale
        };
        let manager = Manager { name: "s", operation: Operation::Apply, subresource: "scale", time: TIME };
        let scale = of(&object["spec"]["replicas"]);
        let scaled = Scaled { kind, object, replicas: "/spec/replicas", scale: &scale };
        apply_scale(scale_kind, scaled, &of(&json!(replicas)), &manager, force)
    }

    fn owners(object: &Value) -> Vec<(&str, &Value)> {
        let entries = object["metadata"]["managedFields"].as_array().unwrap().iter();
        entries.map(|entry| (entry["manager"].as_str().unwrap(), &entry["fieldsV1"])).collect()
    }

    #[test]
    fn another_number_is_a_conflict_unless_forced() {
        let status = applied(&deployment(), 5, false).unwrap_err();
        assert_eq!(status.code(), 409);
        assert!(status.message().contains("conflict with \"a\""), "{}", status.message());
        let (scale, object) = applied(&deployment(), 5, true).unwrap();
        assert_eq!(scale["spec"]["replicas"], 5);
        let replicas = json!({"f:spec": {"f:replicas": {}}});
        assert_eq!(owners(&object), [("a", &json!({"f:spec": {"f:paused": {}}})), ("s", &replicas)]);
        assert_eq!(object["metadata"]["managedFields"][1]["subresource"], "scale");
        assert_eq!(object["metadata"]["managedFields"][1]["apiVersion"], "apps/v1");
    }

    #[test]
    fn the_same_number_is_owned_by_both() {
        let (_, object) = applied(&deployment(), 1, false).unwrap();
        let both = owners(&object);
        let a = both.iter().find(|(name, _)| *name == "a").unwrap();
        assert_eq!((both.len(), a.1), (2, &json!({"f:spec": {"f:paused": {}, "f:replicas": {}}})));
    }
}
