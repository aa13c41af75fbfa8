//! Resizing containers that run: what the spec wants is allocated when the node has it, then given to cgroups.
//!
//! A record's `allocated` is what the node has promised, its `actuated` what its cgroup has. The spec's differs from the
//! first while a resize is pending, the second from the first while one is in progress. The same holds of what is said of
//! the pod as a whole.

use super::actor::{Actor, Done, Live, Noted};
use super::conditions::{Verdict, verdict};
use super::record::Role;
use super::start::observed_requests;
use crate::container::resources::{container_cgroup, pod_cgroup};
use crate::context::Context;
use crate::events::{About, Severity};
use crate::observer::{ContainerRequests, ObservedContainer};
use carob_sandbox::{ContainerId, Limits};
use k8s_openapi::api::core::v1::{Container, Pod, PodCondition, PodSpec, ResourceRequirements};
use serde_json::json;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often a resize that the node had no room for is tried again, and one that the kernel or the container refused.
const RETRY: Duration = Duration::from_secs(3);

/// That what was promised is being given.
#[derive(Clone, Default)]
struct Attempt {
    /// Why the last try failed.
    error: Option<String>,
}

/// How far a pod's resize has come.
#[derive(Default)]
pub(super) struct Resize {
    /// `spec.resources` as the node has promised them, and as the pod's cgroup has them.
    allocated: Option<ResourceRequirements>,
    actuated: Option<ResourceRequirements>,
    /// Something has changed that may concern it.
    look: bool,
    /// Reason and message while the node doesn't promise what the spec wants.
    pending: Option<(&'static str, String)>,
    /// What was promised isn't given yet; why not, if it failed.
    progress: Option<Attempt>,
    working: bool,
    retry_at: Option<Instant>,
    /// After a restart of this process, first of all the node's other pods take what they have.
    not_before: Option<Instant>,
}

/// What containers (by their place) and the pod have been given.
pub(super) struct Given {
    containers: Vec<(usize, ResourceRequirements)>,
    whole: Option<ResourceRequirements>,
}

/// What came of giving what was allocated.
pub(super) type Outcome = Result<Given, String>;

impl Resize {
    /// Of a pod whose spec says this of it as a whole.
    pub fn new(whole: Option<&ResourceRequirements>) -> Self {
        Self { allocated: whole.cloned(), actuated: whole.cloned(), ..Self::default() }
    }

    /// At the next reconciliation.
    pub fn look_again(&mut self) {
        self.look = true;
    }

    /// After a restart of this process: what the API was told still holds, and is looked at again when the node's other
    /// pods have taken their shares.
    pub fn restore(&mut self, pod: &Pod) {
        let conditions = || pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
        let message = |condition: &PodCondition| condition.message.clone();
        for condition in conditions() {
            match condition.type_.as_str() {
                "PodResizePending" => {
                    let reasons = ["Deferred", "Infeasible"].into_iter();
                    let reason = reasons.into_iter().find(|known| condition.reason.as_deref() == Some(known));
                    self.pending = reason.map(|reason| (reason, message(condition).unwrap_or_default()));
                }
                "PodResizeInProgress" => self.progress = Some(Attempt { error: message(condition) }),
                _ => {}
            }
        }
        let told = pod.status.as_ref().and_then(|status| status.resources.clone());
        if let Some(told) = told.filter(|_| self.allocated.is_some()) {
            (self.allocated, self.actuated) = (Some(told.clone()), Some(told));
        }
        self.not_before = Some(Instant::now() + RETRY);
    }

    /// What the pod's cgroup was given of what is said of the whole pod.
    pub fn whole(&self) -> Option<&ResourceRequirements> {
        self.actuated.as_ref()
    }

    /// When to look again if nothing happens.
    pub fn wake(&self) -> Option<Instant> {
        [self.retry_at, self.not_before].into_iter().flatten().min().filter(|_| !self.working)
    }

    /// The conditions that tell of it.
    pub fn conditions(&self) -> Vec<Verdict> {
        let pending = self
            .pending
            .clone()
            .map(|(reason, message)| verdict("PodResizePending", true, Some(reason), Some(message)));
        let progress = self.progress.clone().map(|Attempt { error }| {
            let reason = error.as_ref().map(|_| "Error");
            verdict("PodResizeInProgress", true, reason, error)
        });
        pending.into_iter().chain(progress).collect()
    }
}

impl Actor {
    /// The container as the node has allocated it.
    pub(super) fn allocated_container(&self, index: usize) -> Container {
        let mut container = self.container(index).clone();
        if container.resources.is_some() || self.records[index].allocated != ResourceRequirements::default() {
            container.resources = Some(self.records[index].allocated.clone());
        }
        container
    }

