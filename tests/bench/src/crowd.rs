//! Many idle pods on one worker, and whether the API notices them.

use std::time::{Duration, Instant};

use anyhow::Result;
use http::Request;
use http::header::CONTENT_TYPE;
use serde_json::json;
use tokio::runtime::Handle;

use crate::carob::{Carob, NAMESPACE};
use crate::processes;
use crate::rounds::{self, Amounts, Batch, Span};

/// Requests of each kind.
const REQUESTS: usize = 500;
/// How long they are watched.
const WATCHED: Duration = Duration::from_secs(10);

/// What a crowd costs.
pub struct Crowd {
    /// Eight starts at a time.
    pub batch: Batch,
    /// From no pods to all of them.
    pub loaded: Span,
    /// With all of them, while nobody asks anything.
    pub at_rest: Span,
    /// Reads of one pod, and creates of a ConfigMap, one at a time.
    pub answers: Vec<Duration>,
}

/// Measures [`Crowd`].
pub fn crowd(runtime: &Handle, carob: &Carob, pods: usize) -> Result<Crowd> {
    let look = || processes::with_path(crate::peer::Peer::home(carob));
    let amounts = Amounts { batch: pods, batch_time: Duration::from_secs(300), ..Amounts::full() };
    let before = look()?;
    let begin = Instant::now();
    let (batch, ids) = rounds::start_many(carob, "crowd", 8, &amounts)?;
    runtime.block_on(async { tokio::time::sleep(Duration::from_secs(3)).await });
    let loaded = Span { took: begin.elapsed(), pods: ids.len(), before, after: look()? };
    let (before, begin) = (look()?, Instant::now());
    runtime.block_on(async { tokio::time::sleep(WATCHED).await });
    let at_rest = Span { took: begin.elapsed(), pods: ids.len(), before, after: look()? };
    let answers = runtime.block_on(answers(carob, &ids));
    rounds::delete_many(carob, &ids)?;
    Ok(Crowd { batch, loaded, at_rest, answers: answers? })
}

async fn answers(carob: &Carob, ids: &[String]) -> Result<Vec<Duration>> {
    let client = carob.connect()?;
    let mut answers = Vec::new();
    for number in 0..REQUESTS {
        let pod = &ids[number % ids.len()];
        let read = Request::get(format!("/api/v1/namespaces/{NAMESPACE}/pods/{pod}")).body(Vec::new())?;
        let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": format!("crowd-{number}")}});
        let create = Request::post(format!("/api/v1/namespaces/{NAMESPACE}/configmaps"))
            .header(CONTENT_TYPE, "application/json")
            .body(serde_json::to_vec(&object)?)?;
        for request in [read, create] {
            let begin = Instant::now();
            client.request_text(request).await?;
            answers.push(begin.elapsed());
        }
    }
    Ok(answers)
}
