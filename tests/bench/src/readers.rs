//! Watchers that cost their machine little: gateway and client share it, and what is measured is the gateway. All of
//! them live on one thread; each reads its events' sequence numbers and nothing else.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use futures::{StreamExt, TryStreamExt};
use http::Request;
use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use kube::Config;
use kube::client::ConfigExt;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Connections that are opened at once.
const OPENED_AT_ONCE: usize = 16;
/// HTTP/2: nothing is held back for want of window.
const WINDOW: u32 = 16 << 20;

/// How watchers reach the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Each has a TLS connection of its own, with HTTP/1.1.
    Connections,
    /// So many share a TLS connection, each with an HTTP/2 stream of its own, as client-go does.
    Streams(usize),
}

/// Watchers that are connected and have seen the object as it was.
pub struct Readers {
    thread: JoinHandle<Result<Followed>>,
}

/// What they saw.
pub struct Followed {
    /// For each watcher, when each of the writes arrived.
    pub seen: Vec<Vec<Instant>>,
    /// What reading them took of a core.
    pub cpu: Duration,
}

impl Readers {
    /// Opens `count` watches of `path`; each will see `writes` writes, numbered from 1 on. Returns when all are there.
    pub fn open(config: &Config, path: &str, shape: Shape, count: usize, writes: usize) -> Result<Self> {
        let door = Door::new(config, shape)?;
        let path = path.to_owned();
        let (opened, ready) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(follow(door, path, shape, count, writes, opened))
        });
        if ready.recv().is_err() {
            match thread.join() {
                Ok(Err(error)) => return Err(error),
                _ => bail!("the watchers' thread ended"),
            }
        }
        Ok(Self { thread })
    }

    /// Waits until all writes have been seen by all.
    pub fn finish(self) -> Result<Followed> {
        self.thread.join().map_err(|_| anyhow::anyhow!("the watchers' thread panicked"))?
    }
}

async fn follow(
    door: Door,
    path: String,
    shape: Shape,
    count: usize,
    writes: usize,
    opened: mpsc::Sender<()>,
) -> Result<Followed> {
    let mut tasks = JoinSet::new();
    match shape {
        Shape::Connections => {
            let streams = futures::stream::iter(0..count).map(|_| connection(&door, &path));
            let streams: Vec<_> = streams.buffer_unordered(OPENED_AT_ONCE).try_collect().await?;
            for (stream, events) in streams {
                tasks.spawn(read_connection(stream, events, writes));
            }
        }
        Shape::Streams(share) => {
            let mut left = count;
            while left > 0 {
                let sender = door.http2().await?;
                let these = left.min(share);
                let streams = futures::stream::iter(0..these).map(|_| stream(sender.clone(), &path));
                let streams: Vec<_> = streams.buffer_unordered(OPENED_AT_ONCE).try_collect().await?;
                for (body, events) in streams {
                    tasks.spawn(read_stream(body, events, writes));
                }
                left -= these;
            }
        }
    }
    let before = cpu_of_thread()?;
    // Whoever waited may have given up.
    let _ = opened.send(());
    let mut seen = Vec::with_capacity(count);
    while let Some(task) = tasks.join_next().await {
        seen.push(task??);
    }
    Ok(Followed { seen, cpu: cpu_of_thread()?.saturating_sub(before) })
}

fn cpu_of_thread() -> Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_THREAD)?;
    let microseconds = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    Ok(Duration::from_micros(microseconds.unsigned_abs()))
}

/// Where the gateway is, and as whom it is entered.
pub struct Door {
    address: SocketAddr,
    connector: TlsConnector,
}

impl Door {
    /// For HTTP/1.1 or HTTP/2, by the shape.
    pub fn new(config: &Config, shape: Shape) -> Result<Self> {
        let host = config.cluster_url.host().context("a URL without a host")?;
        let port = config.cluster_url.port_u16().unwrap_or(443);
        let address = format!("{host}:{port}").parse().context("the gateway listens on an address")?;
        let mut tls = config.rustls_client_config()?;
        let protocol: &[u8] = if shape == Shape::Connections { b"http/1.1" } else { b"h2" };
        tls.alpn_protocols = vec![protocol.to_vec()];
        Ok(Self { address, connector: TlsConnector::from(Arc::new(tls)) })
    }

    /// A TLS connection.
    pub async fn connect(&self) -> Result<TlsStream<TcpStream>> {
        let stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        Ok(self.connector.connect(ServerName::from(self.address.ip()), stream).await?)
    }

