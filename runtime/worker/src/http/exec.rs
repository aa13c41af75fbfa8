//! `kubectl exec`: a further process in a container, and its streams.

use super::channels::{Channel, Channels, Input, Output, exit_status, internal_error};
use super::upgrade::{self, Wanted};
use super::{Refused, find, running};
use crate::context::Context;
use crate::stream::FdStream;
use axum::extract::{Path, Query, Request, State};
use axum::response::Response;
use carob_sandbox::{ContainerId, ExecConfig, ExecProcess};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// `PodExecOptions`
#[derive(Debug, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "they are the API's")]
pub(super) struct Options {
    pub command: Vec<String>,
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    pub tty: bool,
}

impl Options {
    /// Reads the query; the kubelet's own names (`input`, `output`, `error`) are understood too.
    pub fn parse(query: &[(String, String)]) -> Self {
        let mut options = Self::default();
        for (key, value) in query {
            // As Kubernetes reads switches in a query: the Python client says `True`.
            let truth = value != "0" && !value.eq_ignore_ascii_case("false");
            match key.as_str() {
                "command" => options.command.push(value.clone()),
                "stdin" | "input" => options.stdin |= truth,
                "stdout" | "output" => options.stdout |= truth,
                "stderr" | "error" => options.stderr |= truth,
                "tty" => options.tty |= truth,
                _ => {}
            }
        }
        options
    }

    /// The streams.
    pub fn wanted(&self) -> Wanted {
        Wanted { stdin: self.stdin, stdout: self.stdout, stderr: self.stderr, tty: self.tty }
    }
}

pub(super) async fn exec(
    State(ctx): State<Arc<Context>>,
    Path((namespace, pod, container)): Path<(String, String, String)>,
    Query(query): Query<Vec<(String, String)>>,
    request: Request,
) -> Result<Response, Refused> {
    let options = Options::parse(&query);
    if !(options.stdin || options.stdout || options.stderr) {
        return Err(Refused::bad_request("you must specify at least 1 of stdin, stdout, stderr"));
    }
    if options.command.is_empty() {
        return Err(Refused::bad_request("you must specify at least one command for the container"));
    }
    let (_, view) = find(&ctx, &namespace, &pod)?;
    let id = running(&view, &container)?;
    upgrade::command(request, options.wanted(), move |channels| serve(ctx, channels, id, options)).await
}

async fn serve(ctx: Arc<Context>, channels: Channels, id: ContainerId, options: Options) {
    let Channels { input, output, gone, writer } = channels;
    let config = ExecConfig {
        argv: options.command,
        env: if options.tty { vec![("TERM".to_owned(), "xterm".to_owned())] } else { Vec::new() },
        tty: options.tty,
        stdin: options.stdin,
        ..ExecConfig::default()
    };
    let status = match ctx.runtime.exec(&id, config).await {
        Ok(process) => match stream(process, input, &output, &gone).await {
            Some(code) => exit_status(code),
            None => internal_error("error executing command in container: the sandbox went away"),
        },
        Err(carob_sandbox::Error::Start { message, exit_code }) => {
            // As with containerd: the words go to the client, and the code where scripts look for it.
            let text = format!("failed to exec in container: failed to start exec: {message}");
            if exit_code == 127 || exit_code == 126 {
                output.send(Channel::Stderr, format!("{message}\n").as_bytes()).await;
                exit_status(exit_code)
            } else {
                internal_error(&format!("error executing command in container: {text}"))
            }
        }
        Err(error) => internal_error(&format!("error executing command in container: {error}")),
    };
    output.finish(status).await;
    drop(output);
    // The last bytes matter more than this task's end; a client that hangs is left after a while.
    if tokio::time::timeout(Duration::from_secs(30), writer).await.is_err() {
        tracing::debug!(%id, "an exec's client doesn't take its last bytes");
    }
}

