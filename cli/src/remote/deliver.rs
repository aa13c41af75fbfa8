//! Delivers a worker's readings to the gateway's ledger: in order, again and again until they are known to be there.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use carob_billing::http::{BAD, TOO_LARGE, Taken};
use carob_billing::{BATCH, Billing};
use carob_worker::Worker;
use http::Request;
use tokio_util::sync::CancellationToken;

/// How often there is something to deliver.
const EVERY: Duration = Duration::from_secs(1);
/// The longest wait for a gateway that doesn't answer.
const LONGEST: Duration = Duration::from_secs(30);

/// Delivers until told to stop, and once more then; the worker's metrics say what could never be delivered.
pub async fn run(outbox: Arc<Billing>, gateway: kube::Client, worker: Arc<Worker>, stop: CancellationToken) {
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
        match outbox.aside() {
            Ok(readings) => worker.usage_set_aside(readings),
            Err(error) => tracing::debug!(%error, "how much was set aside is not known"),
        }
    }
}

/// Delivers all that waits. What the gateway will never take is set aside, down to the single reading: nobody's usage waits
/// for another's.
pub async fn all(outbox: &Arc<Billing>, gateway: &kube::Client) -> Result<()> {
    let mut most = BATCH;
    loop {
        let from = Arc::clone(outbox);
        let Some(parcel) = tokio::task::spawn_blocking(move || from.parcel(most)).await?? else { return Ok(()) };
        let body = serde_json::to_vec(&parcel.delivery)?;
        let request = Request::post(format!("{}/readings", carob_billing::http::PREFIX))
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(body)?;
        let from = Arc::clone(outbox);
        match gateway.request::<Taken>(request).await {
            Ok(taken) => {
                if !taken.refused.is_empty() {
                    tracing::error!(refused = ?taken.reasons, "usage is on no bill: the gateway refuses it");
                }
                most = (most * 2).min(BATCH);
                // Told again if this process ends here: the ledger passes over what it has.
                tokio::task::spawn_blocking(move || from.delivered(&parcel)).await??;
            }
            Err(kube::Error::Api(status)) if matches!(status.code, 400 | 413) && parcel.readings() > 1 => {
                most = parcel.readings() / 2;
            }
            // The gateway's own words: a proxy on the way that takes nothing loses nobody's usage.
            Err(kube::Error::Api(status)) if [BAD, TOO_LARGE].contains(&status.reason.as_str()) => {
                let (why, what) = (&status.message, parcel.about());
                tracing::error!(
                    why,
                    what,
                    "usage is on no bill: the gateway can't take it; it is kept in this worker's ledger"
                );
                tokio::task::spawn_blocking(move || from.set_aside(&parcel)).await??;
            }
            Err(error) => return Err(error).context("the gateway did not take readings"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;

    use axum::body::Body;
    use axum::response::Response;
    use carob_billing::price::PriceBook;
    use carob_billing::report::{GroupBy, Query};
    use carob_billing::{BillingConfig, Binding, End, Keeping, Meterable, Requests};
    use jiff::{SignedDuration, Timestamp};
    use tower::ServiceExt;

    use super::*;

    fn open(dir: &Path, keeping: Keeping) -> Arc<Billing> {
        let interval = Duration::from_secs(1);
        Billing::open(BillingConfig { dir: dir.join("ledger"), prices: PriceBook::default(), interval, keeping })
            .unwrap()
    }

    /// A container that used 1000 ns of CPU, in a pod with so many bytes of labels.
    async fn used(outbox: &Billing, id: &str, labels: usize) {
        let container = Meterable {
            container_id: id.into(),
            pod_uid: "uid".into(),
            namespace: "default".into(),
            pod: "pod".into(),
            container: "main".into(),
            attempt: 0,
            labels: BTreeMap::from([("long".into(), "x".repeat(labels))]),
            node: "far".into(),
            started_at: Timestamp::now() - SignedDuration::from_secs(1),
            requests: Requests { cpu_millis: 0, memory_bytes: 0 },
            counters: None,
        };
        let end = End { finished_at: Timestamp::now(), unknown: false, cpu_ns: 1000, memory_peak_bytes: 0 };
        outbox.container_exited(container, end).await.unwrap();
    }

    /// A gateway with this ledger, which never takes what holds `poison`.
    fn gateway(ledger: &Arc<Billing>, poison: &'static str) -> kube::Client {
        let ask: carob_billing::Ask = Arc::new(|claim: Binding| Box::pin(async move { Ok(Some(claim)) }));
        let router = carob_billing::http::deliveries(Arc::clone(ledger), |_| Some("far".to_owned()), ask);
        let service = tower::service_fn(move |request: Request<kube::client::Body>| {
            let router = router.clone();
            async move {
                let (mut parts, body) = request.into_parts();
                parts.uri = "/readings".parse().unwrap();
                let body = body.collect_bytes().await.unwrap();
                if String::from_utf8_lossy(&body).contains(poison) {
                    let status = serde_json::json!({"kind": "Status", "apiVersion": "v1", "metadata": {},
                        "status": "Failure", "message": "poison", "reason": "BadRequest", "code": 400});
                    return Ok::<_, std::convert::Infallible>(
                        Response::builder().status(400).body(Body::from(status.to_string())).unwrap(),
                    );
                }
                router.oneshot(Request::from_parts(parts, Body::from(body))).await
            }
        });
        kube::Client::new(service, "default")
    }

    fn billed(ledger: &Billing) -> u64 {
        let query = Query { namespace: None, pod: None, from: None, to: None, step: None, group_by: GroupBy::Pod };
        query.run(ledger.ledger(), ledger.prices()).unwrap().total.cpu_nanoseconds
    }

    #[tokio::test]
    async fn usage_of_pods_with_many_labels_arrives() {
        let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (outbox, ledger) = (open(here.path(), Keeping::Outbox), open(there.path(), Keeping::Ledger));
        for number in 0..30 {
            used(&outbox, &format!("c{number}"), 100 << 10).await;
        }
        used(&outbox, "large", 3 << 20).await;
        all(&outbox, &gateway(&ledger, "poison")).await.unwrap();
        assert_eq!((billed(&ledger), outbox.aside().unwrap()), (31_000, 0));
    }

    #[tokio::test]
    async fn what_the_gateway_never_takes_is_set_aside_and_the_rest_is_billed() {
        let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (outbox, ledger) = (open(here.path(), Keeping::Outbox), open(there.path(), Keeping::Ledger));
        for number in 0..20 {
            used(&outbox, if number == 7 { "poison".to_owned() } else { format!("c{number}") }.as_str(), 0).await;
        }
        used(&outbox, "too-large", 9 << 20).await;
        used(&outbox, "last", 0).await;
        all(&outbox, &gateway(&ledger, "poison")).await.unwrap();
        assert_eq!((billed(&ledger), outbox.aside().unwrap()), (20_000, 2));
        assert!(outbox.parcel(BATCH).unwrap().is_none(), "nothing waits");
    }
}
