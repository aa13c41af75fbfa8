//! Kubernetes' remote command protocol over WebSocket: each message begins with the number of its channel.
//!
//! `v4.channel.k8s.io` and `v5.channel.k8s.io` differ in one thing: with v5 a client may close a channel (that is, send end
//! of file on stdin) with a message on channel 255. Before v4 the status was a text. With `base64` in its name a protocol
//! has texts for messages, for clients in browsers.

use super::channels::{Channel, Channels, Input, Outgoing, queues, resize};
use axum::extract::ws::{CloseFrame, Message, WebSocket, close_code};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Subprotocols that are spoken, the preferred one first.
pub(super) const PROTOCOLS: [&str; 5] =
    ["v5.channel.k8s.io", "v4.channel.k8s.io", "v4.base64.channel.k8s.io", "channel.k8s.io", "base64.channel.k8s.io"];

/// What a message looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
    /// The channel's number and the bytes.
    Binary,
    /// The channel's digit (after 9 comes what follows it in ASCII) and the bytes in base64.
    Base64,
}

impl Framing {
    /// By the subprotocol that was agreed on, if any.
    pub fn of(protocol: Option<&str>) -> Self {
        if protocol.is_some_and(|name| name.contains("base64")) { Self::Base64 } else { Self::Binary }
    }

    /// Writes a message.
    pub fn write(self, channel: u8, bytes: &[u8]) -> Message {
        match self {
            Self::Binary => {
                let mut message = Vec::with_capacity(bytes.len() + 1);
                message.push(channel);
                message.extend_from_slice(bytes);
                Message::Binary(message.into())
            }
            Self::Base64 => {
                let mut message = String::from(char::from(b'0' + channel));
                BASE64_STANDARD.encode_string(bytes, &mut message);
                Message::Text(message.into())
            }
        }
    }

    /// Reads a message; `None` for one that is none. Clients may call bytes a text, as the Python client does.
    pub fn read(self, message: Message) -> Option<(u8, Bytes)> {
        let mut bytes = match message {
            Message::Binary(bytes) => bytes,
            Message::Text(text) => text.into(),
            _ => return None,
        };
        let channel = *bytes.first()?;
        let rest = bytes.split_off(1);
        match self {
            Self::Binary => Some((channel, rest)),
            Self::Base64 => Some((channel.checked_sub(b'0')?, BASE64_STANDARD.decode(&rest).ok()?.into())),
        }
    }
}

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

/// What a client says on a channel; `None` for what means nothing here.
fn parse(channel: u8, bytes: Bytes) -> Option<Input> {
    match channel {
        STDIN => Some(Input::Stdin(bytes)),
        CLOSE if *bytes == [STDIN] => Some(Input::StdinClosed),
        RESIZE => resize(&bytes),
        _ => None,
    }
}

/// The status as the protocol has it: an object since v4, before that what went wrong.
fn farewell(protocol: Option<&str>, status: &Value) -> String {
    match status["message"].as_str() {
        _ if protocol.is_some_and(|name| name.starts_with('v')) => status.to_string(),
        _ if status["status"] == "Success" => String::new(),
        message => message.unwrap_or("failed").to_owned(),
    }
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
    let protocol = socket.protocol().and_then(|name| name.to_str().ok()).map(str::to_owned);
    let framing = Framing::of(protocol.as_deref());
    let (sink, stream) = socket.split();
    let ((inputs, outgoing), (input, output)) = queues();
    let gone = CancellationToken::new();
    let (pongs, ponged) = mpsc::channel(4);
    let writer = tokio::spawn(write(sink, first, protocol, outgoing, ponged));
    tokio::spawn(read(stream, framing, inputs, pongs, gone.clone()));
    Channels { input, output, gone, writer }
}

async fn write(
    mut sink: SplitSink<WebSocket, Message>,
    first: Channel,
    protocol: Option<String>,
    mut outgoing: mpsc::Receiver<Outgoing>,
    mut pongs: mpsc::Receiver<Bytes>,
) {
    let framing = Framing::of(protocol.as_deref());
    let mut open = sink.send(framing.write(number(first), b"")).await.is_ok();
    while open {
        let next = tokio::select! {
            Some(bytes) = pongs.recv() => {
                open = sink.send(Message::Pong(bytes)).await.is_ok();
                continue;
            }
            next = outgoing.recv() => next,
        };
        open = match next {
            Some(Outgoing::Bytes(channel, bytes)) => sink.send(framing.write(number(channel), &bytes)).await.is_ok(),
            Some(Outgoing::Status(status)) => {
                let close = CloseFrame { code: close_code::NORMAL, reason: "".into() };
                let text = farewell(protocol.as_deref(), &status);
                let _sent = sink.feed(framing.write(ERROR, text.as_bytes())).await;
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
    framing: Framing,
    inputs: mpsc::Sender<Input>,
    pongs: mpsc::Sender<Bytes>,
    gone: CancellationToken,
) {
    while let Some(Ok(message)) = stream.next().await {
        match message {
            message @ (Message::Binary(_) | Message::Text(_)) => {
                // Nobody reads input any more once the process has ended; the client's close is still awaited.
                if let Some(input) = framing.read(message).and_then(|(channel, bytes)| parse(channel, bytes)) {
                    let _unread = inputs.send(input).await;
                }
            }
            Message::Ping(bytes) => {
                let _closing = pongs.send(bytes).await;
            }
            Message::Close(_) => break,
            Message::Pong(_) => {}
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
        let (channel, bytes) = Framing::Binary.read(Message::Binary(Bytes::from_static(bytes)))?;
        parse(channel, bytes)
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

    #[test]
    fn a_text_carries_bytes_or_base64_as_the_protocol_says() {
        let read = |protocol: Option<&str>, text: &'static str| {
            let read = Framing::of(protocol).read(Message::Text(text.into()));
            read.map(|(channel, bytes)| (channel, String::from_utf8_lossy(&bytes).into_owned()))
        };
        assert_eq!(read(Some("v4.channel.k8s.io"), "\0ls"), Some((0, "ls".to_owned())));
        assert_eq!(read(None, "\0ls"), Some((0, "ls".to_owned())));
        assert_eq!(read(Some("v4.base64.channel.k8s.io"), "0bHM="), Some((0, "ls".to_owned())));
        assert_eq!(read(Some("base64.channel.k8s.io"), "0bH!"), None);
        assert_eq!(Framing::Base64.write(1, b"ls"), Message::Text("1bHM=".into()));
        assert_eq!(Framing::Binary.write(1, b"ls"), Message::Binary(Bytes::from_static(b"\x01ls")));
    }

    #[test]
    fn old_protocols_say_in_words_what_went_wrong() {
        let failed = super::super::channels::exit_status(3);
        let text = "command terminated with non-zero exit code: exit status 3";
        assert_eq!(farewell(None, &failed), text);
        assert_eq!(farewell(Some("base64.channel.k8s.io"), &failed), text);
        assert_eq!(farewell(Some("channel.k8s.io"), &super::super::channels::exit_status(0)), "");
        assert!(farewell(Some("v4.base64.channel.k8s.io"), &failed).starts_with('{'));
    }
}
