//! Work that several callers want at once is done once.

use std::collections::HashMap;
use std::future::Future;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};

use futures::FutureExt;
use futures::future::{BoxFuture, Shared, WeakShared};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::Error;

/// A running piece of work: its outcome, and how far it is.
pub(crate) struct Flight<T: Clone, P> {
    pub outcome: Shared<BoxFuture<'static, Result<T, Error>>>,
    pub progress: watch::Receiver<P>,
}

/// What [`Flights`] remembers of a flight, which lives as long as somebody waits for it.
type Known<T, P> = (WeakShared<BoxFuture<'static, Result<T, Error>>>, watch::Receiver<P>);

/// Flights by key.
pub(crate) struct Flights<K, T: Clone, P>(Mutex<HashMap<K, Known<T, P>>>);

impl<K, T: Clone, P> Default for Flights<K, T, P> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K, T, P> Flights<K, T, P>
where
    K: Eq + Hash,
    T: Clone + Send + Sync + 'static,
    P: Default + Send + Sync + 'static,
{
    /// Joins the flight of this key, or starts it. It runs as a task of its own, so a slow caller holds up nobody, and
    /// it is aborted when the last caller drops it.
    pub fn join<F>(&self, key: K, start: impl FnOnce(watch::Sender<P>) -> F) -> Flight<T, P>
    where
        F: Future<Output = Result<T, Error>> + Send + 'static,
    {
        let mut flights = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // What has ended is neither joined (its outcome may be an old error) nor kept.
        flights.retain(|_, (known, _)| known.upgrade().is_some_and(|running| running.peek().is_none()));
        if let Some((known, progress)) = flights.get(&key)
            && let Some(outcome) = known.upgrade()
        {
            return Flight { outcome, progress: progress.clone() };
        }
        let (sender, progress) = watch::channel(P::default());
        let task = AbortOnDrop(tokio::spawn(start(sender)));
        let outcome = async move {
            let mut task = task;
            // A task that panicked has logged why.
            (&mut task.0).await.unwrap_or(Err(Error::Cancelled))
        };
        let outcome = outcome.boxed().shared();
        if let Some(known) = outcome.downgrade() {
            flights.insert(key, (known, progress.clone()));
        }
        Flight { outcome, progress }
    }
}

struct AbortOnDrop<T>(JoinHandle<T>);

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl<T: Clone, P: Clone> Flight<T, P> {
    /// Waits for the outcome, showing each step on the way.
    pub async fn watch(self, mut show: impl FnMut(&P)) -> Result<T, Error> {
        let Self { mut outcome, mut progress } = self;
        loop {
            tokio::select! {
                biased;
                result = &mut outcome => {
                    show(&progress.borrow_and_update());
                    return result;
                }
                Ok(()) = progress.changed() => show(&progress.borrow_and_update()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::Notify;

    use super::*;

    #[tokio::test]
    async fn callers_share_one_flight_and_the_next_is_new() {
        let flights = Flights::<u8, usize, ()>::default();
        let started = Arc::new(AtomicUsize::new(0));
        let go = Arc::new(Notify::new());
        let start = || {
            let (started, go) = (Arc::clone(&started), Arc::clone(&go));
            flights.join(1, |_| async move {
                let number = started.fetch_add(1, Ordering::SeqCst);
                go.notified().await;
                Ok(number)
            })
        };
        let (one, other) = (start(), start());
        go.notify_one();
        assert!(matches!(tokio::join!(one.outcome, other.outcome), (Ok(0), Ok(0))));
        let next = start();
        go.notify_one();
        assert!(matches!(next.outcome.await, Ok(1)));
    }

    #[tokio::test]
    async fn a_flight_ends_with_its_last_caller() {
        struct Notice(Arc<Notify>);
        impl Drop for Notice {
            fn drop(&mut self) {
                self.0.notify_one();
            }
        }
        let flights = Flights::<u8, (), ()>::default();
        let ended = Arc::new(Notify::new());
        let notice = Notice(Arc::clone(&ended));
        let one = flights.join(1, |_| async move {
            let _notice = notice;
            std::future::pending().await
        });
        let other = flights.join(1, |_| async { Ok(()) });
        drop(one);
        assert!(other.outcome.clone().now_or_never().is_none(), "it is still running");
        drop(other);
        ended.notified().await;
    }
}
