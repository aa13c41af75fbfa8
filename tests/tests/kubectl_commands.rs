//! Every command of kubectl, by tables: what is typed, and what is printed. They are the files of `tests/kubectl`.
//!
//! A line of a table begins with
//! - `## ` a section, which has a namespace and a folder of its own; sections run side by side;
//! - `$ ` a line for the shell (`$NS` is the namespace, also in what is printed), `$? ` one that is run again until it prints
//!   what it should, since it reads what somebody else is about to write;
//! - `[N]` the exit code, where it isn't 0;
//! - else what is printed: `...` stands for anything, also for nothing and for several lines; spaces are as good as one.

use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

use carob_tests::{Carob, PATIENCE, holds_within, kubectl_of, text};

/// Sections at work at once: most of the time they wait.
const AT_ONCE: usize = 4;

/// One line typed, and what comes of it.
#[derive(Default)]
struct Step {
    line: String,
    again: bool,
    code: i32,
    printed: Vec<String>,
}

struct Section {
    title: String,
    steps: Vec<Step>,
}

fn tables() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("kubectl")
}

fn read(table: &str) -> Vec<Section> {
    let text = fs::read_to_string(tables().join(table)).expect("a table");
    let mut sections: Vec<Section> = Vec::new();
    for line in text.lines() {
        if let Some(title) = line.strip_prefix("## ") {
            sections.push(Section { title: title.to_owned(), steps: Vec::new() });
            continue;
        }
        let steps = &mut sections.last_mut().expect("a section").steps;
        let typed = line.strip_prefix("$ ").map(|line| (line, false));
        if let Some((line, again)) = typed.or_else(|| line.strip_prefix("$? ").map(|line| (line, true))) {
            steps.push(Step { line: line.to_owned(), again, ..Step::default() });
            continue;
        }
        let Some(step) = steps.last_mut() else { continue };
        match line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')?.parse().ok()) {
            Some(code) => step.code = code,
            None => step.printed.push(line.to_owned()),
        }
    }
    sections
}

/// Lines with single spaces, without empty ones at either end.
fn squeeze(text: &str) -> String {
    let lines = text.trim().lines();
    lines.map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect::<Vec<_>>().join("\n")
}

/// Whether a text is of this form, where `...` stands for anything.
fn matches(form: &str, text: &str) -> bool {
    let mut parts: Vec<&str> = form.split("...").collect();
    let last = parts.pop().unwrap_or_default();
    let Some((first, middle)) = parts.split_first() else { return text == last };
    let Some(mut rest) = text.strip_prefix(first).and_then(|rest| rest.strip_suffix(last)) else { return false };
    for part in middle {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    true
}

/// A namespace's name without digits, which tables may want to replace.
fn namespace(index: usize) -> String {
    format!("ns{}", char::from(b'a' + u8::try_from(index).expect("few sections")))
}

/// Types a section's lines; what differed from the table.
fn run(carob: &Carob, kubectl: &Path, namespace: &str, section: &Section) -> Vec<String> {
    let folder = carob.path(namespace);
    fs::create_dir_all(&folder).expect("a folder");
    fs::copy(carob.kubeconfig(), folder.join("config")).expect("a kubeconfig");
    let path = std::env::var("PATH").unwrap_or_default();
    let path = format!("{}:{path}", kubectl.parent().expect("a folder").display());
    let shell = |line: &str| {
        Command::new("bash")
            .args(["-o", "pipefail", "-c", &format!("exec 2>&1\n{line}")])
            .current_dir(&folder)
            .env("PATH", &path)
            .env("KUBECONFIG", folder.join("config"))
            .env("HOME", carob.path("home"))
            .env("NS", namespace)
            .env("FILES", tables())
            .stdin(Stdio::null())
            .output()
            .expect("bash")
    };
    let made = shell(&format!(
        "kubectl create namespace {namespace} && kubectl config set-context --current --namespace={namespace}"
    ));
    assert!(made.status.success(), "{}", text(&made));
    // Pods may be made as soon as there is an identity for them.
    let identity = "kubectl get serviceaccount default";
    assert!(holds_within(PATIENCE, || shell(identity).status.success()), "no identity in {namespace}");
    let mut wrong = Vec::new();
    for step in &section.steps {
        let form = squeeze(&step.printed.join("\n")).replace("${NS}", namespace).replace("$NS", namespace);
        let mut seen = (None, String::new());
        let mut right = || {
            let output = shell(&step.line);
            seen = (output.status.code(), squeeze(&text(&output)));
            seen.0 == Some(step.code) && matches(&form, &seen.1)
        };
        let right = if step.again { holds_within(PATIENCE, right) } else { right() };
        if !right {
            let (code, printed) = seen;
            wrong.push(format!(
                "in {:?}:\n$ {}\nended with {code:?}, not {}, and printed\n{printed}\nwhere there should be\n{form}\n",
                section.title, step.line, step.code
            ));
        }
    }
    wrong
}

fn run_all(minor: u32, tables: &[&str], at_once: usize) {
    let carob = Carob::start(&["busybox"]);
    let kubectl = kubectl_of(minor);
    let sections: VecDeque<_> = tables.iter().flat_map(|table| read(table)).enumerate().collect();
    assert!(!sections.is_empty(), "the tables are empty");
    let (sections, wrong) = (Mutex::new(sections), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..at_once {
            scope.spawn(|| {
                loop {
                    let next = sections.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                    let Some((index, section)) = next else { return };
                    let found = run(&carob, &kubectl, &namespace(index), &section);
                    wrong.lock().unwrap_or_else(PoisonError::into_inner).extend(found);
                }
            });
        }
    });
    let wrong = wrong.into_inner().unwrap_or_else(PoisonError::into_inner);
    assert!(wrong.is_empty(), "kubectl 1.{minor}:\n{}", wrong.join("\n"));
}

/// Longest first.
const OBJECTS: [&str; 6] = ["create.txt", "change.txt", "apply.txt", "admission.txt", "read.txt", "delete.txt"];

#[test]
fn kubectl_1_32_makes_reads_changes_and_deletes_objects() {
    run_all(32, &OBJECTS, AT_ONCE);
}

#[test]
fn kubectl_1_35_makes_reads_changes_and_deletes_objects() {
    run_all(35, &OBJECTS, AT_ONCE);
}

#[test]
fn kubectl_1_32_runs_and_looks_into_pods() {
    run_all(32, &["run.txt"], AT_ONCE);
}

#[test]
fn kubectl_1_35_runs_and_looks_into_pods() {
    run_all(35, &["run.txt"], AT_ONCE);
}

#[test]
fn kubectl_1_32_and_1_35_drain_nodes() {
    for minor in [32, 35] {
        run_all(minor, &["alone.txt"], 1);
    }
}

#[test]
fn forms_stand_for_what_they_say() {
    assert!(matches("a\nb", "a\nb") && !matches("a", "a\nb"));
    assert!(matches("a ... c", "a b c") && matches("...", "") && matches("a...", "a\nb"));
    assert!(!matches("a...b", "a") && !matches("ab...bc", "abc"), "parts don't overlap");
    assert_eq!(squeeze("  a   b \n\n c\n"), "a b\n\nc");
}
