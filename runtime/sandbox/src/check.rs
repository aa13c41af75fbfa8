//! What this machine offers for sandboxes, and what it lacks.

/// One thing that sandboxes need.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckItem {
    /// As in `cgroup controllers`.
    pub name: &'static str,
    /// Whether it is there.
    pub state: CheckState,
    /// What was found.
    pub detail: String,
    /// What its lack costs; empty when it is there.
    pub cost: String,
}

/// How well a need is met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CheckState {
    /// It is there.
    Ok,
    /// Pods run, with something less.
    Degraded,
    /// Pods cannot run.
    Missing,
}

/// Looks at the machine; changes nothing that lasts.
pub fn check() -> Vec<CheckItem> {
    Vec::new()
}
