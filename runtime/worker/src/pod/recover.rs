//! Taking up a pod after a restart of this process: the sandbox's word on what runs, the API's on what was.

use super::actor::{Actor, Live, Noted};
use super::prepare::{ADDRESS, NAME, NAMESPACE, Sandbox};
use super::record::{CRASH_LOOP, CREATING, Ended, RESTARTING_ALL, Role, State};
use super::resize::{Size, note_resized};
use super::start::{ATTEMPT, CONTAINER, IDENTITY, IMAGE, IMAGE_ID, SPEC_IMAGE, STOP_SIGNAL, USER, observed_requests};
use crate::addresses::Addresses;
use crate::container::build::ContainerPaths;
use crate::container::signal::StopSignal;
use crate::files::PodFiles;
use crate::observer::{Identity, ObservedContainer};
use carob_sandbox::{CgroupPaths, CgroupVersion, ContainerId, ContainerState, Exit, RecoveredContainer, RecoveredPod};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, ContainerStateTerminated, ContainerStatus, Pod, PodSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

impl Actor {
    /// Sets the records by the object's status, then by what the sandbox has.
    pub(super) fn restore(&mut self, recovered: Option<RecoveredPod>) {
        self.restore_from_status();
        let Some(pod) = recovered else {
            self.mark_lost();
            return;
        };
        let address: Option<Addresses> = pod.annotations.get(ADDRESS).and_then(|address| address.parse().ok());
        if pod.alive {
            let files = PodFiles::existing(&self.ctx.dirs.pod(&self.uid));
            self.sandbox = Some(Sandbox { address, hostname: pod.hostname.clone(), files });
        }
        let mut containers = pod.containers;
        let attempt = |container: &RecoveredContainer| {
            container.annotations.get(ATTEMPT).and_then(|attempt| attempt.parse::<u32>().ok()).unwrap_or(0)
        };
        containers.sort_by_key(attempt);
        for container in containers {
            let attempt = attempt(&container);
            self.restore_container(container, attempt);
        }
        self.mark_lost();
        if !pod.alive {
            self.remove_sandbox();
        }
    }

    fn restore_from_status(&mut self) {
        let Some(status) = self.pod.status.clone() else { return };
        let all = status.init_container_statuses.iter().flatten().chain(status.container_statuses.iter().flatten());
        let all = all.chain(status.ephemeral_container_statuses.iter().flatten());
        for status in all {
            let Some(index) = self.records.iter().position(|record| record.name == status.name) else { continue };
            let record = &mut self.records[index];
            let last = status.last_state.as_ref().and_then(|state| state.terminated.as_ref());
            record.last = last.map(ended);
            if !status.image_id.is_empty() {
                record.resolved = Some((status.image.clone(), status.image_id.clone()));
            }
            record.stop_signal.clone_from(&status.stop_signal);
            let has_run = status.container_id.is_some() || status.restart_count > 0 || record.last.is_some();
            let restarts = u32::try_from(status.restart_count).unwrap_or(0);
            record.starts = if has_run { restarts + 1 } else { 0 };
            record.state = state(status);
            let waits = matches!(record.state, State::Waiting { .. });
            record.anew = waits && record.last.as_ref().is_some_and(|last| last.reason == RESTARTING_ALL);
            if let Some(resources) = status.resources.clone().filter(|_| record.is_running()) {
                (record.allocated, record.actuated) = (resources.clone(), resources);
            }
            if matches!(&record.state, State::Waiting { reason, .. } if reason == CRASH_LOOP) {
                // It is tried at once, and waits again if it fails again.
                self.controls[index].crash.next(std::time::Instant::now());
            }
        }
    }

    /// Containers that the status calls running and the sandbox doesn't have: the machine was restarted meanwhile.
    fn mark_lost(&mut self) {
        for (record, control) in self.records.iter_mut().zip(&self.controls) {
            let State::Running { id, started_at } = &record.state else { continue };
            if control.live.is_some() {
                continue;
            }
            record.state = State::Ended(Ended {
                id: Some(id.clone()),
                code: 137,
                signal: None,
                reason: "ContainerStatusUnknown".to_owned(),
                message: Some("The container could not be located when the pod was terminated".to_owned()),
                started_at: Some(*started_at),
                finished_at: Some(Timestamp::now()),
            });
        }
        if self.sandbox.is_none() && self.controls.iter().all(|control| control.live.is_none()) {
            let main_begun = self.records.iter().any(|record| record.role == Role::Main && record.starts > 0);
            if !main_begun {
                return;
            }
            // A new sandbox will be made for what restarts: sidecars begin anew with it.
            for record in self.records.iter_mut().filter(|record| record.role == Role::Sidecar) {
                record.started = false;
            }
        }
    }

