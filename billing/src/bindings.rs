//! Which pod was bound to which node: a node on another machine bills pods that were bound to it, and no others.
//!
//! It is noted when a pod is bound and stays for ever, as does what the pod used: readings may come when the pod is long gone.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use serde::{Deserialize, Serialize};

use crate::ledger::{Error, Ledger};
use crate::{Billing, Delivery, Meterable};

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
}

impl From<&Meterable> for Binding {
    fn from(container: &Meterable) -> Self {
        let Meterable { pod_uid, namespace, pod, node, .. } = container.clone();
        Self { pod_uid, namespace, pod, node }
    }
}

/// Says whether a pod is bound as somebody claims, by what the API knows now; or why it can't be asked.
pub type Ask = Arc<dyn Fn(Binding) -> Pin<Box<dyn Future<Output = Result<bool, String>> + Send>> + Send + Sync>;

/// Why a delivery was not taken.
#[derive(Debug, thiserror::Error)]
pub enum NotTaken {
    /// The ledger did not take it.
    #[error("the ledger took no readings")]
    Ledger(#[from] Error),
    /// Whether a pod was bound isn't known now.
    #[error("where pods are bound is not known: {0}")]
    Unknown(String),
}

impl Billing {
    /// Notes where pods are bound: what was noted first stays.
    pub async fn bind(&self, bindings: Vec<Binding>) -> Result<(), Error> {
        let database = Arc::clone(&self.ledger.database);
        let write = move || write(&database, &bindings).map_err(Error::storage);
        tokio::task::spawn_blocking(write).await.unwrap_or(Err(Error::Closed))
    }

    /// Takes the readings of pods that were bound to the nodes that their containers name; gives the containers whose readings
    /// are refused.
    pub async fn take_bound(&self, delivery: Delivery, ask: &Ask) -> Result<BTreeSet<String>, NotTaken> {
        let mut judged: HashMap<Binding, bool> = HashMap::new();
        for record in &delivery.records {
            if let Entry::Vacant(claim) = judged.entry(Binding::from(&record.container)) {
                let bound = self.is_bound(claim.key(), ask).await?;
                claim.insert(bound);
            }
        }
        let (bound, others): (Vec<_>, Vec<_>) =
            delivery.records.into_iter().partition(|record| judged[&Binding::from(&record.container)]);
        self.take(Delivery { records: bound }).await?;
        Ok(others.into_iter().map(|record| record.container.container_id).collect())
    }

    async fn is_bound(&self, claim: &Binding, ask: &Ask) -> Result<bool, NotTaken> {
        if let Some(noted) = self.ledger.binding(&claim.pod_uid)? {
            return Ok(noted == *claim);
        }
        let bound = ask(claim.clone()).await.map_err(NotTaken::Unknown)?;
        if bound {
            self.bind(vec![claim.clone()]).await?;
        }
        Ok(bound)
    }
}

impl Ledger {
    fn binding(&self, pod_uid: &str) -> Result<Option<Binding>, Error> {
        let read = || -> Result<Option<Vec<u8>>, redb::Error> {
            let row = self.database.begin_read()?.open_table(BINDINGS)?.get(pod_uid)?;
            Ok(row.map(|row| row.value().to_vec()))
        };
        let Some(bytes) = read().map_err(Error::storage)? else { return Ok(None) };
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