    /// The pod with its containers as the node has allocated them.
    pub(super) fn allocated_pod(&self) -> Arc<Pod> {
        if !self.wants_any() {
            return self.pod.clone();
        }
        let mut pod = Pod::clone(&self.pod);
        if let Some(spec) = pod.spec.as_mut() {
            spec.resources.clone_from(&self.resize.allocated);
            let containers = spec.init_containers.iter_mut().flatten().chain(&mut spec.containers);
            for (index, container) in containers.enumerate() {
                *container = self.allocated_container(index);
            }
        }
        Arc::new(pod)
    }

    /// Whether the spec wants other resources than are allocated.
    fn wants_any(&self) -> bool {
        self.spec().resources != self.resize.allocated || (0..self.records.len()).any(|index| self.wants_other(index))
    }

    fn wants_other(&self, index: usize) -> bool {
        self.records[index].role != Role::Ephemeral
            && self.container(index).resources.clone().unwrap_or_default() != self.records[index].allocated
    }

    /// Allocates what the spec wants, and gives containers what is allocated.
    pub(super) fn reconcile_resize(&mut self, now: Instant) {
        if self.resize.retry_at.is_some_and(|at| at <= now) {
            (self.resize.retry_at, self.resize.look) = (None, true);
        }
        if self.resize.not_before.is_some_and(|at| at <= now) {
            (self.resize.not_before, self.resize.look) = (None, true);
        }
        if !self.resize.look || self.resize.working || self.resize.not_before.is_some() {
            return;
        }
        self.resize.look = false;
        self.allocate(now);
        self.actuate();
    }

    fn allocate(&mut self, now: Instant) {
        if !self.wants_any() {
            if self.resize.pending.take().is_some() {
                self.writer.mark_now();
            }
            return;
        }
        let refused = if let Some(message) = self.ctx.admission.infeasible(self.spec()) {
            Some(("Infeasible", message))
        } else {
            let refusal = self.ctx.admission.resize(&self.uid, self.spec()).err();
            refusal.map(|refusal| ("Deferred", refusal.message))
        };
        if let Some((reason, message)) = refused {
            if reason == "Deferred" {
                self.resize.retry_at = Some(now + RETRY);
            }
            let told = self.resize.pending.as_ref().is_some_and(|(before, _)| *before == reason);
            let changed = self.resize.pending.replace((reason, message.clone())) != Some((reason, message.clone()));
            if !told {
                let event = if reason == "Deferred" { "ResizeDeferred" } else { "ResizeInfeasible" };
                self.resize_event(Severity::Warning, event, &format!("Pod resize {reason}"), Some(&message));
            }
            if changed {
                self.writer.mark_now();
            }
            return;
        }
        for index in 0..self.records.len() {
            if self.records[index].role != Role::Ephemeral {
                self.records[index].allocated = self.container(index).resources.clone().unwrap_or_default();
            }
        }
        self.resize.allocated = self.spec().resources.clone();
        self.resize.pending = None;
        self.resize.progress = Some(Attempt::default());
        self.resize_event(Severity::Normal, "ResizeStarted", "Pod resize started", None);
        self.writer.mark_now();
    }

    fn actuate(&mut self) {
        let (mut changes, mut restarts, mut waiting) = (Vec::new(), Vec::new(), false);
        let pod = self.allocated_pod();
        let Some(spec) = pod.spec.as_ref() else { return };
        let before = PodSpec { resources: self.resize.actuated.clone(), ..spec.clone() };
        // Limits of the pod are those of containers that have none.
        let whole_changes = self.resize.allocated != self.resize.actuated;
        // What one takes of the pod's requests, the others don't hold any more.
        let shared = spec.resources.is_some() && self.records.iter().any(|record| record.allocated != record.actuated);
        for index in 0..self.records.len() {
            let record = &self.records[index];
            let changes_itself = record.allocated != record.actuated;
            if record.role == Role::Ephemeral || !(changes_itself || whole_changes || shared) {
                continue;
            }
            let control = &self.controls[index];
            match &control.live {
                // It begins with what is allocated then.
                None => {
                    if control.starting {
                        waiting = true;
                    } else {
                        self.records[index].actuated = record.allocated.clone();
                    }
                }
                Some(_) if control.stopping => waiting = true,
                Some(live) => {
                    if needs_restart(self.container(index), &record.actuated, &record.allocated) {
                        restarts.push(index);
                        continue;
                    }
                    changes.push(Change {
                        index,
                        name: record.name.clone(),
                        id: live.id.clone(),
                        had: cgroup(&before, &record.actuated),
                        gets: cgroup(spec, &record.allocated),
                        after: record.allocated.clone(),
                        size: Size::of(live, spec, &self.allocated_container(index)),
                    });
                }
            }
        }
        for index in restarts {
            let name = self.records[index].name.clone();
            // What it did before is no reason to wait.
            self.controls[index].crash.reset();
            self.restart(index, format!("Container {name} resize requires restart"), None);
            self.controls[index].restart_wanted = true;
            waiting = true;
        }
        if self.sandbox.is_none() {
            return;
        }
        if !changes.is_empty() || (self.resize.progress.is_some() && !waiting) {
            self.resize.working = true;
            let (ctx, uid, limits) = (self.ctx.clone(), self.uid.clone(), [pod_cgroup(&before), pod_cgroup(spec)]);
            let whole = self.resize.allocated.clone();
            self.tasks.spawn(async move {
                let given = apply(&ctx, &uid, limits, changes).await;
                Done::Resized(given.map(|containers| Given { containers, whole }))
            });
        }
    }

