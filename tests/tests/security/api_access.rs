//! Who may do what: nobody, service accounts, forged tokens and certificates, borrowed names, smuggled requests.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use carob_tests::pods::shell_pod;
use carob_tests::{Carob, text};
use serde_json::{Value, json};

use crate::tls::{As, Connection, exchange, request, status};

const SECRET: &str = "bm90LWZvci15b3U=";

/// What only administrators may ask for: method and path.
const PRIVATE: &[(&str, &str)] = &[
    ("GET", "/api/v1/secrets"),
    ("GET", "/api/v1/namespaces/default/secrets/s"),
    ("HEAD", "/api/v1/namespaces/default/secrets/s"),
    ("GET", "/api/v1/secrets?watch=1&timeoutSeconds=1"),
    ("GET", "/api/v1/watch/secrets"),
    ("GET", "/api/v1/namespaces/default/pods"),
    ("GET", "/api/v1/nodes"),
    ("GET", "/api/v1/namespaces"),
    ("GET", "/api/v1/namespaces/default/pods/p/log"),
    ("GET", "/api/v1/namespaces/default/pods/p/exec?command=id&stdout=1"),
    ("POST", "/api/v1/namespaces/default/pods/p/exec?command=id&stdout=1"),
    ("POST", "/api/v1/namespaces/default/pods/p/attach?stdout=1"),
    ("POST", "/api/v1/namespaces/default/pods/p/portforward?ports=80"),
    ("POST", "/api/v1/namespaces/default/pods/p/eviction"),
    ("POST", "/api/v1/namespaces/default/pods/p/binding"),
    ("GET", "/api/v1/namespaces/default/pods/p/proxy/"),
    ("GET", "/api/v1/nodes/n/proxy/run/default/p/main"),
    ("POST", "/api/v1/namespaces/default/pods"),
    ("POST", "/api/v1/namespaces/default/secrets"),
    ("POST", "/api/v1/namespaces/default/serviceaccounts/default/token"),
    ("PUT", "/api/v1/namespaces/default/secrets/s"),
    ("PATCH", "/api/v1/namespaces/default/secrets/s"),
    ("DELETE", "/api/v1/namespaces/default/secrets/s"),
    ("DELETE", "/api/v1/namespaces/default/secrets"),
    ("DELETE", "/api/v1/namespaces/default"),
    ("POST", "/apis/apps/v1/namespaces/default/deployments"),
    ("GET", "/apis/coordination.k8s.io/v1/leases"),
    ("POST", "/apis/authentication.k8s.io/v1/tokenreviews"),
    ("POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews"),
    ("GET", "/metrics"),
    ("GET", "/billing/v1/usage"),
    ("GET", "/billing/v1/report"),
    ("GET", "/exec/default/p/main?command=id"),
    ("GET", "/containerLogs/default/p/main"),
    ("GET", "/debug/pprof/"),
    ("GET", "/"),
    // The same by detours: what is allowed as a prefix must not lead on to something else.
    ("GET", "//api/v1/secrets"),
    ("GET", "/api//v1///secrets"),
    ("GET", "/api/v1/namespaces/default/secrets/s/"),
    ("GET", "/api/v1/namespaces/default/%73ecrets/s"),
    ("GET", "/api/../metrics"),
    ("GET", "/apis/../billing/v1/usage"),
    ("GET", "/apis/%2e%2e/billing/v1/usage"),
    ("GET", "/openapi/../metrics"),
    ("GET", "/openapi/v2/../../billing/v1/report"),
    ("GET", "/healthz/../metrics"),
    ("GET", "/readyz/..%2fmetrics"),
    ("GET", "/version/../api/v1/secrets"),
    ("GET", "https://127.0.0.1/api/v1/secrets"),
];

