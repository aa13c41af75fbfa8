//! How fast an autoscaler may go: stabilisation, policies, limits.

use std::cmp::Ordering;
use std::time::{Duration, Instant};

use carob_api::quantity::Quantity;
use k8s_openapi::api::autoscaling::v2::{HPAScalingRules, HorizontalPodAutoscalerBehavior};

/// How far a metric may be off without consequences.
const TOLERANCE: f64 = 0.1;
/// For how long the highest wish counts before replicas go.
const DOWN_WINDOW: Duration = Duration::from_secs(300);
/// Changes and wishes are remembered for this long, the longest period that there is.
const REMEMBERED: Duration = Duration::from_secs(3600);

/// What was wished and what was done lately.
#[derive(Default)]
pub(super) struct History {
    wishes: Vec<(Instant, i32)>,
    /// Replicas that came (positive) or went.
    changes: Vec<(Instant, i32)>,
}

/// What came of a proposal, and what is to be said of it: reasons and texts.
pub(super) struct Held {
    pub(super) replicas: i32,
    pub(super) stabilized: (&'static str, &'static str),
    pub(super) limited: (bool, &'static str, &'static str),
}

/// How far a metric may be off, upwards and downwards.
pub(super) fn tolerances(behavior: Option<&HorizontalPodAutoscalerBehavior>) -> (f64, f64) {
    let of = |rules: Option<&HPAScalingRules>| {
        let written = rules.and_then(|rules| rules.tolerance.as_ref());
        written
            .and_then(|written| Quantity::parse(&written.0).ok())
            .map_or(TOLERANCE, |tolerance| as_float(tolerance.nanos()) / 1e9)
    };
    (of(behavior.and_then(|both| both.scale_up.as_ref())), of(behavior.and_then(|both| both.scale_down.as_ref())))
}

/// Metrics are measured; what a float rounds off matters to nobody.
#[allow(clippy::cast_precision_loss)]
pub(super) fn as_float(number: i128) -> f64 {
    number as f64
}

impl History {
    /// The replicas were changed.
    pub(super) fn scaled(&mut self, from: i32, to: i32) {
        self.changes.push((Instant::now(), to - from));
    }

    pub(super) fn hold_back(
        &mut self,
        behavior: Option<&HorizontalPodAutoscalerBehavior>,
        least: i32,
        most: i32,
        current: i32,
        proposed: i32,
    ) -> Held {
        let now = Instant::now();
        self.wishes.retain(|(at, _)| now.duration_since(*at) < REMEMBERED);
        self.changes.retain(|(at, _)| now.duration_since(*at) < REMEMBERED);
        if self.wishes.is_empty() {
            // After a start what there is counts as wished for.
            self.wishes.push((now, current));
        }
        self.wishes.push((now, proposed));
        let (up, down) =
            (behavior.and_then(|both| both.scale_up.as_ref()), behavior.and_then(|both| both.scale_down.as_ref()));
        let window = |rules: Option<&HPAScalingRules>, default| {
            let seconds = rules.and_then(|rules| rules.stabilization_window_seconds);
            seconds.map_or(default, |seconds| Duration::from_secs(u64::try_from(seconds).unwrap_or(0)))
        };
        let within = |window: Duration| {
            self.wishes.iter().filter(move |(at, _)| now.duration_since(*at) < window).map(|(_, wish)| *wish)
        };
        // Up only as far as all have wished, down only as far as any has.
        let lowest = within(window(up, Duration::ZERO)).chain([proposed]).min().unwrap_or(proposed);
        let highest = within(window(down, DOWN_WINDOW)).chain([proposed]).max().unwrap_or(proposed);
        let stable = current.max(lowest).min(highest.max(lowest));
        let stabilized = match stable.cmp(&proposed) {
            Ordering::Greater => (
                "ScaleDownStabilized",
                "recent recommendations were higher than current one, applying the highest recent recommendation",
            ),
            Ordering::Less => (
                "ScaleUpStabilized",
                "recent recommendations were lower than current one, applying the lowest recent recommendation",
            ),
            Ordering::Equal => ("ReadyForNewScale", "recommended size matches current size"),
        };
        let up_to = self.limit_up(behavior.is_some(), up, current, now);
        let down_to = self.limit_down(down, current, now);
        const MOST: &str = "the desired replica count is more than the maximum replica count";
        const LEAST: &str = "the desired replica count is less than the minimum replica count";
        const UP: &str = "the desired replica count is increasing faster than the maximum scale rate";
        const DOWN: &str = "the desired replica count is decreasing faster than the maximum scale rate";
        let (replicas, limited) = if stable > current && stable > up_to.min(most) {
            if up_to < most { (up_to, (true, "ScaleUpLimit", UP)) } else { (most, (true, "TooManyReplicas", MOST)) }
        } else if stable < current && stable < down_to.max(least) {
            if down_to > least {
                (down_to, (true, "ScaleDownLimit", DOWN))
            } else {
                (least, (true, "TooFewReplicas", LEAST))
            }
        } else if stable > most {
            (most, (true, "TooManyReplicas", MOST))
        } else if stable < least {
            (least, (true, "TooFewReplicas", LEAST))
        } else {
            (stable, (false, "DesiredWithinRange", "the desired count is within the acceptable range"))
        };
        Held { replicas, stabilized, limited }
    }

