//! What the API answers to what it cannot take: the status, reason, field and words of Kubernetes.

#[path = "bad_input/abuse.rs"]
mod abuse;
#[path = "bad_input/client.rs"]
mod client;
#[path = "bad_input/neighbour.rs"]
mod neighbour;

use carob_tests::pods::{shell_pod, tools};
use carob_tests::proxy::Proxy;
use carob_tests::{Carob, text};
use serde_json::{Value, json};

const PODS: &str = "/api/v1/namespaces/default/pods";
const MAPS: &str = "/api/v1/namespaces/default/configmaps";

#[test]
fn invalid_objects_are_refused_with_every_cause_and_its_field() {
    let carob = Carob::start(&[]);
    let proxy = Proxy::start(&carob);
    let mut pod = shell_pod("Upper_Case", "true");
    pod["spec"]["containers"][0]["name"] = json!("");
    pod["spec"]["containers"][0]["resources"] = json!({"requests": {"cpu": "2"}, "limits": {"cpu": "1"}});
    pod["spec"]["restartPolicy"] = json!("Sometimes");
    pod["spec"]["containers"].as_array_mut().expect("containers").push(json!({"name": "two"}));
    let answer = proxy.post(PODS, &pod.to_string());
    let status = answer.json();
    assert_eq!(answer.status, 422, "{status}");
    assert_eq!(
        (&status["kind"], &status["apiVersion"], &status["status"]),
        (&json!("Status"), &json!("v1"), &json!("Failure"))
    );
    assert_eq!((&status["reason"], &status["code"]), (&json!("Invalid"), &json!(422)));
    assert_eq!(
        (&status["details"]["name"], &status["details"]["kind"]),
        (&json!("Upper_Case"), &json!("Pod")),
        "{status}"
    );
    let causes: Vec<(&str, &str)> = status["details"]["causes"]
        .as_array()
        .expect("causes")
        .iter()
        .map(|cause| (cause["reason"].as_str().unwrap_or_default(), cause["field"].as_str().unwrap_or_default()))
        .collect();
    for expected in [
        ("FieldValueInvalid", "metadata.name"),
        ("FieldValueRequired", "spec.containers[0].name"),
        ("FieldValueInvalid", "spec.containers[0].resources.requests"),
        ("FieldValueRequired", "spec.containers[1].image"),
        ("FieldValueNotSupported", "spec.restartPolicy"),
    ] {
        assert!(causes.contains(&expected), "{expected:?} is missing in {causes:?}");
    }
    let message = status["message"].as_str().expect("a message");
    assert!(message.starts_with("Pod \"Upper_Case\" is invalid: [metadata.name: Invalid value: \"Upper_Case\": a lowercase RFC 1123 subdomain must consist of"), "{message}");
    assert!(message.contains("spec.restartPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \"OnFailure\", \"Never\""), "{message}");
    assert!(
        message.contains(
            "spec.containers[0].resources.requests: Invalid value: \"2\": must be less than or equal to cpu limit of 1"
        ),
        "{message}"
    );

    // The same through kubectl, as a person sees it.
    let refused = carob.pipe(
        &["apply", "-f", "-"],
        &json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "-"}}).to_string(),
    );
    assert!(
        text(&refused).starts_with("The ConfigMap \"-\" is invalid: metadata.name: Invalid value: \"-\""),
        "{}",
        text(&refused)
    );
    let deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "mismatch"},
        "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": {"metadata": {"labels": {"a": "c"}}, "spec": {"containers": [tools("main", &[])]}}},
    });
    let refused = carob.pipe(&["apply", "-f", "-"], &deployment.to_string());
    assert!(
        text(&refused).contains("The Deployment \"mismatch\" is invalid: spec.template.metadata.labels: Invalid value: {\"a\":\"c\"}: `selector` does not match template `labels`"),
        "{}",
        text(&refused)
    );

    // What was once decided can't be changed.
    carob.apply(&shell_pod("fixed", "sleep 1").to_string());
    let changed = shell_pod("fixed", "sleep 2");
    let refused = carob.pipe(&["apply", "-f", "-"], &changed.to_string());
    assert!(
        text(&refused)
            .contains("spec: Forbidden: pod updates may not change fields other than `spec.containers[*].image`"),
        "{}",
        text(&refused)
    );
    carob.apply(&json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "frozen"}, "data": {"a": "b"}, "immutable": true}).to_string());
    let refused = carob.kubectl_fails(&["patch", "cm", "frozen", "-p", r#"{"data": {"a": "c"}}"#]);
    assert!(refused.contains("data: Forbidden: field is immutable when `immutable` is set"), "{refused}");
    let refused = carob.kubectl_fails(&["create", "-n", "nowhere", "configmap", "x"]);
    assert!(refused.contains("namespaces \"nowhere\" not found"), "{refused}");
}

#[test]
fn unknown_and_doubled_fields_are_treated_as_field_validation_says() {
    let carob = Carob::start(&[]);
    let proxy = Proxy::start(&carob);
    let body = r#"{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "NAME", "colour": "red"}, "data": {"a": "1"}, "data": {"a": "2"}}"#;
    let send = |name: &str, validation: &str| proxy.post(&format!("{MAPS}{validation}"), &body.replace("NAME", name));
    let strict = send("strict", "?fieldValidation=Strict");
    assert_eq!(strict.status, 400, "{strict:?}");
    let status = strict.json();
    assert_eq!(status["reason"], "BadRequest");
    let message = status["message"].as_str().expect("a message");
    assert!(
        message.starts_with("ConfigMap in version \"v1\" cannot be handled as a ConfigMap: strict decoding error: "),
        "{message}"
    );
    assert!(
        message.contains("unknown field \"metadata.colour\"") && message.contains("duplicate field \"data\""),
        "{message}"
    );
    let warned = send("warned", "?fieldValidation=Warn");
    assert_eq!(warned.status, 201, "{warned:?}");
    let mut warnings = warned.warnings();
    warnings.sort();
    assert_eq!(warnings, ["duplicate field \"data\"", "unknown field \"metadata.colour\""]);
    assert_eq!(warned.json()["data"]["a"], "2");
    assert!(warned.json()["metadata"]["colour"].is_null(), "what is unknown isn't kept");
    assert_eq!(send("usual", "").warnings().len(), 2, "Warn is the default");
    let ignored = send("ignored", "?fieldValidation=Ignore");
    assert_eq!((ignored.status, ignored.warnings().len()), (201, 0));
    assert_eq!(send("wrong", "?fieldValidation=Perhaps").status, 422);

    let mut pod = shell_pod("typo", "true");
    pod["spec"]["containers"][0]["comand"] = json!(["true"]);
    let refused = text(&carob.pipe(&["apply", "-f", "-"], &pod.to_string()));
    assert!(refused.contains("strict decoding error: unknown field \"spec.containers[0].comand\""), "{refused}");
    let taken = text(&carob.pipe(&["apply", "--validate=warn", "-f", "-"], &pod.to_string()));
    assert!(
        taken.contains("Warning: unknown field \"spec.containers[0].comand\"") && taken.contains("pod/typo created"),
        "{taken}"
    );
    let wrong = proxy.post(
        PODS,
        &json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": {"containers": "none"}})
            .to_string(),
    );
    assert_eq!(wrong.status, 400);
    assert!(
        wrong.body.contains(
            "json: cannot unmarshal string into Go struct field PodSpec.spec.containers of type []v1.Container"
        ),
        "{}",
        wrong.body
    );
}

#[test]
fn bodies_that_are_too_large_broken_or_of_another_kind_have_their_codes() {
    let carob = Carob::start(&[]);
    let proxy = Proxy::start(&carob);
    let map = |name: &str, size: usize| {
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"a": "x".repeat(size)}})
            .to_string()
    };
    let reason = |answer: &carob_tests::proxy::Answer| answer.json()["reason"].as_str().unwrap_or_default().to_owned();

    let large = proxy.post(MAPS, &map("large", 3 << 20));
    assert_eq!((large.status, reason(&large).as_str()), (413, "RequestEntityTooLarge"), "{}", large.body);
    assert!(large.body.contains("limit is 3145728"), "{}", large.body);
    let much = proxy.post(MAPS, &map("much", 2 << 20));
    assert_eq!(
        (much.status, reason(&much).as_str()),
        (422, "Invalid"),
        "a ConfigMap has a limit of its own: {}",
        much.body
    );
    assert!(much.body.contains("Too long: may not be more than 1048576 bytes"), "{}", much.body);
    assert_eq!(proxy.post(MAPS, &map("fits", 900 << 10)).status, 201);

    let with = |kind: &str, body: &str| proxy.send("POST", MAPS, &[("content-type", kind)], body.as_bytes());
    let yaml = with("application/yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: yaml}\ndata: {a: b}\n");
    assert_eq!(yaml.status, 201, "{}", yaml.body);
    let broken = with("application/yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: [\n");
    assert_eq!((broken.status, reason(&broken).as_str()), (400, "BadRequest"), "{}", broken.body);
    let broken = with("application/json", "{\"apiVersion\": \"v1\", \"kind\": ");
    assert_eq!((broken.status, reason(&broken).as_str()), (400, "BadRequest"), "{}", broken.body);
    let empty = with("application/json", "");
    assert_eq!(empty.status, 400, "{}", empty.body);
    let other = with("application/xml", "<a/>");
    assert_eq!((other.status, reason(&other).as_str()), (415, "UnsupportedMediaType"), "{}", other.body);
    assert!(
        other.body.contains("the body of the request was in an unknown format - accepted media types include"),
        "{}",
        other.body
    );
    let patched = proxy.send("PATCH", &format!("{MAPS}/yaml"), &[("content-type", "application/json")], b"{}");
    assert_eq!(patched.status, 415, "{}", patched.body);
    let refused = proxy.send("GET", MAPS, &[("accept", "application/xml")], b"");
    assert_eq!(refused.status, 406, "{}", refused.body);
    let mismatch = proxy.post(MAPS, &shell_pod("pod", "true").to_string());
    assert_eq!(mismatch.status, 400, "{}", mismatch.body);
    assert!(mismatch.body.contains("Pod in version \\\"v1\\\" cannot be handled as a ConfigMap"), "{}", mismatch.body);
    let elsewhere = proxy.post(
        MAPS,
        &json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x", "namespace": "other"}}).to_string(),
    );
    assert_eq!(elsewhere.status, 400);
    assert!(
        elsewhere
            .body
            .contains("the namespace of the provided object does not match the namespace sent on the request"),
        "{}",
        elsewhere.body
    );

    for (method, path, code, reason) in [
        ("GET", "/api/v1/namespaces/default/pods/nobody", 404, "NotFound"),
        ("GET", "/api/v1/unicorns", 404, "NotFound"),
        ("GET", "/apis/unicorns.test/v1", 404, "NotFound"),
        ("POST", "/api/v1/namespaces/default/pods/nobody", 405, "MethodNotAllowed"),
        ("GET", "/api/v1/pods?labelSelector=a%20b%20c", 400, "BadRequest"),
        ("GET", "/api/v1/pods?fieldSelector=spec.unicorn%3Da", 400, "BadRequest"),
        ("GET", "/api/v1/pods?limit=x", 400, "BadRequest"),
        ("GET", "/api/v1/pods?resourceVersion=x", 400, "BadRequest"),
        ("DELETE", "/api/v1/namespaces/default", 403, "Forbidden"),
    ] {
        let answer = proxy.send(method, path, &[], b"");
        let seen = serde_json::from_str::<Value>(&answer.body).unwrap_or_default();
        if !answer.body.starts_with("404 page not found") {
            assert_eq!(seen["reason"], reason, "{method} {path}: {}", answer.body);
        }
        assert_eq!(answer.status, code, "{method} {path}: {}", answer.body);
    }
    let broken = carob.pipe(&["apply", "-f", "-"], "apiVersion: v1\nkind: [\n");
    assert!(text(&broken).contains("error parsing STDIN: error converting YAML to JSON"), "{}", text(&broken));
}

