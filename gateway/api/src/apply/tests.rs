use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::kinds::Registry;

const T1: &str = "2024-01-01T00:00:01Z";
const T2: &str = "2024-01-01T00:00:02Z";

fn kind(group: &str, name: &str) -> &'static Kind {
    Registry::builtin().by_gvk(group, "v1", name).expect("a built-in kind")
}

fn applier<'a>(name: &'a str, time: &'a str) -> Manager<'a> {
    Manager { name, operation: Operation::Apply, subresource: "", time }
}

/// An object as the server would store it: empty maps of data are left out.
fn stored(mut object: Value) -> Value {
    if object["data"].as_object().is_some_and(serde_json::Map::is_empty)
        && let Some(fields) = object.as_object_mut()
    {
        fields.remove("data");
    }
    object
}

#[expect(clippy::needless_pass_by_value, reason = "calls read better with a bare json!")]
fn config(data: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": data})
}

fn apply_data(live: Option<&Value>, data: Value, name: &str, force: bool) -> Result<Value, Status> {
    apply(kind("", "ConfigMap"), live, &config(data), &applier(name, T1), force).map(|applied| stored(applied.object))
}

fn owners(object: &Value) -> Vec<(&str, Value)> {
    let entries = object.pointer("/metadata/managedFields").and_then(Value::as_array);
    entries
        .into_iter()
        .flatten()
        .map(|entry| (entry["manager"].as_str().unwrap_or(""), entry["fieldsV1"].clone()))
        .collect()
}

#[test]
fn apply_creates_updates_and_removes_what_is_no_longer_applied() {
    let first = apply_data(None, json!({"a": "1", "b": "2"}), "m1", false).unwrap();
    assert_eq!(
        first["metadata"]["managedFields"],
        json!([{"manager": "m1", "operation": "Apply", "apiVersion": "v1", "time": T1, "fieldsType": "FieldsV1",
            "fieldsV1": {"f:data": {"f:a": {}, "f:b": {}}}}])
    );
    let second = apply_data(Some(&first), json!({"a": "1", "b": "3"}), "m1", false).unwrap();
    assert_eq!(second["data"], json!({"a": "1", "b": "3"}));
    let third = apply_data(Some(&second), json!({"a": "1"}), "m1", false).unwrap();
    assert_eq!(third["data"], json!({"a": "1"}));
    let again = apply(kind("", "ConfigMap"), Some(&third), &config(json!({"a": "1"})), &applier("m1", T2), false);
    assert_eq!(again, Ok(Applied { object: third.clone(), changed: false }));
    let nothing = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}});
    let last = apply(kind("", "ConfigMap"), Some(&third), &nothing, &applier("m1", T2), false).unwrap().object;
    assert_eq!(last, json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}}));
}

#[test]
fn conflicts_name_managers_and_fields_and_force_takes_over() {
    let first = apply_data(None, json!({"a": "1", "b": "2"}), "m1", false).unwrap();
    let status = apply_data(Some(&first), json!({"a": "2"}), "m2", false).unwrap_err();
    assert_eq!(
        status.to_value(),
        json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": "Apply failed with 1 conflict: conflict with \"m1\": .data.a", "reason": "Conflict",
            "details": {"causes": [{"reason": "FieldManagerConflict", "message": "conflict with \"m1\"", "field": ".data.a"}]},
            "code": 409})
    );
    let shared = apply_data(Some(&first), json!({"a": "1"}), "m2", false).unwrap();
    assert_eq!(
        owners(&shared),
        [("m2", json!({"f:data": {"f:a": {}}})), ("m1", json!({"f:data": {"f:a": {}, "f:b": {}}}))]
    );
    assert!(shared["metadata"]["managedFields"][0].get("time").is_none());
    let status = apply_data(Some(&shared), json!({"a": "2", "b": "3"}), "m3", false).unwrap_err();
    assert_eq!(
        status.message(),
        "Apply failed with 3 conflicts: conflicts with \"m1\":\n- .data.a\n- .data.b\nconflicts with \"m2\":\n- .data.a"
    );
    let forced = apply_data(Some(&shared), json!({"a": "2", "b": "3"}), "m3", true).unwrap();
    assert_eq!(owners(&forced), [("m3", json!({"f:data": {"f:a": {}, "f:b": {}}}))]);
    assert_eq!(forced["data"], json!({"a": "2", "b": "3"}));

    let mut put = forced.clone();
    put["data"] = json!({"a": "5"});
    let upd = Manager { name: "upd", operation: Operation::Update, subresource: "", time: T2 };
    track_update(kind("", "ConfigMap"), Some(&forced), &mut put, &upd);
    let status = apply_data(Some(&put), json!({"a": "6"}), "m3", false).unwrap_err();
    assert_eq!(status.message(), "Apply failed with 1 conflict: conflict with \"upd\" using v1: .data.a");
}

