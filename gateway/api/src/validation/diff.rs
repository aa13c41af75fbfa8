//! The difference between two values as a unified diff of their indented JSON, for messages that say what may not change.

use std::fmt::Write as _;

use serde::Serialize as _;
use serde_json::Value;
use serde_json::ser::{PrettyFormatter, Serializer};

/// Unchanged lines around a change.
const CONTEXT: usize = 3;

/// The hunks that turn `old` into `new`; empty if they are alike.
pub fn unified(old: &Value, new: &Value) -> String {
    let (old, new) = (indented(old), indented(new));
    let (old, new): (Vec<&str>, Vec<&str>) = (old.lines().collect(), new.lines().collect());
    let steps = steps(&old, &new);
    let mut text = String::new();
    let mut at = 0;
    while let Some(first) = (at..steps.len()).find(|i| steps[*i].0 != Step::Keep) {
        let start = first.saturating_sub(CONTEXT).max(at);
        let mut end = first + 1;
        // Changes whose contexts touch are one hunk.
        while let Some(next) = (end..steps.len().min(end + 2 * CONTEXT + 1)).find(|i| steps[*i].0 != Step::Keep) {
            end = next + 1;
        }
        let end = (end + CONTEXT).min(steps.len());
        write_hunk(&mut text, &steps, start, end);
        at = end;
    }
    text
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    Keep,
    Remove,
    Add,
}

/// The lines of both texts in order, each with what becomes of it: by the longest common subsequence, after what is alike
/// at both ends is set aside.
fn steps<'a>(old: &[&'a str], new: &[&'a str]) -> Vec<(Step, &'a str)> {
    let head = old.iter().zip(new).take_while(|(a, b)| a == b).count();
    let tail = old[head..].iter().rev().zip(new[head..].iter().rev()).take_while(|(a, b)| a == b).count();
    let (left, right) = (&old[head..old.len() - tail], &new[head..new.len() - tail]);
    let mut lengths = vec![vec![0_usize; right.len() + 1]; left.len() + 1];
    for i in (0..left.len()).rev() {
        for j in (0..right.len()).rev() {
            lengths[i][j] =
                if left[i] == right[j] { lengths[i + 1][j + 1] + 1 } else { lengths[i + 1][j].max(lengths[i][j + 1]) };
        }
    }
    let mut steps: Vec<(Step, &str)> = old[..head].iter().map(|line| (Step::Keep, *line)).collect();
    let (mut i, mut j) = (0, 0);
    while i < left.len() || j < right.len() {
        if i < left.len() && j < right.len() && left[i] == right[j] {
            steps.push((Step::Keep, left[i]));
            (i, j) = (i + 1, j + 1);
        } else if i < left.len() && (j == right.len() || lengths[i + 1][j] >= lengths[i][j + 1]) {
            steps.push((Step::Remove, left[i]));
            i += 1;
        } else {
            steps.push((Step::Add, right[j]));
            j += 1;
        }
    }
    steps.extend(old[old.len() - tail..].iter().map(|line| (Step::Keep, *line)));
    steps
}

fn write_hunk(text: &mut String, steps: &[(Step, &str)], start: usize, end: usize) {
    let count = |range: &[(Step, &str)], other: Step| range.iter().filter(|(step, _)| *step != other).count();
    let range = |before: usize, length: usize| match length {
        0 => format!("{before},0"),
        1 => format!("{}", before + 1),
        _ => format!("{},{length}", before + 1),
    };
    let old = range(count(&steps[..start], Step::Add), count(&steps[start..end], Step::Add));
    let new = range(count(&steps[..start], Step::Remove), count(&steps[start..end], Step::Remove));
    // Writing to a String can't fail.
    let _ = writeln!(text, "@@ -{old} +{new} @@");
    for (step, line) in &steps[start..end] {
        let mark = match step {
            Step::Keep => ' ',
            Step::Remove => '-',
            Step::Add => '+',
        };
        let _ = writeln!(text, "{mark}{line}");
    }
}

/// JSON as Go indents it: one space a level, `<`, `>` and `&` escaped.
fn indented(value: &Value) -> String {
    let mut bytes = Vec::new();
    let mut serializer = Serializer::with_formatter(&mut bytes, PrettyFormatter::with_indent(b" "));
    if value.serialize(&mut serializer).is_err() {
        return String::new();
    }
    String::from_utf8_lossy(&bytes).replace('<', "\\u003c").replace('>', "\\u003e").replace('&', "\\u0026")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_hunk_has_three_lines_around_a_change() {
        let old = json!({"a": 1, "b": 2, "c": 3, "d": 4, "e": 5, "f": 6, "g": 7, "h": 8});
        let mut new = old.clone();
        new["e"] = json!(50);
        assert_eq!(
            unified(&old, &new),
            "@@ -3,7 +3,7 @@\n  \"b\": 2,\n  \"c\": 3,\n  \"d\": 4,\n- \"e\": 5,\n+ \"e\": 50,\n  \"f\": 6,\n  \"g\": \
             7,\n  \"h\": 8\n"
        );
        assert_eq!(unified(&old, &old), "");
    }

    #[test]
    fn added_lines_are_counted() {
        let diff = unified(&json!({"a": null}), &json!({"a": [1]}));
        assert!(diff.starts_with("@@ -1,3 +1,5 @@\n {\n- \"a\": null\n+ \"a\": [\n+  1\n+ ]\n }\n"), "{diff}");
    }
}