fn start() -> Carob {
    let carob = Carob::start(&["busybox"]);
    carob.apply(&format!(
        "apiVersion: v1\nkind: Secret\nmetadata: {{name: s}}\ndata: {{k: {SECRET}}}\n---\n{}\n",
        shell_pod("p", "echo words-of-the-pod; sleep 3600")
    ));
    carob.wait("pod/p", "condition=Ready");
    carob
}

fn bearer(token: &str) -> String {
    format!("authorization: Bearer {token}\r\n")
}

fn assert_refused(carob: &Carob, whose: &str, headers: &str) {
    let sender = std::thread::scope(|scope| {
        let tasks: Vec<_> = PRIVATE
            .chunks(PRIVATE.len().div_ceil(4))
            .map(|part| {
                scope.spawn(move || {
                    let mut found = Vec::new();
                    for (method, path) in part {
                        let (code, answer) = request(carob, As::Nobody, method, path, headers, b"{}");
                        if answer.contains(SECRET)
                            || answer.contains("words-of-the-pod")
                            || ![400, 401, 403, 404].contains(&code)
                        {
                            found.push(format!("{method} {path}: {answer}"));
                        }
                    }
                    found
                })
            })
            .collect();
        tasks.into_iter().flat_map(|task| task.join().expect("no panic")).collect::<Vec<_>>()
    });
    assert!(sender.is_empty(), "{whose} got through: {}", sender.join("\n"));
}

