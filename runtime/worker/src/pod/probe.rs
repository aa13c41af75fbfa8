//! One run of a probe or a hook: a command in the container, an HTTP request, a TCP connection or a gRPC health check.

mod get;

pub(super) use get::http_get;

use crate::context::Context;
use crate::stream::FdStream;
use carob_sandbox::{ContainerId, ExecConfig};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::{TokioExecutor, TokioIo};
use k8s_openapi::api::core::v1::Container;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use std::os::fd::OwnedFd;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::sync::oneshot::error::{RecvError, TryRecvError};
use tokio_util::sync::CancellationToken;

/// The longest answer of a health check (as long as any that a gRPC client takes).
const GRPC_ANSWER: usize = 4 << 20;

/// What a run showed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    Success,
    /// It succeeded, with a doubt that follows `probe warning: ` in the event.
    Warning(String),
    /// It failed; the text follows `probe failed: ` in the event.
    Failure(String),
    /// It could not be carried out.
    Unknown(String),
}

const USER_AGENT: &str = "kube-probe/1.35";
/// Most output of a command that is kept for an event.
const OUTPUT: usize = 10 * 1024;
/// How long the output of a command that has ended is waited for: a child in the background may keep it open for good.
const AFTER_END: Duration = Duration::from_millis(200);

/// Runs a command in the container; exit code 0 is success.
pub(super) async fn command(ctx: &Context, id: &ContainerId, argv: &[String], timeout: Duration) -> Outcome {
    let config = ExecConfig { argv: argv.to_vec(), ..ExecConfig::default() };
    let process = match ctx.runtime.exec(id, config).await {
        Ok(process) => process,
        // A program that isn't there is a failure, as in the kubelet; anything else says nothing about the container.
        Err(carob_sandbox::Error::Start { message, .. }) => return Outcome::Failure(message),
        Err(error) => return Outcome::Unknown(error.to_string()),
    };
    let kill = || {
        let pid = nix::unistd::Pid::from_raw(process.pid);
        if let Err(error) = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL) {
            tracing::debug!(%error, %pid, "a command that took too long could not be killed");
        }
    };
    let (ended, output) = watch([process.stdout, process.stderr], process.exit, timeout, kill).await;
    match ended {
        Some(Ok(0)) => Outcome::Success,
        Some(Ok(_)) => Outcome::Failure(output),
        Some(Err(_closed)) => Outcome::Unknown("the sandbox went away".to_owned()),
        None => {
            Outcome::Failure(format!("command timed out: {:?} timed out after {}", argv.join(" "), seconds(timeout)))
        }
    }
}

/// Waits for a command's end and collects its output. `None` when it took longer than `timeout` and was killed: only then,
/// for the number of a process that was reaped may be another's by now.
async fn watch(
    [stdout, stderr]: [Option<OwnedFd>; 2],
    mut exit: oneshot::Receiver<i32>,
    timeout: Duration,
    kill: impl FnOnce(),
) -> (Option<Result<i32, RecvError>>, String) {
    let over = CancellationToken::new();
    let end = async {
        let ended = match tokio::time::timeout(timeout, &mut exit).await {
            Ok(ended) => Some(ended),
            Err(_elapsed) => match exit.try_recv() {
                Ok(code) => Some(Ok(code)),
                Err(TryRecvError::Closed) => Some(exit.await),
                Err(TryRecvError::Empty) => {
                    kill();
                    None
                }
            },
        };
        over.cancel();
        ended
    };
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let reading = async {
        tokio::join!(read(stdout, &mut out), read(stderr, &mut err));
    };
    let output = async {
        tokio::select! {
            () = reading => {}
            () = async { over.cancelled().await; tokio::time::sleep(AFTER_END).await } => {}
        }
    };
    let (ended, ()) = tokio::join!(end, output);
    (ended, format!("{}{}", String::from_utf8_lossy(&out), String::from_utf8_lossy(&err)))
}

async fn read(fd: Option<OwnedFd>, bytes: &mut Vec<u8>) {
    let Some(Ok(stream)) = fd.map(FdStream::new) else { return };
    let mut buffer = vec![0; 4096];
    while let Ok(n) = stream.read(&mut buffer).await {
        if n == 0 {
            break;
        }
        let room = OUTPUT.saturating_sub(bytes.len());
        bytes.extend_from_slice(&buffer[..n.min(room)]);
    }
}

fn seconds(duration: Duration) -> String {
    format!("{}s", duration.as_secs())
}