#[test]
fn a_field_that_is_not_carried_out_is_named_in_a_warning() {
    let carob = Carob::start(&["busybox"]);
    let mut pod = shell_pod("hopeful", "true");
    pod["spec"]["priorityClassName"] = json!("");
    pod["spec"]["securityContext"] = json!({"seLinuxChangePolicy": "Recursive"});
    pod["spec"]["containers"][0]["securityContext"] = json!({"seLinuxOptions": {"level": "s0:c1,c2"}});
    let printed = carob.apply(&pod.to_string());
    let container = "spec.containers[0].securityContext.seLinuxOptions";
    for field in ["spec.securityContext.seLinuxChangePolicy", container] {
        assert!(
            printed.lines().any(|line| line.starts_with("Warning: ") && line.contains(field)),
            "{field}: {printed}"
        );
    }
    assert!(printed.contains("pod/hopeful created"), "{printed}");
    let plain = carob.apply(&shell_pod("plain", "true").to_string());
    assert_eq!(plain, "pod/plain created\n", "no warning where nothing is left out");
    let template = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "spread"},
        "spec": {"replicas": 0, "selector": {"matchLabels": {"a": "b"}}, "template": {"metadata": {"labels": {"a": "b"}}, "spec": pod["spec"].as_object().map(|spec| {
            let mut spec = spec.clone();
            spec.insert("restartPolicy".into(), json!("Always"));
            spec
        })}},
    });
    let printed = carob.apply(&template.to_string());
    assert!(printed.contains("spec.template.spec.securityContext.seLinuxChangePolicy"), "{printed}");
}
