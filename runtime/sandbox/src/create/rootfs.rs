//! A container's root, prepared in its builder's private mount namespace.

use super::Users;
use crate::config::Rootfs;
use crate::kernel::mount;
use crate::protocol::Failure;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::mount::MntFlags;
use nix::sys::stat::Mode;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};

pub fn failed<'a>(stage: &'static str, path: &'a Path) -> impl Fn(io::Error) -> Failure + use<'a> {
    move |error| Failure::sandbox(stage, format!("{}: {error}", path.display()))
}

/// Mounts the overlay on `target`. `volatile`: the writes of a container need not survive the machine, so nothing is
/// synchronised when it ends.
pub fn overlay(rootfs: &Rootfs, target: &Path, users: Option<Users<'_>>) -> Result<(), Failure> {
    let (upper, work) = (rootfs.upper.join("upper"), rootfs.upper.join("work"));
    for directory in [&upper, &work] {
        fs::create_dir_all(directory).map_err(failed("overlay", directory))?;
    }
    let lower = match users {
        Some(users) => {
            // What containers write is theirs on the disk, too: an overlay knows no other way.
            let root = Some(users.range.first);
            chown(&upper, root, root).map_err(failed("overlay", &upper))?;
            mapped(&rootfs.lower, target, users)?
        }
        None => rootfs.lower.clone(),
    };
    if !takes_layers_one_by_one() {
        let own = format!(",upperdir={},workdir={},volatile", escaped(&upper), escaped(&work));
        return overlay_by_mount(&lower, &own, target);
    }
    let context = mount::FsContext::open("overlay").map_err(failed("overlay", target))?;
    let configure = || -> io::Result<OwnedFd> {
        context.set("source", "overlay")?;
        for lower in &lower {
            context.set_path("lowerdir+", lower)?;
        }
        context.set_path("upperdir", &upper)?;
        context.set_path("workdir", &work)?;
        context.flag("volatile")?;
        context.mount(0)
    };
    let mounted = configure().map_err(|error| {
        let detail = context.complaint().unwrap_or_default();
        Failure::sandbox("overlay", format!("{error} {detail}"))
    })?;
    mount::attach(mounted.as_fd(), target).map_err(failed("overlay", target))
}

/// Since Linux 6.7 an overlay is given its layers one by one, with no limit of one page on all paths together. Older ones
/// find fault with that only when all is said.
fn takes_layers_one_by_one() -> bool {
    let name = nix::sys::utsname::uname();
    let release = name.map(|name| name.release().to_string_lossy().into_owned()).unwrap_or_default();
    version(&release) >= (6, 7)
}