/// The number of a port that may be given by its name in the container.
pub(super) fn port(container: &Container, port: &IntOrString) -> Option<u16> {
    match port {
        IntOrString::Int(number) => u16::try_from(*number).ok(),
        IntOrString::String(name) => {
            let named = container.ports.iter().flatten().find(|port| port.name.as_deref() == Some(name));
            named
                .map(|port| port.container_port)
                .or_else(|| name.parse().ok())
                .and_then(|port| u16::try_from(port).ok())
        }
    }
}

/// Connects to a TCP port.
pub(super) async fn tcp(host: &str, port: u16, timeout: Duration) -> Outcome {
    match connect(host, port, timeout).await {
        Ok(_) => Outcome::Success,
        Err(message) => Outcome::Failure(message),
    }
}

async fn connect(host: &str, port: u16, timeout: Duration) -> Result<TcpStream, String> {
    match tokio::time::timeout(timeout, TcpStream::connect((host, port))).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(format!("dial tcp {host}:{port}: connect: {}", plain(&error))),
        Err(_) => Err(format!("dial tcp {host}:{port}: i/o timeout")),
    }
}

/// What the system calls the error, without Rust's `(os error n)`.
fn plain(error: &std::io::Error) -> String {
    match error.raw_os_error() {
        Some(number) => nix::errno::Errno::from_raw(number).desc().to_lowercase(),
        None => error.to_string(),
    }
}

/// `grpc.health.v1.Health/Check`; SERVING is success.
pub(super) async fn grpc(host: &str, port: u16, service: &str, timeout: Duration) -> Outcome {
    let failed = |why: String| Outcome::Failure(format!("error: health rpc probe failed: {why}"));
    let Ok(stream) = connect(host, port, timeout).await else {
        return Outcome::Failure(format!(
            "timeout: failed to connect service \"{host}:{port}\" within {}: context deadline exceeded",
            seconds(timeout)
        ));
    };
    match tokio::time::timeout(timeout, health(stream, host, port, service)).await {
        Ok(Ok(1)) => Outcome::Success,
        Ok(Ok(0)) => Outcome::Failure("service unhealthy (responded with \"UNKNOWN\")".to_owned()),
        Ok(Ok(3)) => Outcome::Failure("service unhealthy (responded with \"SERVICE_UNKNOWN\")".to_owned()),
        Ok(Ok(_)) => Outcome::Failure("service unhealthy (responded with \"NOT_SERVING\")".to_owned()),
        Ok(Err(why)) => failed(why),
        Err(_) => Outcome::Failure(format!("timeout: health rpc did not complete within {}", seconds(timeout))),
    }
}

