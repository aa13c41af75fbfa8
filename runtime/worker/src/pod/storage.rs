//! Limits of what a pod writes to the node's disk: of its emptyDir volumes, its containers, and all together. What exceeds
//! one is evicted, with the kubelet's words.

use super::actor::{Actor, Done};
use super::record::Role;
use crate::container::resources;
use crate::events::{About, Severity};
use crate::files::PodFiles;
use carob_api::quantity::Quantity;
use k8s_openapi::api::core::v1::{Container, PodSpec};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Written;
use nix::dir::Dir;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::sys::stat::{FileStat, Mode, fstat, fstatat};
use std::collections::HashSet;
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

/// How often a pod with limits is measured (the kubelet's housekeeping), and how much more time than it takes passes between.
const EVERY: Duration = Duration::from_secs(10);
const REST: u32 = 20;
/// The time that an evicted pod's containers have (the kubelet's immediate eviction).
const GRACE: Duration = Duration::from_secs(1);
const RESOURCE: &str = "ephemeral-storage";
/// Reason of an evicted pod.
pub(super) const EVICTED: &str = "Evicted";

/// What a pod may write, and where it does.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Limits {
    /// Name, limit as written, bytes.
    volumes: Vec<(String, String, u64)>,
    containers: Vec<(String, String, u64)>,
    /// All that containers may have together, where each has a limit.
    whole: Option<u64>,
}

/// When a pod is measured next.
#[derive(Default)]
pub(super) struct Storage {
    next: Option<Instant>,
    measuring: bool,
}

impl Storage {
    /// When to look again if nothing happens.
    pub fn wake(&self) -> Option<Instant> {
        self.next.filter(|_| !self.measuring)
    }
}

fn bytes(quantity: &Written) -> u64 {
    u64::try_from(resources::value(quantity)).unwrap_or(0)
}

fn limits(spec: &PodSpec) -> Limits {
    let of = |container: &Container| {
        let limit = resources::limits(container.resources.as_ref()).and_then(|limits| limits.get(RESOURCE));
        limit.map(|limit| (container.name.clone(), limit.0.clone(), bytes(limit))).filter(|(_, _, bytes)| *bytes > 0)
    };
    let volumes = spec.volumes.iter().flatten().filter_map(|volume| {
        let source = volume.empty_dir.as_ref().filter(|source| source.medium.as_deref() != Some("Memory"))?;
        let limit = source.size_limit.as_ref()?;
        Some((volume.name.clone(), limit.0.clone(), bytes(limit))).filter(|(_, _, bytes)| *bytes > 0)
    });
    let main: Vec<_> = spec.containers.iter().filter_map(of).collect();
    let whole = (main.len() == spec.containers.len()).then(|| main.iter().map(|(_, _, bytes)| bytes).sum());
    let init = spec.init_containers.iter().flatten().filter_map(of);
    let peak = init.clone().map(|(_, _, bytes)| bytes).max();
    Limits {
        volumes: volumes.collect(),
        whole: whole.map(|sum: u64| sum.max(peak.unwrap_or(0))),
        containers: main.into_iter().chain(init).collect(),
    }
}

/// Where a pod's data is.
struct Places {
    volumes: PathBuf,
    containers: PathBuf,
    logs: PathBuf,
    /// What all containers have in `/etc`, and may write.
    files: Vec<PathBuf>,
}

/// The first limit that is exceeded, in the kubelet's words.
fn exceeded(limits: &Limits, places: &Places, local_volumes: &[String]) -> Option<String> {
    for (name, written, most) in &limits.volumes {
        if used(&places.volumes.join(name)) > *most {
            return Some(format!("Usage of EmptyDir volume {name:?} exceeds the limit {written:?}. "));
        }
    }
    if limits.whole.is_none() && limits.containers.is_empty() {
        return None;
    }
    if let Some(most) = limits.whole {
        let volumes: u64 = local_volumes.iter().map(|name| used(&places.volumes.join(name))).sum();
        let files: u64 = places.files.iter().map(|file| used(file)).sum();
        if volumes + files + used(&places.containers) + used(&places.logs) > most {
            let written = Quantity::from_bytes(i64::try_from(most).unwrap_or(i64::MAX)).canonical();
            return Some(format!(
                "Pod ephemeral local storage usage exceeds the total limit of containers {written}. "
            ));
        }
    }
    limits.containers.iter().find_map(|(name, written, most)| {
        let used = used(&places.containers.join(name)) + used(&places.logs.join(name));
        (used > *most).then(|| format!("Container {name} exceeded its local ephemeral storage limit {written:?}. "))
    })
}

