//! A future that is looked at only when it has something to say.
//!
//! Long conversations wait for what happens all the time and, beside it, for deadlines and the server's end. Polled
//! together, each event would pay for all of them; an [`Aside`] has a waker of its own and is left alone until that is
//! woken.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use futures::task::AtomicWaker;

/// A future beside the main one of the same task.
pub(crate) struct Aside<T> {
    future: Pin<Box<dyn Future<Output = T> + Send>>,
    bell: Arc<Bell>,
    waker: Waker,
}

/// What the future wakes.
struct Bell {
    rung: AtomicBool,
    task: AtomicWaker,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.rung.store(true, Ordering::Release);
        self.task.wake();
    }
}

impl<T> Aside<T> {
    pub fn new(future: impl Future<Output = T> + Send + 'static) -> Self {
        // Its first look it has for free.
        let bell = Arc::new(Bell { rung: AtomicBool::new(true), task: AtomicWaker::new() });
        Self { future: Box::pin(future), waker: Waker::from(Arc::clone(&bell)), bell }
    }
}

impl<T> Future for Aside<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        // The task is told to before the look: a ring in between is seen by one of the two.
        self.bell.task.register(cx.waker());
        if !self.bell.rung.load(Ordering::Acquire) {
            return Poll::Pending;
        }
        // Acquires what whoever rings now has done before.
        self.bell.rung.swap(false, Ordering::AcqRel);
        let Self { future, waker, .. } = &mut *self;
        future.as_mut().poll(&mut Context::from_waker(waker))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::time::Duration;

    use futures::FutureExt as _;
    use tokio::sync::Notify;

    use super::*;

    #[tokio::test]
    async fn it_is_polled_only_after_it_was_woken() {
        let (polls, notify) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
        let (counted, notified) = (Arc::clone(&polls), Arc::clone(&notify));
        let mut inner = Box::pin(async move { notified.notified().await });
        let mut aside = Aside::new(futures::future::poll_fn(move |cx| {
            counted.fetch_add(1, Ordering::Relaxed);
            inner.as_mut().poll(cx)
        }));
        for _ in 0..5 {
            assert!((&mut aside).now_or_never().is_none());
        }
        assert_eq!(polls.load(Ordering::Relaxed), 1);
        notify.notify_one();
        assert!((&mut aside).now_or_never().is_some());
        assert_eq!(polls.load(Ordering::Relaxed), 2);
    }

    #[tokio::test]
    async fn its_waking_wakes_the_task() {
        let aside = Aside::new(async {
            tokio::time::sleep(Duration::from_millis(5)).await;
            tokio::task::yield_now().await;
            7
        });
        assert_eq!(tokio::time::timeout(Duration::from_secs(30), aside).await.expect("woken"), 7);
    }
}
