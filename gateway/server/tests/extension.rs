//! What clusters bring themselves: custom resources, policies, webhooks.

mod support;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use kube::Client;
use serde_json::{Value, json};
use support::Cluster;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// Sends a request; gives the code and the answer.
async fn send(client: &Client, method: &str, path: &str, body: &Value) -> (u16, Value) {
    let kind = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let request = http::Request::builder().method(method).uri(path).header("Content-Type", kind);
    let answer = client.send(request.body(body.into_bytes().into()).expect("a request")).await.expect("an answer");
    let code = answer.status().as_u16();
    let bytes = answer.into_body().collect().await.expect("a body").to_bytes();
    (code, serde_json::from_slice(&bytes).unwrap_or_default())
}

/// Asks until the answer is the awaited one.
async fn until(client: &Client, method: &str, path: &str, body: &Value, done: impl Fn(u16, &Value) -> bool) -> Value {
    let mut last = Value::Null;
    for _ in 0..500 {
        let (code, answer) = send(client, method, path, body).await;
        if done(code, &answer) {
            return answer;
        }
        last = answer;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{method} {path} never answered as awaited, at last {last}");
}

const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const THINGS: &str = "/apis/example.com/v1/namespaces/default/things";

/// Makes a definition of `things.example.com` and waits for it.
async fn define(client: &Client, versions: Value, conversion: Value) {
    let definition = json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "things.example.com"}, "spec": {"group": "example.com", "scope": "Namespaced",
        "names": {"plural": "things", "kind": "Thing", "shortNames": ["th"]}, "versions": versions, "conversion": conversion}});
    let (code, answer) = send(client, "POST", DEFINITIONS, &definition).await;
    assert_eq!(code, 201, "{answer}");
    let path = format!("{DEFINITIONS}/things.example.com");
    until(client, "GET", &path, &Value::Null, |_, answer| {
        let conditions = answer["status"]["conditions"].as_array();
        conditions.is_some_and(|list| list.iter().any(|one| one["type"] == "Established" && one["status"] == "True"))
    })
    .await;
}

fn version(name: &str, storage: bool) -> Value {
    json!({"name": name, "served": true, "storage": storage, "subresources": {"status": {}},
        "schema": {"openAPIV3Schema": {"type": "object", "properties": {
            "spec": {"type": "object", "properties": {"n": {"type": "integer", "default": 3}, "s": {"type": "string"}},
                "x-kubernetes-validations": [{"rule": "self.n < 10", "message": "too big"}]},
            "status": {"type": "object", "properties": {"ready": {"type": "boolean"}}}}}}})
}

fn thing(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "example.com/v1", "kind": "Thing", "metadata": {"name": name}, "spec": spec})
}

#[tokio::test]
async fn what_says_that_it_is_established_is_served_and_goes_with_its_objects() {
    let cluster = Cluster::new().await;
    let admin = cluster.admin();
    define(&admin, json!([version("v1", true)]), Value::Null).await;
    let (code, made) = send(&admin, "POST", THINGS, &thing("a", json!({"s": "x", "zz": 1}))).await;
    assert_eq!((code, &made["spec"]), (201, &json!({"s": "x", "n": 3})));
    let (code, refused) = send(&admin, "POST", THINGS, &thing("b", json!({"n": 10}))).await;
    assert_eq!(code, 422);
    assert_eq!(refused["message"], "Thing.example.com \"b\" is invalid: spec: Invalid value: too big");
    let (code, status) =
        send(&admin, "PATCH", &format!("{THINGS}/a/status"), &json!({"status": {"ready": true}})).await;
    assert_eq!((code, &status["status"], &status["metadata"]["generation"]), (200, &json!({"ready": true}), &json!(1)));
    let (_, discovery) = send(&admin, "GET", "/apis/example.com/v1", &Value::Null).await;
    assert_eq!(discovery["resources"][0]["shortNames"], json!(["th"]));
    let (code, document) = send(&admin, "GET", "/openapi/v3/apis/example.com/v1", &Value::Null).await;
    assert_eq!(code, 200);
    assert!(document["components"]["schemas"]["com.example.v1.Thing"]["properties"]["spec"].is_object());
    let path = format!("{DEFINITIONS}/things.example.com");
    let (code, going) = send(&admin, "DELETE", &path, &Value::Null).await;
    assert_eq!(
        (code, going["metadata"]["finalizers"][0].as_str()),
        (200, Some("customresourcecleanup.apiextensions.k8s.io"))
    );
    until(&admin, "GET", &path, &Value::Null, |code, _| code == 404).await;
    until(&admin, "GET", THINGS, &Value::Null, |code, _| code == 404).await;
}

