//! The indexes of an Indexed Job, and the text in which Kubernetes keeps sets of them: `1,3-5,7`.

use std::collections::BTreeSet;
use std::fmt::Write;

use k8s_openapi::api::core::v1::Pod;

/// The annotation and label of a pod's index.
pub(super) const INDEX: &str = "batch.kubernetes.io/job-completion-index";

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
