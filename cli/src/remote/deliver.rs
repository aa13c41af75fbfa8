//! Delivers a worker's readings to the gateway's ledger: in order, again and again until they are known to be there.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use carob_billing::Billing;
use carob_billing::http::Taken;
use http::Request;
use tokio_util::sync::CancellationToken;

/// How often there is something to deliver.
const EVERY: Duration = Duration::from_secs(1);
/// The longest wait for a gateway that doesn't answer.
const LONGEST: Duration = Duration::from_secs(30);

/// Delivers until told to stop, and once more then.
pub async fn run(outbox: Arc<Billing>, gateway: kube::Client, stop: CancellationToken) {
    let mut wait = EVERY;
    while !stop.is_cancelled() {
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(wait) => {}
        }
        match all(&outbox, &gateway).await {
            Ok(()) => wait = EVERY,
            Err(error) => {
                tracing::warn!(error = %format!("{error:#}"), "usage waits to be delivered to the gateway");
                wait = (wait * 2).min(LONGEST);
            }
        }
    }
}

/// Delivers all that waits.
pub async fn all(outbox: &Arc<Billing>, gateway: &kube::Client) -> Result<()> {
    loop {
        let from = Arc::clone(outbox);
        let Some(parcel) = tokio::task::spawn_blocking(move || from.parcel()).await?? else { return Ok(()) };
        let body = serde_json::to_vec(&parcel.delivery)?;
        let request = Request::post(format!("{}/readings", carob_billing::http::PREFIX))
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(body)?;
        let taken: Taken = gateway.request(request).await.context("the gateway did not take readings")?;
        if !taken.refused.is_empty() {
            tracing::error!(refused = ?taken.reasons, "usage is on no bill: the gateway refuses it");
        }
        // Told again if this process ends here: the ledger passes over what it has.
        let from = Arc::clone(outbox);
        tokio::task::spawn_blocking(move || from.delivered(&parcel)).await??;
    }
}