#[tokio::test]
async fn a_policy_refuses_what_its_expressions_refuse_with_the_parameters_of_its_binding() {
    let cluster = Cluster::new().await;
    let admin = cluster.admin();
    let maps = "/api/v1/namespaces/default/configmaps";
    let group = "/apis/admissionregistration.k8s.io/v1";
    let limits = json!({"metadata": {"name": "limits"}, "data": {"most": "2"}});
    send(&admin, "POST", maps, &limits).await;
    let policy = json!({"metadata": {"name": "p"}, "spec": {
        "paramKind": {"apiVersion": "v1", "kind": "ConfigMap"},
        "matchConstraints": {"resourceRules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"],
            "resources": ["configmaps"]}]},
        "matchConditions": [{"name": "not-limits", "expression": "object.metadata.name != 'limits'"}],
        "variables": [{"name": "count", "expression": "has(object.data) ? size(object.data) : 0"}],
        "validations": [{"expression": "variables.count <= int(params.data.most)",
            "messageExpression": "'has ' + string(variables.count) + ' entries'"},
            {"expression": "authorizer.group('').resource('secrets').namespace('default').check('get').allowed()"}]}});
    let (code, answer) = send(&admin, "POST", &format!("{group}/validatingadmissionpolicies"), &policy).await;
    assert_eq!(code, 201, "{answer}");
    let binding = json!({"metadata": {"name": "b"}, "spec": {"policyName": "p", "validationActions": ["Deny"],
        "paramRef": {"name": "limits", "namespace": "default", "parameterNotFoundAction": "Deny"}}});
    let (code, answer) = send(&admin, "POST", &format!("{group}/validatingadmissionpolicybindings"), &binding).await;
    assert_eq!(code, 201, "{answer}");
    let many = json!({"metadata": {"generateName": "m-"}, "data": {"a": "1", "b": "2", "c": "3"}});
    let refused = until(&admin, "POST", &format!("{maps}?dryRun=All"), &many, |code, _| code == 422).await;
    assert!(refused["message"].as_str().expect("text").ends_with("denied request: has 3 entries"), "{refused}");
    let (code, answer) = send(&admin, "POST", maps, &json!({"metadata": {"name": "few"}, "data": {"a": "1"}})).await;
    assert_eq!(code, 201, "{answer}");
}

/// A server of webhooks on loopback: its address and its authority in base64.
async fn serve(answer: impl Fn(Value) -> Value + Send + Sync + 'static) -> (String, String) {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let issued = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).expect("a certificate");
    let key = rustls_pki_types::PrivateKeyDer::try_from(issued.signing_key.serialize_der()).expect("a key");
    let config = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![issued.cert.der().clone()], key)
        .expect("a configuration");
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = format!("https://{}/hook", listener.local_addr().expect("an address"));
    let answer = Arc::new(answer);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, answer) = (acceptor.clone(), Arc::clone(&answer));
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let service = service_fn(move |request: http::Request<Incoming>| {
                    let answer = Arc::clone(&answer);
                    async move {
                        let bytes = request.into_body().collect().await.expect("a body").to_bytes();
                        let mut review: Value = serde_json::from_slice(&bytes).expect("JSON");
                        let mut response = answer(review["request"].clone());
                        response["uid"] = review["request"]["uid"].clone();
                        review["response"] = response;
                        Ok::<_, Infallible>(http::Response::new(Full::<bytes::Bytes>::from(review.to_string())))
                    }
                });
                let _ =
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    (address, STANDARD.encode(issued.cert.pem()))
}

fn configuration(kind: &str, address: &str, authority: &str, more: &Value) -> Value {
    let mut hook = json!({"name": "hook.example.com", "admissionReviewVersions": ["v1"], "sideEffects": "None",
        "clientConfig": {"url": address, "caBundle": authority}, "timeoutSeconds": 5,
        "objectSelector": {"matchLabels": {"hooked": "yes"}},
        "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE", "DELETE"], "resources": ["configmaps"]}]});
    for (name, value) in more.as_object().into_iter().flatten() {
        hook[name] = value.clone();
    }
    json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": kind, "metadata": {"name": kind.to_lowercase()}, "webhooks": [hook]})
}

