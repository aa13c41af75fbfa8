//! Streams through the gateway: port-forward, and what older clients speak instead of WebSocket.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use carob_tests::pods::{pod, shell_pod, tools};
use carob_tests::proxy::Proxy;
use carob_tests::terminal::Running;
use carob_tests::{Carob, PATIENCE, kubectl, kubectl_of};

/// With these a current kubectl speaks as those before 1.31 did.
const SPDY: [(&str, &str); 2] =
    [("KUBECTL_PORT_FORWARD_WEBSOCKETS", "false"), ("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", "false")];

fn command(carob: &Carob, program: &PathBuf, spdy: bool, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.env("KUBECONFIG", carob.kubeconfig()).env("HOME", carob.path("home")).args(arguments);
    if spdy {
        command.envs(SPDY);
    }
    command
}

/// The port that a port-forward listens on.
fn local_port(forward: &Running, remote: u16) -> u16 {
    let arrow = format!(" -> {remote}\n");
    forward.expect(&arrow);
    let output = forward.output();
    let line =
        output.lines().find(|line| line.ends_with(arrow.trim_end()) && line.contains("127.0.0.1")).expect("a line");
    line.split(':').nth(1).and_then(|rest| rest.split(' ').next()?.parse().ok()).expect("a port")
}

fn connect(port: u16) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", port)).expect("kubectl listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream
}

/// Sends bytes to an echo server while it reads them back.
fn echo(port: u16, length: usize, seed: usize) {
    let sent: Vec<u8> = (0..length).map(|number| u8::try_from((number * 31 + seed) % 251).expect("a byte")).collect();
    let mut stream = connect(port);
    let mut writer = stream.try_clone().expect("a copy");
    let copy = sent.clone();
    let writing = std::thread::spawn(move || {
        writer.write_all(&copy).expect("it is taken");
        writer.shutdown(Shutdown::Write).expect("the end of it too");
    });
    let mut back = Vec::new();
    stream.read_to_end(&mut back).expect("it comes back");
    writing.join().expect("the writer");
    assert!(back == sent, "{} of {length} bytes came back", back.len());
}

#[test]
fn port_forward_carries_many_connections_whole_and_half_closed_in_both_transports() {
    let carob = Carob::start(&["tools"]);
    let server = pod("server", &[tools("main", &["http-server"]), tools("echo", &["echo", "--port", "7"])]);
    carob.start_pod(&server.to_string(), "server");
    for (program, spdy) in [(kubectl(), false), (kubectl_of(35), false), (kubectl_of(35), true)] {
        let arguments = ["port-forward", "pod/server", ":8080", ":7", ":9"];
        let mut forward = Running::start(&mut command(&carob, &program, spdy, &arguments));
        let mut stream = connect(local_port(&forward, 8080));
        stream.write_all(b"GET /hello HTTP/1.1\r\nHost: pod\r\nConnection: close\r\n\r\n").expect("a request");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        assert!(answer.starts_with("HTTP/1.") && answer.contains("/hello"), "{answer}");
        let port = local_port(&forward, 7);
        let clients: Vec<_> = (0..8)
            .map(|seed| std::thread::spawn(move || echo(port, if seed == 0 { 4_000_000 } else { 50_000 }, seed)))
            .collect();
        for client in clients {
            client.join().expect("echoed");
        }
        // Nobody listens on the last port: kubectl says so, and ends.
        let mut refused = connect(local_port(&forward, 9));
        refused.read_to_end(&mut Vec::new()).expect("it is closed");
        forward.expect("error forwarding port 9 to pod server");
        forward.expect("Connection refused");
        forward.expect("lost connection to pod");
        forward.end();
    }
    let missing = carob.kubectl_fails(&["port-forward", "pod/nobody", ":80"]);
    assert!(missing.contains("pods \"nobody\" not found"), "{missing}");
    carob.kubectl(&["wait", "--for=condition=Ready", "pod/server", "--timeout=5s"]);
}