#[test]
fn strangers_service_accounts_and_forgers_are_kept_out() {
    let carob = start();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs().cast_signed();
    let token = carob.kubectl(&["create", "token", "default"]).trim().to_owned();

    // Whoever is known may look around, nobody else; both may ask how it is.
    let get = |path: &str, headers: &str| request(&carob, As::Nobody, "GET", path, headers, b"").0;
    assert_eq!((get("/readyz", ""), get("/version", ""), get("/api", "")), (200, 200, 403));
    assert_eq!(get("/api", &bearer(&token)), 200);
    assert_refused(&carob, "a stranger", "");
    assert_refused(&carob, "a service account", &bearer(&token));

    // Another's name in headers, in every combination; and what other servers' front proxies send.
    let masters = "impersonate-group: system:masters\r\n";
    for names in [
        format!("impersonate-user: kubernetes-admin\r\n{masters}"),
        "impersonate-user: system:serviceaccount:kube-system:default\r\n".to_owned(),
        masters.to_owned(),
        format!("impersonate-user: \r\n{masters}"),
        "impersonate-uid: 1\r\nimpersonate-extra-scopes: all\r\n".to_owned(),
        format!("x-remote-user: kubernetes-admin\r\nx-remote-group: system:masters\r\n{masters}impersonate-user: a\r\n"),
        "x-remote-user: kubernetes-admin\r\nx-remote-group: system:masters\r\n".to_owned(),
        "x-forwarded-user: kubernetes-admin\r\nx-forwarded-client-cert: Subject=\"O=system:masters,CN=kubernetes-admin\"\r\n".to_owned(),
    ] {
        for who in [String::new(), bearer(&token)] {
            let (code, answer) = request(&carob, As::Nobody, "GET", "/api/v1/secrets", &format!("{who}{names}"), b"");
            assert!([401, 403, 500].contains(&code) && !answer.contains(SECRET), "{names:?}: {answer}");
        }
    }

    // Forged tokens, beside good ones of the same making: the forge works.
    let parts: Vec<&str> = token.split('.').collect();
    let [head, body, signature] = parts.as_slice() else { panic!("no token: {token}") };
    let claims: Value = serde_json::from_slice(&decode(body)).expect("JSON");
    let header: Value = serde_json::from_slice(&decode(head)).expect("JSON");
    let own = carob.data_dir().join("pki/sa.key");
    let foreign = carob.path("foreign.key");
    openssl(&["ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", foreign.to_str().expect("UTF-8")], b"");
    let sign = |header: &Value, claims: &Value, key: &PathBuf| {
        let signed = format!("{}.{}", encode(header.to_string().as_bytes()), encode(claims.to_string().as_bytes()));
        let der = openssl(&["dgst", "-sha256", "-sign", key.to_str().expect("UTF-8")], signed.as_bytes());
        format!("{signed}.{}", encode(&raw_signature(&der)))
    };
    let with = |changes: Value| {
        let mut changed = claims.clone();
        for (name, value) in changes.as_object().expect("an object") {
            changed[name] = value.clone();
        }
        changed
    };
    assert_eq!(get("/api", &bearer(&sign(&header, &claims, &own))), 200, "what the cluster's own key signs is taken");
    let admin = with(json!({"sub": "kubernetes-admin", "groups": ["system:masters"]}));
    let unsigned = |alg: &str, claims: &Value, tail: &str| {
        format!(
            "{}.{}.{tail}",
            encode(json!({"alg": alg, "kid": header["kid"]}).to_string().as_bytes()),
            encode(claims.to_string().as_bytes())
        )
    };
    let public = fs::read(carob.data_dir().join("pki/sa.pub")).expect("the public key");
    let confused = |alg: &str| {
        let signed = unsigned(alg, &claims, "");
        let hex: String = public.iter().map(|byte| format!("{byte:02x}")).collect();
        let mac = openssl(
            &["dgst", "-sha256", "-mac", "HMAC", "-macopt", &format!("hexkey:{hex}"), "-binary"],
            signed.trim_end_matches('.').as_bytes(),
        );
        format!("{signed}{}", encode(&mac))
    };
    let mut elsewhere = header.clone();
    elsewhere["kid"] = json!("../../../../dev/null");
    elsewhere["jku"] = json!(format!("https://127.0.0.1:{}/", carob.port()));
    let forged = [
        ("no algorithm", unsigned("none", &claims, "")),
        ("No Algorithm", unsigned("nOnE", &claims, "")),
        ("none with a signature", unsigned("none", &claims, signature)),
        ("the public key as a password", confused("HS256")),
        ("another algorithm's name", unsigned("ES384", &claims, signature)),
        ("no signature", format!("{head}.{body}.")),
        ("two parts", format!("{head}.{body}")),
        ("a signature of zeros", format!("{head}.{body}.{}", encode(&[0; 64]))),
        ("an empty one", "..".to_owned()),
        ("other claims under the signature", format!("{head}.{}.{signature}", encode(admin.to_string().as_bytes()))),
        ("another key", sign(&header, &claims, &foreign)),
        ("another key with its address", sign(&elsewhere, &claims, &foreign)),
        ("expired", sign(&header, &with(json!({"exp": now - 60, "iat": now - 7200, "nbf": now - 7200})), &own)),
        ("not yet valid", sign(&header, &with(json!({"nbf": now + 3600})), &own)),
        ("for somebody else", sign(&header, &with(json!({"aud": ["https://elsewhere"]})), &own)),
        ("of another issuer", sign(&header, &with(json!({"iss": "https://elsewhere"})), &own)),
        (
            "another subject than it is bound to",
            sign(&header, &with(json!({"sub": "system:serviceaccount:kube-system:default"})), &own),
        ),
        ("an administrator's name", sign(&header, &admin, &own)),
        ("huge", "a".repeat(60_000)),
    ];
    for (what, token) in forged {
        let (code, answer) = request(&carob, As::Nobody, "GET", "/api", &bearer(&token), b"");
        assert!([400, 401, 431].contains(&code), "{what}: {answer}");
        assert!(!answer.contains("APIVersions"), "{what}: {answer}");
    }
    let mut eternal = claims.clone();
    eternal.as_object_mut().expect("an object").remove("exp");
    assert_eq!(get("/api", &bearer(&sign(&header, &eternal, &own))), 401, "without an end");
    let audience = carob.kubectl(&["create", "token", "default", "--audience=elsewhere"]);
    assert_eq!(get("/api", &bearer(audience.trim())), 401, "a token that was issued for somebody else");
    // A service account that is gone, and one that has its name now.
    carob.kubectl(&["create", "serviceaccount", "brief"]);
    let brief = bearer(carob.kubectl(&["create", "token", "brief"]).trim());
    assert_eq!(get("/api", &brief), 200);
    carob.kubectl(&["delete", "serviceaccount", "brief"]);
    assert_eq!(get("/api", &brief), 401);
    carob.kubectl(&["create", "serviceaccount", "brief"]);
    assert_eq!(get("/api", &brief), 401);

    // Certificates: of one's own making, and of the cluster's authority but for another use.
    let (certificate, key) = (carob.path("own.crt"), carob.path("own.key"));
    openssl(
        &[
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-days",
            "1",
            "-subj",
            "/O=system:masters/CN=kubernetes-admin",
            "-keyout",
            key.to_str().expect("UTF-8"),
            "-out",
            certificate.to_str().expect("UTF-8"),
        ],
        b"",
    );
    let pki = carob.data_dir().join("pki");
    let ask = |certificate: &PathBuf, key: &PathBuf| {
        request(&carob, As::Certificate(certificate, key), "GET", "/api/v1/secrets", "", b"")
    };
    for (certificate, key) in [
        (&certificate, &key),
        (&pki.join("server.crt"), &pki.join("server.key")),
        (&pki.join("ca.crt"), &pki.join("ca.key")),
    ] {
        let (code, answer) = ask(certificate, key);
        assert!([0, 401, 403].contains(&code) && !answer.contains(SECRET), "{}: {answer}", certificate.display());
    }
    let (code, answer) = ask(&pki.join("admin.crt"), &pki.join("admin.key"));
    assert!(code == 200 && answer.contains(SECRET), "the administrator's is taken: {answer}");
    let name = |file: &str| {
        fs::metadata(pki.join(file)).map(|meta| std::os::unix::fs::PermissionsExt::mode(&meta.permissions()) & 0o077)
    };
    for file in ["admin.key", "ca.key", "sa.key", "server.key"] {
        assert_eq!(name(file).expect("a key"), 0, "{file} is its owner's alone");
    }
    assert!(!carob.log().contains("panicked"));
    assert!(!carob.log().contains(signature), "tokens aren't logged");
}

