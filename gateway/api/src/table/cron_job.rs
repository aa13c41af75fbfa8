//! Columns of `CronJob`s.

use super::cells::{AGE, column, containers, list, selector, text, text_or};
use super::{NAME, age};
use crate::kind::Column;

const TEMPLATE: &str = "/spec/jobTemplate/spec/template";

/// Name, schedule, whether it rests, active jobs, last start, age; wide: the template's containers and the selector.
pub const COLUMNS: &[Column] = &[
    NAME,
    column("Schedule", "string", 0, |object, _| text(object, "/spec/schedule").into()),
    column("Timezone", "string", 0, |object, _| text_or(object, "/spec/timeZone", "<none>").into()),
    column("Suspend", "boolean", 0, |object, _| {
        match object.pointer("/spec/suspend").and_then(serde_json::Value::as_bool) {
            Some(true) => "True".into(),
            Some(false) => "False".into(),
            None => "<unset>".into(),
        }
    }),
    column("Active", "integer", 0, |object, _| list(object, "/status/active").len().into()),
    column("Last Schedule", "string", 0, |object, now| match object.pointer("/status/lastScheduleTime") {
        Some(time) if !time.is_null() => age::since(Some(time), now).into(),
        _ => "<none>".into(),
    }),
    AGE,
    column("Containers", "string", 1, |object, _| containers(object, TEMPLATE, "name").into()),
    column("Images", "string", 1, |object, _| containers(object, TEMPLATE, "image").into()),
    column("Selector", "string", 1, |object, _| {
        let shown = object.pointer("/spec/jobTemplate/spec/selector").map(selector).unwrap_or_default();
        if shown.is_empty() { "<none>".into() } else { shown.into() }
    }),
];
