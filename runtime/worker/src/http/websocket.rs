//! Kubernetes' remote command protocol over WebSocket: each message begins with the number of its channel.
//!
//! `v4.channel.k8s.io` and `v5.channel.k8s.io` differ in one thing: with v5 a client may close a channel (that is, send end
//! of file on stdin) with a message on channel 255.

use super::channels::{Channel, Channels, Input, Outgoing, queues, resize};
use axum::extract::ws::{CloseFrame, Message, WebSocket, close_code};
use bytes::Bytes;
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Subprotocols that are spoken, the preferred one first.
pub(super) const PROTOCOLS: [&str; 2] = ["v5.channel.k8s.io", "v4.channel.k8s.io"];

/// Numbers of the channels.
const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
const CLOSE: u8 = 255;

/// The longest message that is read.
pub(super) const MESSAGE_MAX: usize = 16 << 20;
/// What of a byte stream is under way in either direction.
const TUNNEL_BYTES: usize = 64 * 1024;

/// Reads a client's message; `None` for one that means nothing here.
fn parse(message: &Bytes) -> Option<Input> {
    let (&channel, rest) = message.split_first()?;
    match channel {
        STDIN => Some(Input::Stdin(message.slice(1..))),
        CLOSE if rest == [STDIN] => Some(Input::StdinClosed),
        RESIZE => resize(rest),
        _ => None,
    }
}

fn message(channel: u8, bytes: &[u8]) -> Message {
    let mut message = Vec::with_capacity(bytes.len() + 1);
    message.push(channel);
    message.extend_from_slice(bytes);
    Message::Binary(message.into())
}

fn number(channel: Channel) -> u8 {
    match channel {
        Channel::Stdout => STDOUT,
        Channel::Stderr => STDERR,
    }
}

/// Starts the tasks that read and write the socket. `first` is the lowest channel that this side writes: an empty message on
/// it tells the client that the streams are there.
pub(super) fn open(socket: WebSocket, first: Channel) -> Channels {
    let (sink, stream) = socket.split();
    let ((inputs, outgoing), (input, output)) = queues();
    let gone = CancellationToken::new();
    let (pongs, ponged) = mpsc::channel(4);
    let writer = tokio::spawn(write(sink, first, outgoing, ponged));
    tokio::spawn(read(stream, inputs, pongs, gone.clone()));
    Channels { input, output, gone, writer }
}

async fn write(
    mut sink: SplitSink<WebSocket, Message>,
    first: Channel,
    mut outgoing: mpsc::Receiver<Outgoing>,
    mut pongs: mpsc::Receiver<Bytes>,
) {
    let mut open = sink.send(message(number(first), b"")).await.is_ok();
    while open {
        let next = tokio::select! {
            Some(bytes) = pongs.recv() => {
                open = sink.send(Message::Pong(bytes)).await.is_ok();
                continue;
            }
            next = outgoing.recv() => next,
        };
        open = match next {
            Some(Outgoing::Bytes(channel, bytes)) => sink.send(message(number(channel), &bytes)).await.is_ok(),
            Some(Outgoing::Status(status)) => {
                let close = CloseFrame { code: close_code::NORMAL, reason: "".into() };
                let _sent = sink.feed(message(ERROR, status.to_string().as_bytes())).await;
                let _sent = sink.send(Message::Close(Some(close))).await;
                false
            }
            None => false,
        };
    }
    // The other side may have closed first.
    let _closed = sink.close().await;
}

async fn read(
    mut stream: SplitStream<WebSocket>,
    inputs: mpsc::Sender<Input>,
    pongs: mpsc::Sender<Bytes>,
    gone: CancellationToken,
) {
    while let Some(Ok(message)) = stream.next().await {
        match message {
            Message::Binary(bytes) => {
                // Nobody reads input any more once the process has ended; the client's close is still awaited.
                if let Some(input) = parse(&bytes) {
                    let _unread = inputs.send(input).await;
                }
            }
            Message::Ping(bytes) => {
                let _closing = pongs.send(bytes).await;
            }
            Message::Close(_) => break,
            Message::Text(_) | Message::Pong(_) => {}
        }
    }
    gone.cancel();
}

/// The bytes that binary messages carry, without regard to where one ends.
pub(super) fn tunnel(socket: WebSocket) -> DuplexStream {
    let (ours, theirs) = tokio::io::duplex(TUNNEL_BYTES);
    let (mut sink, mut stream) = socket.split();
    let (mut reader, mut writer) = tokio::io::split(ours);
    tokio::spawn(async move {
        while let Some(Ok(message)) = stream.next().await {
            match message {
                Message::Binary(bytes) if writer.write_all(&bytes).await.is_err() => break,
                Message::Close(_) => break,
                _ => {}
            }
        }
        // Whoever reads has gone, or learns of the end.
        let _gone = writer.shutdown().await;
    });
    tokio::spawn(async move {
        let mut buffer = vec![0; TUNNEL_BYTES / 2];
        while let Ok(length @ 1..) = reader.read(&mut buffer).await {
            if sink.send(Message::Binary(Bytes::copy_from_slice(&buffer[..length]))).await.is_err() {
                return;
            }
        }
        let close = CloseFrame { code: close_code::NORMAL, reason: "".into() };
        let _gone = sink.send(Message::Close(Some(close))).await;
        let _gone = sink.close().await;
    });
    theirs
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &'static [u8]) -> Option<Input> {
        parse(&Bytes::from_static(bytes))
    }

    #[test]
    fn messages_are_told_apart_by_their_channel() {
        assert_eq!(read(b"\x00abc"), Some(Input::Stdin(Bytes::from_static(b"abc"))));
        assert_eq!(read(b"\xff\x00"), Some(Input::StdinClosed));
        assert_eq!(read(b"\xff\x01"), None);
        assert_eq!(read(b"\x04{\"Width\":80,\"Height\":24}"), Some(Input::Resize { columns: 80, rows: 24 }));
        assert_eq!(read(b"\x04{}"), None);
        assert_eq!(read(b""), None);
    }
}
