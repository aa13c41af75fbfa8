//! A container that another OCI runtime makes: the builder prepares root and mounts as for one of ours, and hands them over
//! with a full specification.

use super::spec::Joined;
use super::{Blueprint, Stopwatch, enter_workshop, mounts, receive_terminal, rootfs, spec};
use crate::capabilities::CapabilitySet;
use crate::cgroup::{self, Membership};
use crate::config::{ContainerConfig, ExecConfig, PodConfig, Seccomp, User};
use crate::oci::{Oci, Work};
use crate::protocol::{Failure, StartedContainer};
use crate::{program, seccomp};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::Instant;

/// Creates and starts the container.
pub fn run(
    blueprint: Blueprint<'_>,
    runtime: &Oci,
    forked: Instant,
) -> Result<(StartedContainer, Option<OwnedFd>), Failure> {
    let mut watch = Stopwatch { last: forked, stages: Vec::with_capacity(8) };
    watch.lap("fork");
    let Blueprint { pod, container, joined, mounts: pod_mounts, shm, cgroup, workshop, stdio, .. } = blueprint;
    let in_cgroup = |error: cgroup::CgroupError| Failure::sandbox("cgroup", error);
    cgroup.create(false).map_err(in_cgroup)?;
    cgroup.limit(&container.limits).map_err(in_cgroup)?;
    cgroup.group_oom();
    watch.lap("cgroup");

    let opened = enter_workshop(pod_mounts, workshop, &container.mounts)?;
    let root = workshop.join(super::ROOTFS);
    rootfs::overlay(&container.rootfs, &root, None)?;
    watch.lap("overlay");

    let trees = mounts::open(&container.mounts, opened, shm, workshop, None)?;
    mounts::prepare(&trees, &root, Path::new(&container.cwd), None)?;
    let mut staged = mounts::park_all(trees, workshop)?;
    for one in &mut staged {
        // Their places are below the workshop, which isn't the root here.
        one.source = one.source.strip_prefix("/").map_or_else(|_| one.source.clone(), |name| workshop.join(name));
    }
    let specification = specification(pod, container, &joined, &staged, &root, cgroup.below_roots())?;
    fs::write(workshop.join("config.json"), specification.to_string())
        .map_err(|error| Failure::sandbox("spec", error))?;
    watch.lap("mounts");

    let mut warnings = Vec::new();
    // Inherited by what the runtime starts: itself it would give up where it may not lower it.
    if let Err(error) = fs::write("/proc/self/oom_score_adj", container.oom_score_adj.to_string()) {
        warnings.push(format!("oom_score_adj {} could not be set: {error}", container.oom_score_adj));
    }
    let cgroup_paths = cgroup.paths();
    let mut membership = Membership::open(&cgroup).map_err(in_cgroup)?;
    let console = workshop.join("console");
    let listener = container.tty.then(|| UnixListener::bind(&console)).transpose();
    let listener = listener.map_err(|error| Failure::sandbox("terminal", error))?;
    let work = Work { id: container.id.as_str(), place: workshop };
    let streams = if listener.is_some() { None } else { stdio };
    let pid = runtime.create(&work, streams, listener.is_some().then_some(console.as_path()))?;
    watch.lap("create");

    let terminal = listener.map(|listener| receive_terminal(&listener)).transpose()?;
    // The runtime knows not every hierarchy that is ours.
    membership.add(pid).map_err(in_cgroup)?;
    watch.lap("attach");
    let started_at = Timestamp::now();
    runtime.start(&work)?;
    watch.lap("start");
    let started = StartedContainer { pid, started_at, cgroup: cgroup_paths, stages: watch.stages, warnings };
    Ok((started, terminal))
}

