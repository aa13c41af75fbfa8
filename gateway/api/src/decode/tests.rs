use serde_json::json;

use super::*;
use crate::kinds::Registry;

fn kind(group: &str, kind: &str) -> &'static Kind {
    Registry::builtin().type_of(group, "v1", kind).expect("a known kind")
}

fn refuse(kind: &Kind, body: &str, validation: FieldValidation) -> Status {
    decode_json(kind, body.as_bytes(), validation).expect_err("a refusal")
}

fn message(kind_name: &str, body: &str) -> String {
    refuse(kind("", kind_name), body, FieldValidation::Strict).message().to_owned()
}

#[test]
fn unknown_fields_are_refused_warned_of_or_dropped() {
    let body = r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"a","nope":1},"data":{},"bogus":{"x":1}}"#;
    let status = refuse(kind("", "ConfigMap"), body, FieldValidation::Strict);
    assert_eq!(status.code(), 400);
    assert_eq!(
        status.message(),
        "ConfigMap in version \"v1\" cannot be handled as a ConfigMap: strict decoding error: unknown field \
         \"metadata.nope\", unknown field \"bogus\""
    );
    let decoded = decode_json(kind("", "ConfigMap"), body.as_bytes(), FieldValidation::Warn).unwrap();
    assert_eq!(decoded.warnings, ["unknown field \"metadata.nope\"", "unknown field \"bogus\""]);
    assert_eq!(decoded.value, json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}}));
    let decoded = decode_json(kind("", "ConfigMap"), body.as_bytes(), FieldValidation::Ignore).unwrap();
    assert!(decoded.warnings.is_empty());
}

