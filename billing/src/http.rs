//! What the gateway serves of billing: `GET report`, `GET containers`, `GET verify`; and `POST readings`, with which workers
//! of other machines deliver theirs.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, Query as QueryString, State};
use axum::http::{Extensions, StatusCode};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{get, post};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::report::{GroupBy, Query, ReportError};
use crate::{Ask, Billing, Delivery, LedgerError, Meterable, NotTaken};

/// Where the gateway mounts it.
pub const PREFIX: &str = "/billing/v1";

/// The largest delivery that is read, in bytes: above the largest reading, which has the labels of a pod, and a pod is no larger
/// than a request (3 MiB).
const LARGEST_DELIVERY: usize = 8 << 20;

/// Why a delivery is never taken as it is; the parts of it may be.
pub const TOO_LARGE: &str = "RequestEntityTooLarge";
/// Why a delivery of a single reading is never taken.
pub const BAD: &str = "BadRequest";

/// The routes, to be mounted under [`PREFIX`].
pub fn router(billing: Arc<Billing>) -> Router {
    Router::new()
        .route("/report", get(report))
        .route("/containers", get(containers))
        .route("/verify", get(verify))
        .with_state(billing)
}

/// Where a worker delivers its readings, for the node that `sender` says it is and the pods that were bound to it, which `ask`
/// knows of those that nobody has noted. To be merged with [`router`].
pub fn deliveries(billing: Arc<Billing>, sender: fn(&Extensions) -> Option<String>, ask: Ask) -> Router {
    let readings = post(take).layer(DefaultBodyLimit::max(LARGEST_DELIVERY));
    Router::new().route("/readings", readings).with_state(Deliveries { billing, sender, ask })
}

/// The answer to a delivery, which is durable then.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Taken {
    /// Containers of which readings are on no bill.
    pub refused: BTreeSet<String>,
    /// Why, for each of them.
    pub reasons: BTreeMap<String, String>,
}

#[derive(Clone)]
struct Deliveries {
    billing: Arc<Billing>,
    sender: fn(&Extensions) -> Option<String>,
    ask: Ask,
}

async fn take(
    State(state): State<Deliveries>,
    extensions: Extensions,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    let body = match body {
        Ok(body) => body,
        Err(error) if error.status() == StatusCode::PAYLOAD_TOO_LARGE => {
            let why = format!("limit is {LARGEST_DELIVERY}");
            return status(StatusCode::PAYLOAD_TOO_LARGE, TOO_LARGE, &why);
        }
        // Nobody is there any more to be told.
        Err(error) => return error.into_response(),
    };
    let delivery: Delivery = match serde_json::from_slice(&body) {
        Ok(delivery) => delivery,
        Err(error) => return status(StatusCode::BAD_REQUEST, BAD, &format!("not a delivery: {error}")),
    };
    // A node's readings are its own: nobody is billed for what another says.
    let node = (state.sender)(&extensions);
    if node.is_none() || delivery.nodes().any(|of| Some(of) != node.as_deref()) {
        return status(StatusCode::FORBIDDEN, "Forbidden", "a node delivers readings of its own containers");
    }
    match state.billing.take_bound(delivery, &state.ask).await {
        Ok(reasons) => {
            if !reasons.is_empty() {
                tracing::error!(node, refused = ?reasons, "a node delivers readings that go on no bill");
            }
            Json(Taken { refused: reasons.keys().cloned().collect(), reasons }).into_response()
        }
        Err(NotTaken::Ledger(LedgerError::Damaged(mistake))) => status(StatusCode::BAD_REQUEST, BAD, mistake),
        Err(NotTaken::Ledger(error)) => refuse(&ReportError::Ledger(error)),
        Err(error @ (NotTaken::Unknown(_) | NotTaken::Early(_))) => {
            status(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable", &error.to_string())
        }
    }
}

/// How far a report may be behind of a container that did nothing: it is asked for more often than things happen.
const QUIET_IN_REPORTS: Duration = Duration::from_secs(5);

/// The query string of a report; also what a client sends.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct ReportParameters {
    /// See [`Query::namespace`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// See [`Query::pod`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<Timestamp>,
    /// RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<Timestamp>,
    /// `1s`, `1m`, `1h`, …
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step: Option<String>,
    /// `namespace`, `pod` or `label:KEY`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group_by: Option<String>,
}

impl TryFrom<ReportParameters> for Query {
    type Error = ReportError;