#[test]
fn configs_that_do_not_fit_are_refused_in_kubernetes_words() {
    let kind_ = kind("apps", "Deployment");
    let deployment = |containers: Value| {
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d1"},
            "spec": {"template": {"spec": {"containers": containers}}}})
    };
    let map = kind("", "ConfigMap");
    let prefix = "failed to create typed patch object";
    for (kind, config, code, message) in [
        (map, json!({"metadata": {"name": "a"}}), 400, "invalid object type: /, Kind=".to_owned()),
        (map, json!({"apiVersion": "v1", "kind": "Secret"}), 400, "invalid object type: /v1, Kind=Secret".to_owned()),
        (
            map,
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a", "managedFields": [{"manager": "x"}]}}),
            400,
            "metadata.managedFields must be nil".to_owned(),
        ),
        (
            map,
            config(json!({"a": 1})),
            500,
            format!(
                "{prefix} (/a; /v1, Kind=ConfigMap): .data.a: expected string, got &value.valueUnstructured{{Value:1}}"
            ),
        ),
        (
            map,
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "nope": 1}),
            500,
            format!("{prefix} (/a; /v1, Kind=ConfigMap): .nope: field not declared in schema"),
        ),
        (
            map,
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a", "finalizers": ["e.x/a", "e.x/a"]}}),
            500,
            format!("{prefix} (/a; /v1, Kind=ConfigMap): .metadata.finalizers: duplicate entries for key [=\"e.x/a\"]"),
        ),
        (
            kind_,
            deployment(json!([{"name": "c"}, {"name": "c"}])),
            500,
            format!(
                "{prefix} (/d1; apps/v1, Kind=Deployment): .spec.template.spec.containers: duplicate entries for key [name=\"c\"]"
            ),
        ),
        (
            kind_,
            deployment(
                json!([{"name": "c", "ports": [{"containerPort": 80, "protocol": "TCP"}, {"containerPort": 80}]}]),
            ),
            500,
            format!(
                "{prefix} (/d1; apps/v1, Kind=Deployment): .spec.template.spec.containers[name=\"c\"].ports: duplicate \
                 entries for key [containerPort=80,protocol=\"TCP\"]"
            ),
        ),
    ] {
        let status = apply(kind, None, &config, &applier("m1", T1), false).expect_err("a refusal");
        assert_eq!((status.code(), status.message()), (code, message.as_str()), "{config}");
    }
    let unnamed = deployment(json!([{"image": "x"}]));
    assert!(apply(kind_, None, &unnamed, &applier("m1", T1), false).is_ok(), "an empty name is a name");
}