#[test]
fn duplicate_fields_are_named_and_the_last_one_wins() {
    let body = r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"a","name":"a"},"data":{"a":"1","a":"2"}}"#;
    assert!(
        message("ConfigMap", body)
            .ends_with("strict decoding error: duplicate field \"metadata.name\", duplicate field \"data.a\"")
    );
    let decoded = decode_json(kind("", "ConfigMap"), body.as_bytes(), FieldValidation::Warn).unwrap();
    assert_eq!(decoded.value["data"], json!({"a": "2"}));
    assert_eq!(duplicate_fields(br#"{"data":{"x":"1","x":"2"}}"#), ["duplicate field \"data.x\""]);
}

#[test]
fn names_are_case_sensitive_and_paths_carry_indexes() {
    let body = r#"{"kind":"Pod","apiVersion":"v1","spec":{"containers":[{"Name":"x"}]}}"#;
    assert!(message("Pod", body).ends_with("strict decoding error: unknown field \"spec.containers[0].Name\""));
}

#[test]
fn wrong_types_are_refused_in_the_words_of_go() {
    for (kind, body, text) in [
        (
            "ConfigMap",
            r#"{"data":{"a":1}}"#,
            "json: cannot unmarshal number into Go struct field ConfigMap.data of type string",
        ),
        (
            "ConfigMap",
            r#"{"immutable":"x"}"#,
            "json: cannot unmarshal string into Go struct field ConfigMap.immutable of type bool",
        ),
        (
            "ConfigMap",
            r#"{"data":[1]}"#,
            "json: cannot unmarshal array into Go struct field ConfigMap.data of type map[string]string",
        ),
        (
            "ConfigMap",
            r#"{"metadata":{"name":true}}"#,
            "json: cannot unmarshal bool into Go struct field ObjectMeta.metadata.name of type string",
        ),
        ("ConfigMap", r#"{"binaryData":{"a":"!!"}}"#, "illegal base64 data at input byte 0"),
        (
            "Pod",
            r#"{"spec":{"containers":[{"image":1}]}}"#,
            "json: cannot unmarshal number into Go struct field Container.spec.containers.image of type string",
        ),
        (
            "Pod",
            r#"{"spec":{"containers":"x"}}"#,
            "json: cannot unmarshal string into Go struct field PodSpec.spec.containers of type []v1.Container",
        ),
        (
            "Pod",
            r#"{"spec":{"terminationGracePeriodSeconds":1.5}}"#,
            "json: cannot unmarshal number 1.5 into Go struct field PodSpec.spec.terminationGracePeriodSeconds of type int64",
        ),
        (
            "Pod",
            r#"{"spec":{"priority":99999999999}}"#,
            "json: cannot unmarshal number 99999999999 into Go struct field PodSpec.spec.priority of type int32",
        ),
        (
            "Pod",
            r#"{"spec":{"containers":[{"resources":{"limits":{"cpu":"abc"}}}]}}"#,
            "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
        ),
    ] {
        let expected = format!("{kind} in version \"v1\" cannot be handled as a {kind}: {text}");
        assert_eq!(message(kind, body), expected);
    }
}

#[test]
fn what_is_not_an_object_is_unrecognized() {
    let text = |body| message("ConfigMap", body);
    let intro = "the object provided is unrecognized (must be of type ConfigMap): couldn't get version/kind; json parse error: ";
    assert_eq!(text("{"), format!("{intro}unexpected end of JSON input ({{)"));
    assert_eq!(text(""), format!("{intro}unexpected end of JSON input (<empty>)"));
    assert!(text("[]").starts_with(&format!("{intro}json: cannot unmarshal array into Go value of type struct {{")));
    assert!(text("[]").ends_with("(5b5d)"));
    assert_eq!(text("{x}"), format!("{intro}invalid character 'x' looking for beginning of object key string ({{x}})"));
}

#[test]
fn deep_nesting_is_refused() {
    let body = "[".repeat(100_000);
    assert!(message("ConfigMap", &body).contains("exceeded max depth"));
}

#[test]
fn another_kind_or_version_is_refused() {
    assert_eq!(
        message("ConfigMap", r#"{"apiVersion":"v1","kind":"Secret"}"#),
        "Secret in version \"v1\" cannot be handled as a ConfigMap: converting (v1.Secret) to (core.ConfigMap): unknown conversion"
    );
    assert_eq!(
        message("ConfigMap", r#"{"apiVersion":"v2","kind":"ConfigMap"}"#),
        "ConfigMap in version \"v2\" cannot be handled as a ConfigMap: no kind \"ConfigMap\" is registered for version \
         \"v2\" in scheme \"pkg/api/legacyscheme/scheme.go:30\""
    );
    let events = kind("events.k8s.io", "Event");
    assert_eq!(
        refuse(events, r#"{"apiVersion":"v1","kind":"Event"}"#, FieldValidation::Warn).message(),
        "the API version in the data (v1) does not match the expected API version (events.k8s.io/v1)"
    );
}

#[test]
fn kind_and_version_may_be_left_out() {
    let decoded =
        decode_json(kind("apps", "Deployment"), br#"{"metadata":{"name":"d"}}"#, FieldValidation::Strict).unwrap();
    assert_eq!(decoded.value["kind"], "Deployment");
    assert_eq!(decoded.value["apiVersion"], "apps/v1");
}

#[test]
fn an_object_gets_the_shape_that_go_writes() {
    let body = br#"{"metadata":{"name":"p","creationTimestamp":null,"labels":{}},
        "spec":{"containers":[{"name":"c","image":"","resources":{"limits":{"cpu":"1000m","memory":1073741824}},
            "livenessProbe":{"httpGet":{"port":80}}}],"nodeName":null,"terminationGracePeriodSeconds":0,"hostNetwork":false}}"#;
    let decoded = decode_json(kind("", "Pod"), body, FieldValidation::Strict).unwrap();
    assert_eq!(
        decoded.value,
        json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "p"},
            "spec": {"containers": [{"name": "c", "resources": {"limits": {"cpu": "1", "memory": "1073741824"}},
                "livenessProbe": {"httpGet": {"port": 80}}}], "terminationGracePeriodSeconds": 0},
            "status": {}})
    );
}

#[test]
fn fields_that_go_always_writes_are_there() {
    let decoded = decode_json(kind("", "Node"), b"{}", FieldValidation::Strict).unwrap();
    assert_eq!(decoded.value["status"]["daemonEndpoints"], json!({"kubeletEndpoint": {"Port": 0}}));
    assert_eq!(decoded.value["status"]["nodeInfo"]["kubeletVersion"], "");
    let decoded = decode_json(kind("", "Event"), b"{}", FieldValidation::Strict).unwrap();
    assert_eq!(
        decoded.value,
        json!({"kind": "Event", "apiVersion": "v1", "metadata": {}, "involvedObject": {}, "source": {},
            "eventTime": null, "firstTimestamp": null, "lastTimestamp": null,
            "reportingComponent": "", "reportingInstance": ""})
    );
    let decoded = decode_json(kind("apps", "ReplicaSet"), b"{}", FieldValidation::Strict).unwrap();
    assert_eq!(decoded.value["status"], json!({"replicas": 0}));
}

#[test]
fn normalizing_twice_changes_nothing() {
    for row in crate::kinds::builtin() {
        let mut once = json!({});
        normalize(row, &mut once);
        let mut twice = once.clone();
        normalize(row, &mut twice);
        assert_eq!(once, twice, "{}", row.kind);
    }
}

#[test]
fn yaml_is_read_as_go_reads_it() {
    let config_map = kind("", "ConfigMap");
    let decoded = decode_yaml(
        config_map,
        b"apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: z\ndata:\n  a: b\n",
        FieldValidation::Strict,
    );
    assert_eq!(decoded.unwrap().value["data"], json!({"a": "b"}));
    let twice = b"apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: y1\n  name: z\ndata: {}\n";
    assert_eq!(
        decode_yaml(config_map, twice, FieldValidation::Strict).unwrap_err().message(),
        "ConfigMap in version \"v1\" cannot be handled as a ConfigMap: strict decoding error: yaml: unmarshal errors:\n  \
         line 5: key \"name\" already set in map"
    );
    assert_eq!(decode_yaml(config_map, twice, FieldValidation::Ignore).unwrap().value["metadata"]["name"], "z");
    let boolean = b"apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: y\n";
    assert!(
        decode_yaml(config_map, boolean, FieldValidation::Strict)
            .unwrap_err()
            .message()
            .ends_with("json: cannot unmarshal bool into Go struct field ObjectMeta.metadata.name of type string")
    );
}

#[test]
fn a_patched_object_is_refused_with_422() {
    let status = check(kind("", "ConfigMap"), json!({"bogus": 1}), FieldValidation::Strict).unwrap_err();
    assert_eq!(status.code(), 422);
    assert_eq!(
        status.message(),
        " \"\" is invalid: patch: Invalid value: \"{\\\"bogus\\\":1}\": strict decoding error: unknown field \"bogus\""
    );
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "data": {"a": "1"}});
    assert!(
        check(kind("", "ConfigMap"), secret, FieldValidation::Warn)
            .unwrap_err()
            .message()
            .ends_with("illegal base64 data at input byte 0")
    );
}

#[test]
fn bytes_that_are_not_utf8_are_read_as_go_reads_them() {
    let body = b"{\"apiVersion\":\"v1\",\"kind\":\"ConfigMap\",\"data\":{\"k\":\"a\xff\xfeb\"}}";
    let decoded = decode_json(kind("", "ConfigMap"), body, FieldValidation::Strict).unwrap();
    assert_eq!(decoded.value["data"]["k"], "a\u{fffd}\u{fffd}b");
}
