//! Bills what was used: meter, ledger, rating, report.
//!
//! The meter reads the kernel's cumulative counters of every container; what passed between two readings becomes a
//! [`Reading`] in the ledger, which takes each exactly once. A report sums readings and prices them. CPU is a counter, so
//! nothing is lost between two looks at it; memory is a gauge, so it is integrated and the bound of the error is kept
//! beside it.

mod bindings;
mod file;
pub mod http;
mod ledger;
mod meter;
mod outbox;
pub mod price;
pub mod rate;
mod reader;
mod reading;
pub mod report;
mod traffic;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

pub use bindings::{Ask, Binding, NotTaken};
pub use ledger::Error as LedgerError;
pub use outbox::{BATCH, Delivery, Parcel};
pub use reading::Reading;
pub use traffic::{Traffic, TrafficSource};

use crate::ledger::{Ledger, Origin, Pending, Record};
use crate::meter::{LONGEST_QUIET, Meter};
use crate::price::PriceBook;
use crate::reading::Checkpoint;

/// What a ledger is made of.
#[derive(Clone, Debug)]
pub struct BillingConfig {
    /// Where the ledger is kept.
    pub dir: PathBuf,
    /// What usage costs.
    pub prices: PriceBook,
    /// How often the counters are read.
    pub interval: Duration,
    /// What becomes of readings.
    pub keeping: Keeping,
}

/// What becomes of readings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Keeping {
    /// They stay for ever.
    #[default]
    Ledger,
    /// They wait to be delivered to another machine's ledger.
    Outbox,
}

/// A container whose usage is billed; or a pod's network, which has no container's name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Meterable {
    /// Unique for ever: a restarted container has a new one.
    pub container_id: String,
    /// The pod's uid.
    pub pod_uid: String,
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub pod: String,
    /// The container's name in the pod; empty for a network.
    pub container: String,
    /// 0 for the first start of the container in its pod.
    pub attempt: u32,
    /// The pod's labels when the container started.
    pub labels: BTreeMap<String, String>,
    /// Where it ran.
    pub node: String,
    /// When it started.
    pub started_at: Timestamp,
    /// What it asked for when it started.
    pub requests: Requests,
    /// Where the kernel counts.
    #[serde(skip)]
    pub counters: Option<Counters>,
}

impl Meterable {
    /// Whether it is a pod's network.
    pub fn is_network(&self) -> bool {
        self.container.is_empty()
    }

    /// Whether both are one container: ids are told apart by their nodes.
    fn is(&self, other: &Self) -> bool {
        (&self.node, &self.container_id) == (&other.node, &other.container_id)
    }
}

/// What a container asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Requests {
    /// Thousandths of a CPU.
    pub cpu_millis: u64,
    /// Bytes.
    pub memory_bytes: u64,
}

/// Where a container's counters are, or a network's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Counters {
    /// cgroup v1: the container's group in the `cpuacct` and the `memory` hierarchy.
    V1 {
        /// Has `cpuacct.usage`.
        cpuacct: PathBuf,
        /// Has `memory.usage_in_bytes`.
        memory: PathBuf,
    },
    /// cgroup v2: the container's group.
    V2(PathBuf),
    /// A pod's network: where it is counted, and under which address.
    Network(TrafficSource, Ipv4Addr),
}

/// How a container ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    /// When its process was gone.
    pub finished_at: Timestamp,
    /// Nobody saw it end (its machine or its spawner died): `finished_at` is when that was found out, and the time since
    /// the last look is not billed.
    pub unknown: bool,
    /// The kernel's CPU counter then.
    pub cpu_ns: u64,
    /// The most memory it had at once.
    pub memory_peak_bytes: u64,
}

