use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::schema::definition;

fn deployment() -> Value {
    json!({"metadata": {"name": "d1"}, "spec": {"replicas": 0,
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "25%", "maxSurge": "25%"}},
        "template": {"spec": {
            "containers": [
                {"name": "c", "image": "nginx", "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}],
                    "ports": [{"containerPort": 80, "protocol": "TCP"}, {"containerPort": 81, "protocol": "UDP"}],
                    "command": ["a", "b"]},
                {"name": "d", "image": "busybox"}],
            "volumes": [{"name": "v", "emptyDir": {}}, {"name": "w", "configMap": {"name": "x"}}],
            "tolerations": [{"key": "a", "operator": "Exists"}],
            "imagePullSecrets": [{"name": "p"}],
            "nodeSelector": {"a": "b"}}}}})
}

fn patched(patch: &Value) -> Result<Value, Status> {
    let schema = definition("io.k8s.api.apps.v1.Deployment").expect("a built-in type");
    apply(schema, &deployment(), patch.as_object().expect("an object").clone())
}

/// Patches the pod's spec and gives a part of it.
#[expect(clippy::needless_pass_by_value, reason = "calls read better with a bare json!")]
fn pod(patch: Value, pointer: &str) -> Value {
    let patch = json!({"spec": {"template": {"spec": patch}}});
    let result = patched(&patch).unwrap_or_else(|status| panic!("{patch}: {status}"));
    result.pointer("/spec/template/spec").and_then(|spec| spec.pointer(pointer)).cloned().unwrap_or(Value::Null)
}

fn refusal(patch: &Value) -> (u16, String) {
    let status = patched(patch).expect_err("a refusal");
    (status.code(), status.message().to_owned())
}

fn names(list: &Value) -> Vec<&str> {
    list.as_array().into_iter().flatten().filter_map(|item| item["name"].as_str()).collect()
}

#[test]
fn items_merge_by_key_and_new_ones_come_first() {
    let containers = pod(json!({"containers": [{"name": "c", "image": "nginx:2"}]}), "/containers");
    assert_eq!(names(&containers), ["c", "d"]);
    assert_eq!((&containers[0]["image"], &containers[0]["command"]), (&json!("nginx:2"), &json!(["a", "b"])));
    assert_eq!(names(&pod(json!({"containers": [{"name": "new", "image": "n"}]}), "/containers")), ["new", "c", "d"]);
    let ports = pod(json!({"containers": [{"name": "c", "ports": [{"containerPort": 82}]}]}), "/containers/0/ports");
    assert_eq!(ports.as_array().map(Vec::len), Some(3));
    assert_eq!(ports[0], json!({"containerPort": 82}));
}

#[test]
fn items_of_the_server_keep_their_place_between_those_of_the_patch() {
    let patch =
        json!({"containers": [{"name": "c", "env": [{"name": "B", "value": "3"}, {"name": "C", "value": "4"}]}]});
    assert_eq!(names(&pod(patch, "/containers/0/env")), ["A", "B", "C"]);
}

#[test]
fn items_can_be_deleted_and_lists_replaced() {
    assert_eq!(names(&pod(json!({"containers": [{"name": "d", "$patch": "delete"}]}), "/containers")), ["c"]);
    assert_eq!(names(&pod(json!({"containers": [{"name": "none", "$patch": "delete"}]}), "/containers")), ["c", "d"]);
    let patch = json!({"containers": [{"name": "c", "env": [{"$patch": "replace"}, {"name": "Z", "value": "9"}]}]});
    assert_eq!(pod(patch, "/containers/0/env"), json!([{"name": "Z", "value": "9"}]));
}

#[test]
fn atomic_lists_are_replaced_and_null_removes() {
    assert_eq!(pod(json!({"containers": [{"name": "c", "command": ["z"]}]}), "/containers/0/command"), json!(["z"]));
    assert_eq!(pod(json!({"tolerations": [{"key": "b"}]}), "/tolerations"), json!([{"key": "b"}]));
    assert_eq!(pod(json!({"nodeSelector": null}), "/nodeSelector"), Value::Null);
    let env = json!({"containers": [{"name": "c", "env": [{"name": "B", "valueFrom": {"x": 1}, "value": null}]}]});
    assert_eq!(pod(env, "/containers/0/env/1"), json!({"name": "B", "valueFrom": {"x": 1}}));
    assert_eq!(names(&pod(json!({"imagePullSecrets": [{"name": "q"}]}), "/imagePullSecrets")), ["q", "p"]);
}

#[test]
fn objects_can_be_replaced_or_emptied() {
    assert_eq!(pod(json!({"nodeSelector": {"$patch": "replace", "z": "1"}}), "/nodeSelector"), json!({"z": "1"}));
    assert_eq!(pod(json!({"nodeSelector": {"$patch": "delete"}}), "/nodeSelector"), json!({}));
    assert_eq!(patched(&json!({"$patch": "replace", "spec": {"replicas": 1}})), Ok(json!({"spec": {"replicas": 1}})));
}

