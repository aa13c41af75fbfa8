//! Kubernetes' remote command protocol over WebSocket: each message begins with the number of its channel.
//!
//! `v4.channel.k8s.io` and `v5.channel.k8s.io` differ in one thing: with v5 a client may close a channel (that is, send end
//! of file on stdin) with a message on channel 255.

use axum::extract::ws::{CloseFrame, Message, WebSocket, close_code};
use bytes::Bytes;
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Subprotocols that are spoken, the preferred one first.
pub(super) const PROTOCOLS: [&str; 2] = ["v5.channel.k8s.io", "v4.channel.k8s.io"];

/// Numbers of the channels.
pub(super) const STDIN: u8 = 0;
pub(super) const STDOUT: u8 = 1;
pub(super) const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
const CLOSE: u8 = 255;

/// What a client sends.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Input {
    Stdin(Bytes),
    /// No more input (v5).
    StdinClosed,
    Resize {
        columns: u16,
        rows: u16,
    },
}

/// Reads a client's message; `None` for one that means nothing here.
pub(super) fn parse(message: &Bytes) -> Option<Input> {
    let (&channel, rest) = message.split_first()?;
    match channel {
        STDIN => Some(Input::Stdin(message.slice(1..))),
        CLOSE if rest == [STDIN] => Some(Input::StdinClosed),
        RESIZE => {
            let size: Value = serde_json::from_slice(rest).ok()?;
            let number = |name: &str| size.get(name)?.as_u64().and_then(|length| u16::try_from(length).ok());
            Some(Input::Resize { columns: number("Width")?, rows: number("Height")? })
        }
        _ => None,
    }
}

/// The sending side; clones may be used from several tasks.
#[derive(Clone)]
pub(super) struct Output {
    sender: mpsc::Sender<Message>,
}

impl Output {
    /// Sends bytes on a channel; false when the client has gone.
    pub async fn send(&self, channel: u8, bytes: &[u8]) -> bool {
        let mut message = Vec::with_capacity(bytes.len() + 1);
        message.push(channel);
        message.extend_from_slice(bytes);
        self.sender.send(Message::Binary(Bytes::from(message))).await.is_ok()
    }

    /// Sends the final status and closes.
    pub async fn finish(&self, status: &Value) {
        self.send(ERROR, status.to_string().as_bytes()).await;
        let close = CloseFrame { code: close_code::NORMAL, reason: "".into() };
        // A client that has gone needs no goodbye.
        let _gone = self.sender.send(Message::Close(Some(close))).await;
    }
}

/// A socket taken apart.
pub(super) struct Channels {
    pub input: mpsc::Receiver<Input>,
    pub output: Output,
    /// Cancelled when the client has gone.
    pub gone: CancellationToken,
    /// Ends when everything has been sent.
    pub writer: tokio::task::JoinHandle<()>,
}

impl Channels {
    /// Starts the tasks that read and write the socket. `first` is the lowest channel that this side writes: an empty
    /// message on it tells the client that the streams are there.
    pub async fn open(socket: WebSocket, first: u8) -> Self {
        let (sink, stream) = socket.split();
        let (sender, messages) = mpsc::channel(16);
        let (inputs, input) = mpsc::channel(16);
        let gone = CancellationToken::new();
        let writer = tokio::spawn(write(sink, messages));
        tokio::spawn(read(stream, inputs, sender.clone(), gone.clone()));
        let output = Output { sender };
        output.send(first, b"").await;
        Self { input, output, gone, writer }
    }
}

async fn write(mut sink: SplitSink<WebSocket, Message>, mut messages: mpsc::Receiver<Message>) {
    while let Some(message) = messages.recv().await {
        let last = matches!(message, Message::Close(_));
        if sink.send(message).await.is_err() || last {
            break;
        }
    }
    // The other side may have closed first.
    let _closed = sink.close().await;
}

async fn read(
    mut stream: SplitStream<WebSocket>,
    inputs: mpsc::Sender<Input>,
    pongs: mpsc::Sender<Message>,
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
                let _closing = pongs.send(Message::Pong(bytes)).await;
            }
            Message::Close(_) => break,
            Message::Text(_) | Message::Pong(_) => {}
        }
    }
    gone.cancel();
}

/// The status of a command that ran (`metav1.Status`): success, or a failure whose cause is the exit code.
pub(super) fn exit_status(code: i32) -> Value {
    if code == 0 {
        return json!({"metadata": {}, "status": "Success"});
    }
    json!({
        "metadata": {},
        "status": "Failure",
        "message": format!("command terminated with non-zero exit code: exit status {code}"),
        "reason": "NonZeroExitCode",
        "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
    })
}

/// The status of a command that could not be run.
pub(super) fn internal_error(message: &str) -> Value {
    json!({
        "metadata": {},
        "status": "Failure",
        "message": format!("Internal error occurred: {message}"),
        "reason": "InternalError",
        "details": {"causes": [{"message": message}]},
        "code": 500,
    })
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

    #[test]
    fn the_exit_code_is_a_cause() {
        assert_eq!(exit_status(0)["status"], "Success");
        let status = exit_status(42);
        assert_eq!(status["reason"], "NonZeroExitCode");
        assert_eq!(status["details"]["causes"][0], json!({"reason": "ExitCode", "message": "42"}));
    }
}
