//! Kubernetes' remote command protocol over SPDY: a stream each for input, output, errors, the terminal's size and the
//! status, opened by the client and told apart by a header.

use super::channels::{Channel, Channels, Input, Outgoing, queues, resize};
use super::spdy::{Connection, Stream, StreamReader, StreamWriter};
use super::upgrade::Wanted;
use serde_json::Value;
use std::time::Duration;
use tokio::sync::mpsc;

/// Versions that are spoken, the preferred one first. v4 has a status for what went wrong, v3 a terminal's size; both are
/// Kubernetes' of 2016.
pub(super) const PROTOCOLS: [&str; 4] =
    ["v5.channel.k8s.io", "v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io"];

/// How long a client may take to open its streams (the kubelet's).
const PATIENCE: Duration = Duration::from_secs(30);
/// A terminal's sizes are short.
const SIZE_MAX: usize = 1024;

/// Why a client has no streams.
#[derive(Debug, thiserror::Error)]
pub(super) enum OpenError {
    #[error("the client went away before it had opened its streams")]
    Gone,
    #[error("the client did not open its streams in time")]
    Late,
    #[error("the client opened a stream of type {0:?}")]
    Unknown(String),
}

#[derive(Default)]
struct Streams {
    error: Option<Stream>,
    stdin: Option<Stream>,
    stdout: Option<Stream>,
    stderr: Option<Stream>,
    resize: Option<Stream>,
}

/// Waits until the client has opened what it asked for, and starts the tasks that read and write it.
pub(super) async fn open(
    mut connection: Connection,
    wanted: Wanted,
    protocol: &'static str,
) -> Result<Channels, OpenError> {
    let accepted = tokio::time::timeout(PATIENCE, accept(&mut connection, wanted, protocol)).await;
    let streams = accepted.map_err(|_| OpenError::Late)??;
    let ((inputs, outgoing), (input, output)) = queues();
    let gone = connection.gone();
    // Nothing is sent on it, but its end tells the client that no more input is wanted.
    let stdin = streams.stdin.map(|stdin| {
        tokio::spawn(feed(stdin.reader, inputs.clone()));
        stdin.writer
    });
    if let Some(resize) = streams.resize {
        tokio::spawn(sizes(resize.reader, inputs));
    }
    let writers = Writers {
        stdin,
        stdout: streams.stdout.map(|stream| stream.writer),
        stderr: streams.stderr.map(|stream| stream.writer),
        error: streams.error.map(|stream| stream.writer),
        structured: !matches!(protocol, "v3.channel.k8s.io" | "v2.channel.k8s.io"),
    };
    let writer = tokio::spawn(async move {
        writers.run(outgoing).await;
        connection.close().await;
    });
    Ok(Channels { input, output, gone, writer })
}

async fn accept(connection: &mut Connection, wanted: Wanted, protocol: &str) -> Result<Streams, OpenError> {
    let Wanted { stdin, stdout, stderr, tty } = wanted;
    let sizes = tty && protocol != "v2.channel.k8s.io";
    let expected = 1 + [stdin, stdout, stderr && !tty, sizes].into_iter().filter(|wanted| *wanted).count();
    let mut streams = Streams::default();
    for _ in 0..expected {
        let stream = connection.accept().await.ok_or(OpenError::Gone)?;
        let kind = stream.headers.get("streamtype").unwrap_or_default().to_owned();
        let place = match kind.as_str() {
            "error" => &mut streams.error,
            "stdin" => &mut streams.stdin,
            "stdout" => &mut streams.stdout,
            "stderr" => &mut streams.stderr,
            "resize" => &mut streams.resize,
            _ => return Err(OpenError::Unknown(kind)),
        };
        if place.replace(stream).is_some() {
            return Err(OpenError::Unknown(format!("{kind} a second time")));
        }
    }
    Ok(streams)
}

async fn feed(mut stdin: StreamReader, inputs: mpsc::Sender<Input>) {
    // A client that gives the stream up ends it.
    while let Ok(Some(bytes)) = stdin.read().await {
        if inputs.send(Input::Stdin(bytes)).await.is_err() {
            // Nobody takes input any more; what still comes is let go, so that the connection is read on.
            while let Ok(Some(_)) = stdin.read().await {}
            return;
        }
    }
    let _ended = inputs.send(Input::StdinClosed).await;
}

/// Sizes come as JSON documents, one after the other.
async fn sizes(mut stream: StreamReader, inputs: mpsc::Sender<Input>) {
    let mut text = Vec::new();
    while let Ok(Some(bytes)) = stream.read().await {
        text.extend_from_slice(&bytes);
        while let Some(end) = text.iter().position(|byte| *byte == b'}') {
            let document: Vec<u8> = text.drain(..=end).collect();
            if let Some(input) = resize(&document)
                && inputs.send(input).await.is_err()
            {
                return;
            }
        }
        if text.len() > SIZE_MAX {
            return;
        }
    }
}

struct Writers {
    stdin: Option<StreamWriter>,
    stdout: Option<StreamWriter>,
    stderr: Option<StreamWriter>,
    error: Option<StreamWriter>,
    /// Whether the status is an object, or its text.
    structured: bool,
}

impl Writers {
    async fn run(self, mut outgoing: mpsc::Receiver<Outgoing>) {
        while let Some(next) = outgoing.recv().await {
            match next {
                Outgoing::Bytes(channel, bytes) => {
                    let stream = match channel {
                        Channel::Stdout => &self.stdout,
                        Channel::Stderr => &self.stderr,
                    };
                    // What the client hasn't opened it doesn't want; one that has gone is noticed by the reader.
                    if let Some(stream) = stream {
                        stream.send(&bytes).await;
                    }
                }
                Outgoing::Status(status) => {
                    self.finish(&status).await;
                    return;
                }
            }
        }
    }

    async fn finish(&self, status: &Value) {
        let succeeded = status["status"] == "Success";
        let text = match status["message"].as_str() {
            _ if self.structured => status.to_string(),
            _ if succeeded => String::new(),
            message => message.unwrap_or("failed").to_owned(),
        };
        if let Some(error) = &self.error {
            error.send(text.as_bytes()).await;
        }
        for stream in [&self.error, &self.stdout, &self.stderr, &self.stdin].into_iter().flatten() {
            stream.finish().await;
        }
    }
}
