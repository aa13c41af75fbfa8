//! Columns of `ResourceQuota`s.

use serde_json::Value;

use super::NAME;
use super::cells::{AGE, column, text_or};
use crate::kind::Column;

/// Name, what is used of what may be requested and of the limits, age.
pub const COLUMNS: &[Column] = &[
    NAME,
    column("Request", "string", 0, |object, _| used(object, false).into()),
    column("Limit", "string", 0, |object, _| used(object, true).into()),
    AGE,
];

fn used(quota: &Value, limits: bool) -> String {
    let hard = quota.pointer("/status/hard").and_then(Value::as_object);
    let mut resources: Vec<(&String, &Value)> = hard.into_iter().flatten().collect();
    resources.sort_by_key(|(name, _)| name.as_str());
    let of_kind = resources.into_iter().filter(|(name, _)| name.starts_with("limits") == limits);
    let shown = of_kind.map(|(name, hard)| {
        let pointer = format!("/status/used/{}", name.replace('~', "~0").replace('/', "~1"));
        format!("{name}: {}/{}", text_or(quota, &pointer, "0"), hard.as_str().unwrap_or_default())
    });
    shown.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn requests_and_limits_are_apart() {
        let quota = json!({"status": {"hard": {"pods": "5", "limits.cpu": "2", "count/jobs.batch": "1"},
            "used": {"pods": "1", "limits.cpu": "500m"}}});
        assert_eq!(used(&quota, false), "count/jobs.batch: 0/1, pods: 1/5");
        assert_eq!(used(&quota, true), "limits.cpu: 500m/2");
    }
}