    pub(super) fn resized(&mut self, outcome: Outcome) {
        self.resize.working = false;
        match outcome {
            Ok(Given { containers, whole }) => {
                for (index, resources) in containers {
                    self.records[index].actuated = resources;
                }
                self.resize.actuated = whole;
                let done = self.resize.allocated == self.resize.actuated
                    && self.records.iter().all(|record| record.allocated == record.actuated);
                if done && self.resize.progress.take().is_some() {
                    self.resize_event(Severity::Normal, "ResizeCompleted", "Pod resize completed", None);
                } else {
                    self.resize.look = true;
                }
            }
            Err(error) => {
                if self.resize.progress.as_ref().and_then(|attempt| attempt.error.as_ref()) != Some(&error) {
                    self.resize_event(Severity::Warning, "ResizeError", "Pod resize error", Some(&error));
                }
                self.resize.progress = Some(Attempt { error: Some(error) });
                self.resize.retry_at = Some(Instant::now() + RETRY);
            }
        }
        self.writer.mark_now();
    }

    fn resize_event(&self, severity: Severity, reason: &'static str, text: &str, error: Option<&str>) {
        let containers: Vec<_> = (0..self.records.len())
            .filter(|index| self.records[*index].role != Role::Ephemeral)
            .map(|index| json!({"name": self.records[index].name, "resources": self.container(index).resources}))
            .collect();
        let mut detail = json!({"containers": containers, "generation": self.pod.metadata.generation});
        if let Some(whole) = &self.spec().resources {
            detail["resources"] = json!(whole);
        }
        if let Some(error) = error {
            detail["error"] = json!(error);
        }
        self.ctx.events.record(About::pod(&self.pod), severity, reason, format!("{text}: {detail}"));
    }
}

/// A running container that is to have other resources.
struct Change {
    index: usize,
    name: String,
    id: ContainerId,
    /// Limits of its cgroup.
    had: Limits,
    gets: Limits,
    after: ResourceRequirements,
    size: Size,
}

/// What a running container asks for from now on.
pub(super) struct Size {
    pub observed: Arc<ObservedContainer>,
    /// That it runs is told first.
    pub noted: Noted,
    pub requests: ContainerRequests,
}

impl Size {
    pub fn of(live: &Live, spec: &PodSpec, container: &Container) -> Self {
        let (observed, noted) = (live.observed.clone(), live.noted.clone());
        Self { observed, noted, requests: observed_requests(spec, container) }
    }
}

/// Tells the observer.
pub(super) async fn note_resized(ctx: &Context, size: Size) {
    size.noted.await;
    ctx.observer.resized(&size.observed, size.requests).await;
}

/// Whether `resizePolicy` wants a restart for what changes.
fn needs_restart(container: &Container, before: &ResourceRequirements, after: &ResourceRequirements) -> bool {
    let policies = container.resize_policy.iter().flatten();
    policies.filter(|policy| policy.restart_policy == "RestartContainer").any(|policy| {
        let of = |resources: &ResourceRequirements| {
            let amount = |list: &Option<std::collections::BTreeMap<_, _>>| {
                list.as_ref().and_then(|list| list.get(&policy.resource_name)).cloned()
            };
            (amount(&resources.requests), amount(&resources.limits))
        };
        of(before) != of(after)
    })
}

/// The cgroup of a container of this pod that has these resources.
fn cgroup(spec: &PodSpec, resources: &ResourceRequirements) -> Limits {
    let container = Container { resources: Some(resources.clone()), ..Container::default() };
    unlimited_where_unset(container_cgroup(spec, &container))
}

/// What isn't limited now may have been before.
fn unlimited_where_unset(limits: Limits) -> Limits {
    Limits { cpu_quota_us: limits.cpu_quota_us.or(Some(-1)), memory_bytes: limits.memory_bytes.or(Some(-1)), ..limits }
}

/// Sets the cgroups. A pod's is wide before its containers' grow and narrow only after they shrank: the kernel refuses a
/// container that may have more than its pod.
async fn apply(
    ctx: &Context,
    uid: &str,
    [before, pod]: [Limits; 2],
    changes: Vec<Change>,
) -> Result<Vec<(usize, ResourceRequirements)>, String> {
    check_memory(ctx, (&before, &pod), &changes).await?;
    let pod = unlimited_where_unset(pod);
    let wide = Limits { cpu_quota_us: Some(-1), memory_bytes: Some(-1), ..pod.clone() };
    let text = |error: carob_sandbox::Error| error.to_string();
    ctx.runtime.update_pod_limits(uid, wide).await.map_err(text)?;
    let (mut given, mut sizes) = (Vec::new(), Vec::new());
    let mut failed = None;
    for change in changes {
        match ctx.runtime.update_limits(&change.id, change.gets).await {
            // Of one that isn't there its end is about to be told; the next one begins with what is allocated.
            Ok(()) | Err(carob_sandbox::Error::NotFound { .. }) => {
                given.push((change.index, change.after));
                sizes.push(change.size);
            }
            Err(error) => failed = Some(format!("container {:?}: {error}", change.name)),
        }
    }
    ctx.runtime.update_pod_limits(uid, pod).await.map_err(text)?;
    if let Some(error) = failed {
        return Err(error);
    }
    // Nobody is told of it before it is on the bill: after a crash it is done again.
    for size in sizes {
        note_resized(ctx, size).await;
    }
    Ok(given)
}

/// A limit below what is in use would end in a kill: such a resize waits.
async fn check_memory(ctx: &Context, (before, pod): (&Limits, &Limits), changes: &[Change]) -> Result<(), String> {
    let mut errors = Vec::new();
    let is_lower = |limit: i64| before.memory_bytes.is_none_or(|before| before < 0 || before > limit);
    let (mut lowered, mut used_by_pod) = (pod.memory_bytes.is_some_and(is_lower), 0);
    for change in changes {
        let (before, after) = (change.had.memory_bytes, change.gets.memory_bytes);
        let Ok(usage) = ctx.runtime.usage(&change.id).await else { continue };
        let used = i64::try_from(usage.memory_bytes).unwrap_or(i64::MAX);
        used_by_pod += used;
        let Some(limit) = after.filter(|limit| *limit >= 0) else { continue };
        if before.is_none_or(|before| before < 0 || before > limit) {
            lowered = true;
            if used > limit {
                errors.push(format!(
                    "attempting to set container {:?} memory limit ({limit}) below current usage ({used})",
                    change.name
                ));
            }
        }
    }
    if let Some(limit) = pod.memory_bytes.filter(|limit| lowered && *limit >= 0 && used_by_pod > *limit) {
        let text = format!("attempting to set pod memory limit ({limit}) below current usage ({used_by_pod})");
        errors.insert(0, text);
    }
    match errors.as_slice() {
        [] => Ok(()),
        [one] => Err(format!("cannot decrease memory limits: {one}")),
        several => Err(format!("cannot decrease memory limits: [{}]", several.join(", "))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restart_is_needed_only_for_what_its_policy_names() {
        let container: Container = serde_json::from_value(json!({"name": "c", "resizePolicy": [
            {"resourceName": "cpu", "restartPolicy": "NotRequired"},
            {"resourceName": "memory", "restartPolicy": "RestartContainer"}]}))
        .unwrap();
        let resources = |cpu: &str, memory: &str| -> ResourceRequirements {
            serde_json::from_value(json!({"limits": {"cpu": cpu, "memory": memory}})).unwrap()
        };
        let before = resources("1", "1Gi");
        assert!(!needs_restart(&container, &before, &resources("2", "1Gi")));
        assert!(needs_restart(&container, &before, &resources("1", "2Gi")));
        assert_eq!(cgroup(&PodSpec::default(), &ResourceRequirements::default()).memory_bytes, Some(-1));
    }
}