/// Joins the process's streams with the socket's; its exit code, `None` when nobody can say.
async fn stream(
    process: ExecProcess,
    input: mpsc::Receiver<Input>,
    output: &Output,
    gone: &CancellationToken,
) -> Option<i32> {
    let ExecProcess { pid: _, stdin, stdout, stderr, terminal, mut exit } = process;
    let exited = CancellationToken::new();
    let terminal = terminal.and_then(|fd| FdStream::new(fd).ok()).map(Arc::new);
    let stdin = stdin.and_then(|fd| FdStream::new(fd).ok()).map(Arc::new);
    let open = |fd: Option<OwnedFd>| fd.and_then(|fd| FdStream::new(fd).ok()).map(Arc::new);
    let sink = terminal.clone().or(stdin);
    let feeder = tokio::spawn(feed(input, sink, terminal.is_some()));
    let outputs = [(Channel::Stdout, terminal.or(open(stdout))), (Channel::Stderr, open(stderr))];
    let pumps: Vec<_> = outputs
        .into_iter()
        .filter_map(|(channel, stream)| {
            stream.map(|stream| tokio::spawn(pump(stream, channel, output.clone(), exited.clone())))
        })
        .collect();
    // A client that goes away closes the process's input; a process that heeds it not runs on, as in the kubelet.
    let code = tokio::select! {
        code = &mut exit => code.ok(),
        () = gone.cancelled() => None,
    };
    exited.cancel();
    for pump in pumps {
        if gone.is_cancelled() {
            pump.abort();
        } else if let Err(error) = pump.await {
            tracing::error!(%error, "an exec's output was lost");
        }
    }
    feeder.abort();
    code
}

/// Writes the client's input to the process until the client closes it or goes; a terminal is fed on, for its size changes.
pub(super) async fn feed(mut input: mpsc::Receiver<Input>, mut sink: Option<Arc<FdStream>>, is_terminal: bool) {
    while let Some(message) = input.recv().await {
        match (message, &sink) {
            (Input::Stdin(bytes), Some(stream)) => {
                let written = stream.write_all(&bytes).await;
                sink = sink.filter(|_| written.is_ok());
            }
            (Input::StdinClosed, Some(stream)) if is_terminal => {
                // A terminal has no end of file; control-D is what it has instead.
                let _hung_up = stream.write_all(&[4]).await;
            }
            (Input::StdinClosed, _) => return,
            (Input::Resize { columns, rows }, Some(stream)) if is_terminal => resize(stream, columns, rows),
            _ => {}
        }
    }
}

fn resize(terminal: &FdStream, columns: u16, rows: u16) {
    let size = rustix::termios::Winsize { ws_col: columns, ws_row: rows, ws_xpixel: 0, ws_ypixel: 0 };
    if let Err(error) = rustix::termios::tcsetwinsize(terminal.get(), size) {
        tracing::debug!(%error, "a terminal could not be resized");
    }
}

/// How long an ended process's streams may stay silent before they count as ended too: something else holds them open.
const LINGER: Duration = Duration::from_millis(500);

/// Sends what the process writes until its end.
async fn pump(stream: Arc<FdStream>, channel: Channel, output: Output, exited: CancellationToken) {
    let mut buffer = vec![0; 32 * 1024];
    loop {
        let read = async {
            tokio::select! {
                biased;
                read = stream.read(&mut buffer) => read.unwrap_or(0),
                () = async { exited.cancelled().await; tokio::time::sleep(LINGER).await } => 0,
            }
        };
        let n = read.await;
        if n == 0 || !output.send(channel, &buffer[..n]).await {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_name_the_command_word_by_word() {
        let query = [
            ("command", "sh"),
            ("command", "-c"),
            ("command", "a b"),
            ("stdout", "True"),
            ("tty", "1"),
            ("stdin", "False"),
        ];
        let query: Vec<(String, String)> = query.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let options = Options::parse(&query);
        assert_eq!(options.command, ["sh", "-c", "a b"]);
        assert!(options.stdout && options.tty && !options.stdin && !options.stderr);
    }
}
