use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::kinds::Registry;

const T1: &str = "2024-01-01T00:00:01Z";
const T2: &str = "2024-01-01T00:00:02Z";

fn kind(group: &str, name: &str) -> &'static Kind {
    Registry::builtin().by_gvk(group, "v1", name).expect("a built-in kind")
}

fn updater<'a>(name: &'a str, subresource: &'a str, time: &'a str) -> Manager<'a> {
    Manager { name, operation: Operation::Update, subresource, time }
}

fn created(kind: &Kind, mut object: Value, name: &str) -> Value {
    track_update(kind, None, &mut object, &updater(name, "", T1));
    object["metadata"]["uid"] = "u".into();
    object
}

fn updated(kind: &Kind, old: &Value, mut new: Value, manager: &Manager<'_>) -> Value {
    track_update(kind, Some(old), &mut new, manager);
    new
}

/// The fields of each manager, in order.
fn owners(object: &Value) -> Vec<(&str, Value)> {
    let entries = object.pointer("/metadata/managedFields").and_then(Value::as_array);
    entries
        .into_iter()
        .flatten()
        .map(|entry| (entry["manager"].as_str().unwrap_or(""), entry["fieldsV1"].clone()))
        .collect()
}

#[expect(clippy::needless_pass_by_value, reason = "calls read better with a bare json!")]
fn config_map(data: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a", "labels": {"a": "b"}}, "data": data})
}

#[test]
fn a_create_owns_what_it_sets() {
    let object = created(kind("", "ConfigMap"), config_map(json!({"x": "1"})), "m");
    assert_eq!(
        object["metadata"]["managedFields"],
        json!([{"manager": "m", "operation": "Update", "apiVersion": "v1", "time": T1, "fieldsType": "FieldsV1",
            "fieldsV1": {"f:data": {".": {}, "f:x": {}}, "f:metadata": {"f:labels": {".": {}, "f:a": {}}}}}])
    );
}

#[test]
fn structs_that_are_always_there_are_nobodys_and_lists_are_owned_item_by_item() {
    let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "x"},
        "spec": {"replicas": 0, "selector": {"matchLabels": {"app": "a"}},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%"}},
            "template": {"metadata": {"labels": {"app": "a"}},
                "spec": {"containers": [{"name": "c", "image": "nginx", "resources": {}}], "securityContext": {}}}},
        "status": {"replicas": 1}});
    let object = created(kind("apps", "Deployment"), deployment, "m");
    assert_eq!(
        owners(&object)[0].1,
        json!({"f:spec": {"f:replicas": {}, "f:selector": {},
            "f:strategy": {"f:rollingUpdate": {".": {}, "f:maxSurge": {}}, "f:type": {}},
            "f:template": {"f:metadata": {"f:labels": {".": {}, "f:app": {}}},
                "f:spec": {"f:containers": {"k:{\"name\":\"c\"}": {".": {}, "f:image": {}, "f:name": {}, "f:resources": {}}},
                    "f:securityContext": {}}}}})
    );
}

#[test]
fn references_are_owned_as_a_whole() {
    let event = json!({"apiVersion": "v1", "kind": "Event", "metadata": {"name": "x"}, "reason": "R",
        "involvedObject": {"kind": "Pod", "name": "x"}});
    assert_eq!(owners(&created(kind("", "Event"), event, "m"))[0].1, json!({"f:involvedObject": {}, "f:reason": {}}));
}

#[test]
fn updates_own_what_they_change_and_lose_what_others_remove() {
    let kind = kind("", "ConfigMap");
    let first = created(kind, config_map(json!({"x": "1", "y": "1"})), "a");
    let mut new = first.clone();
    new["data"]["x"] = "2".into();
    let second = updated(kind, &first, new, &updater("b", "", T2));
    assert_eq!(
        owners(&second),
        [
            ("a", json!({"f:data": {".": {}, "f:y": {}}, "f:metadata": {"f:labels": {".": {}, "f:a": {}}}})),
            ("b", json!({"f:data": {"f:x": {}}})),
        ]
    );
    let mut new = second.clone();
    new["data"] = json!({"x": "2"});
    let third = updated(kind, &second, new, &updater("c", "", T2));
    assert_eq!(
        owners(&third),
        [
            // A field that is owned without anything below it is written without the dot.
            ("a", json!({"f:data": {}, "f:metadata": {"f:labels": {".": {}, "f:a": {}}}})),
            ("b", json!({"f:data": {"f:x": {}}})),
        ]
    );
}

#[test]
fn times_change_only_with_the_fields() {
    let kind = kind("", "ConfigMap");
    let first = created(kind, config_map(json!({"x": "1"})), "a");
    let same = updated(kind, &first, first.clone(), &updater("a", "", T2));
    assert_eq!(same, first);
    let mut new = first.clone();
    new["data"]["x"] = "2".into();
    let second = updated(kind, &first, new, &updater("a", "", T2));
    assert_eq!(second["metadata"]["managedFields"][0]["time"], T2);
    assert_eq!(owners(&second), owners(&first));
}