    fn try_from(parameters: ReportParameters) -> Result<Self, ReportError> {
        Ok(Self {
            step: parameters.step.as_deref().map(parse_step).transpose()?,
            group_by: parse_group(parameters.group_by.as_deref().unwrap_or("pod"))?,
            namespace: parameters.namespace,
            pod: parameters.pod,
            from: parameters.from,
            to: parameters.to,
        })
    }
}

fn parse_step(text: &str) -> Result<SignedDuration, ReportError> {
    text.parse().map_err(|_| ReportError::BadQuery(format!("step: {text:?} is no duration such as 1s, 1m or 1h")))
}

fn parse_group(text: &str) -> Result<GroupBy, ReportError> {
    match text.split_once(':') {
        None if text == "namespace" => Ok(GroupBy::Namespace),
        None if text == "pod" => Ok(GroupBy::Pod),
        Some(("label", key)) if !key.is_empty() => Ok(GroupBy::Label(key.to_owned())),
        _ => Err(ReportError::BadQuery(format!("groupBy: {text:?} is none of namespace, pod, label:KEY"))),
    }
}

async fn report(State(billing): State<Arc<Billing>>, parameters: QueryString<ReportParameters>) -> Response {
    let query = match Query::try_from(parameters.0) {
        Ok(query) => query,
        Err(error) => return refuse(&error),
    };
    // What runs right now belongs into the report up to this moment.
    billing.read_after(QUIET_IN_REPORTS).await;
    match off_loop(move || query.run(billing.ledger(), billing.prices())).await {
        Ok(report) => Json(report).into_response(),
        Err(error) => refuse(&error),
    }
}

/// A container with all that was ever read of it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ContainerTotal {
    #[serde(flatten)]
    container: Meterable,
    ended_at: Timestamp,
    readings: usize,
    cpu_nanoseconds: u64,
}

async fn containers(State(billing): State<Arc<Billing>>) -> Response {
    billing.read_after(QUIET_IN_REPORTS).await;
    let totals = off_loop(move || container_totals(&billing)).await;
    match totals {
        Ok(totals) => Json(json!({ "containers": totals })).into_response(),
        Err(error) => refuse(&ReportError::Ledger(error)),
    }
}

fn container_totals(billing: &Billing) -> Result<Vec<ContainerTotal>, LedgerError> {
    let mut totals: Vec<ContainerTotal> = Vec::new();
    billing.ledger().visit(
        i64::MIN,
        i64::MAX,
        |container| !container.is_network(),
        |container, reading| {
            if totals.last().is_none_or(|last| !last.container.is(container)) {
                totals.push(ContainerTotal {
                    container: container.clone(),
                    ended_at: container.started_at,
                    readings: 0,
                    cpu_nanoseconds: 0,
                });
            }
            let Some(total) = totals.last_mut() else { return ControlFlow::Break(()) };
            total.readings += 1;
            total.cpu_nanoseconds = total.cpu_nanoseconds.saturating_add(reading.cpu_ns);
            total.ended_at = Timestamp::from_nanosecond(reading.end_ns.into()).unwrap_or(total.ended_at);
            ControlFlow::Continue(())
        },
    )?;
    Ok(totals)
}

async fn verify(State(billing): State<Arc<Billing>>) -> Response {
    match off_loop(move || billing.ledger().verify()).await {
        Ok(readings) => Json(json!({ "readings": readings, "intact": true })).into_response(),
        Err(error) => refuse(&ReportError::Ledger(error)),
    }
}

/// Reading the ledger blocks.
async fn off_loop<T: Send + 'static, E: From<LedgerError> + Send + 'static>(
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, E> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|_| Err(LedgerError::Closed.into()))
}

/// An error in Kubernetes' form.
fn refuse(error: &ReportError) -> Response {
    let (code, reason) = match error {
        ReportError::BadQuery(_) => (StatusCode::BAD_REQUEST, "BadRequest"),
        ReportError::Ledger(_) => (StatusCode::INTERNAL_SERVER_ERROR, "InternalError"),
    };
    let mut message = error.to_string();
    if let Some(source) = std::error::Error::source(error) {
        message = format!("{message}: {source}");
    }
    status(code, reason, &message)
}

fn status(code: StatusCode, reason: &str, message: &str) -> Response {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code.as_u16(),
    });
    (code, Json(status)).into_response()
}