#[test]
fn list_items_are_owned_by_their_keys() {
    let kind = kind("apps", "Deployment");
    let deployment = |containers: Value| {
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d1"},
            "spec": {"selector": {"matchLabels": {"app": "a"}}, "template": {"spec": {"containers": containers}}}})
    };
    let run = |live: Option<&Value>, config: Value, name: &str| {
        apply(kind, live, &config, &applier(name, T1), false).map(|applied| applied.object)
    };
    let containers = |object: &Value| object["spec"]["template"]["spec"]["containers"].clone();
    let first = json!([{"name": "c", "image": "x", "ports": [{"containerPort": 80}, {"containerPort": 80, "protocol": "UDP"}],
        "env": [{"name": "A", "value": "1"}]}]);
    let one = run(None, deployment(first), "m1").unwrap();
    assert_eq!(
        owners(&one)[0].1["f:spec"]["f:template"]["f:spec"]["f:containers"]["k:{\"name\":\"c\"}"]["f:ports"],
        json!({"k:{\"containerPort\":80,\"protocol\":\"TCP\"}": {".": {}, "f:containerPort": {}},
            "k:{\"containerPort\":80,\"protocol\":\"UDP\"}": {".": {}, "f:containerPort": {}, "f:protocol": {}}})
    );
    let status = run(Some(&one), deployment(json!([{"name": "c", "image": "z"}])), "m2").unwrap_err();
    assert_eq!(
        status.message(),
        "Apply failed with 1 conflict: conflict with \"m1\": .spec.template.spec.containers[name=\"c\"].image"
    );
    let mine = json!([{"name": "c", "env": [{"name": "B", "value": "2"}]}, {"name": "d", "image": "y"}]);
    let two = run(Some(&one), deployment(mine), "m2").unwrap();
    assert_eq!(containers(&two)[0]["env"], json!([{"name": "A", "value": "1"}, {"name": "B", "value": "2"}]));
    let three = run(Some(&two), deployment(json!([{"name": "c", "image": "x"}])), "m1").unwrap();
    assert_eq!(
        containers(&three),
        json!([{"name": "c", "image": "x", "env": [{"name": "B", "value": "2"}]}, {"name": "d", "image": "y"}])
    );
    let nothing = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d1"},
        "spec": {"selector": {"matchLabels": {"app": "a"}}}});
    let four = run(Some(&three), nothing, "m2").unwrap();
    assert_eq!(containers(&four), json!([{"name": "c", "image": "x"}]));
    assert_eq!(
        owners(&four).iter().find(|(name, _)| *name == "m2").map(|(_, fields)| fields.clone()),
        Some(json!({"f:spec": {"f:selector": {}}}))
    );
}

#[test]
fn sets_are_owned_by_value_and_atomic_lists_as_a_whole() {
    let with_finalizers = |finalizers: Value| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a", "finalizers": finalizers}, "data": {}});
    let map = kind("", "ConfigMap");
    let one = apply(map, None, &with_finalizers(json!(["e.x/a"])), &applier("m1", T1), false).unwrap().object;
    assert_eq!(owners(&one)[0].1, json!({"f:data": {}, "f:metadata": {"f:finalizers": {"v:\"e.x/a\"": {}}}}));
    let one = stored(one);
    let status = apply(map, Some(&one), &with_finalizers(json!(["e.x/b"])), &applier("m2", T1), false).unwrap_err();
    assert_eq!(status.message(), "Apply failed with 1 conflict: conflict with \"m1\": .data");
    let two = apply(map, Some(&one), &config(json!({})), &applier("m1", T2), false).unwrap().object;
    assert_eq!(two["metadata"].get("finalizers"), None);
    assert_eq!(owners(&two)[0].1, json!({"f:data": {}}));

    let account = kind("", "ServiceAccount");
    let config = |name: &str| {
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "sa"},
            "secrets": [{"name": name}], "imagePullSecrets": [{"name": name}]})
    };
    let one = apply(account, None, &config("a"), &applier("m1", T1), false).unwrap().object;
    assert_eq!(owners(&one)[0].1, json!({"f:imagePullSecrets": {}, "f:secrets": {"k:{\"name\":\"a\"}": {}}}));
    let status = apply(account, Some(&one), &config("b"), &applier("m2", T1), false).unwrap_err();
    assert_eq!(status.message(), "Apply failed with 1 conflict: conflict with \"m1\": .imagePullSecrets");
}

#[test]
fn kubectl_takes_over_what_it_applied_from_the_client_side() {
    let map = kind("", "ConfigMap");
    let annotation = "kubectl.kubernetes.io/last-applied-configuration";
    let mut live = config(json!({"a": "1", "b": "2"}));
    live["metadata"]["annotations"] = json!({annotation: config(json!({"a": "1"})).to_string()});
    let client = Manager { name: "kubectl-client-side-apply", operation: Operation::Update, subresource: "", time: T1 };
    track_update(map, None, &mut live, &client);

    let other = apply(map, Some(&live), &config(json!({"a": "3"})), &applier("other", T2), false);
    assert_eq!(other.unwrap_err().code(), 409);
    let applied = apply(map, Some(&live), &config(json!({"a": "3"})), &applier("kubectl", T2), false).unwrap().object;
    assert_eq!(applied["data"], json!({"a": "3", "b": "2"}));
    assert_eq!(
        applied["metadata"]["annotations"][annotation],
        "{\"apiVersion\":\"v1\",\"data\":{\"a\":\"3\"},\"kind\":\"ConfigMap\",\"metadata\":{\"name\":\"a\"}}\n"
    );
    assert_eq!(owners(&applied)[0], ("kubectl", json!({"f:data": {"f:a": {}}})));
    let status =
        apply(map, Some(&live), &config(json!({"a": "3", "b": "4"})), &applier("kubectl", T2), false).unwrap_err();
    assert_eq!(
        status.message(),
        "Apply failed with 1 conflict: conflict with \"kubectl-client-side-apply\" using v1: .data.b"
    );
}