#[test]
fn the_order_of_items_can_be_set() {
    let patch = json!({"$setElementOrder/containers": [{"name": "d"}, {"name": "c"}], "containers": [{"name": "c", "image": "q"}]});
    let containers = pod(patch, "/containers");
    assert_eq!(names(&containers), ["d", "c"]);
    assert_eq!(containers[1]["image"], "q");
    let patch = json!({"$setElementOrder/volumes": [{"name": "w"}, {"name": "v"}]});
    assert_eq!(names(&pod(patch, "/volumes")), ["w", "v"]);
}

#[test]
fn retained_keys_drop_the_others() {
    let strategy =
        |patch: Value| patched(&json!({"spec": {"strategy": patch}})).map(|object| object["spec"]["strategy"].clone());
    assert_eq!(strategy(json!({"$retainKeys": ["type"], "type": "Recreate"})), Ok(json!({"type": "Recreate"})));
    assert_eq!(
        strategy(json!({"$retainKeys": ["type", "rollingUpdate"], "rollingUpdate": {"maxSurge": 2}})),
        Ok(json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "25%", "maxSurge": 2}}))
    );
    let volumes = json!({"volumes": [{"name": "w", "$retainKeys": ["name", "secret"], "secret": {"secretName": "s"}}]});
    assert_eq!(names(&pod(volumes.clone(), "/volumes")), ["v", "w"]);
    assert_eq!(pod(volumes, "/volumes/1"), json!({"name": "w", "secret": {"secretName": "s"}}));
}

#[test]
fn scalars_merge_and_can_be_deleted_one_by_one() {
    let schema = definition("io.k8s.api.core.v1.ConfigMap").expect("a built-in type");
    let doc = json!({"metadata": {"finalizers": ["a", "b", "c"]}});
    let finalizers = |patch: Value| {
        let patch = json!({"metadata": patch}).as_object().expect("an object").clone();
        apply(schema, &doc, patch).map(|object| object["metadata"]["finalizers"].clone())
    };
    assert_eq!(finalizers(json!({"finalizers": ["d"]})), Ok(json!(["d", "a", "b", "c"])));
    assert_eq!(finalizers(json!({"$deleteFromPrimitiveList/finalizers": ["b", "x"]})), Ok(json!(["a", "c"])));
    assert_eq!(
        finalizers(json!({"$setElementOrder/finalizers": ["d", "a"], "finalizers": ["d"]})),
        Ok(json!(["d", "a", "b", "c"]))
    );
    let status = finalizers(json!({"finalizers": [{"$patch": "replace"}]})).unwrap_err();
    assert_eq!(status.message(), "list element types are not identical: [[a b c] [map[$patch:replace]]]");
    assert_eq!(finalizers(json!({"$patch": "delete"})), Ok(Value::Null));
}

#[test]
fn contradictions_are_refused_in_kubernetes_words() {
    let spec = |patch: Value| json!({"spec": {"template": {"spec": patch}}});
    for (patch, code, message) in [
        (
            spec(json!({"containers": [{"image": "x"}]})),
            500,
            "map: map[image:x] does not contain declared merge key: name",
        ),
        (
            spec(json!({"$setElementOrder/containers": [{"name": "d"}], "containers": [{"name": "zz", "image": "i"}]})),
            500,
            "The order in patch list:\n[map[image:i name:zz]]\n doesn't match $setElementOrder list:\n[map[name:d]]\n",
        ),
        (
            spec(json!({"containers": [{"$patch": "nope", "name": "c"}]})),
            500,
            "unknown patch type: nope in map: map[$patch:nope name:c]",
        ),
        (
            json!({"spec": {"strategy": {"$retainKeys": ["type"], "rollingUpdate": {}}}}),
            400,
            "invalid patch format of retainKeys",
        ),
        (json!({"spec": {"strategy": {"$retainKeys": "type"}}}), 400, "invalid patch format of retainKeys"),
    ] {
        assert_eq!(refusal(&patch), (code, message.to_owned()), "{patch}");
    }
}

#[test]
fn directives_in_new_values_are_dropped() {
    let patch =
        json!({"initContainers": [{"name": "i"}, {"name": "j", "$patch": "delete"}], "affinity": {"$patch": "delete"}});
    assert_eq!(pod(patch.clone(), "/initContainers"), json!([{"name": "i"}]));
    assert_eq!(pod(patch, "/affinity"), Value::Null);
}

proptest! {
    #[test]
    fn the_same_patch_twice_changes_nothing_more(
        images in prop::collection::btree_map("[a-e]", "[x-z]", 0..4), labels in prop::collection::btree_map("[a-c]", "[x-z]", 0..3),
        secrets in prop::collection::btree_set("[n-q]", 0..3),
    ) {
        let containers: Vec<_> = images.iter().map(|(name, image)| json!({"name": name, "image": image})).collect();
        let secrets: Vec<_> = secrets.iter().map(|name| json!({"name": name})).collect();
        let patch = json!({"metadata": {"labels": labels}, "spec": {"template": {"spec": {
            "containers": containers, "imagePullSecrets": secrets}}}});
        let schema = definition("io.k8s.api.apps.v1.Deployment").expect("a built-in type");
        let once = patched(&patch).unwrap();
        let twice = apply(schema, &once, patch.as_object().expect("an object").clone()).unwrap();
        prop_assert_eq!(once, twice);
    }
}