    /// What is left of a sandbox whose namespaces died with the spawner, or didn't do, goes; the next start makes a new one.
    pub(super) fn remove_sandbox(&mut self) {
        (self.sandbox, self.volumes) = (None, None);
        self.preparing = true;
        let (ctx, uid) = (self.ctx.clone(), self.uid.clone());
        self.tasks.spawn(async move {
            super::stop::remove_sandbox(&ctx, &uid).await;
            ctx.give_back(&uid).await;
            super::actor::Done::SandboxRemoved
        });
    }

    fn restore_container(&mut self, container: RecoveredContainer, attempt: u32) {
        let RecoveredContainer { id, annotations, state } = container;
        let name = annotations.get(CONTAINER).cloned().unwrap_or_default();
        let Some(index) = self.records.iter().position(|record| record.name == name) else {
            tracing::warn!(%id, name, "a container was found that the pod's spec doesn't have");
            return;
        };
        let paths = ContainerPaths::new(&self.ctx, &self.namespace, &self.name, &self.uid, &name, attempt);
        let text = |key: &str| annotations.get(key).cloned().unwrap_or_default();
        let resolved = (text(IMAGE), text(IMAGE_ID));
        let user = serde_json::from_str(&text(USER)).ok();
        let identity = self.identity(index, attempt, annotations.get(IDENTITY));
        let stop_signal = StopSignal::read(annotations.get(STOP_SIGNAL).map(String::as_str));
        self.records[index].stop_signal = Some(stop_signal.name);
        match state {
            ContainerState::Running { pid: _, started_at, cgroup } => {
                let observed = Arc::new(identity.observed(id.as_str(), started_at, cgroup));
                let noted = self.note_started(&observed);
                self.note_known_size(index, &observed, &noted);
                self.hold_image(&id, resolved.0.clone());
                let record = &mut self.records[index];
                let last = record.newest_end().filter(|end| end.id.as_deref() != Some(id.as_str())).cloned();
                record.last = last.or(record.last.take());
                record.state = State::Running { id: id.as_str().to_owned(), started_at };
                record.starts = attempt + 1;
                (record.resolved, record.user) = (Some(resolved), user);
                let was_ready = self.was_ready(&name);
                let live = Live {
                    id,
                    observed,
                    noted,
                    paths,
                    stop_signal: stop_signal.number,
                    ended: CancellationToken::new(),
                    probes: JoinSet::new(),
                };
                // Its hook ran in the process before; only probes begin again.
                self.go_live(index, live, None);
                // Until its probes say otherwise, it is as well as it was.
                let record = &mut self.records[index];
                record.started |= was_ready.0;
                record.ready |= was_ready.1;
                if annotations.get(SPEC_IMAGE).is_some_and(|image| *image != record.image) {
                    // It was changed while nobody looked.
                    self.replace(index);
                }
            }
            ContainerState::Exited(exit) => self.restore_exited(index, identity, paths, resolved, &exit),
        }
    }

    /// The process before may have been killed before it wrote down that the image is in use.
    fn hold_image(&self, id: &ContainerId, reference: String) {
        let (ctx, id) = (self.ctx.clone(), id.clone());
        tokio::spawn(async move {
            if let Ok(Some(image)) = ctx.images.get(&reference).await
                && let Err(error) = ctx.images.hold(id.as_str(), &image).await
            {
                tracing::warn!(%id, error = error.describe(), "a running container's image could not be held");
            }
        });
    }

    /// What the container was started as.
    fn identity(&self, index: usize, attempt: u32, told: Option<&String>) -> Identity {
        told.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_else(|| Identity {
            pod_uid: self.uid.clone(),
            namespace: self.namespace.clone(),
            pod: self.name.clone(),
            container: self.records[index].name.clone(),
            attempt,
            labels: self.pod.metadata.labels.clone().unwrap_or_default(),
            node: self.ctx.node.clone(),
            requests: observed_requests(self.spec(), self.container(index)),
        })
    }

    /// Tells what the API was told that the container was given, unless that is about to change.
    fn note_known_size(&self, index: usize, observed: &Arc<ObservedContainer>, noted: &Noted) {
        let (record, container) = (&self.records[index], self.container(index));
        let shown = self.shown(&record.name).and_then(|status| status.resources.as_ref());
        if shown != Some(&record.actuated) || container.resources.as_ref() != shown {
            return;
        }
        let requests = observed_requests(self.spec(), container);
        let size = Size { observed: observed.clone(), noted: noted.clone(), requests };
        let ctx = self.ctx.clone();
        tokio::spawn(async move { note_resized(&ctx, size).await });
    }