/// Major and minor version of a kernel's release, as in `6.1.0-56-cloud-amd64`.
fn version(release: &str) -> (u32, u32) {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// libcontainer makes links and removes `/dev/ptmx` by this name before the container has its root: a link there would lead
/// it out.
pub fn check_dev(rootfs: &Path) -> Result<(), Failure> {
    match fs::symlink_metadata(rootfs.join("dev")) {
        Ok(found) if !found.is_dir() => Err(Failure::Start {
            message: "cannot create the container: /dev in its image must be a directory".to_owned(),
            exit_code: 128,
        }),
        _ => Ok(()),
    }
}

/// Mounts an image's layers on `target` to be read. The kernel wants two of them at least: an empty one is the last.
pub fn image_tree(lower: &[PathBuf], target: &Path, users: Option<Users<'_>>) -> Result<(), Failure> {
    let empty = target.with_extension("empty");
    fs::create_dir(&empty).map_err(failed("image", &empty))?;
    let mut lower = match users {
        Some(users) => mapped(lower, target, users)?,
        None => lower.to_vec(),
    };
    lower.push(empty);
    overlay_by_mount(&lower, "", target)
}

/// Layers as the pod's users are to see them, mounted beside `target`: an overlay's users can't be mapped, but those of
/// what it is made of can.
fn mapped(layers: &[PathBuf], target: &Path, users: Users<'_>) -> Result<Vec<PathBuf>, Failure> {
    let places = target.with_extension("layers");
    fs::create_dir(&places).map_err(failed("overlay", &places))?;
    let mount_one = |(index, layer): (usize, &PathBuf)| {
        let place = places.join(index.to_string());
        fs::create_dir(&place).map_err(failed("overlay", &place))?;
        let tree = mount::clone_tree(None, layer, false).map_err(failed("overlay", layer))?;
        map_users(tree.as_fd(), users, false, layer)?;
        mount::attach(tree.as_fd(), &place).map_err(failed("overlay", &place))?;
        Ok(place)
    };
    layers.iter().enumerate().map(mount_one).collect()
}

pub fn map_users(tree: BorrowedFd<'_>, users: Users<'_>, recursive: bool, shown: &Path) -> Result<(), Failure> {
    mount::map_users(tree, users.namespace.as_fd(), recursive).map_err(|error| {
        let why = match error.raw_os_error() {
            Some(libc::EINVAL) => {
                "its file system cannot show files as a pod's own users' (id-mapped mounts)".to_owned()
            }
            _ => error.to_string(),
        };
        Failure::Users(format!("{}: {why}", shown.display()))
    })
}

/// Older kernels take all layers in one option string of a page: short links to them keep it short.
fn overlay_by_mount(layers: &[PathBuf], own: &str, target: &Path) -> Result<(), Failure> {
    let links = target.with_extension("links");
    fs::create_dir_all(&links).map_err(failed("overlay", &links))?;
    let mut lower = Vec::new();
    for (index, layer) in layers.iter().enumerate() {
        let link = links.join(index.to_string());
        std::os::unix::fs::symlink(layer, &link).map_err(failed("overlay", &link))?;
        lower.push(index.to_string());
    }
    let options = format!("lowerdir={}{own}", lower.join(":"));
    let before = std::env::current_dir().map_err(failed("overlay", &links))?;
    nix::unistd::chdir(&links).map_err(|errno| failed("overlay", &links)(errno.into()))?;
    let flags = nix::mount::MsFlags::empty();
    let result = nix::mount::mount(Some("overlay"), target, Some("overlay"), flags, Some(options.as_str()));
    nix::unistd::chdir(&before).map_err(|errno| failed("overlay", &before)(errno.into()))?;
    result.map_err(|errno| Failure::sandbox("overlay", format!("{}: {errno}", target.display())))
}

/// Colons and commas in a path would end it.
fn escaped(path: &Path) -> String {
    path.to_string_lossy().replace('\\', "\\\\").replace(':', "\\:").replace(',', "\\,")
}

pub fn open_path(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_CLOEXEC | OFlag::O_DIRECTORY;
    Ok(nix::fcntl::open(path, flags, Mode::empty())?)
}

pub fn open_in(root: BorrowedFd<'_>, path: &Path) -> io::Result<OwnedFd> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let how = OpenHow::new().flags(OFlag::O_PATH | OFlag::O_CLOEXEC).resolve(ResolveFlag::RESOLVE_IN_ROOT);
    Ok(openat2(root, path, how)?)
}

/// What the container will see at `/sys/fs/cgroup`: its own cgroup as the root of every hierarchy. A detached tree, put
/// in place inside the container by the executor.
pub fn cgroup_view(views: &[(String, PathBuf)], place: &Path, writable: bool) -> Result<OwnedFd, Failure> {
    let wrap = failed("cgroup view", place);
    let build = || -> io::Result<OwnedFd> {
        if let [(name, source)] = views
            && name.is_empty()
        {
            return mount::clone_tree(None, source, false);
        }
        fs::create_dir(place)?;
        let base = mount::tmpfs(Some(4096), "755", 0)?;
        mount::attach(base.as_fd(), place)?;
        for (name, source) in views {
            let target = place.join(name);
            fs::create_dir(&target)?;
            let tree = mount::clone_tree(None, source, false)?;
            mount::attach(tree.as_fd(), &target)?;
            for alias in name.split(',').filter(|alias| alias != name) {
                std::os::unix::fs::symlink(name, place.join(alias))?;
            }
        }
        let whole = mount::clone_tree(None, place, true)?;
        nix::mount::umount2(place, MntFlags::MNT_DETACH)?;
        Ok(whole)
    };
    let tree = build().map_err(&wrap)?;
    let mut attributes = mount::ATTR_NOSUID | mount::ATTR_NODEV | mount::ATTR_NOEXEC;
    if !writable {
        attributes |= mount::ATTR_RDONLY;
    }
    mount::set_attributes(tree.as_fd(), attributes, libc::MS_PRIVATE, true).map_err(&wrap)?;
    Ok(tree)
}

/// Makes the workshop the root of this mount namespace and lets go of all else: nothing of the host's can be reached by
/// a name any more, and the mount table that libcontainer reads over and over is short.
pub fn move_into(workshop: &Path) -> Result<(), Failure> {
    let enter = || -> io::Result<()> {
        let proc = mount::clone_tree(None, Path::new("/proc"), false)?;
        mount::attach(proc.as_fd(), &workshop.join("proc"))?;
        nix::unistd::chdir(workshop)?;
        nix::unistd::pivot_root(".", "old")?;
        nix::unistd::chdir("/")?;
        nix::mount::umount2("/old", MntFlags::MNT_DETACH)?;
        Ok(())
    };
    enter().map_err(failed("workshop", workshop))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_versions_are_compared_as_numbers() {
        assert_eq!(version("6.1.0-56-cloud-amd64"), (6, 1));
        assert!(version("6.18.44-fc-v445") > (6, 7) && version("5.15.0") < (6, 7) && version("?") < (6, 7));
    }
}