    async fn http2(&self) -> Result<http2::SendRequest<Empty<Bytes>>> {
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder.initial_stream_window_size(WINDOW).initial_connection_window_size(WINDOW);
        let (sender, driver) = builder.handshake(TokioIo::new(self.connect().await?)).await?;
        // It ends with the connection.
        tokio::spawn(driver);
        Ok(sender)
    }
}

async fn connection(door: &Door, path: &str) -> Result<(TlsStream<TcpStream>, Events)> {
    let mut stream = door.connect().await?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: gateway\r\naccept: application/json\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut events = Events::default();
    while !events.begun() {
        if stream.read_buf(&mut events.buffer).await? == 0 {
            bail!("a watch ended");
        }
    }
    Ok((stream, events))
}

async fn read_connection(mut stream: TlsStream<TcpStream>, mut events: Events, writes: usize) -> Result<Vec<Instant>> {
    while events.seen.len() < writes {
        if stream.read_buf(&mut events.buffer).await? == 0 {
            bail!("a watch ended");
        }
        events.take()?;
    }
    Ok(events.seen)
}

async fn stream(mut sender: http2::SendRequest<Empty<Bytes>>, path: &str) -> Result<(Incoming, Events)> {
    let request = Request::get(format!("https://gateway{path}")).body(Empty::new())?;
    sender.ready().await?;
    let mut body = sender.send_request(request).await?.into_body();
    let mut events = Events::default();
    while !events.begun() {
        more(&mut body, &mut events).await?;
    }
    Ok((body, events))
}

async fn read_stream(mut body: Incoming, mut events: Events, writes: usize) -> Result<Vec<Instant>> {
    while events.seen.len() < writes {
        more(&mut body, &mut events).await?;
        events.take()?;
    }
    Ok(events.seen)
}

async fn more(body: &mut Incoming, events: &mut Events) -> Result<()> {
    let frame = body.frame().await.context("a watch ended")??;
    if let Some(data) = frame.data_ref() {
        events.buffer.extend_from_slice(data);
    }
    Ok(())
}

/// What one watcher has read.
#[derive(Default)]
struct Events {
    buffer: Vec<u8>,
    seen: Vec<Instant>,
}

impl Events {
    /// Whether the object as it was has come; it is taken out.
    fn begun(&mut self) -> bool {
        let end = self.buffer.windows(2).position(|pair| pair == b"}\n");
        if let Some(end) = end {
            self.buffer.drain(..end + 2);
        }
        end.is_some()
    }

    /// Takes the whole events out.
    fn take(&mut self) -> Result<()> {
        let now = Instant::now();
        let mut rest = &self.buffer[..];
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let line = &rest[..end];
            rest = &rest[end + 1..];
            // Other lines are chunks' sizes and ends.
            if line.first() == Some(&b'{') {
                let expected = self.seen.len() + 1;
                if sequence(line) != Some(expected) {
                    bail!("event {expected} is missing or out of order");
                }
                self.seen.push(now);
            }
        }
        let taken = self.buffer.len() - rest.len();
        self.buffer.drain(..taken);
        Ok(())
    }
}

/// The number in an event's object, which is at its end.
fn sequence(line: &[u8]) -> Option<usize> {
    const NAME: &[u8] = b"\"sequence\":\"";
    let begin = line.windows(NAME.len()).rposition(|window| window == NAME)? + NAME.len();
    let digits = &line[begin..];
    let end = digits.iter().position(|byte| *byte == b'"')?;
    std::str::from_utf8(&digits[..end]).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_taken_from_between_chunks_whole_and_in_order() {
        let event = |number: usize| {
            format!("2a\r\n{{\"object\":{{\"data\":{{\"padding\":\"x\",\"sequence\":\"{number}\"}}}}}}\n\r\n")
        };
        let mut events =
            Events { buffer: format!("HTTP/1.1 200 OK\r\n\r\n{}", event(0)).into_bytes(), ..Events::default() };
        assert!(events.begun() && !events.begun());
        let next = [event(1), event(2)].concat();
        let (one, other) = next.split_at(20);
        for part in [one, other] {
            events.buffer.extend_from_slice(part.as_bytes());
            events.take().unwrap();
        }
        assert_eq!(events.seen.len(), 2);
        events.buffer.extend_from_slice(event(4).as_bytes());
        events.take().unwrap_err();
    }
}