/// What [`spec::build`] leaves to our own last steps is said here, too.
pub fn specification(
    pod: &PodConfig,
    container: &ContainerConfig,
    joined: &Joined<'_>,
    staged: &[spec::Staged],
    root: &Path,
    cgroup: &Path,
) -> Result<Value, Failure> {
    let wrap = |error: serde_json::Error| Failure::sandbox("spec", error);
    let built = spec::build(pod, container, joined, None, staged)?;
    let mut value = serde_json::to_value(&built).map_err(wrap)?;
    value["root"]["path"] = json!(root);
    let process = &mut value["process"];
    process["capabilities"] = capabilities(container);
    let linux = &mut value["linux"];
    linux["cgroupsPath"] = json!(Path::new("/").join(cgroup));
    linux["resources"] =
        json!({"devices": cgroup::oci_rules(&cgroup::rules(container.privileged, &container.devices))});
    if let Some(profile) = seccomp_profile(container)? {
        linux["seccomp"] = profile;
    }
    if let Some(namespaces) = linux["namespaces"].as_array_mut() {
        for namespace in namespaces.iter_mut() {
            // The runtime doesn't keep what it inherits: it finds the namespaces at ours.
            if let Some(path) = namespace["path"].as_str().and_then(|path| path.strip_prefix("/proc/self/")) {
                namespace["path"] = json!(format!("/proc/{}/{path}", std::process::id()));
            }
        }
        namespaces.push(json!({"type": "cgroup"}));
    }
    if let Some(mounts) = value["mounts"].as_array_mut() {
        let mut options = vec!["nosuid", "noexec", "nodev", "relatime"];
        options.extend((!container.privileged).then_some("ro"));
        let view = json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": options});
        let after = mounts.iter().position(|mount| mount["destination"] == "/sys").map_or(0, |at| at + 1);
        mounts.insert(after, view);
    }
    Ok(value)
}

fn capabilities(container: &ContainerConfig) -> Value {
    let here = CapabilitySet::bounding();
    let all: Vec<&str> = if container.privileged {
        crate::ALL_CAPABILITIES.iter().copied().filter(|name| here.has(name)).collect()
    } else {
        container.capabilities.iter().map(String::as_str).filter(|name| here.has(name)).collect()
    };
    json!({"bounding": all, "effective": all, "permitted": all})
}

fn seccomp_profile(container: &ContainerConfig) -> Result<Option<Value>, Failure> {
    let invalid = |error: &dyn std::fmt::Display| Failure::config("seccomp", error.to_string());
    match &container.seccomp {
        _ if container.privileged => Ok(None),
        Seccomp::Unconfined => Ok(None),
        Seccomp::RuntimeDefault => {
            let capabilities = CapabilitySet::from_names(&container.capabilities)
                .map_err(|name| Failure::config("capabilities", format!("unknown capability {name:?}")))?;
            Ok(Some(seccomp::oci_default(capabilities)))
        }
        Seccomp::Localhost(path) => {
            let text = fs::read(path).map_err(|error| invalid(&error))?;
            serde_json::from_slice(&text).map(Some).map_err(|error| invalid(&error))
        }
    }
}

/// A further process, as the specification describes one.
pub fn process(container: &ContainerConfig, exec: &ExecConfig) -> Value {
    let User { uid, gid, groups } = exec.user.as_ref().unwrap_or(&container.user);
    let mut pairs = container.env.clone();
    pairs.extend(exec.env.iter().cloned());
    if exec.tty && !pairs.iter().any(|(name, _)| name == "TERM") {
        pairs.push(("TERM".to_owned(), "xterm".to_owned()));
    }
    let cwd = exec.cwd.as_deref().unwrap_or(&container.cwd);
    let mut process = json!({
        "terminal": exec.tty,
        "user": {"uid": uid, "gid": gid, "additionalGids": groups, "umask": 0o022},
        "args": exec.argv,
        "env": program::environment(&pairs),
        "cwd": if cwd.is_empty() { "/" } else { cwd },
        "capabilities": capabilities(container),
        "noNewPrivileges": container.no_new_privs,
    });
    if let Some((width, height)) = exec.terminal_size {
        process["consoleSize"] = json!({"height": height, "width": width});
    }
    process
}