/// CVE-2018-1002105: what follows an upgrade that failed is a request to the gateway like any other.
#[test]
fn an_upgrade_that_fails_leaves_no_tunnel() {
    let carob = start();
    let pki = carob.data_dir().join("pki");
    let (certificate, key) = (pki.join("admin.crt"), pki.join("admin.key"));
    let admin = As::Certificate(&certificate, &key);
    let token = bearer(carob.kubectl(&["create", "token", "default"]).trim());
    let exec = "/api/v1/namespaces/default/pods/p/exec";
    let websocket = "connection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-protocol: v5.channel.k8s.io\r\n";
    // What a worker would answer, if one were at the other end.
    let smuggled = "GET /containerLogs/default/p/main HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    let firsts = [
        (
            admin,
            format!(
                "GET {exec}?command=id&stdout=1 HTTP/1.1\r\nhost: x\r\n{}\r\n",
                websocket.replace("version: 13", "version: 99")
            ),
        ),
        (admin, format!("GET {exec}?container=nobody&command=id&stdout=1 HTTP/1.1\r\nhost: x\r\n{websocket}\r\n")),
        (admin, format!("GET {exec}?stdout=1 HTTP/1.1\r\nhost: x\r\n{websocket}\r\n")),
        (admin, format!("GET {exec}?command=id HTTP/1.1\r\nhost: x\r\n{websocket}\r\n")),
        (
            admin,
            format!(
                "POST {exec}?command=id&stdout=1 HTTP/1.1\r\nhost: x\r\nconnection: Upgrade\r\nupgrade: SPDY/9\r\n\r\n"
            ),
        ),
        (
            admin,
            format!(
                "GET {exec}?command=id&stdout=1 HTTP/1.1\r\nhost: x\r\nconnection: Upgrade\r\nupgrade: h2c\r\n\r\n"
            ),
        ),
        (
            admin,
            format!(
                "GET /api/v1/namespaces/default/pods/p/log HTTP/1.1\r\nhost: x\r\n{}\r\n",
                websocket.replace("v5", "v9")
            ),
        ),
        (
            admin,
            format!(
                "GET /api/v1/namespaces/default/pods/nobody/exec?command=id HTTP/1.1\r\nhost: x\r\n{websocket}\r\n"
            ),
        ),
        (As::Nobody, format!("GET {exec}?command=id&stdout=1 HTTP/1.1\r\nhost: x\r\n{token}{websocket}\r\n")),
        (As::Nobody, format!("GET {exec}?command=id&stdout=1 HTTP/1.1\r\nhost: x\r\n{websocket}\r\n")),
        (As::Nobody, format!("GET /version HTTP/1.1\r\nhost: x\r\n{websocket}\r\n")),
    ];
    for (who, first) in firsts {
        let answer = exchange(&carob, who, format!("{first}{smuggled}").as_bytes());
        let log = first.contains("/p/log ");
        assert_ne!(status(&answer), 101, "{first}{answer}");
        assert!((log && status(&answer) == 200) || !answer.contains("words-of-the-pod"), "{first}{answer}");
        assert!(!answer.contains("uid=0"), "{first}{answer}");
        // The second answer, if there is one, is the gateway's own refusal.
        let codes: Vec<u16> = answer.match_indices("HTTP/1.1 ").map(|(at, _)| status(&answer[at..])).collect();
        assert!(codes.len() <= 2 && codes.get(1).is_none_or(|code| [400, 403, 404].contains(code)), "{first}{answer}");
    }
    // One that succeeds is a tunnel to that one command, and to nothing behind it.
    let mut tunnel = Connection::open(&carob, admin);
    tunnel.send(format!("GET {exec}?command=cat&stdin=1&stdout=1 HTTP/1.1\r\nhost: x\r\n{websocket}\r\n").as_bytes());
    let opened = tunnel.until("\r\n\r\n").expect("an answer");
    assert_eq!(status(&opened), 101, "{opened}");
    tunnel.send(smuggled.as_bytes());
    let rest = tunnel.rest(Duration::from_secs(2));
    assert!(!rest.contains("words-of-the-pod") && !rest[opened.len()..].contains("HTTP/1.1"), "{rest}");

    // Names and options that would be other paths on the worker.
    for (path, query) in [
        ("pods/..%2f..%2fp/log", ""),
        ("pods/p%2flog%2f..", ""),
        ("pods/p/log", "?container=..%2f..%2fmain"),
        ("pods/p/log", "?container=main%2f..%2fmain"),
        ("pods/%2e%2e/log", ""),
        ("pods/p%00/log", ""),
        ("pods/p%0d%0ax:y/log", ""),
        ("pods/p/log%2f..%2f..%2fexec", ""),
        ("pods/p/log/../exec", "?command=id"),
        ("secrets/..%2f..%2fother%2fs", ""),
    ] {
        let (code, answer) =
            request(&carob, admin, "GET", &format!("/api/v1/namespaces/default/{path}{query}"), "", b"");
        assert!([400, 404, 405].contains(&code) && !answer.contains("words-of-the-pod"), "{path}{query}: {answer}");
    }
    let (code, answer) = request(&carob, admin, "GET", "/api/v1/namespaces/..%2fdefault/pods/p/log", "", b"");
    assert!([400, 404].contains(&code), "{answer}");
    assert!(!carob.log().contains("panicked"));
}

