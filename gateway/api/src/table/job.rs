//! Columns of Jobs.

use jiff::Timestamp;
use serde_json::Value;

use super::cells::{AGE, CONTAINERS, IMAGES, SELECTOR, column, condition_true, number};
use super::{NAME, age};
use crate::kind::Column;

/// Name, status, completions, duration, age; wide: the template's containers and the selector.
pub const COLUMNS: &[Column] = &[
    NAME,
    column("Status", "string", 0, |object, _| status(object).into()),
    column("Completions", "string", 0, |object, _| completions(object).into()),
    column("Duration", "string", 0, duration),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];

fn status(job: &Value) -> &'static str {
    if condition_true(job, "Complete") {
        return "Complete";
    }
    if condition_true(job, "Failed") {
        return "Failed";
    }
    if job.pointer("/metadata/deletionTimestamp").is_some() {
        return "Terminating";
    }
    let passing = ["Suspended", "FailureTarget", "SuccessCriteriaMet"];
    passing.into_iter().find(|type_| condition_true(job, type_)).unwrap_or("Running")
}

fn completions(job: &Value) -> String {
    let succeeded = number(job, "/status/succeeded");
    match job.pointer("/spec/completions").and_then(Value::as_i64) {
        Some(wanted) => format!("{succeeded}/{wanted}"),
        None => match number(job, "/spec/parallelism") {
            parallelism if parallelism > 1 => format!("{succeeded}/1 of {parallelism}"),
            _ => format!("{succeeded}/1"),
        },
    }
}

fn duration(job: &Value, now: Timestamp) -> Value {
    let Some(start) = age::parse(job.pointer("/status/startTime")) else { return "".into() };
    let end = age::parse(job.pointer("/status/completionTime")).unwrap_or(now);
    age::human(end.as_second() - start.as_second()).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_duration_ends_with_the_completion() {
        let job = json!({"status": {"startTime": "2026-01-01T00:00:00Z", "completionTime": "2026-01-01T00:00:07Z"}});
        assert_eq!(duration(&job, "2027-01-01T00:00:00Z".parse().unwrap()), json!("7s"));
        assert_eq!(duration(&json!({}), Timestamp::UNIX_EPOCH), json!(""));
    }

    #[test]
    fn the_status_is_the_last_word_of_the_conditions() {
        let job = json!({"status": {"conditions": [{"type": "SuccessCriteriaMet", "status": "True"},
            {"type": "Complete", "status": "True"}]}});
        assert_eq!(status(&job), "Complete");
        assert_eq!(status(&json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}})), "Terminating");
        assert_eq!(status(&json!({})), "Running");
    }

    #[test]
    fn completions_without_a_number_wanted_count_parallel_pods() {
        assert_eq!(completions(&json!({"spec": {"parallelism": 3}, "status": {"succeeded": 1}})), "1/1 of 3");
        assert_eq!(completions(&json!({"spec": {"completions": 5}})), "0/5");
    }
}