/// A path may be followed from a directory by no more than this at a time (PATH_MAX is 4096).
const STRETCH: usize = 2048;

/// Bytes on the disk of a file, or below a directory on its own file system; what has several names counts once. Nobody
/// hides anything by making directories deep, or by exchanging them for links meanwhile.
pub(crate) fn used(path: &Path) -> u64 {
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let Ok(root) = open(path, flags, Mode::empty()) else { return 0 };
    let Ok(top) = fstat(&root) else { return 0 };
    if !is_directory(&top) {
        return bytes_of(&top);
    }
    let (mut sum, mut seen) = (0u64, HashSet::new());
    let mut pending = vec![(Rc::new(root), PathBuf::from("."))];
    while let Some((mut from, mut way)) = pending.pop() {
        // What goes away meanwhile takes no room any more.
        let Ok(mut here) = enter(from.as_fd(), &way) else { continue };
        if way.as_os_str().len() > STRETCH {
            let Ok(nearer) = here.as_fd().try_clone_to_owned() else { continue };
            (from, way) = (Rc::new(nearer), PathBuf::from("."));
        }
        let names: Vec<_> = here.iter().flatten().map(|entry| entry.file_name().to_owned()).collect();
        for name in names.into_iter().filter(|name| !matches!(name.as_bytes(), b"." | b"..")) {
            let Ok(found) = fstatat(&here, name.as_c_str(), AtFlags::AT_SYMLINK_NOFOLLOW) else { continue };
            let directory = is_directory(&found);
            if found.st_dev != top.st_dev || (found.st_nlink > 1 && !directory && !seen.insert(found.st_ino)) {
                continue;
            }
            sum = sum.saturating_add(bytes_of(&found));
            if directory {
                pending.push((Rc::clone(&from), way.join(OsStr::from_bytes(name.as_bytes()))));
            }
        }
    }
    sum
}

fn enter(from: BorrowedFd<'_>, way: &Path) -> nix::Result<Dir> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let how = OpenHow::new().flags(flags).resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
    Dir::from_fd(openat2(from, way, how)?)
}

fn is_directory(found: &FileStat) -> bool {
    found.st_mode & nix::libc::S_IFMT == nix::libc::S_IFDIR
}

fn bytes_of(found: &FileStat) -> u64 {
    found.st_blocks.unsigned_abs() * 512
}

impl Actor {
    /// Measures the pod when it is time and there is a limit.
    pub(super) fn reconcile_storage(&mut self, now: Instant) {
        if self.storage.measuring || self.storage.next.is_some_and(|at| at > now) {
            return;
        }
        let limits = limits(self.spec());
        let begun = self.records.iter().any(|record| record.role != Role::Ephemeral && record.starts > 0);
        if limits == Limits::default() || !begun {
            self.storage.next = None;
            return;
        }
        self.storage.measuring = true;
        let local = self.spec().volumes.iter().flatten();
        let local = local.filter(|volume| {
            volume.empty_dir.as_ref().is_some_and(|source| source.medium.as_deref() != Some("Memory"))
                || volume.config_map.is_some()
                || volume.downward_api.is_some()
        });
        let local: Vec<String> = local.map(|volume| volume.name.clone()).collect();
        let directory = self.ctx.dirs.pod(&self.uid);
        let places = Places {
            volumes: directory.join("volumes"),
            containers: directory.join("containers"),
            logs: self.ctx.dirs.pod_logs(&self.namespace, &self.name, &self.uid),
            files: PodFiles::existing(&directory).paths().collect(),
        };
        self.tasks.spawn(async move {
            let measured = tokio::task::spawn_blocking(move || {
                let begin = Instant::now();
                (exceeded(&limits, &places, &local), begin.elapsed())
            });
            let (message, took) = measured.await.unwrap_or_default();
            Done::Measured(message, took)
        });
    }

    pub(super) fn measured(&mut self, message: Option<String>, took: Duration) {
        self.storage.measuring = false;
        self.storage.next = Some(Instant::now() + EVERY.max(took * REST));
        if let Some(message) = message {
            self.evict(message, GRACE);
        }
    }