#[test]
fn exec_and_attach_work_over_spdy_as_over_websocket() {
    let carob = Carob::start(&["busybox"]);
    let mut manifest = shell_pod("box", "while read line; do echo got $line; done");
    manifest["spec"]["containers"][0]["stdin"] = true.into();
    carob.start_pod(&manifest.to_string(), "box");
    let program = kubectl_of(35);
    let run = |arguments: &[&str]| command(&carob, &program, true, arguments).output().expect("kubectl starts");
    let output = run(&["exec", "box", "--", "sh", "-c", "echo out; echo err >&2; exit 7"]);
    assert_eq!((output.stdout.as_slice(), output.status.code()), (b"out\n".as_slice(), Some(7)));
    assert!(String::from_utf8_lossy(&output.stderr).starts_with("err\n"));
    let large = run(&["exec", "box", "--", "sh", "-c", "yes 0123456 | head -c 3000000"]);
    assert_eq!(large.stdout.len(), 3_000_000);
    let missing = run(&["exec", "box", "--", "no-such-program"]);
    assert!(String::from_utf8_lossy(&missing.stderr).contains("executable file not found in $PATH"));

    let mut cat = command(&carob, &program, true, &["exec", "-i", "box", "--", "sh", "-c", "wc -c"]);
    let mut cat =
        cat.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped()).spawn().expect("kubectl");
    let mut stdin = cat.stdin.take().expect("a pipe");
    std::thread::spawn(move || stdin.write_all(&vec![b'x'; 700_000]));
    assert_eq!(String::from_utf8_lossy(&cat.wait_with_output().expect("it ends").stdout).trim(), "700000");

    let mut shell =
        Running::on_terminal(&command(&carob, &program, true, &["exec", "-it", "box", "--", "sh"]), 33, 111);
    shell.expect("# ");
    shell.send("stty size\n");
    shell.expect("33 111\r\n");
    shell.resize(44, 122);
    shell.send("until [ \"$(stty size)\" = '44 122' ]; do sleep 0.1; done; echo re''sized; exit 5\n");
    shell.expect("resized");
    assert_eq!(shell.end().code(), Some(5), "{}", shell.output());

    let mut attached = Running::on_terminal(&command(&carob, &program, true, &["attach", "-i", "box"]), 24, 80);
    attached.expect("If you don't see a command prompt");
    attached.send("words\n");
    attached.expect("got words");
}

#[test]
fn a_prompt_is_shown_before_its_line_ends() {
    let carob = Carob::start(&["busybox"]);
    let arguments = [
        "run",
        "prompt",
        "-it",
        "--rm",
        "--restart=Never",
        "--image=busybox",
        "--image-pull-policy=IfNotPresent",
        "--",
        "sh",
    ];
    let mut shell = Running::on_terminal(&command(&carob, &kubectl_of(35), false, &arguments), 24, 80);
    // The first prompt may have come before anybody was attached.
    shell.send("\n");
    shell.expect("# ");
    shell.send("printf ab; sleep 1000");
    shell.expect("printf ab; sleep 1000");
    shell.send("\n");
    shell.expect("\r\nab");
    shell.send("\u{3}exit 3\n");
    assert_eq!(shell.end().code(), Some(3), "{}", shell.output());
}

#[test]
fn a_connection_that_nobody_reads_stops_neither_the_gateway_nor_its_pod() {
    let carob = Carob::start(&["tools"]);
    carob.start_pod(&pod("echo", &[tools("main", &["echo", "--port", "7"])]).to_string(), "echo");
    let forward = Running::start(&mut command(&carob, &kubectl(), false, &["port-forward", "pod/echo", ":7"]));
    let port = local_port(&forward, 7);
    // The echo fills every buffer on the way back, and then those on the way there.
    let mut stuck = connect(port);
    stuck.set_write_timeout(Some(Duration::from_millis(500))).expect("a timeout");
    let block = vec![0; 1 << 16];
    let mut sent = 0;
    while stuck.write_all(&block).is_ok() {
        sent += block.len();
        assert!(sent < 256 << 20, "it is buffered without bound");
    }
    assert_eq!(carob.kubectl(&["exec", "echo", "--", "echo", "alive"]), "alive\n");
    drop(stuck);
    drop(forward);
    assert_eq!(carob.kubectl(&["get", "--raw", "/readyz"]), "ok");
}

