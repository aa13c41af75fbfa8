//! Probes and lifecycle hooks, which share their handlers.

use serde_json::Value;

use crate::field::{ErrorList, Path};
use crate::validation::json::{get, int, items, str_at};
use crate::validation::metadata::non_negative;
use crate::validation::{names, signals};

/// Which probe it is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Probe {
    /// Restarts the container.
    Liveness,
    /// Takes the pod out of Services.
    Readiness,
    /// Holds the other probes back.
    Startup,
}

const NUMBERS: [&str; 5] =
    ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"];

/// What is wrong with a probe of a container.
pub fn probe(container: &Value, field: &str, which: Probe, path: &Path) -> ErrorList {
    let Some(probe) = get(container, field) else { return ErrorList::new() };
    let path = path.child(field);
    let mut errors = handler(probe, None, &path);
    for number in NUMBERS {
        errors.extend(non_negative(probe, number, &path));
    }
    let grace = int(probe, "terminationGracePeriodSeconds");
    if let Some(seconds) = grace.filter(|seconds| *seconds <= 0) {
        errors.push(path.child("terminationGracePeriodSeconds").invalid(seconds, "must be greater than 0"));
    }
    if which == Probe::Readiness {
        if let Some(seconds) = grace {
            let field = path.child("terminationGracePeriodSeconds");
            errors.push(field.invalid(seconds, "must not be set for readinessProbes"));
        }
    } else if let Some(threshold) = int(probe, "successThreshold").filter(|threshold| *threshold != 1) {
        errors.push(path.child("successThreshold").invalid(threshold, "must be 1"));
    }
    errors
}

/// What is wrong with the hooks and the stop signal of a container whose pod has this spec and `grace` seconds to end.
pub fn lifecycle(container: &Value, spec: &Value, grace: i64, path: &Path) -> ErrorList {
    let Some(lifecycle) = get(container, "lifecycle") else { return ErrorList::new() };
    let path = path.child("lifecycle");
    let mut errors = ErrorList::new();
    for hook in ["postStart", "preStop"] {
        if let Some(value) = get(lifecycle, hook) {
            errors.extend(handler(value, Some(grace), &path.child(hook)));
        }
    }
    errors.extend(signals::stop_signal(lifecycle, spec, &path));
    errors
}

/// What is wrong with the one handler of a probe or hook. Hooks have a grace period and may sleep.
fn handler(value: &Value, grace: Option<i64>, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    let mut handlers = 0;
    for kind in ["exec", "httpGet", "tcpSocket", "grpc", "sleep"] {
        let Some(action) = get(value, kind) else { continue };
        if (kind == "grpc" && grace.is_some()) || (kind == "sleep" && grace.is_none()) {
            continue;
        }
        let path = path.child(kind);
        handlers += 1;
        if handlers > 1 {
            errors.push(path.forbidden("may not specify more than 1 handler type"));
            continue;
        }
        match kind {
            "exec" => {
                if items(action, "command").is_empty() {
                    errors.push(path.child("command").required(""));
                }
            }
            "httpGet" => errors.extend(http(action, &path)),
            "tcpSocket" => errors.extend(port(action, &path.child("port"))),
            "grpc" => {
                let number = int(action, "port").unwrap_or(0);
                errors.extend(
                    names::port_number(number).into_iter().map(|text| path.child("port").invalid(number, text)),
                );
            }
            _ => {
                let (seconds, grace) = (int(action, "seconds").unwrap_or(0), grace.unwrap_or(30));
                if seconds < 0 || seconds > grace {
                    errors.push(path.invalid(
                        seconds,
                        format!("must be non-negative and less than terminationGracePeriodSeconds ({grace})"),
                    ));
                }
            }
        }
    }
    if handlers == 0 {
        errors.push(path.required("must specify a handler type"));
    }
    errors
}

fn http(action: &Value, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    if str_at(action, "path").is_empty() {
        errors.push(path.child("path").required(""));
    }
    errors.extend(port(action, &path.child("port")));
    let scheme = str_at(action, "scheme");
    if !matches!(scheme, "HTTP" | "HTTPS") {
        errors.push(path.child("scheme").not_supported(scheme, &["HTTP", "HTTPS"]));
    }
    for header in items(action, "httpHeaders") {
        let name = str_at(header, "name");
        let field = path.child("httpHeaders");
        errors.extend(names::http_header_name(name).into_iter().map(|text| field.invalid(name, text)));
    }
    errors
}

/// A port by number or by the name it has in the container.
fn port(action: &Value, path: &Path) -> ErrorList {
    match action.get("port") {
        Some(Value::String(name)) => {
            names::port_name(name).into_iter().map(|text| path.invalid(name.as_str(), text)).collect()
        }
        other => {
            let number = other.and_then(Value::as_i64).unwrap_or(0);
            names::port_number(number).into_iter().map(|text| path.invalid(number, text)).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn causes(probe_value: &Value, which: Probe) -> Vec<String> {
        let container = json!({"p": probe_value});
        probe(&container, "p", which, &Path::new("c")).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_probe_has_one_handler() {
        assert_eq!(causes(&json!({}), Probe::Readiness), ["c.p: Required value: must specify a handler type"]);
        let two = json!({"exec": {"command": ["a"]}, "tcpSocket": {"port": 1}});
        assert_eq!(
            causes(&two, Probe::Readiness),
            ["c.p.tcpSocket: Forbidden: may not specify more than 1 handler type"]
        );
    }

    #[test]
    fn a_handler_is_complete() {
        let http = json!({"httpGet": {"path": "", "port": 0, "scheme": "FTP"}});
        let paths: Vec<String> = probe(&json!({"p": http}), "p", Probe::Readiness, &Path::new("c"))
            .into_iter()
            .map(|error| error.path)
            .collect();
        assert_eq!(paths, ["c.p.httpGet.path", "c.p.httpGet.port", "c.p.httpGet.scheme"]);
    }

    #[test]
    fn only_readiness_may_need_several_successes() {
        let probe = json!({"exec": {"command": ["a"]}, "successThreshold": 2});
        assert!(causes(&probe, Probe::Readiness).is_empty());
        assert_eq!(causes(&probe, Probe::Liveness), ["c.p.successThreshold: Invalid value: 2: must be 1"]);
    }

    #[test]
    fn a_hook_sleeps_within_the_grace_period() {
        let container = json!({"lifecycle": {"preStop": {"sleep": {"seconds": 31}}}});
        assert_eq!(lifecycle(&container, &json!({}), 30, &Path::new("c"))[0].path, "c.lifecycle.preStop.sleep");
        assert!(lifecycle(&container, &json!({}), 60, &Path::new("c")).is_empty());
    }
}