#[tokio::test]
async fn webhooks_change_and_refuse() {
    let cluster = Cluster::new().await;
    let admin = cluster.admin();
    let maps = "/api/v1/namespaces/default/configmaps";
    let group = "/apis/admissionregistration.k8s.io/v1";
    let (address, authority) = serve(|request| {
        let patch = json!([{"op": "add", "path": "/data", "value": {"by": request["userInfo"]["username"]}}]);
        json!({"allowed": true, "patchType": "JSONPatch", "patch": STANDARD.encode(patch.to_string()), "warnings": ["changed"]})
    })
    .await;
    let rules =
        json!([{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["configmaps"]}]);
    let mutating = configuration("MutatingWebhookConfiguration", &address, &authority, &json!({ "rules": rules }));
    let (code, answer) = send(&admin, "POST", &format!("{group}/mutatingwebhookconfigurations"), &mutating).await;
    assert_eq!(code, 201, "{answer}");
    let (address, authority) = serve(|request| {
        let refused = request["operation"] == "DELETE" || request["object"]["data"]["by"].is_null();
        json!({"allowed": !refused, "status": {"code": 403, "message": "not this one"}})
    })
    .await;
    let validating = configuration("ValidatingWebhookConfiguration", &address, &authority, &json!({}));
    let (code, answer) = send(&admin, "POST", &format!("{group}/validatingwebhookconfigurations"), &validating).await;
    assert_eq!(code, 201, "{answer}");
    let map = json!({"metadata": {"name": "a", "labels": {"hooked": "yes"}}});
    let made =
        until(&admin, "POST", &format!("{maps}?dryRun=All"), &map, |_, made| made["data"]["by"].is_string()).await;
    assert!(made["data"]["by"].as_str().is_some_and(|user| user.contains("admin")), "{made}");
    let (code, answer) = send(&admin, "POST", maps, &map).await;
    assert_eq!(code, 201, "{answer}");
    let refused = until(&admin, "DELETE", &format!("{maps}/a?dryRun=All"), &Value::Null, |code, _| code == 403).await;
    assert_eq!(refused["message"], "admission webhook \"hook.example.com\" denied the request: not this one");
    let (code, answer) = send(&admin, "POST", maps, &json!({"metadata": {"name": "b"}})).await;
    assert_eq!((code, answer["data"].is_null()), (201, true), "the selector leaves it alone");
}

