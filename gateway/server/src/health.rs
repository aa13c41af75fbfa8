//! `/healthz`, `/livez`, `/readyz`, `/version`.

use axum::response::Response;
use http::StatusCode;
use serde_json::{Value, json};

use crate::query::Query;
use crate::{Server, response};

/// What is checked, by name.
const CHECKS: [&str; 3] = ["ping", "log", "store"];

/// Answers a path of a health check, if it is one.
pub(crate) async fn answer(server: &Server, path: &str, query: &Query) -> Option<Response> {
    let mut segments = path.trim_start_matches('/').splitn(2, '/');
    let endpoint = segments.next()?;
    if !matches!(endpoint, "healthz" | "livez" | "readyz") {
        return None;
    }
    let wanted = segments.next().filter(|name| !name.is_empty());
    let checks: Vec<&str> = match wanted {
        None => CHECKS.to_vec(),
        Some(name) => CHECKS.iter().copied().filter(|check| *check == name).collect(),
    };
    if checks.is_empty() {
        return Some(response::page_not_found());
    }
    let excluded = query.all("exclude");
    let mut failed = false;
    let mut lines: Vec<String> = Vec::new();
    for check in checks {
        if excluded.contains(&check) {
            lines.push(format!("[+]{check} excluded: ok\n"));
        } else if healthy(server, check).await {
            lines.push(format!("[+]{check} ok\n"));
        } else {
            failed = true;
            lines.push(format!("[-]{check} failed: reason withheld\n"));
        }
    }
    let report = lines.concat();
    let (code, text) = if failed {
        (StatusCode::INTERNAL_SERVER_ERROR, format!("{report}{endpoint} check failed\n"))
    } else if query.get("verbose").is_some() {
        (StatusCode::OK, format!("{report}{endpoint} check passed\n"))
    } else {
        (StatusCode::OK, "ok".to_owned())
    };
    Some(response::text(code, text))
}

async fn healthy(server: &Server, check: &str) -> bool {
    match check {
        "store" => server.store.health().await.is_ok(),
        _ => !server.stopping.is_cancelled(),
    }
}

/// The version in the form that clients parse: Kubernetes' version whose API this is, and Carob's own behind the plus.
pub(crate) fn version() -> Value {
    json!({
        "major": "1",
        "minor": "35",
        "emulationMajor": "1",
        "emulationMinor": "35",
        "minCompatibilityMajor": "1",
        "minCompatibilityMinor": "34",
        "gitVersion": concat!("v1.35.0+carob.", env!("CARGO_PKG_VERSION")),
        "gitCommit": "",
        "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "none",
        // Not how this was compiled, but what clients compare with.
        "compiler": "gc",
        "platform": format!("{}/{}", std::env::consts::OS, match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        }),
    })
}