/// A client of WebSocket that only reads.
struct Reader(TcpStream);

impl Reader {
    /// Asks for a path; gives the answer's head, too.
    fn open(proxy: &Proxy, path: &str, protocol: Option<&str>) -> (Self, String) {
        let mut stream = proxy.connect();
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let protocol = protocol.map_or_else(String::new, |name| format!("Sec-WebSocket-Protocol: {name}\r\n"));
        // The key and its answer are those of RFC 6455, section 1.3.
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{protocol}\r\n"
        );
        stream.write_all(request.as_bytes()).expect("a request");
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).expect("an answer");
            head.push(byte[0]);
        }
        (Self(stream), String::from_utf8_lossy(&head).into_owned())
    }

    /// The next message: its opcode and what is in it.
    fn next(&mut self) -> (u8, Vec<u8>) {
        let mut read = |length: usize| {
            let mut bytes = vec![0; length];
            self.0.read_exact(&mut bytes).expect("a message");
            bytes
        };
        let head = read(2);
        let length = match head[1] {
            126 => usize::from(u16::from_be_bytes(read(2).try_into().expect("two bytes"))),
            length => usize::from(length),
        };
        (head[0] & 0x0f, read(length))
    }
}

#[test]
fn logs_and_watches_come_as_messages_of_a_websocket() {
    // RFC 6455, section 5.2.
    const TEXT: u8 = 1;
    const BINARY: u8 = 2;
    const CLOSE: u8 = 8;
    let carob = Carob::start(&["busybox"]);
    carob.start_pod(&shell_pod("talks", "echo one; sleep 1; echo two; sleep 3600").to_string(), "talks");
    let proxy = Proxy::start(&carob);
    let log = "/api/v1/namespaces/default/pods/talks/log?follow=true";
    for (protocol, opcode, first) in [
        (None, BINARY, "one\n"),
        (Some("binary.k8s.io"), BINARY, "one\n"),
        (Some("base64.binary.k8s.io"), TEXT, "b25lCg=="),
    ] {
        let (mut reader, head) = Reader::open(&proxy, log, protocol);
        assert!(head.starts_with("HTTP/1.1 101"), "{head}");
        assert!(head.to_ascii_lowercase().contains("sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo="), "{head}");
        assert_eq!(reader.next(), (opcode, Vec::new()), "an empty one says that it begins");
        let (seen, text) = reader.next();
        assert!(seen == opcode && text.starts_with(&first.as_bytes()[..3]), "{}", String::from_utf8_lossy(&text));
    }
    let (_, head) = Reader::open(&proxy, log, Some("other.k8s.io"));
    assert!(head.starts_with("HTTP/1.1 400"), "{head}");

    let whole = "/api/v1/namespaces/default/pods/talks/log?tailLines=1";
    let (mut reader, _) = Reader::open(&proxy, whole, None);
    assert_eq!(reader.next().1, b"");
    assert!(reader.next().1.ends_with(b"\n"));
    assert_eq!(reader.next().0, CLOSE);

    let (mut reader, head) = Reader::open(&proxy, "/api/v1/namespaces/default/configmaps?watch=true", None);
    assert!(head.starts_with("HTTP/1.1 101"), "{head}");
    carob.kubectl(&["create", "configmap", "seen"]);
    let found = std::iter::repeat_with(|| reader.next()).take(10).find(|(opcode, text)| {
        assert_eq!(*opcode, TEXT);
        let event: serde_json::Value = serde_json::from_slice(text).expect("one event, whole");
        event["type"] == "ADDED" && event["object"]["metadata"]["name"] == "seen"
    });
    assert!(found.is_some());
}
