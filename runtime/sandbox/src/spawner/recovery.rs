//! The beginning and the end: what a dead spawner left behind, and leaving nothing behind.

use super::requests::remove_writable_layer;
use super::service::{Container, Log, Pod, Service, State};
use crate::cgroup::{Cgroup, NURSERY};
use crate::config::ContainerId;
use crate::kernel::process;
use crate::state::Exit;
use jiff::Timestamp;
use std::fs;
use std::time::Duration;

/// How long a killed process may take to go.
const PATIENCE: Duration = Duration::from_secs(20);

impl Service {
    /// Takes over from a spawner that died: kills what it left running (nobody can know its exit code any more), records
    /// how it ended, and removes what no record speaks of.
    pub fn recover(&mut self) {
        // What was being made first, so that it enters no pod any more.
        self.remove_strays(|name| name.starts_with(NURSERY));
        for uid in self.records.pods() {
            let cgroup = self.pod_cgroup(&uid);
            if !cgroup.kill(PATIENCE) {
                say!("processes of pod {uid} do not die");
            }
            let Ok(record) = self.records.read_pod(&uid) else {
                // Its writing was interrupted before anyone was told that the pod exists.
                self.forget_pod(&uid);
                continue;
            };
            for id in self.records.containers(&uid) {
                if let Some(container) = self.recover_container(&uid, &id) {
                    self.containers.insert(id, container);
                }
            }
            self.pods.insert(uid, Pod { config: record.config, namespaces: None, tmpfs: Vec::new() });
        }
        // Pods that were being made or removed.
        self.remove_strays(|name| name.strip_prefix("pod").is_some_and(|uid| !self.pods.contains_key(uid)));
    }

    fn remove_strays(&self, is_stray: impl Fn(&str) -> bool) {
        let whole = Cgroup::instance(&self.layout, &self.instance);
        for name in whole.children().iter().filter(|name| is_stray(name)) {
            let cgroup = whole.child(name);
            cgroup.kill(PATIENCE);
            if let Err(error) = cgroup.remove(PATIENCE) {
                say!("cgroup left behind: {error}");
            }
        }
    }

    fn recover_container(&self, uid: &str, id: &ContainerId) -> Option<Container> {
        let Ok(config) = self.records.read_container(uid, id) else {
            let _ = self.records.remove_container(uid, id);
            return None;
        };
        let exit = self.records.read_exit(uid, id).unwrap_or_else(|| {
            let cgroup = self.container_cgroup(uid, id);
            let now = Timestamp::now();
            let exit = Exit {
                container: config.id.clone(),
                pod_uid: uid.to_owned(),
                code: 137,
                signal: Some(libc::SIGKILL),
                oom_killed: cgroup.oom_killed(),
                unknown: true,
                started_at: self.records.recorded_at(uid, id).unwrap_or(now),
                finished_at: now,
                usage: cgroup.final_usage(),
            };
            if let Err(error) = self.records.write_exit(&exit) {
                say!("the end of {id} could not be recorded: {error}");
            }
            exit
        });
        let log = Log { number: u64::MAX, path: config.log_path, outputs: Vec::new() };
        Some(Container { pod: uid.to_owned(), state: State::Exited(exit), stdin: None, log, env: Vec::new() })
    }

    fn forget_pod(&self, uid: &str) {
        let cgroup = self.pod_cgroup(uid);
        cgroup.kill(PATIENCE);
        if let Err(error) = cgroup.remove(PATIENCE) {
            say!("cgroup left behind: {error}");
        }
        for id in self.records.containers(uid) {
            if let Ok(config) = self.records.read_container(uid, &id)
                && let Err(failure) = remove_writable_layer(&config)
            {
                say!("left behind of {id}: {failure:?}");
            }
        }
        if let Err(error) = self.records.remove_pod(uid) {
            say!("record left behind: {error}");
        }
    }

    /// Kills and removes everything of this instance, and lets the loop end.
    pub fn shut_down(&mut self) {
        let whole = Cgroup::instance(&self.layout, &self.instance);
        for name in whole.children() {
            if name != "spawner" {
                whole.child(&name).kill(PATIENCE);
            }
        }
        self.pods.clear();
        self.containers.clear();
        for uid in self.records.pods() {
            self.forget_pod(&uid);
        }
        if let Some(pump) = self.pump.take() {
            let pid = nix::unistd::Pid::from_raw(pump.pid);
            drop(pump);
            // Its pipes have ended with their writers, and its socket with us: unless a process that isn't ours has got
            // hold of one.
            let step = Duration::from_millis(5);
            let mut waited = Duration::ZERO;
            let flag = Some(nix::sys::wait::WaitPidFlag::WNOHANG);
            while let Ok(nix::sys::wait::WaitStatus::StillAlive) = nix::sys::wait::waitpid(pid, flag) {
                if waited >= PATIENCE {
                    let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
                }
                process::pause(step);
                waited += step;
            }
        }
        let own = whole.child("spawner");
        for hierarchy in &self.layout.hierarchies {
            let _ = fs::write(hierarchy.root.join("cgroup.procs"), "0");
        }
        for cgroup in [own, whole] {
            if let Err(error) = cgroup.remove(PATIENCE) {
                say!("cgroup left behind: {error}");
            }
        }
        for name in [super::SOCKET, super::LOG] {
            let _ = fs::remove_file(self.dir.join(name));
        }
        let _ = nix::mount::umount2(&self.dir.join(crate::oci::STATE), nix::mount::MntFlags::MNT_DETACH);
        for name in ["pods", "build/rootfs", "build", "shm", crate::oci::STATE] {
            let _ = fs::remove_dir(self.dir.join(name));
        }
        self.ending = true;
    }
}