#[tokio::test]
async fn who_scales_is_asked_about_the_scale_and_what_is_changed_there_is_changed() {
    let cluster = Cluster::new().await;
    let admin = cluster.admin();
    let group = "/apis/admissionregistration.k8s.io/v1";
    let deployments = "/apis/apps/v1/namespaces/default/deployments";
    let deployment = json!({"metadata": {"name": "d"}, "spec": {"replicas": 1, "selector": {"matchLabels": {"a": "b"}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}});
    let (code, answer) = send(&admin, "POST", deployments, &deployment).await;
    assert_eq!(code, 201, "{answer}");
    let rules = json!([{"apiGroups": ["apps"], "apiVersions": ["v1"], "operations": ["UPDATE"],
        "resources": ["deployments/scale"]}]);
    let (address, authority) = serve(|request| {
        let whole = ["object", "oldObject"].iter().all(|of| request[of]["kind"] == "Scale");
        let scale = whole && request["kind"]["kind"] == "Scale" && request["oldObject"]["spec"]["replicas"] == 1;
        let patch = json!([{"op": "replace", "path": "/spec/replicas", "value": 3}]);
        json!({"allowed": scale, "patchType": "JSONPatch", "patch": STANDARD.encode(patch.to_string())})
    })
    .await;
    let more = json!({"rules": rules, "objectSelector": {}});
    let mutating = configuration("MutatingWebhookConfiguration", &address, &authority, &more);
    let (code, answer) = send(&admin, "POST", &format!("{group}/mutatingwebhookconfigurations"), &mutating).await;
    assert_eq!(code, 201, "{answer}");
    let scale = format!("{deployments}/d/scale");
    let wanted = json!({"spec": {"replicas": 2}});
    let asked = format!("{scale}?dryRun=All");
    until(&admin, "PATCH", &asked, &wanted, |_, answer| answer["spec"]["replicas"] == 3).await;
    let policy = json!({"metadata": {"name": "p"}, "spec": {"matchConstraints": {"resourceRules": rules},
        "validations": [{"expression": "object.kind == 'Scale' && object.spec.replicas < oldObject.spec.replicas + 2"}]}});
    let (code, answer) = send(&admin, "POST", &format!("{group}/validatingadmissionpolicies"), &policy).await;
    assert_eq!(code, 201, "{answer}");
    let binding = json!({"metadata": {"name": "b"}, "spec": {"policyName": "p", "validationActions": ["Deny"]}});
    send(&admin, "POST", &format!("{group}/validatingadmissionpolicybindings"), &binding).await;
    let refused = until(&admin, "PATCH", &asked, &wanted, |code, _| code == 422).await;
    assert!(refused["message"].as_str().is_some_and(|why| why.contains("failed expression")), "{refused}");
    let (_, kept) = send(&admin, "GET", &format!("{deployments}/d"), &Value::Null).await;
    assert_eq!(kept["spec"]["replicas"], 1, "{kept}");
}

#[tokio::test]
async fn a_webhook_brings_objects_from_one_version_into_the_other() {
    let cluster = Cluster::new().await;
    let admin = cluster.admin();
    let (address, authority) = serve(|request| {
        let wanted = request["desiredAPIVersion"].clone();
        let objects = request["objects"].as_array().cloned().unwrap_or_default();
        let converted: Vec<Value> = objects
            .into_iter()
            .map(|mut object| {
                let (from, to) = if wanted == "example.com/v2" { ("s", "t") } else { ("t", "s") };
                object["apiVersion"] = wanted.clone();
                if let Some(value) = object["spec"].as_object_mut().and_then(|spec| spec.remove(from)) {
                    object["spec"][to] = value;
                }
                object
            })
            .collect();
        json!({"result": {"status": "Success"}, "convertedObjects": converted})
    })
    .await;
    let mut second = version("v2", true);
    second["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"] =
        json!({"n": {"type": "integer", "default": 3}, "t": {"type": "string"}});
    let conversion = json!({"strategy": "Webhook", "webhook": {"conversionReviewVersions": ["v1"],
        "clientConfig": {"url": address, "caBundle": authority}}});
    define(&admin, json!([version("v1", false), second]), conversion).await;
    let (code, made) = send(&admin, "POST", THINGS, &thing("a", json!({"s": "x"}))).await;
    assert_eq!((code, &made["spec"]["s"]), (201, &json!("x")), "{made}");
    let path = "/apis/example.com/v2/namespaces/default/things";
    let (_, newer) = send(&admin, "GET", &format!("{path}/a"), &Value::Null).await;
    assert_eq!((&newer["apiVersion"], &newer["spec"]), (&json!("example.com/v2"), &json!({"n": 3, "t": "x"})));
    let (_, list) = send(&admin, "GET", THINGS, &Value::Null).await;
    assert_eq!(list["items"][0]["spec"]["s"], "x");
    let (code, patched) = send(&admin, "PATCH", &format!("{THINGS}/a"), &json!({"spec": {"s": "y"}})).await;
    assert_eq!((code, &patched["spec"]["s"]), (200, &json!("y")), "{patched}");
    let (_, newer) = send(&admin, "GET", &format!("{path}/a"), &Value::Null).await;
    assert_eq!(newer["spec"]["t"], "y");
}

const CHANGES: &str = "/apis/admissionregistration.k8s.io/v1beta1/mutatingadmissionpolicies";
const CHANGE_BINDINGS: &str = "/apis/admissionregistration.k8s.io/v1beta1/mutatingadmissionpolicybindings";
const MAPS: &str = "/api/v1/namespaces/default/configmaps";

/// Makes a mutating policy for ConfigMaps and binds it.
async fn bind_change(client: &Client, name: &str, spec: &Value, params: &Value) {
    let mut all = json!({"matchConstraints": {"resourceRules": [
        {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["configmaps"]}]}});
    for (field, value) in spec.as_object().expect("fields") {
        all[field] = value.clone();
    }
    let (code, answer) = send(client, "POST", CHANGES, &json!({"metadata": {"name": name}, "spec": all})).await;
    assert_eq!(code, 201, "{answer}");
    let mut binding = json!({"metadata": {"name": name}, "spec": {"policyName": name}});
    if params.is_object() {
        binding["spec"]["paramRef"] = params.clone();
    }
    let (code, answer) = send(client, "POST", CHANGE_BINDINGS, &binding).await;
    assert_eq!(code, 201, "{answer}");
}

#[tokio::test]
async fn mutating_policies_are_served_where_they_are_switched_on() {
    let cluster = Cluster::new().await;
    let (code, _) = send(&cluster.admin(), "GET", CHANGES, &Value::Null).await;
    assert_eq!(code, 404);
    let (_, resources) = send(&cluster.admin(), "GET", "/apis/admissionregistration.k8s.io", &Value::Null).await;
    assert_eq!(resources["versions"].as_array().map(Vec::len), Some(1));
    let on = json!({"runtimeConfig": {"admissionregistration.k8s.io/v1beta1": true}});
    let cluster = Cluster::with_settings(on).await;
    let (code, list) = send(&cluster.admin(), "GET", CHANGES, &Value::Null).await;
    assert_eq!((code, &list["kind"]), (200, &json!("MutatingAdmissionPolicyList")));
    let (_, group) = send(&cluster.admin(), "GET", "/apis/admissionregistration.k8s.io", &Value::Null).await;
    assert_eq!(group["preferredVersion"]["version"], "v1");
    assert_eq!(group["versions"].as_array().map(Vec::len), Some(2));
}

#[tokio::test]
async fn mutating_policies_change_what_is_asked_for() {
    let cluster =
        Cluster::with_settings(json!({"runtimeConfig": {"admissionregistration.k8s.io/v1beta1": true}})).await;
    let client = cluster.admin();
    let apply =
        |expression: &str| json!({"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": expression}});
    let patch = |expression: &str| json!({"patchType": "JSONPatch", "jsonPatch": {"expression": expression}});
    let given = json!({"metadata": {"name": "given"}, "data": {"team": "red"}});
    assert_eq!(send(&client, "POST", MAPS, &given).await.0, 201);
    // Changes of one policy see each other's outcome; conditions, variables and parameters are there as for others.
    let spec = json!({"paramKind": {"apiVersion": "v1", "kind": "ConfigMap"},
    "matchConditions": [{"name": "not-plain", "expression": "object.metadata.name != 'plain'"}],
    "variables": [{"name": "team", "expression": "params.data.team"}],
    "mutations": [
        apply("Object{metadata: Object.metadata{labels: {'team': variables.team}}}"),
        patch("[JSONPatch{op: 'add', path: '/data', value: {'seen': object.metadata.labels['team']}}]"),
        patch("[JSONPatch{op: 'test', path: '/data/seen', value: 'blue'}, JSONPatch{op: 'remove', path: '/data'}]"),
    ]});
    let params = json!({"name": "given", "namespace": "default", "parameterNotFoundAction": "Deny"});
    bind_change(&client, "team", &spec, &params).await;
    let map = |name: &str| json!({"metadata": {"name": name}});
    let dry = format!("{MAPS}?dryRun=All");
    let made = until(&client, "POST", &dry, &map("a"), |_, answer| answer["metadata"]["labels"].is_object()).await;
    assert_eq!((&made["metadata"]["labels"], &made["data"]), (&json!({"team": "red"}), &json!({"seen": "red"})));
    let (_, plain) = send(&client, "POST", &dry, &map("plain")).await;
    assert_eq!(plain["metadata"].get("labels"), None);
    // A later policy's change brings back one that wants to know.
    let again = json!({"reinvocationPolicy": "IfNeeded", "mutations": [
        apply("Object{metadata: Object.metadata{annotations: {'seen': has(object.data) ? 'data' : 'none'}}}")]});
    bind_change(&client, "again", &again, &Value::Null).await;
    let seen = |_, answer: &Value| answer["metadata"]["annotations"]["seen"] == "data";
    until(&client, "POST", &dry, &map("b"), seen).await;
}

