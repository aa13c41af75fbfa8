//! Probes over the network: gRPC health checks and HTTPS.

use carob_tests::Carob;
use carob_tests::pods::pod;
use serde_json::{Value, json};

/// As much of HTTP/2 and gRPC as one health check needs: serving, unless there is a file `/tmp/sick`.
const GRPC: &str = r#"
import os, socket, struct
server = socket.socket()
server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
server.bind(("0.0.0.0", 9000))
server.listen(16)
def frame(kind, flags, stream, body):
    return struct.pack(">I", len(body))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + body
def header(name, value):
    return b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value
while True:
    client, _ = server.accept()
    reader = client.makefile("rb")
    reader.read(24)
    client.sendall(frame(4, 0, 0, b""))
    asked = b""
    while True:
        head = reader.read(9)
        if len(head) < 9:
            break
        body = reader.read(int.from_bytes(head[:3], "big"))
        kind, flags, stream = head[3], head[4], int.from_bytes(head[5:9], "big")
        if kind == 4 and not flags & 1:
            client.sendall(frame(4, 1, 0, b""))
        if kind == 0:
            asked += body
        if kind == 0 and flags & 1:
            good = asked[5:] == b"\x0a\x04shop" and not os.path.exists("/tmp/sick")
            client.sendall(frame(1, 4, stream, b"\x88" + header(b"content-type", b"application/grpc")))
            client.sendall(frame(0, 0, stream, bytes([0, 0, 0, 0, 2, 8, 1 if good else 2])))
            client.sendall(frame(1, 5, stream, header(b"grpc-status", b"0")))
    client.close()
"#;

/// An HTTPS server with a certificate that nobody knows; 200 only for the right path and header.
const HTTPS: &str = r#"
import http.server, ssl
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        good = self.path == "/ok" and self.headers["X-Probe"] == "yes"
        self.send_response(200 if good else 500)
        self.end_headers()
    def log_message(self, *_):
        pass
server = http.server.HTTPServer(("0.0.0.0", 9443), Handler)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain("/tls/tls.crt", "/tls/tls.key")
server.socket = context.wrap_socket(server.socket, server_side=True)
server.serve_forever()
"#;

fn python(name: &str, script: &str) -> Value {
    json!({"name": name, "image": "python", "imagePullPolicy": "IfNotPresent", "command": ["python3", "-c", script]})
}

#[test]
fn grpc_and_https_probes_decide_about_readiness_and_restarts() {
    let carob = Carob::start(&["python"]);
    let (certificate, key) = (carob.path("tls.crt"), carob.path("tls.key"));
    let made = std::process::Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"])
        .args(["-subj", "/CN=somebody-else", "-out"])
        .arg(&certificate)
        .arg("-keyout")
        .arg(&key)
        .output()
        .expect("openssl");
    assert!(made.status.success(), "{}", carob_tests::text(&made));
    let file = |name: &str, path: &std::path::Path| format!("--{name}={}", path.display());
    carob.kubectl(&["create", "secret", "tls", "tls", &file("cert", &certificate), &file("key", &key)]);

    let mut grpc = python("grpc", GRPC);
    grpc["livenessProbe"] = json!({"grpc": {"port": 9000, "service": "shop"}, "periodSeconds": 1, "failureThreshold": 1, "initialDelaySeconds": 1});
    grpc["readinessProbe"] = json!({"grpc": {"port": 9000, "service": "shop"}, "periodSeconds": 1});
    let mut https = python("https", HTTPS);
    https["volumeMounts"] = json!([{"name": "tls", "mountPath": "/tls"}]);
    https["ports"] = json!([{"name": "web", "containerPort": 9443}]);
    https["readinessProbe"] = json!({"periodSeconds": 1, "httpGet": {"scheme": "HTTPS", "port": "web", "path": "/ok",
        "httpHeaders": [{"name": "X-Probe", "value": "yes"}]}});
    let mut healthy = pod("probed", &[grpc, https]);
    healthy["spec"]["restartPolicy"] = json!("Always");
    healthy["spec"]["terminationGracePeriodSeconds"] = json!(0);
    healthy["spec"]["volumes"] = json!([{"name": "tls", "secret": {"secretName": "tls"}}]);
    carob.start_pod(&healthy.to_string(), "probed");

    carob.kubectl(&["exec", "probed", "-c", "grpc", "--", "touch", "/tmp/sick"]);
    carob.wait_event("probed", "Liveness probe failed: service unhealthy (responded with \"NOT_SERVING\")");
    let restarts = "jsonpath={.status.containerStatuses[?(@.name=='grpc')].restartCount}";
    carob.until(&["get", "pod", "probed", "-o", restarts], |seen| seen == "1");
    carob.wait("pod/probed", "condition=Ready");

    let mut wrong = python("https", HTTPS);
    wrong["volumeMounts"] = json!([{"name": "tls", "mountPath": "/tls"}]);
    wrong["readinessProbe"] = json!({"periodSeconds": 1, "httpGet": {"scheme": "HTTPS", "port": 9443, "path": "/ok"}});
    let mut unready = pod("unready", &[wrong]);
    unready["spec"]["volumes"] = json!([{"name": "tls", "secret": {"secretName": "tls"}}]);
    carob.apply(&unready.to_string());
    carob.wait_event("unready", "Readiness probe failed: HTTP probe failed with statuscode: 500");
    assert!(carob.kubectl(&["get", "pod", "unready"]).contains("0/1"));
}
