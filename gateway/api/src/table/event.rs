//! Columns of Events, of both groups.

use jiff::Timestamp;
use serde_json::Value;

use super::age;
use super::cells::{column, name, text};
use crate::kind::Column;

/// When last, what, about what; wide: where from, when first, how often.
pub const COLUMNS: &[Column] = &[
    column("Last Seen", "string", 0, last_seen),
    column("Type", "string", 0, |object, _| text(object, "/type").into()),
    column("Reason", "string", 0, |object, _| text(object, "/reason").into()),
    column("Object", "string", 0, |object, _| subject(object).into()),
    column("Subobject", "string", 1, |object, _| {
        either(object, "/involvedObject/fieldPath", "/regarding/fieldPath").into()
    }),
    column("Source", "string", 1, |object, _| source(object).into()),
    column("Message", "string", 0, |object, _| either(object, "/message", "/note").trim().into()),
    column("First Seen", "string", 1, |object, now| first_seen(object, now).into()),
    column("Count", "string", 1, |object, _| count(object).into()),
    Column { name: "Name", type_: "string", format: "name", priority: 1, description: "", cell: name },
];

/// The text under the core group's name, or under the other group's.
fn either<'a>(event: &'a Value, core: &str, new: &str) -> &'a str {
    let found = text(event, core);
    if found.is_empty() { text(event, new) } else { found }
}

fn last_seen(event: &Value, now: Timestamp) -> Value {
    if let Some(series) = event.get("series").filter(|series| series.is_object()) {
        return age::since(series.get("lastObservedTime"), now).into();
    }
    let last = event.get("lastTimestamp").or_else(|| event.get("deprecatedLastTimestamp"));
    if age::parse(last).is_some() { age::since(last, now).into() } else { first_seen(event, now).into() }
}

fn first_seen(event: &Value, now: Timestamp) -> String {
    let first = event.get("firstTimestamp").or_else(|| event.get("deprecatedFirstTimestamp"));
    let first = if age::parse(first).is_some() { first } else { event.get("eventTime") };
    age::since(first, now)
}

fn subject(event: &Value) -> String {
    let kind = either(event, "/involvedObject/kind", "/regarding/kind").to_lowercase();
    match either(event, "/involvedObject/name", "/regarding/name") {
        "" => kind,
        name => format!("{kind}/{name}"),
    }
}

fn source(event: &Value) -> String {
    let first = |pointers: &[&str]| {
        pointers
            .iter()
            .map(|pointer| text(event, pointer))
            .find(|found| !found.is_empty())
            .unwrap_or_default()
            .to_owned()
    };
    let component =
        first(&["/source/component", "/deprecatedSource/component", "/reportingComponent", "/reportingController"]);
    let instance = first(&["/source/host", "/deprecatedSource/host", "/reportingInstance"]);
    if instance.is_empty() { component } else { format!("{component}, {instance}") }
}

fn count(event: &Value) -> i64 {
    let number = |pointer| event.pointer(pointer).and_then(Value::as_i64);
    if let Some(count) = number("/series/count") {
        return count;
    }
    number("/count").or_else(|| number("/deprecatedCount")).filter(|count| *count > 0).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn both_forms_of_an_event_print_the_same() {
        let core = json!({"involvedObject": {"kind": "Pod", "name": "x"}, "message": "m ", "source": {"component": "c", "host": "h"}, "count": 2});
        let new = json!({"regarding": {"kind": "Pod", "name": "x"}, "note": "m ", "deprecatedSource": {"component": "c", "host": "h"}, "deprecatedCount": 2});
        let cells = |event: &Value| {
            COLUMNS.iter().map(|column| (column.cell)(event, Timestamp::UNIX_EPOCH)).collect::<Vec<_>>()
        };
        assert_eq!(cells(&core), cells(&new));
        assert_eq!(cells(&core)[3], json!("pod/x"));
        assert_eq!(cells(&core)[5], json!("c, h"));
        assert_eq!(cells(&core)[6], json!("m"));
    }

    #[test]
    fn an_event_without_timestamps_counts_from_its_event_time() {
        let event = json!({"eventTime": "2026-01-01T00:00:00.000000Z", "lastTimestamp": null, "firstTimestamp": null});
        assert_eq!(last_seen(&event, "2026-01-01T00:00:09Z".parse().unwrap()), json!("9s"));
        assert_eq!(count(&event), 1);
    }
}
