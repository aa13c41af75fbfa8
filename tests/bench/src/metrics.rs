//! Histograms in Prometheus' text format: how they grew between two readings.

use std::collections::BTreeMap;
use std::time::Duration;

/// How one histogram grew.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Histogram {
    /// Observations.
    pub count: f64,
    /// Seconds.
    pub sum: f64,
    /// Observations up to each bound in seconds, bounds ascending.
    buckets: Vec<(f64, f64)>,
}

impl Histogram {
    /// Nothing where nothing was observed.
    pub fn mean(&self) -> Option<Duration> {
        (self.count > 0.0).then(|| Duration::from_secs_f64((self.sum / self.count).max(0.0)))
    }

    /// An estimate: between the bounds of its bucket, observations count as evenly spread.
    pub fn percentile(&self, percent: f64) -> Option<Duration> {
        let rank = self.count * percent / 100.0;
        let mut below = (0.0, 0.0);
        for &(bound, count) in &self.buckets {
            if count >= rank && count > below.1 {
                let upper = if bound.is_finite() { bound } else { below.0 };
                let share = (rank - below.1) / (count - below.1);
                return Some(Duration::from_secs_f64(below.0 + (upper - below.0) * share));
            }
            below = (bound, count);
        }
        None
    }
}

/// The histograms called `name` by the value of `label`, with those of the same value summed; only the series that have
/// all of `selector` (`verb="create"`) in their labels.
pub fn growth(before: &str, after: &str, name: &str, label: &str, selector: &[&str]) -> BTreeMap<String, Histogram> {
    let mut grown = read(after, name, label, selector);
    for (value, earlier) in read(before, name, label, selector) {
        let Some(histogram) = grown.get_mut(&value) else { continue };
        histogram.count -= earlier.count;
        histogram.sum -= earlier.sum;
        for (now, then) in histogram.buckets.iter_mut().zip(&earlier.buckets) {
            now.1 -= then.1;
        }
    }
    grown.retain(|_, histogram| histogram.count > 0.0);
    grown
}

fn read(text: &str, name: &str, label: &str, selector: &[&str]) -> BTreeMap<String, Histogram> {
    let mut found: BTreeMap<String, Histogram> = BTreeMap::new();
    for line in text.lines() {
        let Some(rest) = line.strip_prefix(name) else { continue };
        let Some((part, rest)) = rest.split_once('{') else { continue };
        let Some((labels, number)) = rest.rsplit_once('}') else { continue };
        let Some(number) = number.split_whitespace().next().and_then(|number| number.parse::<f64>().ok()) else {
            continue;
        };
        if !selector.iter().all(|wanted| labels.contains(wanted)) {
            continue;
        }
        let histogram = found.entry(value(labels, label).unwrap_or_default().to_owned()).or_default();
        match part {
            "_count" => histogram.count += number,
            "_sum" => histogram.sum += number,
            "_bucket" => {
                let bound = value(labels, "le").and_then(|bound| bound.parse().ok()).unwrap_or(f64::INFINITY);
                match histogram.buckets.iter_mut().find(|bucket| bucket.0.total_cmp(&bound).is_eq()) {
                    Some(bucket) => bucket.1 += number,
                    None => histogram.buckets.push((bound, number)),
                }
            }
            _ => {}
        }
    }
    for histogram in found.values_mut() {
        histogram.buckets.sort_by(|one, other| one.0.total_cmp(&other.0));
    }
    found
}

/// Of the labels `a="x",b="y"`; values with quotes or commas don't occur.
fn value<'a>(labels: &'a str, label: &str) -> Option<&'a str> {
    labels.split(',').find_map(|pair| pair.strip_prefix(label)?.strip_prefix("=\"")?.strip_suffix('"'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEFORE: &str = "stage_seconds_sum{stage=\"network\"} 1.0\n\
        stage_seconds_count{stage=\"network\"} 10\n\
        stage_seconds_bucket{le=\"0.1\",stage=\"network\"} 10\n\
        stage_seconds_bucket{le=\"+Inf\",stage=\"network\"} 10\n";
    const AFTER: &str = "# TYPE stage_seconds histogram\n\
        stage_seconds_sum{stage=\"network\"} 3.0\n\
        stage_seconds_count{stage=\"network\"} 20\n\
        stage_seconds_bucket{le=\"0.1\",stage=\"network\"} 10\n\
        stage_seconds_bucket{le=\"0.3\",stage=\"network\"} 20\n\
        stage_seconds_bucket{le=\"+Inf\",stage=\"network\"} 20\n\
        stage_seconds_count{stage=\"other\"} 0\n";

    #[test]
    fn only_what_was_observed_in_between_counts() {
        let grown = growth("", AFTER, "stage_seconds", "stage", &[]);
        assert_eq!(grown["network"].mean(), Some(Duration::from_millis(150)));
        let grown = growth(AFTER, AFTER, "stage_seconds", "stage", &[]);
        assert_eq!(grown.len(), 0);
        let grown = growth(&BEFORE.replace("{le=\"0.1\"", "{le=\"0.3\""), AFTER, "stage_seconds", "stage", &["work"]);
        assert_eq!(grown["network"].mean(), Some(Duration::from_millis(200)));
    }

    #[test]
    fn a_percentile_lies_in_its_bucket() {
        let grown = growth("", AFTER, "stage_seconds", "stage", &[]);
        assert_eq!(grown["network"].percentile(25.0), Some(Duration::from_millis(50)));
        assert_eq!(grown["network"].percentile(75.0), Some(Duration::from_millis(200)));
    }
}
