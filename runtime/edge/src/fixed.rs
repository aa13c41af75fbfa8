//! The proxy without an API: everything goes to fixed endpoints. For benchmarks and for trying things out.

use std::collections::HashSet;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use crate::proxy::{Metrics, Proxy, Settings};
use crate::route::{Action, Backend, Entry, Listener, Match, PathMatch, Pattern, Port, Protocol, Rule, Split, Target};

/// A proxy that sends everything to the same endpoints, until it is dropped.
pub struct Fixed {
    _proxy: Proxy,
    address: SocketAddr,
}

impl Fixed {
    /// Listens at an address (port 0: any) with so many threads, which are called `edge-0` and so on.
    ///
    /// # Errors
    /// If the address can't be had.
    pub async fn start(address: SocketAddr, endpoints: Vec<SocketAddr>, threads: usize) -> io::Result<Self> {
        const NUMBER: u16 = 80;
        let metrics = Metrics::default();
        // Its clients have no bounds: who measures is all of them.
        let proxy = Proxy::new(Settings { trusted: Vec::new(), threads, descriptors: usize::MAX, metrics });
        let address = proxy.open(address, NUMBER).await?;
        proxy.keep(endpoints.iter().copied().collect::<HashSet<_>>());
        let backend = Arc::new(Backend::new(endpoints, Protocol::Guess));
        let action = Action::Forward(Split::new(vec![Target::plain(1, Ok(backend))]));
        let entry = Entry {
            host: Pattern::Any,
            matches: Match::of_path(PathMatch::prefix("/")),
            rule: Arc::new(Rule { action, ..Rule::default() }),
            rank: (None, String::new(), 0),
        };
        let listener = Listener::new(Pattern::Any, Vec::new(), vec![entry]);
        proxy.serve(address, NUMBER, Arc::new(Port::new(false, vec![listener])));
        Ok(Self { _proxy: proxy, address })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}