/// Why billing can't start.
#[derive(Debug, thiserror::Error)]
#[error("cannot open the ledger")]
pub struct Error(#[from] LedgerError);

/// Meter and ledger of one worker.
pub struct Billing {
    meter: Meter,
    ledger: Ledger,
    prices: PriceBook,
    interval: Duration,
    turn: Mutex<()>,
}

impl Billing {
    /// Opens the ledger, or makes one.
    pub fn open(config: BillingConfig) -> Result<Arc<Self>, Error> {
        let ledger = Ledger::open(&config.dir, config.keeping)?;
        Ok(Arc::new(Self {
            meter: Meter::new(),
            ledger,
            prices: config.prices,
            interval: config.interval,
            turn: Mutex::new(()),
        }))
    }

    /// A container runs, or a pod has a network: its counters are read from now on. Also for one that was started before this process; its
    /// usage since the last reading in the ledger is not lost.
    pub fn container_started(&self, container: Meterable) {
        match self.ledger.checkpoint(&container.container_id) {
            Ok(checkpoint) => self.meter.add(container, checkpoint),
            // Its end is told with all it used; until then the ledger can't be read anyway.
            Err(error) => tracing::error!(container = %container.container_id, %error, "not metered while it runs"),
        }
    }

    /// A running container asks for something else from now on: returns when that is durable. What it used before is billed
    /// as it asked for then. One that has ended, or asks for this already, changes nothing.
    pub async fn container_resized(&self, container_id: &str, requests: Requests) -> Result<(), LedgerError> {
        let pending = {
            let _turn = self.take_turn();
            let Some(reading) = self.meter.resize(container_id, requests) else { return Ok(()) };
            self.ledger.write(vec![reading], Origin::Meter)
        };
        self.settle(pending).await
    }

    /// A container has ended: returns when its last reading is durable. Telling it again does no harm, and after an error
    /// it must be told again.
    pub async fn container_exited(&self, container: Meterable, end: End) -> Result<(), LedgerError> {
        self.finish(container, |meter, container, checkpoint| meter.finish(container, checkpoint, end)).await
    }

    /// A pod has left its network, whose counters stood so then, if that is known: the same holds.
    pub async fn network_ended(&self, network: Meterable, last: Option<Traffic>) -> Result<(), LedgerError> {
        self.finish(network, |meter, network, checkpoint| meter.leave(network, checkpoint, last)).await
    }

    async fn finish(
        &self,
        container: Meterable,
        last: impl FnOnce(&Meter, Meterable, Option<Checkpoint>) -> Option<Record>,
    ) -> Result<(), LedgerError> {
        let pending = {
            let _turn = self.take_turn();
            let checkpoint = self.ledger.checkpoint(&container.container_id)?;
            let Some(reading) = last(&self.meter, container, checkpoint) else { return Ok(()) };
            self.ledger.write(vec![reading], Origin::Meter)
        };
        pending.written().await.map(drop).map_err(|(_, error)| error)
    }

    /// Reads the counters at every interval until told to stop, and once more then. An error when the ledger's writer has
    /// ended: nothing that is used from then on would be billed.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) -> Result<(), LedgerError> {
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                () = self.ledger.ended() => return Err(LedgerError::Closed),
                () = self.meter.next_tick(self.interval) => {}
            }
            self.read_all().await;
        }
        self.read_all().await;
        Ok(())
    }

    /// Reads every running container's counters into the ledger.
    pub async fn read_all(&self) {
        self.read_after(LONGEST_QUIET).await;
    }

    /// The same; of a container that did nothing only if there was no reading for so long.
    async fn read_after(&self, longest_quiet: Duration) {
        let pending = {
            let _turn = self.take_turn();
            let readings = self.meter.read_all(longest_quiet);
            if readings.is_empty() {
                return;
            }
            self.ledger.write(readings, Origin::Meter)
        };
        if let Err(error) = self.settle(pending).await {
            tracing::error!(%error, "the ledger took no readings; the next ones make up for them");
        }
    }

    /// Waits until readings are durable, or forgets them.
    async fn settle(&self, pending: Pending) -> Result<(), LedgerError> {
        pending.written().await.map(drop).map_err(|(unwritten, error)| {
            let _turn = self.take_turn();
            self.meter.take_back(&unwritten, |container| self.ledger.checkpoint(container));
            error
        })
    }

    /// Takes another machine's readings, of whatever pods: returns when they are durable. Telling them again does no harm.
    /// Gives the containers of which readings were refused, as they begin before the last ones ended, and why.
    pub async fn take(&self, delivery: Delivery) -> Result<BTreeMap<String, String>, LedgerError> {
        if let Some(mistake) = delivery.mistake() {
            return Err(LedgerError::Damaged(mistake));
        }
        self.meter.heard(&delivery.records);
        self.ledger.write(delivery.records, Origin::Outbox).written().await.map_err(|(_, error)| error)
    }

    /// What is to be delivered next, in an outbox: so many readings at most (see [`BATCH`]); none when all is.
    pub fn parcel(&self, most: usize) -> Result<Option<Parcel>, LedgerError> {
        self.ledger.parcel(most)
    }

    /// Sets aside what the other ledger will never take, so that it keeps nothing else from being billed. It is kept, in the
    /// ledger's table `aside`.
    pub fn set_aside(&self, parcel: &Parcel) -> Result<(), LedgerError> {
        self.ledger.set_aside(parcel)
    }

    /// How many readings were set aside.
    pub fn aside(&self) -> Result<u64, LedgerError> {
        self.ledger.aside()
    }

    /// Forgets what was delivered: only once the other ledger has it for good.
    pub fn delivered(&self, parcel: &Parcel) -> Result<(), LedgerError> {
        self.ledger.delivered(parcel)
    }

    /// Readings reach the ledger in the order in which they were made: whoever makes one queues it before the next turn.
    fn take_turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What each running container uses now; none for those that were looked at less than twice.
    pub fn usage(&self) -> Vec<rate::Usage> {
        self.meter.usage()
    }

    /// The ledger, for reports.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// What usage costs.
    pub fn prices(&self) -> &PriceBook {
        &self.prices
    }
}