fn openssl(arguments: &[&str], input: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let mut child = Command::new("openssl")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("openssl (package openssl)");
    // Some commands read nothing.
    let _ = child.stdin.take().expect("a pipe").write_all(input);
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success(), "openssl {arguments:?}");
    output.stdout
}

/// `SEQUENCE { INTEGER r, INTEGER s }` as the 64 bytes that a token has.
fn raw_signature(der: &[u8]) -> Vec<u8> {
    let mut rest = &der[2..];
    let mut raw = Vec::new();
    for _ in 0..2 {
        let length = usize::from(rest[1]);
        let digits = &rest[2..2 + length];
        let start = digits.iter().position(|byte| *byte != 0).unwrap_or(digits.len());
        raw.resize(raw.len() + 32 - (digits.len() - start), 0);
        raw.extend(&digits[start..]);
        rest = &rest[2 + length..];
    }
    raw
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// base64url without padding.
fn encode(bytes: &[u8]) -> String {
    let mut text = String::new();
    for block in bytes.chunks(3) {
        let number = block.iter().fold(0u32, |all, byte| all << 8 | u32::from(*byte)) << (8 * (3 - block.len()));
        for place in 0..=block.len() {
            text.push(char::from(ALPHABET[(number >> (18 - 6 * place)) as usize & 63]));
        }
    }
    text
}

fn decode(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for block in text.as_bytes().chunks(4) {
        let digit = |byte: &u8| ALPHABET.iter().position(|known| known == byte).expect("base64url");
        let number: usize = block.iter().fold(0, |all, byte| all << 6 | digit(byte)) << (6 * (4 - block.len()));
        bytes.extend((0..block.len() - 1).map(|place| (number >> (16 - 8 * place)).to_le_bytes()[0]));
    }
    bytes
}

/// What a tenant with all rights in a namespace can write down there.
#[test]
fn what_a_tenant_writes_neither_ends_the_gateway_nor_sends_it_elsewhere() {
    let carob = Carob::start(&["busybox"]);
    carob.kubectl(&["create", "rolebinding", "tenants", "--clusterrole=admin", "--user=tenant"]);
    carob.kubectl(&["create", "role", "looks", "--verb=get", "--resource=pods,pods/exec,pods/attach,pods/portforward"]);
    carob.kubectl(&["create", "rolebinding", "look", "--role=looks", "--user=looker"]);
    carob.start_pod(&shell_pod("p", "exec sleep 1000").to_string(), "p");

    let many: Vec<String> = (0..300).map(|number| format!("x{number}")).collect();
    let rule = json!({"verbs": many, "apiGroups": many, "resources": many, "resourceNames": many});
    let role = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "huge"},
        "rules": [rule]});
    let refused = carob.pipe(&["create", "--as=tenant", "-f", "-"], &role.to_string());
    assert!(text(&refused).contains("its rules allow 8100000000 different things"), "{}", text(&refused));

    let mut job = json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "late"},
        "spec": {"parallelism": 0, "activeDeadlineSeconds": i64::MAX, "template": {"spec": shell_pod("late", "exit 0")["spec"]}}});
    job["spec"]["template"]["spec"]["restartPolicy"] = json!("Never");
    carob.apply(&job.to_string());
    carob.until(&["get", "job", "late", "-o", "jsonpath={.status.startTime}"], |time| !time.is_empty());

    for place in ["p:x@127.0.0.1", "https:p:x@localhost", "p:x@169.254.169.254"] {
        let path = format!("/api/v1/namespaces/default/pods/{place}/proxy/");
        let refused = carob.kubectl_fails(&["get", "--raw", &path]);
        assert!(refused.contains("invalid pod request"), "{refused}");
    }
    // kubectl begins these with a GET.
    for arguments in [&["exec", "p", "--", "id"][..], &["attach", "p"], &["port-forward", "p", ":80"]] {
        let refused = carob.kubectl_fails(&[&["--as=looker"], arguments].concat());
        assert!(refused.contains("\"looker\" cannot create resource \"pods/"), "{refused}");
    }
    assert_eq!(carob.kubectl(&["--as=tenant", "exec", "p", "--", "echo", "in"]), "in\n");
    assert_eq!(carob.kubectl(&["get", "--raw", "/readyz"]), "ok");
}
