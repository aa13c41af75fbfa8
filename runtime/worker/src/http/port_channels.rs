//! Port-forward as WebSocket clients other than kubectl speak it (the Python and the JavaScript one): the query names the
//! ports, and each is connected to at once. It has two channels, one for its bytes and one for what went wrong; the first
//! message of either is the port's number. A connection has one end for both directions: the socket's.

use super::Refused;
use super::port_forward::dial;
use super::websocket::Framing;
use crate::context::Context;
use crate::pod::PodView;
use axum::extract::ws::{CloseFrame, Message, WebSocket, close_code};
use bytes::Bytes;
use futures::stream::SplitSink;
use futures::{SinkExt, StreamExt};
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

/// Subprotocols that are spoken, the preferred one first.
pub(super) const PROTOCOLS: [&str; 2] = ["v4.channel.k8s.io", "v4.base64.channel.k8s.io"];
/// Channels are numbered by one character of ASCII, two a port.
const PORTS_MAX: usize = 32;
/// Messages of either direction that wait.
const WAITING: usize = 16;
const BLOCK: usize = 16 * 1024;

/// The ports that a query names: `port=80&port=81`, or `ports=80,81`.
pub(super) fn ports(query: &[(String, String)]) -> Result<Vec<u16>, Refused> {
    let named = query.iter().filter(|(name, _)| name == "port" || name == "ports");
    let ports: Option<Vec<u16>> = named
        .flat_map(|(_, value)| value.split(','))
        .map(|text| text.trim().parse().ok().filter(|port| *port > 0))
        .collect();
    match ports {
        Some(ports) if (1..=PORTS_MAX).contains(&ports.len()) => Ok(ports),
        Some(ports) if ports.is_empty() => Err(Refused::bad_request("query parameter \"port\" is required")),
        Some(_) => Err(Refused::bad_request(format!("at most {PORTS_MAX} ports are forwarded at once"))),
        None => Err(Refused::bad_request("query parameter \"port\" must be a number from 1 to 65535")),
    }
}

/// A message to the client: on a channel, or the answer to a ping.
enum Outgoing {
    Bytes(u8, Bytes),
    Pong(Bytes),
}

/// Forwards until the client or every connection has ended.
pub(super) async fn serve(ctx: Arc<Context>, socket: WebSocket, view: PodView, ports: Vec<u16>) {
    let framing = Framing::of(socket.protocol().and_then(|name| name.to_str().ok()));
    let (sink, mut stream) = socket.split();
    let (sender, outgoing) = mpsc::channel(WAITING);
    let view = Arc::new(view);
    let mut inputs = Vec::new();
    let mut forwards = JoinSet::new();
    for (channel, port) in (0..).step_by(2).zip(ports) {
        let (input, received) = mpsc::channel(WAITING);
        inputs.push(input);
        forwards.spawn(forward(ctx.clone(), view.clone(), port, channel, received, sender.clone()));
    }
    let writer = tokio::spawn(write(sink, framing, outgoing));
    loop {
        let message = tokio::select! {
            ended = forwards.join_next() => if ended.is_some() { continue } else { break },
            message = stream.next() => message,
        };
        match message {
            Some(Ok(Message::Ping(bytes))) => {
                let _closing = sender.send(Outgoing::Pong(bytes)).await;
            }
            Some(Ok(message @ (Message::Binary(_) | Message::Text(_)))) => {
                let read = framing.read(message).filter(|(channel, _)| channel % 2 == 0);
                if let Some((channel, bytes)) = read
                    && let Some(input) = inputs.get(usize::from(channel / 2))
                {
                    // A connection that has ended takes nothing any more.
                    let _ended = input.send(bytes).await;
                }
            }
            Some(Ok(Message::Pong(_))) => {}
            Some(Ok(Message::Close(_)) | Err(_)) | None => break,
        }
    }
    forwards.shutdown().await;
    drop(sender);
    if let Err(error) = writer.await {
        tracing::error!(%error, "a port-forward's writer has died");
    }
}

async fn write(mut sink: SplitSink<WebSocket, Message>, framing: Framing, mut outgoing: mpsc::Receiver<Outgoing>) {
    while let Some(next) = outgoing.recv().await {
        let message = match next {
            Outgoing::Bytes(channel, bytes) => framing.write(channel, &bytes),
            Outgoing::Pong(bytes) => Message::Pong(bytes),
        };
        if sink.send(message).await.is_err() {
            return;
        }
    }
    let close = CloseFrame { code: close_code::NORMAL, reason: "".into() };
    // The other side may have closed first.
    let _gone = sink.send(Message::Close(Some(close))).await;
    let _gone = sink.close().await;
}

/// One connection, from dialling until the pod's side has ended it.
async fn forward(
    ctx: Arc<Context>,
    view: Arc<PodView>,
    port: u16,
    channel: u8,
    mut input: mpsc::Receiver<Bytes>,
    client: mpsc::Sender<Outgoing>,
) {
    for channel in [channel, channel + 1] {
        let _gone = client.send(Outgoing::Bytes(channel, Bytes::copy_from_slice(&port.to_le_bytes()))).await;
    }
    let connection = match dial(&ctx, &view, port).await {
        Ok(connection) => connection,
        Err(text) => {
            let _gone = client.send(Outgoing::Bytes(channel + 1, text.into())).await;
            return;
        }
    };
    let (mut from_pod, mut to_pod) = connection.into_split();
    let send = async {
        while let Some(bytes) = input.recv().await {
            if to_pod.write_all(&bytes).await.is_err() {
                // The program has closed its side; what the client still sends is let go.
                while input.recv().await.is_some() {}
            }
        }
    };
    let receive = async {
        let mut buffer = vec![0; BLOCK];
        while let Ok(length @ 1..) = from_pod.read(&mut buffer).await {
            if client.send(Outgoing::Bytes(channel, Bytes::copy_from_slice(&buffer[..length]))).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = receive => {}
        () = send => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_read_from_either_name_and_must_be_few_numbers() {
        let read = |query: &[(&str, &str)]| {
            let query: Vec<_> = query.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
            ports(&query).map_err(|refused| refused.1)
        };
        assert_eq!(read(&[("ports", "80,81"), ("port", "82")]), Ok(vec![80, 81, 82]));
        assert_eq!(read(&[]), Err("query parameter \"port\" is required".to_owned()));
        assert!(read(&[("port", "0")]).is_err() && read(&[("port", "x")]).is_err());
        let many: Vec<_> = (0..=PORTS_MAX).map(|_| ("port", "80")).collect();
        assert!(read(&many).is_err() && read(&many[1..]).is_ok());
    }
}
