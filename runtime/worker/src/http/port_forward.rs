//! `kubectl port-forward`: each connection that the client takes becomes two streams of one SPDY connection, one for its
//! bytes and one for what went wrong, and is connected to a port on the pod's own loopback.

use super::spdy::{Connection, Stream, StreamReader, StreamWriter};
use super::{Refused, find, port_channels, upgrade};
use crate::context::Context;
use crate::pod::PodView;
use axum::extract::{Path, Query, Request, State};
use axum::response::Response;
use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;

/// How long one of two streams waits for the other (the kubelet's).
const PAIR_PATIENCE: Duration = Duration::from_secs(30);
/// How long the last bytes may take to a client that is told goodbye.
const GOODBYE: Duration = Duration::from_secs(30);
const DIAL_PATIENCE: Duration = Duration::from_secs(30);

pub(super) async fn port_forward(
    State(ctx): State<Arc<Context>>,
    Path((namespace, pod)): Path<(String, String)>,
    Query(query): Query<Vec<(String, String)>>,
    request: Request,
) -> Result<Response, Refused> {
    let (_, view) = find(&ctx, &namespace, &pod)?;
    if view.containers.iter().all(|container| container.running.is_none()) {
        return Err(Refused::internal(format!("pod {pod} has no running container")));
    }
    if upgrade::asks_for_channels(request.headers()) {
        let ports = port_channels::ports(&query)?;
        return upgrade::port_channels(request, move |socket| port_channels::serve(ctx, socket, view, ports)).await;
    }
    upgrade::port_forward(request, move |connection| serve(ctx, connection, view)).await
}

/// A stream whose other half hasn't come yet.
struct Half {
    stream: Stream,
    is_error: bool,
    since: Instant,
}

async fn serve(ctx: Arc<Context>, mut connection: Connection, view: PodView) {
    let view = Arc::new(view);
    let mut halves: HashMap<String, Half> = HashMap::new();
    let mut forwards = JoinSet::new();
    let gone = connection.gone();
    loop {
        let stream = tokio::select! {
            stream = connection.accept() => stream,
            Some(_) = forwards.join_next(), if !forwards.is_empty() => continue,
        };
        let Some(stream) = stream else { break };
        halves.retain(|_, half| half.since.elapsed() < PAIR_PATIENCE);
        let header = |name: &str| stream.headers.get(name).unwrap_or_default().to_owned();
        let (kind, port, request) = (header("streamtype"), header("port"), header("requestid"));
        let (Some(port), "data" | "error") = (port.parse::<u16>().ok().filter(|port| *port > 0), kind.as_str()) else {
            tracing::debug!(kind, port, "a port-forward's stream names no port or an unknown type");
            stream.writer.cancel().await;
            continue;
        };
        let key = format!("{request} {port}");
        let is_error = kind == "error";
        match halves.remove(&key) {
            Some(other) if other.is_error != is_error => {
                let (error, data) = if is_error { (stream, other.stream) } else { (other.stream, stream) };
                forwards.spawn(forward(ctx.clone(), view.clone(), port, error.writer, data));
            }
            _ => {
                halves.insert(key, Half { stream, is_error, since: Instant::now() });
            }
        }
    }
    if gone.is_cancelled() {
        forwards.shutdown().await;
    }
    let _late = tokio::time::timeout(GOODBYE, connection.close()).await;
}

/// One connection, from dialling to both ends' end.
async fn forward(ctx: Arc<Context>, view: Arc<PodView>, port: u16, error: StreamWriter, data: Stream) {
    match dial(&ctx, &view, port).await {
        Ok(connection) => {
            let (from_pod, to_pod) = connection.into_split();
            let Stream { reader, writer, .. } = data;
            tokio::join!(send(reader, to_pod), receive(from_pod, writer));
        }
        Err(text) => {
            error.send(text.as_bytes()).await;
            data.writer.finish().await;
        }
    }
    error.finish().await;
}

async fn send(mut client: StreamReader, mut pod: OwnedWriteHalf) {
    while let Ok(Some(bytes)) = client.read().await {
        if pod.write_all(&bytes).await.is_err() {
            // The program has closed its side; what the client still sends is let go.
            while let Ok(Some(_)) = client.read().await {}
            return;
        }
    }
    // A program that has gone needs no end of file.
    let _gone = pod.shutdown().await;
}

async fn receive(mut pod: OwnedReadHalf, client: StreamWriter) {
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(length @ 1..) = pod.read(&mut buffer).await {
        if !client.send(&buffer[..length]).await {
            return;
        }
    }
    client.finish().await;
}

/// Connects to a port of the pod; what a client is told if that fails.
pub(super) async fn dial(ctx: &Context, view: &PodView, port: u16) -> Result<TcpStream, String> {
    let dialled = tokio::time::timeout(DIAL_PATIENCE, connect(ctx, view, port)).await;
    dialled.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map_err(|cause| {
        format!(
            "error forwarding port {port} to pod {}, uid {}: failed to connect to localhost:{port} inside the pod's network: {cause}",
            view.name, view.uid
        )
    })
}

/// Connects to a port on the pod's loopback: IPv4 first, as `localhost` would be there.
async fn connect(ctx: &Context, view: &PodView, port: u16) -> io::Result<TcpStream> {
    let network = if view.host_network {
        None
    } else {
        Some(Arc::new(ctx.runtime.pod_network(&view.uid).await.map_err(io::Error::other)?))
    };
    let mut first = None;
    for address in [SocketAddr::from((Ipv4Addr::LOCALHOST, port)), SocketAddr::from((Ipv6Addr::LOCALHOST, port))] {
        match socket(network.clone(), address).await?.connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => first = first.or(Some(error)),
        }
    }
    Err(first.unwrap_or_else(|| io::ErrorKind::NotFound.into()))
}

/// A socket belongs to the network it was made in for ever: a thread of its own goes there, makes it and ends.
async fn socket(network: Option<Arc<OwnedFd>>, address: SocketAddr) -> io::Result<TcpSocket> {
    let (answer, made) = tokio::sync::oneshot::channel();
    std::thread::Builder::new().name("carob-dial".to_owned()).spawn(move || {
        let create = || -> io::Result<TcpSocket> {
            if let Some(network) = network {
                nix::sched::setns(&*network, nix::sched::CloneFlags::CLONE_NEWNET)?;
            }
            if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }
        };
        // The one who asked may have given up.
        let _unheard = answer.send(create());
    })?;
    made.await.map_err(|_| io::Error::other("the thread that makes sockets has died"))?
}