#[test]
fn managers_can_be_reset_and_sent() {
    let kind = kind("", "ConfigMap");
    let first = created(kind, config_map(json!({"x": "1"})), "a");
    for reset in [json!([]), json!([{}])] {
        let mut new = first.clone();
        new["metadata"]["managedFields"] = reset;
        assert_eq!(owners(&updated(kind, &first, new, &updater("b", "", T2))), []);
    }
    let mut unmanaged = first.clone();
    crate::managed_fields::entries::remove(&mut unmanaged);
    let mut new = unmanaged.clone();
    new["data"]["x"] = "2".into();
    assert_eq!(owners(&updated(kind, &unmanaged, new, &updater("b", "", T2))), []);

    let mut without = first.clone();
    crate::managed_fields::entries::remove(&mut without);
    assert_eq!(owners(&updated(kind, &first, without.clone(), &updater("b", "", T2))), owners(&first));
    without["metadata"]["managedFields"] = json!([{"manager": "x"}]);
    assert_eq!(owners(&updated(kind, &first, without.clone(), &updater("b", "", T2))), owners(&first));
    without["metadata"]["managedFields"] = json!([{"manager": "z", "operation": "Update", "apiVersion": "v1",
        "fieldsType": "FieldsV1", "fieldsV1": {"f:data": {"f:x": {}}}}]);
    assert_eq!(owners(&updated(kind, &first, without, &updater("b", "", T2))), [("z", json!({"f:data": {"f:x": {}}}))]);
}

#[test]
fn the_status_is_owned_through_its_own_path_only() {
    let kind = kind("apps", "Deployment");
    let first = created(
        kind,
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "x"}, "spec": {"replicas": 1}}),
        "a",
    );
    let mut new = first.clone();
    new["spec"]["replicas"] = 2.into();
    new["status"] = json!({"replicas": 1});
    let status = updated(kind, &first, new.clone(), &updater("s", "status", T2));
    assert_eq!(
        owners(&status),
        [("a", json!({"f:spec": {"f:replicas": {}}})), ("s", json!({"f:status": {".": {}, "f:replicas": {}}}))]
    );
    assert_eq!(status["metadata"]["managedFields"][1]["subresource"], "status");
    let main = updated(kind, &first, new, &updater("b", "", T2));
    assert_eq!(owners(&main), [("b", json!({"f:spec": {"f:replicas": {}}}))]);
}

#[test]
fn old_updaters_are_collapsed() {
    let kind = kind("", "ConfigMap");
    let mut object = created(kind, config_map(json!({"k0": "0"})), "m0");
    for n in 1..14 {
        let mut new = object.clone();
        new["data"][format!("k{n}")] = "x".into();
        let time = format!("2024-01-01T00:01:{n:02}Z");
        object = updated(kind, &object, new, &updater(&format!("m{n}"), "", &time));
    }
    let owners = owners(&object);
    assert_eq!(owners.len(), 10);
    assert_eq!(owners[0].0, "ancient-changes");
    let data = owners[0].1["f:data"].as_object().expect("fields");
    assert_eq!(data.keys().map(String::as_str).collect::<Vec<_>>(), [".", "f:k0", "f:k1", "f:k2", "f:k3", "f:k4"]);
}

#[test]
fn entries_of_unknown_versions_are_dropped() {
    let kind = kind("", "ConfigMap");
    let mut first = created(kind, config_map(json!({"x": "1"})), "a");
    first["metadata"]["managedFields"][0]["apiVersion"] = "v0".into();
    let mut new = first.clone();
    new["data"]["y"] = "2".into();
    assert_eq!(owners(&updated(kind, &first, new, &updater("b", "", T2))), [("b", json!({"f:data": {"f:y": {}}}))]);
}

#[test]
fn a_write_that_changes_only_times_is_no_change() {
    let old = created(kind("", "ConfigMap"), config_map(json!({"x": "1"})), "a");
    let mut new = old.clone();
    new["metadata"]["managedFields"][0]["time"] = T2.into();
    keep_times(&old, &mut new);
    assert_eq!(new, old);
    new["metadata"]["managedFields"][0]["time"] = T2.into();
    new["data"]["x"] = "2".into();
    let before = new.clone();
    keep_times(&old, &mut new);
    assert_eq!(new, before);
}

proptest! {
    #[test]
    fn nobody_owns_what_is_not_there_and_nothing_is_owned_twice_by_updaters(
        writes in prop::collection::vec((0..3_usize, prop::collection::btree_map("[a-d]", "[xyz]", 0..4)), 1..6),
    ) {
        let kind = kind("", "ConfigMap");
        let mut object: Option<Value> = None;
        for (manager, data) in writes {
            let mut new = object.clone().unwrap_or_else(|| config_map(json!({})));
            new["data"] = json!(data);
            let name = ["a", "b", "c"][manager];
            let new = match &object {
                None => created(kind, new, name),
                Some(old) => updated(kind, old, new, &updater(name, "", T2)),
            };
            let owned: Vec<String> = owners(&new).iter()
                .flat_map(|(_, fields)| fields["f:data"].as_object().into_iter().flat_map(|data| data.keys().cloned()).collect::<Vec<_>>())
                .filter(|key| key != ".")
                .collect();
            let mut expected: Vec<String> = data.keys().map(|key| format!("f:{key}")).collect();
            let mut found = owned;
            found.sort();
            expected.sort();
            prop_assert_eq!(found, expected);
            object = Some(new);
        }
    }
}