#[tokio::test]
async fn a_mutating_policy_that_fails_refuses_or_is_ignored() {
    let cluster =
        Cluster::with_settings(json!({"runtimeConfig": {"admissionregistration.k8s.io/v1beta1": true}})).await;
    let client = cluster.admin();
    let dry = format!("{MAPS}?dryRun=All");
    for (name, expression, why) in [
        ("unknown", "Object{metadata: Object.metadata{nope: '1'}}", "field not declared in schema"),
        ("misplaced", "Object{metadata: Object.spec{labels: {'a': 'b'}}}", "unexpected type name"),
        (
            "atomic",
            "Object{metadata: Object.metadata{managedFields: [Object.metadata.managedFields{manager: 'me'}]}}",
            "may not mutate atomic arrays, maps or structs: .metadata.managedFields",
        ),
        ("failing", "Object{metadata: Object.metadata{labels: {'a': object.data.nope}}}", "no such key: data"),
    ] {
        let spec = json!({"mutations": [{"patchType": "ApplyConfiguration",
            "applyConfiguration": {"expression": expression}}]});
        bind_change(&client, name, &spec, &Value::Null).await;
        let refused = until(&client, "POST", &dry, &json!({"metadata": {"name": "x"}}), |code, _| code == 403).await;
        let message = refused["message"].as_str().unwrap_or_default();
        let by = format!("policy '{name}' with binding '{name}' denied request: ");
        assert!(message.starts_with(&by) && message.contains(why), "{message}");
        assert_eq!(refused["reason"], "Invalid");
        let path = format!("{CHANGES}/{name}");
        let (code, answer) = send(&client, "PATCH", &path, &json!({"spec": {"failurePolicy": "Ignore"}})).await;
        assert_eq!(code, 200, "{answer}");
        until(&client, "POST", &dry, &json!({"metadata": {"name": "x"}}), |code, _| code == 201).await;
    }
}

