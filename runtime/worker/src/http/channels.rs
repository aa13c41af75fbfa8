//! A remote command's streams as the worker sees them, whatever carries them: input that comes, output that goes, and a
//! status at the end.

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// The streams that this side writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Channel {
    Stdout,
    Stderr,
}

/// What a client sends.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Input {
    Stdin(Bytes),
    /// No more input.
    StdinClosed,
    Resize {
        columns: u16,
        rows: u16,
    },
}

/// What goes to the client.
#[derive(Debug)]
pub(super) enum Outgoing {
    Bytes(Channel, Bytes),
    /// The end: how it went.
    Status(Value),
}

/// The sending side; clones may be used from several tasks.
#[derive(Clone)]
pub(super) struct Output {
    sender: mpsc::Sender<Outgoing>,
}

impl Output {
    /// Sends bytes; false when the client has gone.
    pub async fn send(&self, channel: Channel, bytes: &[u8]) -> bool {
        self.sender.send(Outgoing::Bytes(channel, Bytes::copy_from_slice(bytes))).await.is_ok()
    }

    /// Sends the final status and closes.
    pub async fn finish(&self, status: Value) {
        // A client that has gone needs no goodbye.
        let _gone = self.sender.send(Outgoing::Status(status)).await;
    }
}

/// A client's streams.
pub(super) struct Channels {
    pub input: mpsc::Receiver<Input>,
    pub output: Output,
    /// Cancelled when the client has gone.
    pub gone: CancellationToken,
    /// Ends when everything has been sent.
    pub writer: tokio::task::JoinHandle<()>,
}

/// Messages of either direction that wait.
const WAITING: usize = 16;

/// What carries a client's streams: it sends what came, and is given what goes.
pub(super) type Carrier = (mpsc::Sender<Input>, mpsc::Receiver<Outgoing>);

/// Both ends of a client's queues: what the carrier reads and writes, and what the worker does.
pub(super) fn queues() -> (Carrier, (mpsc::Receiver<Input>, Output)) {
    let (inputs, input) = mpsc::channel(WAITING);
    let (sender, outgoing) = mpsc::channel(WAITING);
    ((inputs, outgoing), (input, Output { sender }))
}

/// Reads the size of a terminal as clients send it.
pub(super) fn resize(message: &[u8]) -> Option<Input> {
    let size: Value = serde_json::from_slice(message).ok()?;
    let number = |name: &str| size.get(name)?.as_u64().and_then(|length| u16::try_from(length).ok());
    Some(Input::Resize { columns: number("Width")?, rows: number("Height")? })
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

    #[test]
    fn the_exit_code_is_a_cause() {
        assert_eq!(exit_status(0)["status"], "Success");
        let status = exit_status(42);
        assert_eq!(status["reason"], "NonZeroExitCode");
        assert_eq!(status["details"]["causes"][0], json!({"reason": "ExitCode", "message": "42"}));
    }
}
