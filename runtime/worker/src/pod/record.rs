//! What is known of a pod's containers: the state that statuses and decisions are computed from.

use carob_sandbox::User;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::ResourceRequirements;

/// The part a container plays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// Runs to its end before the next.
    Init,
    /// An init container with `restartPolicy: Always`: started in its turn, then runs beside the others.
    Sidecar,
    /// One of `spec.containers`.
    Main,
    /// One of `spec.ephemeralContainers`: started once, whatever the others do, and nothing waits for it.
    Ephemeral,
}

/// One container.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Record {
    pub name: String,
    pub role: Role,
    /// `image` as the spec names it.
    pub image: String,
    /// Number of starts so far; the next start's attempt.
    pub starts: u32,
    pub state: State,
    /// How the start before the one in `state` ended.
    pub last: Option<Ended>,
    /// What the image turned out to be: its reference and `imageID`.
    pub resolved: Option<(String, String)>,
    pub user: Option<User>,
    /// Name of the signal that ends it, from its first start on.
    pub stop_signal: Option<String>,
    /// The resources that the node has given the container a share for.
    pub allocated: ResourceRequirements,
    /// The resources that its cgroup has.
    pub actuated: ResourceRequirements,
    /// The whole pod begins anew, and this one hasn't been started since.
    pub anew: bool,
    /// The startup probe has succeeded, or there is none.
    pub started: bool,
    /// The readiness probe has succeeded, or there is none.
    pub ready: bool,
}

/// Where a container is in its life.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum State {
    /// Not running, and `reason` says what for.
    Waiting {
        reason: String,
        message: Option<String>,
    },
    Running {
        id: String,
        started_at: Timestamp,
    },
    Ended(Ended),
}

/// One ended run.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Ended {
    /// `None` for one that never had a container.
    pub id: Option<String>,
    pub code: i32,
    pub signal: Option<i32>,
    pub reason: String,
    pub message: Option<String>,
    pub started_at: Option<Timestamp>,
    pub finished_at: Option<Timestamp>,
}

impl Record {
    pub fn new(name: &str, image: &str, role: Role) -> Self {
        Self {
            name: name.to_owned(),
            role,
            image: image.to_owned(),
            starts: 0,
            state: State::Waiting { reason: CREATING.to_owned(), message: None },
            last: None,
            resolved: None,
            user: None,
            stop_signal: None,
            allocated: ResourceRequirements::default(),
            actuated: ResourceRequirements::default(),
            anew: false,
            started: false,
            ready: false,
        }
    }

    /// `restartCount`: starts beyond the first.
    pub fn restarts(&self) -> u32 {
        self.starts.saturating_sub(1)
    }

    pub fn is_running(&self) -> bool {
        matches!(self.state, State::Running { .. })
    }

    /// The end of the run in `state`, or, while it waits for the next, of the one before.
    pub fn newest_end(&self) -> Option<&Ended> {
        match &self.state {
            State::Ended(ended) => Some(ended),
            State::Waiting { .. } => self.last.as_ref(),
            State::Running { .. } => None,
        }
    }
}

/// Reasons of waiting containers that are not failures.
pub(crate) const CREATING: &str = "ContainerCreating";
pub(crate) const INITIALIZING: &str = "PodInitializing";
pub(crate) const CRASH_LOOP: &str = "CrashLoopBackOff";
pub(crate) const RESTARTING_ALL: &str = "RestartingAllContainers";
pub(crate) const PULL_BACK_OFF: &str = "ImagePullBackOff";

/// `reason` of a terminated container, as CRI runtimes and the kubelet say it.
pub(crate) fn end_reason(code: i32, oom_killed: bool) -> &'static str {
    match (oom_killed, code) {
        (true, _) => "OOMKilled",
        (false, 0) => "Completed",
        (false, _) => "Error",
    }
}
