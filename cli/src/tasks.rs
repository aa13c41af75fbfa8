//! The parts of a long-running process, which end together.

use std::future::Future;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// How long everything may take to end.
const PATIENCE: Duration = Duration::from_secs(10);

/// The parts of the process, which end together.
#[derive(Default)]
pub struct Tasks {
    set: JoinSet<(&'static str, Result<()>)>,
    stop: CancellationToken,
}

impl Tasks {
    /// Begins a part.
    pub fn spawn<F>(&mut self, name: &'static str, start: impl FnOnce(CancellationToken) -> F)
    where
        F: Future<Output = Result<()>> + Send + 'static,
    {
        let work = start(self.stop.clone());
        self.set.spawn(async move { (name, work.await) });
    }

    /// Waits for SIGTERM, SIGINT or the end of a part, then ends the others.
    pub async fn until_told_to_stop(mut self) -> Result<()> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let first = tokio::select! {
            _ = terminate.recv() => None,
            _ = interrupt.recv() => None,
            ended = self.set.join_next() => ended,
        };
        self.stop.cancel();
        let others = async { while self.set.join_next().await.is_some() {} };
        if tokio::time::timeout(PATIENCE, others).await.is_err() {
            tracing::warn!("some parts did not end within {} s", PATIENCE.as_secs());
        }
        match first {
            None => Ok(()),
            Some(Ok((name, Err(error)))) => Err(error.context(format!("the {name} failed"))),
            Some(Ok((name, Ok(())))) => bail!("the {name} ended by itself"),
            Some(Err(panic)) => Err(panic).context("a part of the process panicked"),
        }
    }
}
