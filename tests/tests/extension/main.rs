//! What clusters are extended with, on the real binary: webhooks, conversion, identity providers, the audit log.

mod server;

use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use carob_tests::{Carob, Setup, text};
use serde_json::{Value, json};

use server::Server;

fn gateway(config: Option<&str>) -> Carob {
    Carob::start_with(&Setup { arguments: &["--workers", "0"], config, ..Setup::default() })
}

/// A webhook's answer to a review.
fn reviewed(mut review: Value, mut response: Value) -> Value {
    response["uid"] = review["request"]["uid"].take();
    json!({"apiVersion": review["apiVersion"], "kind": review["kind"], "response": response})
}

#[tokio::test(flavor = "multi_thread")]
async fn webhooks_change_and_refuse_what_kubectl_sends() {
    let carob = gateway(None);
    let server = Server::start(|path, review| {
        if path == "/mutate?timeout=5s" {
            let by = review["request"]["userInfo"]["username"].clone();
            let patch = json!([{"op": "add", "path": "/metadata/annotations", "value": {"by": by}}]).to_string();
            let patch = BASE64_STANDARD.encode(patch);
            reviewed(
                review,
                json!({"allowed": true, "patchType": "JSONPatch", "patch": patch, "warnings": ["it was changed"]}),
            )
        } else {
            let refused = review["request"]["object"]["data"]["colour"] == "red";
            reviewed(review, json!({"allowed": !refused, "status": {"message": "red is out", "code": 403}}))
        }
    })
    .await;
    let configuration = |kind: &str, path: &str| {
        json!({
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": format!("{kind}WebhookConfiguration"),
            "metadata": {"name": "hooks"},
            "webhooks": [{
                "name": "hook.example.com", "admissionReviewVersions": ["v1"], "sideEffects": "None", "timeoutSeconds": 5,
                "clientConfig": {"url": server.url(path), "caBundle": BASE64_STANDARD.encode(&server.authority)},
                "matchConditions": [{"name": "not-exempt", "expression": "object == null || object.metadata.name != 'exempt'"}],
                "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE", "UPDATE"], "resources": ["configmaps"]}],
            }],
        })
        .to_string()
    };
    carob.apply(&configuration("Mutating", "/mutate"));
    carob.apply(&configuration("Validating", "/validate"));
    let attempt = ["create", "cm", "red", "--from-literal=colour=red", "--dry-run=server"];
    let mut refusal = String::new();
    carob_tests::eventually("the webhooks are known", || {
        let output = carob.run(&attempt);
        refusal = text(&output);
        !output.status.success()
    });
    assert!(refusal.contains("admission webhook \"hook.example.com\" denied the request: red is out"), "{refusal}");
    let made = text(&carob.run(&["create", "cm", "blue", "--from-literal=colour=blue"]));
    assert!(made.contains("Warning: it was changed") && made.contains("configmap/blue created"), "{made}");
    assert_eq!(carob.jsonpath("cm/blue", ".metadata.annotations.by"), "kubernetes-admin");
    carob.kubectl(&["create", "cm", "exempt", "--from-literal=colour=red"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_converts_between_versions() {
    let carob = gateway(None);
    let server = Server::start(|_, review| {
        let wanted = review["request"]["desiredAPIVersion"].clone();
        let convert = |object: &Value| {
            let mut object = object.clone();
            let (from, to) = if wanted == "example.com/v2" { ("size", "height") } else { ("height", "size") };
            object["apiVersion"] = wanted.clone();
            if let Some(value) = object["spec"].as_object_mut().and_then(|spec| spec.remove(from)) {
                object["spec"][to] = value;
            }
            object
        };
        let converted: Vec<Value> =
            review["request"]["objects"].as_array().into_iter().flatten().map(convert).collect();
        reviewed(review, json!({"convertedObjects": converted, "result": {"status": "Success"}}))
    })
    .await;
    let version = |name: &str, field: &str| {
        json!({"name": name, "served": true, "storage": name == "v1", "schema": {"openAPIV3Schema": {"type": "object",
            "properties": {"spec": {"type": "object", "properties": {field: {"type": "integer"}}}}}}})
    };
    let ca = BASE64_STANDARD.encode(&server.authority);
    let definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "plants.example.com"},
        "spec": {
            "group": "example.com", "scope": "Namespaced", "names": {"plural": "plants", "kind": "Plant"},
            "versions": [version("v1", "size"), version("v2", "height")],
            "conversion": {"strategy": "Webhook", "webhook": {
                "conversionReviewVersions": ["v1"], "clientConfig": {"url": server.url("/convert"), "caBundle": ca}}},
        },
    });
    carob.apply(&definition.to_string());
    carob.wait("crd/plants.example.com", "condition=Established");
    let plant = |version: &str, spec: Value| json!({"apiVersion": format!("example.com/{version}"), "kind": "Plant", "metadata": {"name": version}, "spec": spec});
    carob.apply(&plant("v1", json!({"size": 1})).to_string());
    carob.apply(&plant("v2", json!({"height": 2})).to_string());
    let read = |version: &str, path: &str| {
        carob.kubectl(&[
            "get",
            &format!("plants.{version}.example.com"),
            "-o",
            &format!("jsonpath={{.items[*].spec.{path}}}"),
        ])
    };
    assert_eq!((read("v1", "size").as_str(), read("v2", "height").as_str()), ("1 2", "1 2"));
    carob.kubectl(&["patch", "plants.v2.example.com", "v1", "--type=merge", "-p", r#"{"spec": {"height": 7}}"#]);
    assert_eq!(read("v1", "size"), "7 2");
}

/// A key that signs tokens, and its public half as JWKS has it.
fn signer() -> (jsonwebtoken::EncodingKey, Value) {
    let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).expect("a key");
    let key = jsonwebtoken::EncodingKey::from_ec_pem(pair.serialize_pem().as_bytes()).expect("a key");
    // Uncompressed: 4, then both coordinates.
    let (x, y) = pair.public_key_raw()[1..].split_at(32);
    let encode = |bytes: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(bytes);
    (
        key,
        json!({"kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": "one", "x": encode(x), "y": encode(y)}),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn an_identity_provider_vouches_for_users_and_what_they_do_is_written_down() {
    let (key, public) = signer();
    // The provider's own address is part of what it says.
    let address = std::sync::Arc::new(std::sync::OnceLock::<String>::new());
    let told = address.clone();
    let server = Server::start(move |path, _| {
        let issuer = told.get().expect("it is set before anybody asks");
        match path {
            "/.well-known/openid-configuration" => json!({"issuer": issuer, "jwks_uri": format!("{issuer}/keys")}),
            _ => json!({"keys": [public]}),
        }
    })
    .await;
    let issuer = server.url("");
    address.set(issuer.clone()).expect("it is set once");
    let logs = tempfile::tempdir().expect("a folder");
    let log = logs.path().join("audit.log");
    let config = json!({"cluster": {
        "authentication": {"jwt": [{
            "issuer": {"url": issuer, "audiences": ["carob"], "certificateAuthority": server.authority},
            "claimMappings": {"username": {"claim": "sub", "prefix": "id:"}, "groups": {"claim": "roles", "prefix": "id:"}},
        }]},
        "audit": {"logPath": log, "policy": {
            "apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived"],
            "rules": [
                {"level": "None", "users": ["system:apiserver"]},
                {"level": "Metadata", "resources": [{"group": "", "resources": ["secrets"]}]},
                {"level": "RequestResponse", "verbs": ["create"], "userGroups": ["id:team"]},
                {"level": "Request", "userGroups": ["id:team"]},
            ],
        }},
    }});
    let carob = gateway(Some(&config.to_string()));
    carob.kubectl(&["create", "clusterrolebinding", "team", "--clusterrole=edit", "--group=id:team"]);

    let token = |claims: Value| {
        let mut header = jsonwebtoken::Header::new(jsonwebtoken::Algorithm::ES256);
        header.kid = Some("one".to_owned());
        jsonwebtoken::encode(&header, &claims, &key).expect("a token")
    };
    let claims = json!({"iss": issuer, "aud": "carob", "sub": "alice", "roles": ["team"], "exp": 4_000_000_000_u64});
    let kubeconfig = carob.path("alice.kubeconfig");
    let settings = carob.kubectl(&["config", "view", "--raw", "--minify", "-o", "json"]);
    let mut settings: Value = serde_json::from_str(&settings).expect("JSON");
    let mut alice = |token: String, arguments: &[&str]| {
        settings["users"][0]["user"] = json!({ "token": token });
        std::fs::write(&kubeconfig, settings.to_string()).expect("a kubeconfig");
        carob.kubectl_command().env("KUBECONFIG", &kubeconfig).args(arguments).output().expect("kubectl starts")
    };
    let good = token(claims.clone());
    let whoami = text(&alice(good.clone(), &["auth", "whoami"]));
    assert!(whoami.contains("id:alice") && whoami.contains("[id:team system:authenticated]"), "{whoami}");
    carob_tests::eventually("the right is known", || alice(good.clone(), &["get", "cm"]).status.success());
    for arguments in
        [["create", "cm", "noted"].as_slice(), &["create", "secret", "generic", "hidden", "--from-literal=a=secret"]]
    {
        let output = alice(good.clone(), arguments);
        assert!(output.status.success(), "{}", text(&output));
    }
    let refused = text(&alice(good, &["get", "nodes"]));
    assert!(refused.contains("User \"id:alice\" cannot list resource \"nodes\""), "{refused}");
    for (field, value) in [("exp", json!(1)), ("aud", json!("other"))] {
        let mut bad = claims.clone();
        bad[field] = value;
        assert!(text(&alice(token(bad), &["get", "cm"])).contains("Unauthorized"), "{field}");
    }

    let events = || -> Vec<Value> {
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    };
    let event = |resource: &str, verb: &str| {
        let is_it = |event: &Value| {
            event["objectRef"]["resource"] == resource
                && event["verb"] == verb
                && event["user"]["username"] == "id:alice"
                && event["stage"] == "ResponseComplete"
        };
        let mut found = None;
        carob_tests::eventually("it is written down", || {
            found = events().into_iter().find(is_it);
            found.is_some()
        });
        found.expect("it was found")
    };
    let created = event("configmaps", "create");
    assert_eq!(
        (&created["level"], &created["responseObject"]["metadata"]["name"]),
        (&json!("RequestResponse"), &json!("noted"))
    );
    let secret = event("secrets", "create");
    assert_eq!((&secret["level"], secret.get("requestObject")), (&json!("Metadata"), None));
    let refused = event("nodes", "list");
    assert_eq!((&refused["level"], &refused["responseStatus"]["code"]), (&json!("Request"), &json!(403)));
    assert_eq!(refused["annotations"]["authorization.k8s.io/decision"], "forbid");
}