    fn restore_exited(
        &mut self,
        index: usize,
        identity: Identity,
        paths: ContainerPaths,
        resolved: (String, String),
        exit: &Exit,
    ) {
        let attempt = identity.attempt;
        // Its counters are in the exit; the directories are no longer needed.
        let cgroup = CgroupPaths { version: CgroupVersion::V2, cpuacct: PathBuf::new(), memory: PathBuf::new() };
        let observed = Arc::new(identity.observed(exit.container.as_str(), exit.started_at, cgroup));
        let end = self.ended(index, &paths, exit);
        let record = &mut self.records[index];
        if attempt + 1 >= record.starts {
            let before = record.newest_end().filter(|old| old.id != end.id).cloned();
            record.last = before.or(record.last.take());
            record.state = State::Ended(end);
            record.starts = attempt + 1;
            record.resolved = Some(resolved);
            self.back_off(index);
        }
        // Its record goes when a status that has its end is written, and not before.
        self.writer.mark_now();
        self.settle(observed, None, paths, exit);
    }

    /// Whether the API was told that the container has started, and that it is ready.
    fn was_ready(&self, name: &str) -> (bool, bool) {
        self.shown(name).map_or((false, false), |status| (status.started == Some(true), status.ready))
    }

    /// What the API was told of a container.
    fn shown(&self, name: &str) -> Option<&ContainerStatus> {
        let status = self.pod.status.as_ref()?;
        let mut all = status.container_statuses.iter().flatten().chain(status.init_container_statuses.iter().flatten());
        all.find(|status| status.name == name)
    }
}

/// What an orphan's object may have been, so that an actor can stop it as it stops any other pod.
pub(crate) fn orphan(pod: &RecoveredPod) -> Pod {
    let text = |key: &str| pod.annotations.get(key).cloned();
    let mut names: Vec<String> =
        pod.containers.iter().filter_map(|container| container.annotations.get(CONTAINER).cloned()).collect();
    names.sort();
    names.dedup();
    let containers = names.into_iter().map(|name| Container { name, ..Container::default() }).collect();
    Pod {
        metadata: ObjectMeta {
            uid: Some(pod.uid.clone()),
            name: text(NAME),
            namespace: text(NAMESPACE),
            ..ObjectMeta::default()
        },
        spec: Some(PodSpec { containers, host_network: Some(pod.host_network), ..PodSpec::default() }),
        status: None,
    }
}

fn state(status: &ContainerStatus) -> State {
    let Some(state) = &status.state else { return Actor::creating() };
    if let Some(terminated) = &state.terminated {
        return State::Ended(ended(terminated));
    }
    if let Some(running) = &state.running {
        let id = status.container_id.as_deref().unwrap_or_default();
        let started_at = running.started_at.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0);
        return State::Running { id: id.trim_start_matches("carob://").to_owned(), started_at };
    }
    let waiting = state.waiting.clone().unwrap_or_default();
    State::Waiting { reason: waiting.reason.unwrap_or_else(|| CREATING.to_owned()), message: waiting.message }
}

fn ended(terminated: &ContainerStateTerminated) -> Ended {
    let id = terminated.container_id.as_deref();
    Ended {
        id: id.map(|id| id.trim_start_matches("carob://").to_owned()),
        code: terminated.exit_code,
        signal: terminated.signal,
        reason: terminated.reason.clone().unwrap_or_default(),
        message: terminated.message.clone(),
        started_at: terminated.started_at.as_ref().map(|time| time.0),
        finished_at: terminated.finished_at.as_ref().map(|time| time.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn states_are_read_back_from_a_status() {
        let read = |value| state(&serde_json::from_value::<ContainerStatus>(value).unwrap());
        let base = |state: serde_json::Value| {
            json!({"name": "c", "image": "i", "imageID": "", "ready": false, "restartCount": 0,
                "containerID": "carob://abc", "state": state})
        };
        let running = read(base(json!({"running": {"startedAt": "1970-01-01T00:00:00Z"}})));
        assert_eq!(running, State::Running { id: "abc".into(), started_at: Timestamp::UNIX_EPOCH });
        let State::Ended(ended) = read(base(json!({"terminated": {"exitCode": 3, "reason": "Error"}}))) else {
            panic!("a terminated container has ended");
        };
        assert_eq!((ended.code, ended.reason.as_str()), (3, "Error"));
        assert!(matches!(read(base(json!({}))), State::Waiting { .. }));
    }
}
