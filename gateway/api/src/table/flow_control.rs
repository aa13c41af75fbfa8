//! Columns of FlowSchemas and PriorityLevelConfigurations.

use serde_json::Value;

use super::NAME;
use super::cells::{AGE, column, list, text, text_or};
use crate::kind::Column;

/// Columns of FlowSchemas.
pub const FLOW_SCHEMA: &[Column] = &[
    NAME,
    column("PriorityLevel", "string", 0, |object, _| text(object, "/spec/priorityLevelConfiguration/name").into()),
    column("MatchingPrecedence", "string", 0, |object, _| object["spec"]["matchingPrecedence"].clone()),
    column("DistinguisherMethod", "string", 0, |object, _| {
        text_or(object, "/spec/distinguisherMethod/type", "<none>").into()
    }),
    AGE,
    column("MissingPL", "string", 0, |object, _| {
        let dangling = list(object, "/status/conditions").iter().find(|one| one["type"] == "Dangling");
        dangling.map_or("?", |condition| text(condition, "/status")).into()
    }),
];

/// Columns of PriorityLevelConfigurations.
pub const PRIORITY_LEVEL: &[Column] = &[
    NAME,
    column("Type", "string", 0, |object, _| text(object, "/spec/type").into()),
    column("NominalConcurrencyShares", "string", 0, |object, _| {
        let limited = or_none(object, "/spec/limited/nominalConcurrencyShares");
        if limited == "<none>" { or_none(object, "/spec/exempt/nominalConcurrencyShares") } else { limited }
    }),
    column("Queues", "string", 0, |object, _| queuing(object, "queues")),
    column("HandSize", "string", 0, |object, _| queuing(object, "handSize")),
    column("QueueLengthLimit", "string", 0, |object, _| queuing(object, "queueLengthLimit")),
    AGE,
];

fn or_none(object: &Value, pointer: &str) -> Value {
    object.pointer(pointer).filter(|value| !value.is_null()).cloned().unwrap_or_else(|| "<none>".into())
}

fn queuing(object: &Value, field: &str) -> Value {
    or_none(object, &format!("/spec/limited/limitResponse/queuing/{field}"))
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use serde_json::json;

    use super::*;

    #[test]
    fn what_a_level_does_not_have_is_none() {
        let level =
            json!({"metadata": {"name": "x"}, "spec": {"type": "Exempt", "exempt": {"nominalConcurrencyShares": 0}}});
        let cells: Vec<Value> =
            PRIORITY_LEVEL.iter().map(|column| (column.cell)(&level, Timestamp::UNIX_EPOCH)).collect();
        assert_eq!(cells[1..6], [json!("Exempt"), json!(0), json!("<none>"), json!("<none>"), json!("<none>")]);
    }
}