#[test]
fn objects_without_managers_belong_to_before_first_apply() {
    let live = config(json!({"a": "1"}));
    let applied = apply_data(Some(&live), json!({"b": "2"}), "m1", false).unwrap();
    assert_eq!(
        owners(&applied),
        [("m1", json!({"f:data": {"f:b": {}}})), ("before-first-apply", json!({"f:data": {".": {}, "f:a": {}}}))]
    );
}

#[test]
fn the_status_path_owns_only_the_status() {
    let kind = kind("apps", "Deployment");
    let live =
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}, "spec": {"replicas": 0}});
    let config = json!({"apiVersion": "apps/v1", "kind": "Deployment", "spec": {"replicas": 7},
        "status": {"conditions": [{"type": "X", "status": "True"}]}});
    let manager = Manager { subresource: "status", ..applier("m1", T1) };
    let applied = apply(kind, Some(&live), &config, &manager, false).unwrap().object;
    let entry = &applied["metadata"]["managedFields"][0];
    assert_eq!((&entry["manager"], &entry["subresource"]), (&json!("m1"), &json!("status")));
    assert_eq!(
        entry["fieldsV1"],
        json!({"f:status": {"f:conditions": {"k:{\"type\":\"X\"}": {".": {}, "f:status": {}, "f:type": {}}}}})
    );
}

fn any_config() -> impl Strategy<Value = Value> {
    let containers = prop::collection::vec(
        ("[a-d]", prop::option::of("[xyz]"), prop::collection::btree_map("[A-C]", "[0-2]", 0..3)),
        0..4,
    );
    (containers, prop::collection::btree_map("[a-c]", "[xy]", 0..3), prop::option::of(0..3_i64)).prop_map(
        |(containers, labels, replicas)| {
            let mut seen = std::collections::BTreeSet::new();
            let containers: Vec<Value> = containers
                .into_iter()
                .filter(|(name, _, _)| seen.insert(name.clone()))
                .map(|(name, image, env)| {
                    let env: Vec<Value> =
                        env.into_iter().map(|(name, value)| json!({"name": name, "value": value})).collect();
                    let mut container = json!({"name": name});
                    if let Some(image) = image {
                        container["image"] = image.into();
                    }
                    if !env.is_empty() {
                        container["env"] = env.into();
                    }
                    container
                })
                .collect();
            let mut config =
                json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}, "spec": {}});
            if !labels.is_empty() {
                config["metadata"]["labels"] = json!(labels);
            }
            if let Some(replicas) = replicas {
                config["spec"]["replicas"] = replicas.into();
            }
            if !containers.is_empty() {
                config["spec"]["template"] = json!({"spec": {"containers": containers}});
            }
            config
        },
    )
}

proptest! {
    #[test]
    fn applying_twice_changes_nothing_and_applying_nothing_takes_all_back(
        theirs in any_config(), mine in any_config(), next in any_config(),
    ) {
        let kind = kind("apps", "Deployment");
        let run = |live: Option<&Value>, config: &Value, name: &str| {
            apply(kind, live, config, &applier(name, T1), true).expect("a forced apply")
        };
        let base = run(None, &theirs, "theirs").object;
        let once = run(Some(&base), &mine, "mine").object;
        let twice = run(Some(&once), &mine, "mine");
        prop_assert!(!twice.changed);
        prop_assert_eq!(&twice.object, &once);
        // What is applied is there.
        let after = run(Some(&once), &next, "mine").object;
        let node = Some(crate::schema::schema_of(kind));
        let comparison = crate::managed_fields::typed::compare(node, &next, &after);
        prop_assert!(comparison.modified.is_empty());
        prop_assert_eq!(comparison.removed.paths(), Vec::<Vec<_>>::new());
        // What only one applied goes with it.
        let empty = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}});
        let only = run(None, &mine, "mine").object;
        let gone = run(Some(&only), &empty, "mine").object;
        prop_assert_eq!(gone, empty);
    }
}
