//! Servers that pods run, in Python.

use carob_tests::pods::pod;
use serde_json::{Value, json};

/// A pod that runs a program.
pub fn python(name: &str, program: &str) -> Value {
    let command = json!(["python3", "-u", "-c", program]);
    let container = json!({"name": "main", "image": "python", "imagePullPolicy": "IfNotPresent", "command": command});
    let mut made = pod(name, &[container]);
    made["spec"]["terminationGracePeriodSeconds"] = json!(0);
    made
}

/// Agrees to WebSocket on port 8080 and sends back what it gets.
pub const WEB_SOCKET: &str = r#"
import base64, hashlib, socketserver
class Echo(socketserver.StreamRequestHandler):
    def handle(self):
        key = b""
        while (line := self.rfile.readline().strip()):
            if line.lower().startswith(b"sec-websocket-key:"):
                key = line.split(b":", 1)[1].strip()
        accept = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
        self.wfile.write(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                         b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n")
        while (data := self.connection.recv(4096)):
            self.connection.sendall(data)
socketserver.ThreadingTCPServer(("", 8080), Echo).serve_forever()
"#;

/// Answers every call of gRPC on port 8080 with an empty message and the status 0, by HTTP/2 as it is on the wire.
pub const GRPC: &str = r#"
import socketserver
def frame(kind, flags, stream, payload):
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload
def literal(name, value):
    return b"\x00" + bytes([len(name)]) + name + bytes([len(value)]) + value
class Server(socketserver.BaseRequestHandler):
    def read(self, count):
        data = b""
        while len(data) < count:
            more = self.request.recv(count - len(data))
            if not more:
                raise SystemExit
            data += more
        return data
    def handle(self):
        assert self.read(24) == b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
        self.request.sendall(frame(4, 0, 0, b""))
        while True:
            head = self.read(9)
            kind, flags, stream = head[3], head[4], int.from_bytes(head[5:9], "big")
            payload = self.read(int.from_bytes(head[:3], "big"))
            if kind == 4 and not flags & 1:
                self.request.sendall(frame(4, 1, 0, b""))
            if kind == 6 and not flags & 1:
                self.request.sendall(frame(6, 1, 0, payload))
            if kind in (0, 1) and flags & 1:
                self.request.sendall(
                    frame(1, 4, stream, b"\x88" + literal(b"content-type", b"application/grpc"))
                    + frame(0, 0, stream, b"\0\0\0\0\0")
                    + frame(1, 5, stream, literal(b"grpc-status", b"0")))
class Threads(socketserver.ThreadingTCPServer):
    daemon_threads = True
Threads(("", 8080), Server).serve_forever()
"#;