    /// Ends the pod for what it takes from others.
    pub(super) fn evict(&mut self, message: String, grace: Duration) {
        if self.stopping.is_some() || self.verdict.is_some() {
            return;
        }
        tracing::info!(pod = self.name, namespace = self.namespace, message, "evicted");
        self.ctx.events.record(About::pod(&self.pod), Severity::Warning, EVICTED, message.clone());
        self.verdict = Some((EVICTED, message));
        self.begin_stop(grace);
        self.writer.mark_now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::fcntl::openat;
    use nix::sys::stat::mkdirat;
    use serde_json::json;
    use std::fs;

    fn parsed(value: serde_json::Value) -> Limits {
        limits(&serde_json::from_value(value).unwrap())
    }

    #[test]
    fn limits_are_those_of_volumes_on_disk_of_containers_and_of_all_where_all_have_one() {
        let limited = |name: &str| json!({"name": name, "resources": {"limits": {"ephemeral-storage": "1Mi"}}});
        let found = parsed(json!({"containers": [limited("a"), limited("b")], "volumes": [
            {"name": "v", "emptyDir": {"sizeLimit": "2Mi"}},
            {"name": "m", "emptyDir": {"sizeLimit": "2Mi", "medium": "Memory"}}, {"name": "free", "emptyDir": {}}]}));
        assert_eq!(found.volumes, [("v".to_owned(), "2Mi".to_owned(), 2 << 20)]);
        assert_eq!((found.whole, found.containers.len()), (Some(2 << 20), 2));
        assert_eq!(parsed(json!({"containers": [limited("a"), {"name": "b"}]})).whole, None);
        assert_eq!(parsed(json!({"containers": [{"name": "b"}]})), Limits::default());
    }

    #[test]
    fn the_first_limit_that_is_exceeded_is_told_in_the_kubelets_words() {
        let place = tempfile::tempdir().unwrap();
        let at = |path: &str| place.path().join(path);
        let write = |path: &str, bytes: usize| {
            fs::create_dir_all(at(path).parent().unwrap()).unwrap();
            fs::write(at(path), vec![7; bytes]).unwrap();
        };
        let places = Places {
            volumes: at("volumes"),
            containers: at("containers"),
            logs: at("logs"),
            files: vec![at("etc-hosts")],
        };
        write("volumes/v/file", 100_000);
        fs::hard_link(at("volumes/v/file"), at("volumes/v/again")).unwrap();
        write("containers/a/0/rootfs/upper/file", 200_000);
        let all = Limits {
            volumes: vec![("v".into(), "128Ki".into(), 128 << 10)],
            containers: vec![("a".into(), "256Ki".into(), 256 << 10)],
            whole: Some(1 << 20),
        };
        let local = ["v".to_owned()];
        assert_eq!(exceeded(&all, &places, &local), None, "one file with two names is one file");
        write("logs/a/0.log", 100_000);
        let message = exceeded(&all, &places, &local).unwrap();
        assert_eq!(message, "Container a exceeded its local ephemeral storage limit \"256Ki\". ");
        let whole = Limits { whole: Some(300_000), ..all.clone() };
        assert!(exceeded(&whole, &places, &local).unwrap().starts_with("Pod ephemeral local storage usage exceeds"));
        let whole = Limits { whole: Some(500_000), containers: Vec::new(), ..all.clone() };
        assert_eq!(exceeded(&whole, &places, &local), None);
        write("etc-hosts", 200_000);
        assert!(exceeded(&whole, &places, &local).unwrap().starts_with("Pod ephemeral local storage usage exceeds"));
        write("volumes/v/more", 100_000);
        let message = exceeded(&all, &places, &local).unwrap();
        assert_eq!(message, "Usage of EmptyDir volume \"v\" exceeds the limit \"128Ki\". ");
    }
    #[test]
    fn what_lies_deeper_than_any_path_reaches_is_counted_and_links_lead_nowhere() {
        let place = tempfile::tempdir_in("/dev/shm").unwrap();
        let (tree, elsewhere) = (place.path().join("tree"), place.path().join("elsewhere"));
        fs::create_dir(&tree).unwrap();
        fs::create_dir(&elsewhere).unwrap();
        fs::write(elsewhere.join("file"), vec![7; 8 << 20]).unwrap();
        std::os::unix::fs::symlink(&elsewhere, tree.join("link")).unwrap();
        let mut deepest = open(&tree, OFlag::O_PATH, Mode::empty()).unwrap();
        for _ in 0..3000 {
            mkdirat(&deepest, "deep", Mode::S_IRWXU).unwrap();
            deepest = openat(&deepest, "deep", OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).unwrap();
        }
        let file = openat(&deepest, "file", OFlag::O_CREAT | OFlag::O_WRONLY, Mode::S_IRWXU).unwrap();
        std::io::Write::write_all(&mut fs::File::from(file), &vec![7; 4 << 20]).unwrap();
        let counted = used(&tree);
        assert!((4 << 20..8 << 20).contains(&counted), "{counted}");
        drop(deepest);
        assert!(used(&elsewhere.join("file")) >= 8 << 20, "a file is counted, too");
        carob_sandbox::remove_tree(&tree).unwrap();
    }
}
