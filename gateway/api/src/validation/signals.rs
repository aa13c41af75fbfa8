//! Signals that end a container, by the names that Kubernetes knows.

use serde_json::Value;

use crate::field::{ErrorList, Path};
use crate::validation::json::{dig, get};

/// On Linux, in the order in which they are listed to whoever names another.
const LINUX: [&str; 65] = [
    "SIGABRT",
    "SIGALRM",
    "SIGBUS",
    "SIGCHLD",
    "SIGCLD",
    "SIGCONT",
    "SIGFPE",
    "SIGHUP",
    "SIGILL",
    "SIGINT",
    "SIGIO",
    "SIGIOT",
    "SIGKILL",
    "SIGPIPE",
    "SIGPOLL",
    "SIGPROF",
    "SIGPWR",
    "SIGQUIT",
    "SIGRTMAX",
    "SIGRTMAX-1",
    "SIGRTMAX-10",
    "SIGRTMAX-11",
    "SIGRTMAX-12",
    "SIGRTMAX-13",
    "SIGRTMAX-14",
    "SIGRTMAX-2",
    "SIGRTMAX-3",
    "SIGRTMAX-4",
    "SIGRTMAX-5",
    "SIGRTMAX-6",
    "SIGRTMAX-7",
    "SIGRTMAX-8",
    "SIGRTMAX-9",
    "SIGRTMIN",
    "SIGRTMIN+1",
    "SIGRTMIN+10",
    "SIGRTMIN+11",
    "SIGRTMIN+12",
    "SIGRTMIN+13",
    "SIGRTMIN+14",
    "SIGRTMIN+15",
    "SIGRTMIN+2",
    "SIGRTMIN+3",
    "SIGRTMIN+4",
    "SIGRTMIN+5",
    "SIGRTMIN+6",
    "SIGRTMIN+7",
    "SIGRTMIN+8",
    "SIGRTMIN+9",
    "SIGSEGV",
    "SIGSTKFLT",
    "SIGSTOP",
    "SIGSYS",
    "SIGTERM",
    "SIGTRAP",
    "SIGTSTP",
    "SIGTTIN",
    "SIGTTOU",
    "SIGURG",
    "SIGUSR1",
    "SIGUSR2",
    "SIGVTALRM",
    "SIGWINCH",
    "SIGXCPU",
    "SIGXFSZ",
];
/// On Windows.
const WINDOWS: [&str; 2] = ["SIGKILL", "SIGTERM"];

/// What is wrong with the `stopSignal` of a container's lifecycle.
pub fn stop_signal(lifecycle: &Value, spec: &Value, path: &Path) -> ErrorList {
    let Some(signal) = get(lifecycle, "stopSignal").and_then(Value::as_str) else { return ErrorList::new() };
    let path = path.child("stopSignal");
    let Some(os) = get(spec, "os") else {
        return vec![path.forbidden("may not be set for containers with empty `spec.os.name`")];
    };
    let known: &[&str] = match dig(os, &["name"]).and_then(Value::as_str) {
        Some("linux") => &LINUX,
        Some("windows") => &WINDOWS,
        _ => return ErrorList::new(),
    };
    if known.contains(&signal) { ErrorList::new() } else { vec![path.not_supported(signal, known)] }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_stop_signal_is_one_that_the_pods_system_has() {
        let causes = |signal: &str, spec: &Value| -> Vec<String> {
            let found = stop_signal(&json!({"stopSignal": signal}), spec, &Path::new("lifecycle"));
            found.iter().map(ToString::to_string).collect()
        };
        assert_eq!(
            causes("SIGUSR1", &json!({})),
            ["lifecycle.stopSignal: Forbidden: may not be set for containers with empty `spec.os.name`"]
        );
        let linux = json!({"os": {"name": "linux"}});
        assert!(causes("SIGUSR1", &linux).is_empty() && causes("SIGRTMIN+15", &linux).is_empty());
        let refused = causes("USR1", &linux);
        assert!(
            refused[0].starts_with("lifecycle.stopSignal: Unsupported value: \"USR1\": supported values: \"SIGABRT\"")
        );
        assert_eq!(
            causes("SIGUSR1", &json!({"os": {"name": "windows"}})),
            ["lifecycle.stopSignal: Unsupported value: \"SIGUSR1\": supported values: \"SIGKILL\", \"SIGTERM\""]
        );
    }
}
