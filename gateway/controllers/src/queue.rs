//! Work to do, each item once at a time: what changes while it is worked on is worked on again.

use futures::FutureExt as _;
use std::collections::{HashMap, HashSet, VecDeque};
use std::fmt::Debug;
use std::future::Future;
use std::hash::Hash;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// The first wait after a failure; it doubles with each further one.
const FIRST_RETRY: Duration = Duration::from_millis(5);
/// The longest wait after a failure.
const LAST_RETRY: Duration = Duration::from_secs(60);

/// What a reconciliation wants next: to be called again after a while, or only when something changes.
pub(crate) type Again = Option<Duration>;

/// A queue of items that are worked on by several workers. Clones share it.
pub(crate) struct Queue<T> {
    shared: Arc<Shared<T>>,
}

struct Shared<T> {
    state: Mutex<State<T>>,
    wake: Notify,
}

struct State<T> {
    waiting: VecDeque<T>,
    queued: HashSet<T>,
    working: HashSet<T>,
    failures: HashMap<T, u32>,
    /// When an item is to be added later; the soonest wish counts.
    timers: HashMap<T, Instant>,
}

/// The longest that anything waits at a time.
const LONGEST_WAIT: Duration = Duration::from_secs(24 * 3600);

impl<T> Clone for Queue<T> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl<T: Clone + Debug + Eq + Hash + Send + 'static> Queue<T> {
    pub(crate) fn new() -> Self {
        let state = State {
            waiting: VecDeque::new(),
            queued: HashSet::new(),
            working: HashSet::new(),
            failures: HashMap::new(),
            timers: HashMap::new(),
        };
        Self { shared: Arc::new(Shared { state: Mutex::new(state), wake: Notify::new() }) }
    }

    /// Asks for an item to be worked on, soon and once, however often it is asked for before that.
    pub(crate) fn add(&self, item: T) {
        let mut state = self.state();
        if state.queued.insert(item.clone()) && !state.working.contains(&item) {
            state.waiting.push_back(item);
            self.shared.wake.notify_one();
        }
    }

    /// The same, after a while. Times are often a user's: who is woken too early looks again and waits for the rest.
    pub(crate) fn add_after(&self, item: T, wait: Duration) {
        let due = Instant::now() + wait.min(LONGEST_WAIT);
        let mut state = self.state();
        if state.timers.get(&item).is_some_and(|sooner| *sooner <= due) {
            return;
        }
        state.timers.insert(item.clone(), due);
        drop(state);
        let queue = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep_until(due.into()).await;
            let mut state = queue.state();
            if state.timers.get(&item) == Some(&due) {
                state.timers.remove(&item);
                drop(state);
                queue.add(item);
            }
        });
    }

    /// Works on items, `workers` at a time, until told to stop. A failure is tried again, later each time.
    pub(crate) async fn run<F, E>(
        self,
        name: &'static str,
        workers: usize,
        stop: CancellationToken,
        work: impl Fn(T) -> F + Send + Sync + 'static,
    ) where
        F: Future<Output = Result<Again, E>> + Send,
        E: std::fmt::Display,
    {
        let work = Arc::new(work);
        let worker = |_| {
            let (queue, work, stop) = (self.clone(), Arc::clone(&work), stop.clone());
            async move {
                loop {
                    let item = tokio::select! {
                        () = stop.cancelled() => return,
                        item = queue.next() => item,
                    };
                    // One object that somebody made must not end the care of all others.
                    let attempt = AssertUnwindSafe(async { work(item.clone()).await }).catch_unwind().await;
                    let outcome = match attempt {
                        Ok(outcome) => outcome.map_err(|error| error.to_string()),
                        Err(_) => Err("it panicked".to_owned()),
                    };
                    queue.done(name, item, outcome);
                }
            }
        };
        futures::future::join_all((0..workers).map(worker)).await;
    }

    async fn next(&self) -> T {
        loop {
            let woken = self.shared.wake.notified();
            {
                let mut state = self.state();
                if let Some(item) = state.waiting.pop_front() {
                    state.queued.remove(&item);
                    state.working.insert(item.clone());
                    if !state.waiting.is_empty() {
                        self.shared.wake.notify_one();
                    }
                    return item;
                }
            }
            woken.await;
        }
    }

    fn done(&self, name: &'static str, item: T, outcome: Result<Again, String>) {
        let mut state = self.state();
        state.working.remove(&item);
        if state.queued.contains(&item) {
            state.waiting.push_back(item.clone());
            self.shared.wake.notify_one();
        }
        let again = match outcome {
            Ok(again) => {
                state.failures.remove(&item);
                again
            }
            Err(error) => {
                let failures = state.failures.entry(item.clone()).or_default();
                let wait = FIRST_RETRY.saturating_mul(1 << (*failures).min(20)).min(LAST_RETRY);
                *failures += 1;
                // One conflict is everyday life among controllers; a failure that stays is worth a look.
                if *failures > 3 {
                    tracing::warn!(controller = name, ?item, failures, %error, "cannot reconcile");
                } else {
                    tracing::debug!(controller = name, ?item, %error, "reconciling again");
                }
                Some(wait)
            }
        };
        drop(state);
        if let Some(wait) = again {
            self.add_after(item, wait);
        }
    }

    fn state(&self) -> MutexGuard<'_, State<T>> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tokio::sync::mpsc;

    #[tokio::test]
    async fn an_item_added_while_it_is_worked_on_is_worked_on_again_and_never_twice_at_once() {
        let queue = Queue::new();
        let (seen, mut runs) = mpsc::unbounded_channel();
        let (at_once, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let stop = CancellationToken::new();
        let (working, at_most) = (Arc::clone(&at_once), Arc::clone(&most));
        let worker = tokio::spawn(queue.clone().run("test", 4, stop.clone(), move |item: u32| {
            let (seen, working, at_most) = (seen.clone(), Arc::clone(&working), Arc::clone(&at_most));
            async move {
                at_most.fetch_max(working.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                tokio::task::yield_now().await;
                working.fetch_sub(1, Ordering::SeqCst);
                seen.send(item).unwrap();
                Ok::<_, String>(None)
            }
        }));
        for _ in 0..3 {
            queue.add(7);
        }
        assert_eq!(runs.recv().await, Some(7));
        queue.add(7);
        assert_eq!(runs.recv().await, Some(7));
        stop.cancel();
        worker.await.unwrap();
        assert!(runs.try_recv().is_err());
        assert_eq!(most.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn neither_a_panic_nor_a_wait_without_end_stops_the_others() {
        let queue = Queue::new();
        let (seen, mut runs) = mpsc::unbounded_channel();
        let stop = CancellationToken::new();
        let worker = tokio::spawn(queue.clone().run("test", 1, stop.clone(), move |item: u32| {
            let seen = seen.clone();
            async move {
                assert_ne!(item, 7, "a user's number");
                seen.send(item).unwrap();
                Ok::<_, String>(Some(Duration::MAX))
            }
        }));
        for item in [7, 8, 9] {
            queue.add(item);
        }
        assert_eq!((runs.recv().await, runs.recv().await), (Some(8), Some(9)));
        stop.cancel();
        worker.await.unwrap();
    }

    #[tokio::test]
    async fn a_failure_is_tried_again() {
        let queue = Queue::new();
        let (done, mut finished) = mpsc::unbounded_channel();
        let attempts = Arc::new(AtomicUsize::new(0));
        let stop = CancellationToken::new();
        let worker = tokio::spawn(queue.clone().run("test", 1, stop.clone(), move |(): ()| {
            let attempt = attempts.fetch_add(1, Ordering::SeqCst);
            let done = done.clone();
            async move {
                if attempt < 2 {
                    return Err("not yet");
                }
                done.send(attempt).unwrap();
                Ok(None)
            }
        }));
        queue.add(());
        assert_eq!(finished.recv().await, Some(2));
        stop.cancel();
        worker.await.unwrap();
    }
}
