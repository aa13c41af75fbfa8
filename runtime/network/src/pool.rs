//! Namespaces made ahead of need, by one thread.

use std::os::fd::OwnedFd;
use std::sync::mpsc;

use tokio::sync::{Mutex, mpsc as tokio_mpsc, oneshot};

use crate::Error;
use crate::namespace::{HostLinks, Made, Maker};
use crate::netlink::Netlink;

/// What the thread is asked for.
enum Order {
    /// A namespace for the pool.
    Ready,
    /// A link into this one.
    Into(OwnedFd, oneshot::Sender<Result<Made, Error>>),
}

/// Hands out namespaces; the thread behind it makes one for each that is taken.
pub(crate) struct Pool {
    orders: mpsc::Sender<Order>,
    ready: Mutex<tokio_mpsc::UnboundedReceiver<Result<Made, Error>>>,
}

impl Pool {
    /// Starts the thread; it makes nothing yet.
    pub(crate) fn start(maker: Maker) -> Result<Self, Error> {
        let (orders, inbox) = mpsc::channel();
        let (outbox, ready) = tokio_mpsc::unbounded_channel();
        let mut host = Netlink::open().map_err(Error::kernel("open a netlink socket"))?;
        let host_links = HostLinks::open().map_err(Error::kernel("open a socket"))?;
        std::thread::Builder::new()
            .name("netns".into())
            .stack_size(256 << 10)
            .spawn(move || {
                while let Ok(order) = inbox.recv() {
                    match order {
                        Order::Ready => {
                            if outbox.send(maker.make(&mut host, &host_links, None)).is_err() {
                                return;
                            }
                        }
                        Order::Into(netns, asked) => {
                            let made = maker.make(&mut host, &host_links, Some(netns));
                            if let Err(Ok(unwanted)) = asked.send(made) {
                                maker.take_back(&unwanted);
                            }
                        }
                    }
                }
            })
            .map_err(Error::kernel("start a thread"))?;
        Ok(Self { orders, ready: Mutex::new(ready) })
    }

    /// Orders the namespaces that wait ready; to be called once.
    pub(crate) fn fill(&self, target: usize) {
        for _ in 0..target {
            // A closed channel shows at the next `take`.
            let _ = self.orders.send(Order::Ready);
        }
    }

    /// Takes one that is ready, or waits for one to be made.
    pub(crate) async fn take(&self) -> Result<Made, Error> {
        // Every taker orders a namespace and takes one, so the number that is ready stays at what `fill` ordered.
        self.orders.send(Order::Ready).map_err(|_| Error::Closed)?;
        self.ready.lock().await.recv().await.unwrap_or(Err(Error::Closed))
    }

    /// Links a namespace that somebody else has made.
    pub(crate) async fn link(&self, netns: OwnedFd) -> Result<Made, Error> {
        let (asked, answer) = oneshot::channel();
        self.orders.send(Order::Into(netns, asked)).map_err(|_| Error::Closed)?;
        answer.await.unwrap_or(Err(Error::Closed))
    }
}