#[tokio::test]
async fn a_policy_about_one_version_holds_for_all_unless_it_says_exact() {
    let cluster = Cluster::new().await;
    let client = cluster.admin();
    let group = "/apis/admissionregistration.k8s.io/v1";
    for (name, policy, expression) in [
        ("alike", "Equivalent", "object.spec.metrics.all(metric, metric.resource.target.averageUtilization < 90)"),
        ("exactly", "Exact", "object.spec.maxReplicas < 5"),
    ] {
        let rules = [json!({"apiGroups": ["autoscaling"], "apiVersions": ["v2"], "operations": ["CREATE"],
            "resources": ["horizontalpodautoscalers"]})];
        let spec = json!({"matchConstraints": {"resourceRules": rules, "matchPolicy": policy},
            "validations": [{"expression": expression, "message": name}]});
        let object = json!({"metadata": {"name": name}, "spec": spec});
        let path = format!("{group}/validatingadmissionpolicies");
        let (code, answer) = send(&client, "POST", &path, &object).await;
        assert_eq!(code, 201, "{answer}");
        let binding = json!({"metadata": {"name": name}, "spec": {"policyName": name, "validationActions": ["Deny"]}});
        let path = format!("{group}/validatingadmissionpolicybindings");
        let (code, answer) = send(&client, "POST", &path, &binding).await;
        assert_eq!(code, 201, "{answer}");
    }
    let first =
        |version: &str| format!("/apis/autoscaling/{version}/namespaces/default/horizontalpodautoscalers?dryRun=All");
    let scaler = |most: i32, percent: i32| {
        json!({"metadata": {"name": "h"}, "spec": {"maxReplicas": most,
        "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "d"}, "targetCPUUtilizationPercentage": percent}})
    };
    let refused = until(&client, "POST", &first("v1"), &scaler(1, 95), |code, _| code == 422).await;
    assert!(refused["message"].as_str().is_some_and(|message| message.ends_with(": alike")), "{refused}");
    let (code, answer) = send(&client, "POST", &first("v1"), &scaler(9, 50)).await;
    assert_eq!(code, 201, "the other policy is about v2 alone: {answer}");
    let second = json!({"metadata": {"name": "h"}, "spec": {"maxReplicas": 9,
        "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "d"}}});
    let refused = until(&client, "POST", &first("v2"), &second, |code, _| code == 422).await;
    assert!(refused["message"].as_str().is_some_and(|message| message.ends_with(": exactly")), "{refused}");
}