    fn limit_up(&self, has_behavior: bool, rules: Option<&HPAScalingRules>, current: i32, now: Instant) -> i32 {
        if !has_behavior {
            return (2 * current).max(4);
        }
        let policies = rules.and_then(|rules| rules.policies.clone()).unwrap_or_default();
        if rules.and_then(|rules| rules.select_policy.as_deref()) == Some("Disabled") {
            return current;
        }
        if policies.is_empty() {
            return (2 * current).max(current + 4);
        }
        let limits = policies.iter().map(|policy| {
            let before = current - self.changed(policy.period_seconds, true, now);
            match policy.type_.as_str() {
                "Percent" => percent(before, 100 + policy.value, true),
                _ => before + policy.value,
            }
        });
        let least = rules.and_then(|rules| rules.select_policy.as_deref()) == Some("Min");
        (if least { limits.min() } else { limits.max() }).unwrap_or(i32::MAX)
    }

    fn limit_down(&self, rules: Option<&HPAScalingRules>, current: i32, now: Instant) -> i32 {
        let Some(rules) = rules else { return 0 };
        if rules.select_policy.as_deref() == Some("Disabled") {
            return current;
        }
        let limits = rules.policies.iter().flatten().map(|policy| {
            let before = current + self.changed(policy.period_seconds, false, now);
            match policy.type_.as_str() {
                "Percent" => percent(before, 100 - policy.value, true),
                _ => before - policy.value,
            }
        });
        // The policy that allows more goes further down.
        let least = rules.select_policy.as_deref() == Some("Min");
        (if least { limits.max() } else { limits.min() }).unwrap_or(0)
    }

    /// Replicas that came, or went, in the last seconds.
    fn changed(&self, seconds: i32, up: bool, now: Instant) -> i32 {
        let period = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
        let recent = self.changes.iter().filter(|(at, _)| now.duration_since(*at) < period).map(|(_, change)| *change);
        recent.filter(|change| (*change > 0) == up).map(i32::abs).sum()
    }
}

fn percent(of: i32, share: i32, round_up: bool) -> i32 {
    let parts = i64::from(of) * i64::from(share.max(0));
    i32::try_from(if round_up { (parts + 99).div_euclid(100) } else { parts.div_euclid(100) }).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn held(history: &mut History, behavior: &Value, current: i32, proposed: i32) -> (i32, &'static str) {
        let behavior: Option<HorizontalPodAutoscalerBehavior> = serde_json::from_value(behavior.clone()).unwrap();
        let held = history.hold_back(behavior.as_ref(), 1, 20, current, proposed);
        (held.replicas, held.limited.1)
    }

    #[test]
    fn replicas_double_at_most_and_keep_the_limits() {
        let mut history = History::default();
        assert_eq!(held(&mut history, &json!(null), 1, 9), (4, "ScaleUpLimit"));
        assert_eq!(held(&mut history, &json!(null), 12, 30), (20, "TooManyReplicas"));
        assert_eq!(held(&mut history, &json!(null), 5, 6), (6, "DesiredWithinRange"));
    }

    #[test]
    fn replicas_go_only_when_nobody_has_wished_for_them_for_a_while() {
        let mut history = History::default();
        assert_eq!(held(&mut history, &json!(null), 5, 2).0, 5);
        let at_once = json!({"scaleDown": {"stabilizationWindowSeconds": 0}});
        assert_eq!(held(&mut History { wishes: vec![(Instant::now(), 2)], changes: Vec::new() }, &at_once, 5, 2).0, 2);
    }

    #[test]
    fn policies_bound_what_changes_within_their_period() {
        let slow = json!({"scaleUp": {"stabilizationWindowSeconds": 0, "policies": [{"type": "Pods", "value": 2, "periodSeconds": 60}]}});
        let mut history = History::default();
        assert_eq!(held(&mut history, &slow, 2, 10), (4, "ScaleUpLimit"));
        history.scaled(2, 4);
        assert_eq!(held(&mut history, &slow, 4, 10).0, 4);
        let never = json!({"scaleDown": {"selectPolicy": "Disabled", "stabilizationWindowSeconds": 0}});
        assert_eq!(held(&mut History { wishes: vec![(Instant::now(), 1)], changes: Vec::new() }, &never, 5, 1).0, 5);
        let half = json!({"scaleDown": {"stabilizationWindowSeconds": 0, "policies": [{"type": "Percent", "value": 50, "periodSeconds": 60}]}});
        assert_eq!(held(&mut History { wishes: vec![(Instant::now(), 1)], changes: Vec::new() }, &half, 8, 1).0, 4);
    }
}
