//! The indexes of an Indexed Job, and the text in which Kubernetes keeps sets of them: `1,3-5,7`.

use std::collections::BTreeSet;
use std::fmt::Write;

use k8s_openapi::api::core::v1::Pod;

/// The annotation and label of a pod's index.
pub(super) const INDEX: &str = "batch.kubernetes.io/job-completion-index";

/// The annotation of a pod: how often its index has failed before, as far as failures count.
pub(super) const FAILURES: &str = "batch.kubernetes.io/job-index-failure-count";
/// The same for failures that the policy ignores.
pub(super) const IGNORED_FAILURES: &str = "batch.kubernetes.io/job-index-ignored-failure-count";

/// How often the index of a pod had failed before it, by one of these annotations.
pub(super) fn failures(pod: &Pod, annotation: &str) -> i32 {
    let notes = pod.metadata.annotations.as_ref();
    notes.and_then(|notes| notes.get(annotation)?.parse().ok()).unwrap_or(0)
}

/// The index of a pod.
pub(super) fn of(pod: &Pod) -> Option<i32> {
    pod.metadata.annotations.as_ref()?.get(INDEX)?.parse().ok()
}

pub(super) fn parse(text: &str) -> BTreeSet<i32> {
    let ranges = text.split(',').filter_map(|part| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.trim().parse::<i32>().ok()?..=last.trim().parse::<i32>().ok()?)
    });
    ranges.flatten().collect()
}

pub(super) fn format(indexes: &BTreeSet<i32>) -> String {
    let mut runs: Vec<(i32, i32)> = Vec::new();
    for index in indexes {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == *index => *last = *index,
            _ => runs.push((*index, *index)),
        }
    }
    let mut text = String::new();
    for (first, last) in runs {
        let comma = if text.is_empty() { "" } else { "," };
        // Writing to a String cannot fail.
        let _ = match last - first {
            0 => write!(text, "{comma}{first}"),
            1 => write!(text, "{comma}{first},{last}"),
            _ => write!(text, "{comma}{first}-{last}"),
        };
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_of_indexes_is_written_in_runs_and_read_again() {
        let indexes: BTreeSet<i32> = [0, 2, 3, 5, 6, 7, 9].into();
        assert_eq!(format(&indexes), "0,2,3,5-7,9");
        assert_eq!(parse("0,2,3,5-7,9"), indexes);
        assert_eq!(parse(""), BTreeSet::new());
        assert_eq!(format(&BTreeSet::new()), "");
    }
}
