//! Which pod was bound to which node: a node on another machine bills pods that were bound to it, and no others.
//!
//! It is noted when a pod is bound and stays for ever, as does what the pod used: readings may come when the pod is long gone.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use jiff::Timestamp;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use serde::{Deserialize, Serialize};

use crate::ledger::{Error, Ledger, Record};
use crate::reading::nanoseconds;
use crate::{Billing, Delivery, Meterable};

/// How far a worker's clock and this one may be apart.
const LARGEST_DRIFT_NS: i64 = 60_000_000_000;

/// How long a reading may wait for this clock to reach it: a worker whose clock is ahead loses nothing.
const LONGEST_WAIT_NS: i64 = 24 * 3_600 * 1_000_000_000;

/// A pod's uid to where it was bound (JSON).
pub(crate) const BINDINGS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("bindings");

/// A pod on its node.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Binding {
    /// The pod's uid.
    pub pod_uid: String,
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub pod: String,
    /// The node's name.
    pub node: String,
    /// When the pod was made, if that is known: what a worker claims doesn't say it, nor what an earlier version noted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<Timestamp>,
}

impl Binding {
    /// Whether this is what somebody claims.
    fn is(&self, claim: &Self) -> bool {
        *self == Self { created: self.created, ..claim.clone() }
    }
}

impl From<&Meterable> for Binding {
    fn from(container: &Meterable) -> Self {
        let Meterable { pod_uid, namespace, pod, node, .. } = container.clone();
        Self { pod_uid, namespace, pod, node, created: None }
    }
}

/// Says how the pod that somebody claims is bound, by what the API knows now; or why it can't be asked.
pub type Ask =
    Arc<dyn Fn(Binding) -> Pin<Box<dyn Future<Output = Result<Option<Binding>, String>> + Send>> + Send + Sync>;

/// Why a delivery was not taken.
#[derive(Debug, thiserror::Error)]
pub enum NotTaken {
    /// The ledger did not take it.
    #[error("the ledger took no readings")]
    Ledger(#[from] Error),
    /// Whether a pod was bound isn't known now.
    #[error("where pods are bound is not known: {0}")]
    Unknown(String),
    /// It is of a time that hasn't come: the clocks are apart.
    #[error("the node's clock is {0} s ahead: its readings are taken when that time has come")]
    Early(i64),
}

impl Billing {
    /// Notes where pods are bound: what was noted first stays.
    pub async fn bind(&self, bindings: Vec<Binding>) -> Result<(), Error> {
        let file = Arc::clone(&self.ledger.file);
        let write = move || file.with(|database| write(database, &bindings)).map_err(Error::storage);
        tokio::task::spawn_blocking(write).await.unwrap_or(Err(Error::Closed))
    }

    /// Takes the readings of pods that were bound to the nodes that their containers name, from a time at which there can
    /// have been some; gives the containers of which readings are refused, and why.
    pub async fn take_bound(&self, delivery: Delivery, ask: &Ask) -> Result<BTreeMap<String, String>, NotTaken> {
        let mut judged: HashMap<Binding, Option<Binding>> = HashMap::new();
        for record in &delivery.records {
            if let Entry::Vacant(claim) = judged.entry(Binding::from(&record.container)) {
                let bound = self.bound(claim.key(), ask).await?;
                claim.insert(bound);
            }
        }
        let now_ns = nanoseconds(Timestamp::now());
        let ahead = delivery.records.iter().map(|record| record.reading.end_ns.saturating_sub(now_ns));
        let to_come = ahead.filter(|ahead| (LARGEST_DRIFT_NS + 1..=LONGEST_WAIT_NS).contains(ahead)).max();
        if let Some(ahead_ns) = to_come {
            return Err(NotTaken::Early(ahead_ns / 1_000_000_000));
        }
        let (mut records, mut refused) = (Vec::new(), BTreeMap::new());
        for record in delivery.records {
            match mistake(&record, judged[&Binding::from(&record.container)].as_ref(), now_ns) {
                None => records.push(record),
                Some(why) => {
                    refused.insert(record.container.container_id, why);
                }
            }
        }
        refused.extend(self.take(Delivery { records }).await?);
        Ok(refused)
    }

    async fn bound(&self, claim: &Binding, ask: &Ask) -> Result<Option<Binding>, NotTaken> {
        if let Some(noted) = self.ledger.binding(&claim.pod_uid)? {
            return Ok(Some(noted).filter(|noted| noted.is(claim)));
        }
        let found = ask(claim.clone()).await.map_err(NotTaken::Unknown)?.filter(|found| found.is(claim));
        if let Some(found) = &found {
            self.bind(vec![found.clone()]).await?;
        }
        Ok(found)
    }
}

/// Why a reading can't be one of a pod that is bound like this, if it can't.
fn mistake(record: &Record, bound: Option<&Binding>, now_ns: i64) -> Option<String> {
    let Some(bound) = bound else { return Some("its pod was never bound to the node".to_owned()) };
    let (start_ns, end_ns) = (record.reading.start_ns, record.reading.end_ns);
    if end_ns > now_ns.saturating_add(LARGEST_DRIFT_NS) {
        return Some(format!("a reading ends at {end_ns}, later than now: {now_ns}"));
    }
    let created_ns = bound.created.map(nanoseconds)?;
    (start_ns < created_ns.saturating_sub(LARGEST_DRIFT_NS))
        .then(|| format!("a reading starts at {start_ns}, before its pod was made: {created_ns}"))
}

impl Ledger {
    fn binding(&self, pod_uid: &str) -> Result<Option<Binding>, Error> {
        let read = |database: &Database| -> Result<Option<Vec<u8>>, redb::Error> {
            let row = database.begin_read()?.open_table(BINDINGS)?.get(pod_uid)?;
            Ok(row.map(|row| row.value().to_vec()))
        };
        let Some(bytes) = self.file.with(read).map_err(Error::storage)? else { return Ok(None) };
        serde_json::from_slice(&bytes).map(Some).map_err(|_| Error::Damaged("a pod's node"))
    }
}

fn write(database: &Database, bindings: &[Binding]) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    {
        let mut table = transaction.open_table(BINDINGS)?;
        for binding in bindings {
            let uid = binding.pod_uid.as_str();
            if table.get(uid)?.is_none() {
                table.insert(uid, serde_json::to_vec(binding).expect("plain data is always JSON").as_slice())?;
            }
        }
    }
    transaction.commit()?;
    Ok(())
}
