//! The kubelet's `/pods`: the node's pods as it knows them.

use crate::context::Context;
use crate::pod::Message;
use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};
use std::sync::Arc;
use tokio::sync::oneshot;

pub(super) async fn pods(State(ctx): State<Arc<Context>>) -> Json<Value> {
    let mut answers = Vec::new();
    for uid in ctx.pods.uids() {
        let (sender, answer) = oneshot::channel();
        ctx.pods.send(&uid, Message::Show(sender));
        answers.push(answer);
    }
    let mut items = Vec::new();
    for answer in answers {
        // An actor that has just ended says nothing.
        items.extend(answer.await.ok().map(|pod| json!(*pod)));
    }
    Json(json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items}))
}
