//! Tasks that are meant to last: one that panics is told of and begins again, for nothing else would notice that it is missing.

use std::any::Any;
use std::fmt;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use futures::FutureExt as _;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// The pause after a panic; it doubles with each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// What has lasted this long has earned the first pause again.
const FORGIVEN_AFTER: Duration = Duration::from_secs(600);

/// A panic, and what it said.
pub struct Panic(Box<dyn Any + Send>);

impl fmt::Display for Panic {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.0.downcast_ref::<&str>().copied();
        let text = text.or_else(|| self.0.downcast_ref::<String>().map(String::as_str));
        out.write_str(text.unwrap_or("without a message"))
    }
}

impl fmt::Debug for Panic {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Panic({self})")
    }
}

/// Awaits `work`, of which a panic is an outcome. What it left half done is the caller's to begin anew.
pub async fn caught<T>(work: impl Future<Output = T>) -> Result<T, Panic> {
    AssertUnwindSafe(work).catch_unwind().await.map_err(Panic)
}

/// Does a piece of a thread's work; none if that panicked, which is told in the log.
pub fn survive<T>(name: &str, work: impl FnOnce() -> T) -> Option<T> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(done) => Some(done),
        Err(panic) => {
            tracing::error!(thread = name, panic = %Panic(panic), "a thread's work panicked: it goes on with the next");
            None
        }
    }
}

/// Runs what `begin` begins until it ends by itself or `stop` is cancelled. What panics begins again, later each time.
pub async fn keep<F: Future<Output = ()>>(name: &str, stop: CancellationToken, mut begin: impl FnMut() -> F) {
    let mut pause = FIRST_PAUSE;
    loop {
        let begun = Instant::now();
        // In a place of its own: what is kept may be large, and is in many tasks.
        let work = Box::pin(async { begin().await });
        match stop.run_until_cancelled(caught(work)).await {
            None | Some(Ok(())) => return,
            Some(Err(panic)) => tracing::error!(task = name, %panic, "a task panicked: it begins again"),
        }
        if begun.elapsed() >= FORGIVEN_AFTER {
            pause = FIRST_PAUSE;
        }
        if stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
            return;
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[tokio::test(start_paused = true)]
    async fn what_panics_begins_again_later_each_time_until_it_ends_by_itself() {
        let (begun, count) = (Instant::now(), Cell::new(0));
        keep("test", CancellationToken::new(), || {
            count.set(count.get() + 1);
            let number = count.get();
            async move { assert!(number > 3, "the {number}. time") }
        })
        .await;
        assert_eq!(count.get(), 4);
        assert!(begun.elapsed() >= FIRST_PAUSE * (1 + 2 + 4));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_told_to_stop_does_not_begin_again() {
        let stop = CancellationToken::new();
        keep("test", stop.clone(), || {
            stop.cancel();
            async { panic!("once") }
        })
        .await;
    }

    #[tokio::test]
    async fn a_panic_says_what_it_said() {
        let panic = caught(async { panic!("number {}", 7) }).await.unwrap_err();
        assert_eq!(panic.to_string(), "number 7");
        assert_eq!(survive("test", || 1), Some(1));
        assert_eq!(survive("test", || -> u8 { panic!("plain") }), None);
    }
}
