//! `kubectl attach`: a running container's output from now on (read from its log), and its input.

use super::channels::{Channel, Channels, Output, exit_status};
use super::cri;
use super::exec::{Options, feed};
use super::{Refused, container, find, running, upgrade};
use crate::context::Context;
use crate::pod::PodView;
use crate::stream::FdStream;
use axum::extract::{Path, Query, Request, State};
use axum::response::Response;
use carob_sandbox::ContainerId;
use std::io::{self, BufRead, BufReader, Seek, SeekFrom};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

struct Attached {
    id: ContainerId,
    log: PathBuf,
    tty: bool,
    stdin_once: bool,
    view: watch::Receiver<PodView>,
    options: Options,
}

pub(super) async fn attach(
    State(ctx): State<Arc<Context>>,
    Path((namespace, pod, name)): Path<(String, String, String)>,
    Query(query): Query<Vec<(String, String)>>,
    request: Request,
) -> Result<Response, Refused> {
    let options = Options::parse(&query);
    let (handle, view) = find(&ctx, &namespace, &pod)?;
    let id = running(&view, &name)?;
    let found = container(&view, &name)?;
    let attempt = found.attempt.unwrap_or(0);
    let wanted = options.wanted();
    let attached = Attached {
        id,
        log: view.logs.join(&name).join(format!("{attempt}.log")),
        tty: found.tty,
        stdin_once: found.stdin_once,
        view: handle.view.clone(),
        options: Options { stdin: options.stdin && found.stdin, ..options },
    };
    upgrade::command(request, wanted, move |channels| serve(ctx, channels, attached)).await
}

async fn serve(ctx: Arc<Context>, channels: Channels, attached: Attached) {
    let Channels { input, output, gone, writer } = channels;
    let mut feeder = if attached.options.stdin {
        match ctx.runtime.attach_stdin(&attached.id).await.map_err(io::Error::other).and_then(FdStream::new) {
            Ok(stream) => {
                let (ctx, id, once) = (ctx.clone(), attached.id.clone(), attached.stdin_once);
                let tty = attached.tty;
                Some(tokio::spawn(async move {
                    feed(input, Some(Arc::new(stream)), tty).await;
                    // A terminal stays: it is the container's output, too.
                    if once
                        && !tty
                        && let Err(error) = ctx.runtime.close_stdin(&id).await
                    {
                        tracing::debug!(%id, %error, "a container's input could not be closed");
                    }
                }))
            }
            Err(error) => {
                tracing::debug!(id = %attached.id, %error, "a container's input could not be attached");
                None
            }
        }
    } else {
        None
    };
    tokio::select! {
        // What the client sent before it went is still the container's, and so is the end of it.
        () = gone.cancelled() => if let Some(feeder) = &mut feeder {
            let _takes_no_input = tokio::time::timeout(PATIENCE, feeder).await;
        },
        result = follow(&attached, &output) => {
            if let Err(error) = result {
                tracing::debug!(id = %attached.id, %error, "a container's output could not be followed");
            }
            output.finish(exit_status(0)).await;
        }
    }
    drop(output);
    if let Some(feeder) = feeder {
        feeder.abort();
    }
    if tokio::time::timeout(PATIENCE, writer).await.is_err() {
        tracing::debug!(id = %attached.id, "an attached client doesn't take its last bytes");
    }
}

/// How long what is under way is given to arrive at its other side once one has ended.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often the log is looked at.
const POLL: Duration = Duration::from_millis(20);

/// Sends what the container writes from now on until it ends.
async fn follow(attached: &Attached, output: &Output) -> io::Result<()> {
    let mut file = std::fs::File::open(&attached.log)?;
    file.seek(SeekFrom::End(0))?;
    let mut reader = BufReader::new(file);
    let mut line = Vec::new();
    loop {
        let runs = {
            let view = attached.view.borrow();
            view.containers.iter().any(|container| container.running.as_ref() == Some(&attached.id))
        };
        while reader.read_until(b'\n', &mut line)? > 0 && line.last() == Some(&b'\n') {
            if let Some(entry) = cri::parse(&line) {
                let (channel, wanted) = if entry.stderr && !attached.tty {
                    (Channel::Stderr, attached.options.stderr)
                } else {
                    (Channel::Stdout, attached.options.stdout)
                };
                let mut text = entry.text.to_vec();
                if !entry.partial {
                    text.push(b'\n');
                }
                if wanted && !output.send(channel, &text).await {
                    return Ok(());
                }
            }
            line.clear();
        }
        if !runs {
            return Ok(());
        }
        if line.is_empty() && rotated(&attached.log, reader.get_ref())? {
            reader = BufReader::new(std::fs::File::open(&attached.log)?);
            continue;
        }
        tokio::time::sleep(POLL).await;
    }
}

fn rotated(log: &std::path::Path, open: &std::fs::File) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    let now = match std::fs::metadata(log) {
        Ok(meta) => meta.ino(),
        // Between the two steps of a rotation.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    Ok(now != open.metadata()?.ino())
}