async fn health(stream: TcpStream, host: &str, port: u16, service: &str) -> Result<u8, String> {
    let text = |error: hyper::Error| error.to_string();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.map_err(text)?;
    let connection = tokio::spawn(connection);
    // message HealthCheckRequest { string service = 1; }
    let mut message = Vec::new();
    if !service.is_empty() {
        message.push(0x0a);
        message.extend(varint(service.len()));
        message.extend_from_slice(service.as_bytes());
    }
    let length = u32::try_from(message.len()).map_err(|error| error.to_string())?;
    let mut frame = vec![0];
    frame.extend_from_slice(&length.to_be_bytes());
    frame.extend_from_slice(&message);
    let request = http::Request::post(format!("http://{host}:{port}/grpc.health.v1.Health/Check"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("user-agent", USER_AGENT)
        .body(Full::new(bytes::Bytes::from(frame)))
        .map_err(|error| error.to_string())?;
    let answer = async {
        let response = sender.send_request(request).await.map_err(text)?;
        let status = response.headers().get("grpc-status").cloned();
        let body =
            Limited::new(response.into_body(), GRPC_ANSWER).collect().await.map_err(|error| error.to_string())?;
        let status = status.or_else(|| body.trailers().and_then(|trailers| trailers.get("grpc-status").cloned()));
        match status.as_ref().and_then(|status| status.to_str().ok()) {
            None | Some("0") => Ok(body.to_bytes()),
            Some(code) => Err(format!("rpc error: code = {code}")),
        }
    };
    let answer = answer.await;
    connection.abort();
    serving_status(&answer?)
}

/// A number as protobuf writes it: seven bits a byte, the lowest first.
fn varint(mut number: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let low = u8::try_from(number & 0x7f).unwrap_or(0);
        number >>= 7;
        bytes.push(if number > 0 { low | 0x80 } else { low });
        if number == 0 {
            return bytes;
        }
    }
}

/// message HealthCheckResponse { ServingStatus status = 1; } behind gRPC's five bytes; an absent field is 0.
fn serving_status(frame: &[u8]) -> Result<u8, String> {
    match frame.get(5..) {
        Some([0x08, status, ..]) => Ok(*status),
        Some([]) => Ok(0),
        _ => Err("malformed answer".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn lengths_are_written_as_protobuf_has_them() {
        assert_eq!(
            [varint(0), varint(127), varint(128), varint(300)],
            [vec![0], vec![127], vec![0x80, 1], vec![0xac, 2]]
        );
    }

    #[tokio::test]
    async fn a_child_that_keeps_the_output_open_neither_delays_the_verdict_nor_is_anybody_killed_for_it() {
        let (read, write) = nix::unistd::pipe().unwrap();
        nix::unistd::write(&write, b"half").unwrap();
        let (sender, exit) = oneshot::channel();
        sender.send(3).unwrap();
        let day = Duration::from_secs(24 * 3600);
        let (ended, output) = watch([Some(read), None], exit, day, || panic!("it has ended")).await;
        assert_eq!((ended, output.as_str()), (Some(Ok(3)), "half"));
        drop(write);
    }

    #[tokio::test]
    async fn a_command_that_goes_on_is_killed_at_its_timeout() {
        let (_sender, exit) = oneshot::channel();
        let mut killed = false;
        let (ended, _) = watch([None, None], exit, Duration::from_millis(1), || killed = true).await;
        assert_eq!((ended, killed), (None, true));
    }

    async fn serve(answer: &'static str) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut buffer = [0; 1024];
            let _request = stream.read(&mut buffer).await.unwrap();
            stream.write_all(answer.as_bytes()).await.unwrap();
        });
        port
    }

    fn action(port: u16) -> k8s_openapi::api::core::v1::HTTPGetAction {
        serde_json::from_value(json!({"port": port, "path": "/ok"})).unwrap()
    }

    async fn probe(port: u16) -> Outcome {
        let address = Some("127.0.0.1".parse().unwrap());
        http_get(&action(port), &Container::default(), address, SECOND).await
    }

    #[tokio::test]
    async fn http_codes_below_400_are_success_and_other_hosts_are_not_gone_to() {
        let port = serve("HTTP/1.1 204 Done\r\n\r\n").await;
        assert_eq!(probe(port).await, Outcome::Success);
        let port = serve("HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n").await;
        assert_eq!(probe(port).await, Outcome::Failure("HTTP probe failed with statuscode: 503".into()));
        let away = "HTTP/1.1 302 Found\r\nLocation: http://example.com/\r\nContent-Length: 4\r\n\r\naway";
        let port = serve(away).await;
        assert_eq!(probe(port).await, Outcome::Warning("Probe terminated redirects, Response body: away".into()));
    }

    #[tokio::test]
    async fn redirects_within_the_host_are_followed() {
        let target = serve("HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n").await;
        let location = format!("http://127.0.0.1:{target}/login");
        let answer = format!("HTTP/1.1 302 Found\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n");
        let port = serve(answer.leak()).await;
        assert_eq!(probe(port).await, Outcome::Failure("HTTP probe failed with statuscode: 500".into()));
    }

    #[tokio::test]
    async fn a_closed_port_is_refused_in_gos_words() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let text = format!("dial tcp 127.0.0.1:{port}: connect: connection refused");
        assert_eq!(tcp("127.0.0.1", port, SECOND).await, Outcome::Failure(text.clone()));
        let get = format!("Get \"http://127.0.0.1:{port}/ok\": {text}");
        assert_eq!(probe(port).await, Outcome::Failure(get));
    }

    #[test]
    fn ports_may_be_names() {
        let container: Container =
            serde_json::from_value(json!({"name": "c", "ports": [{"name": "web", "containerPort": 8080}]})).unwrap();
        assert_eq!(port(&container, &IntOrString::String("web".into())), Some(8080));
        assert_eq!(port(&container, &IntOrString::Int(81)), Some(81));
        assert_eq!(port(&container, &IntOrString::String("no".into())), None);
    }

    #[test]
    fn health_answers_are_read() {
        assert_eq!(serving_status(&[0, 0, 0, 0, 2, 8, 1]), Ok(1));
        assert_eq!(serving_status(&[0, 0, 0, 0, 0]), Ok(0));
        assert!(serving_status(&[0]).is_err());
    }
}
