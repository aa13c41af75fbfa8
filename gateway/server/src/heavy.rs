//! Work on what is large: it takes long enough to keep a thread of the runtime from everybody else. So it waits for one
//! of a few turns, and then has a thread to itself.

use std::sync::Arc;
use std::time::Duration;

use carob_api::status::Status;
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::Semaphore;

/// Bodies and objects from this size on are large, in bytes: what is done with them takes milliseconds.
const LARGE: usize = 128 << 10;
/// How long a turn is waited for.
const PATIENCE: Duration = Duration::from_secs(15);
/// When a client may try again for whom there was none, in seconds.
const TRY_AGAIN: u32 = 1;

tokio::task_local! {
    /// Set while a turn is held: what is large inside of it needs no other.
    static TURN: ();
}

/// The turns.
#[derive(Clone)]
pub(crate) struct Heavy(Arc<Semaphore>);

impl Default for Heavy {
    /// As many as half of the processors; small requests have the others.
    fn default() -> Self {
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self(Arc::new(Semaphore::new((processors / 2).max(1))))
    }
}

impl Heavy {
    /// Does work that is about `size` bytes.
    ///
    /// # Errors
    /// 429 if it is large and there was no turn for it in time, beside those of the work itself.
    pub async fn run<T>(&self, size: usize, work: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
        if size < LARGE || TURN.try_with(|()| ()).is_ok() {
            return work.await;
        }
        let full = |_| Status::too_many_requests("Too many requests, please try again later.", TRY_AGAIN);
        let turn = tokio::time::timeout(PATIENCE, self.0.acquire()).await.map_err(full)?;
        let work = TURN.scope((), work);
        let runtime = Handle::current();
        let done = match runtime.runtime_flavor() {
            // There is but one thread, in tests.
            RuntimeFlavor::CurrentThread => work.await,
            _ => tokio::task::block_in_place(|| runtime.block_on(work)),
        };
        drop(turn);
        done
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn small_work_goes_on_beside_large_work() {
        let heavy = Heavy::default();
        let (begun, mut has_begun) = tokio::sync::mpsc::unbounded_channel();
        let (end, may_end) = std::sync::mpsc::channel::<()>();
        let large = heavy.clone();
        let large = tokio::spawn(async move {
            large
                .run(LARGE, async move {
                    begun.send(()).expect("somebody waits");
                    // A thread that does nothing else, as with a computation.
                    may_end.recv().expect("the end");
                    Ok(())
                })
                .await
        });
        has_begun.recv().await.expect("it has begun");
        assert_eq!(heavy.run(LARGE - 1, async { Ok(7) }).await.expect("small work"), 7);
        end.send(()).expect("it waits");
        large.await.expect("no panic").expect("large work");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn large_work_takes_turns_and_one_turn_is_enough_for_what_is_inside() {
        let heavy = Heavy(Arc::new(Semaphore::new(1)));
        let at_once = Arc::new(AtomicUsize::new(0));
        let work = (0..8).map(|_| {
            let (heavy, at_once) = (heavy.clone(), Arc::clone(&at_once));
            tokio::spawn(async move {
                let inner = heavy.clone();
                heavy
                    .run(LARGE, async {
                        assert_eq!(at_once.fetch_add(1, Ordering::SeqCst), 0, "two at once");
                        inner
                            .run(LARGE, async {
                                let _: () = tokio::task::yield_now().await;
                                Ok(())
                            })
                            .await?;
                        at_once.fetch_sub(1, Ordering::SeqCst);
                        Ok(())
                    })
                    .await
            })
        });
        for done in futures::future::join_all(work).await {
            done.expect("no panic").expect("done");
        }
    }
}
