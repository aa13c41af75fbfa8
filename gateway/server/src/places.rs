//! Room for connections: so many in all, and for each peer a share, so that one cannot keep the others out.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// How many connections may be open.
const MAX_CONNECTIONS: usize = 8192;
/// How many of one address. This machine's own programs have no such limit.
const MAX_OF_PEER: usize = MAX_CONNECTIONS / 4;

/// The places of all listeners.
#[derive(Clone)]
pub(crate) struct Places {
    free: Arc<Semaphore>,
    peers: Arc<Mutex<HashMap<IpAddr, usize>>>,
    open: Gauge,
}

/// A place that no peer has yet.
pub(crate) struct Free(OwnedSemaphorePermit);

/// The place of one connection, free again when dropped.
pub(crate) struct Place {
    places: Places,
    peer: Option<IpAddr>,
    _slot: OwnedSemaphorePermit,
}

impl Places {
    /// All free. `open` shows how many are taken.
    pub fn new(open: Gauge) -> Self {
        Self { free: Arc::new(Semaphore::new(MAX_CONNECTIONS)), peers: Arc::default(), open }
    }

    /// Waits for a place; none when the server ends.
    pub async fn free(&self) -> Option<Free> {
        Arc::clone(&self.free).acquire_owned().await.ok().map(Free)
    }

    /// Gives a place to a connection of `peer`, unless that has its share.
    pub fn take(&self, free: Free, peer: IpAddr) -> Option<Place> {
        let peer = peer.to_canonical();
        let peer = (!peer.is_loopback()).then_some(peer);
        if let Some(peer) = peer {
            let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
            let taken = peers.entry(peer).or_default();
            if *taken >= MAX_OF_PEER {
                return None;
            }
            *taken += 1;
        }
        self.open.inc();
        Some(Place { places: self.clone(), peer, _slot: free.0 })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.open.dec();
        let Some(peer) = self.peer else { return };
        let mut peers = self.places.peers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(taken) = peers.get_mut(&peer) {
            *taken -= 1;
            if *taken == 0 {
                peers.remove(&peer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_peer_gets_its_share_and_leaves_room_for_others() {
        let open = Gauge::default();
        let places = Places::new(open.clone());
        let take = async |peer: [u8; 4]| {
            let free = places.free().await.expect("open");
            places.take(free, IpAddr::from(peer))
        };
        let mut taken = Vec::new();
        for _ in 0..MAX_OF_PEER {
            taken.push(take([10, 0, 0, 1]).await.expect("room"));
        }
        assert!(take([10, 0, 0, 1]).await.is_none());
        assert!(take([10, 0, 0, 2]).await.is_some() && take([127, 0, 0, 1]).await.is_some());
        taken.pop();
        taken.push(take([10, 0, 0, 1]).await.expect("room again"));
        assert_eq!(open.get(), i64::try_from(MAX_OF_PEER).expect("small"));
        drop(taken);
        assert_eq!((open.get(), places.peers.lock().expect("not poisoned").len()), (0, 0));
    }
}
