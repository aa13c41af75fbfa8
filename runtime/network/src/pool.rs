//! Namespaces made ahead of need, by one thread.

use std::sync::mpsc;

use tokio::sync::{Mutex, mpsc as tokio_mpsc};

use crate::Error;
use crate::namespace::{HostLinks, Made, Maker};
use crate::netlink::Netlink;

/// Hands out namespaces; the thread behind it makes one for each that is taken.
pub(crate) struct Pool {
    orders: mpsc::Sender<()>,
    ready: Mutex<tokio_mpsc::UnboundedReceiver<Result<Made, Error>>>,
    target: usize,
}

impl Pool {
    /// Starts the thread; it makes nothing yet.
    pub(crate) fn start(maker: Maker, target: usize) -> Result<Self, Error> {
        let (orders, inbox) = mpsc::channel();
        let (outbox, ready) = tokio_mpsc::unbounded_channel();
        let mut host = Netlink::open().map_err(Error::kernel("open a netlink socket"))?;
        let host_links = HostLinks::open().map_err(Error::kernel("open a socket"))?;
        std::thread::Builder::new()
            .name("netns".into())
            .stack_size(256 << 10)
            .spawn(move || {
                while inbox.recv().is_ok() {
                    if outbox.send(maker.make(&mut host, &host_links)).is_err() {
                        return;
                    }
                }
            })
            .map_err(Error::kernel("start a thread"))?;
        Ok(Self { orders, ready: Mutex::new(ready), target })
    }

    /// Orders the namespaces that wait ready; to be called once.
    pub(crate) fn fill(&self) {
        for _ in 0..self.target {
            // A closed channel shows at the next `take`.
            let _ = self.orders.send(());
        }
    }

    /// Takes one that is ready, or waits for one to be made.
    pub(crate) async fn take(&self) -> Result<Made, Error> {
        // Every taker orders a namespace and takes one, so the number that is ready stays at what `fill` ordered.
        self.orders.send(()).map_err(|_| Error::Closed)?;
        self.ready.lock().await.recv().await.unwrap_or(Err(Error::Closed))
    }
}
