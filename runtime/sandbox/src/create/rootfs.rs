//! The mounts of one container, prepared in its builder's private mount namespace.

use super::Users;
use super::spec::Staged;
use crate::config::{Mount, MountKind, Propagation, Rootfs};
use crate::kernel::mount;
use crate::protocol::Failure;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2, readlinkat};
use nix::mount::MntFlags;
use nix::sys::stat::{Mode, SFlag, fstat, fstatat, mkdirat};
use nix::unistd::{Gid, Uid, fchownat};
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::chown;
use std::path::{Component, Path, PathBuf};

fn failed<'a>(stage: &'static str, path: &'a Path) -> impl Fn(io::Error) -> Failure + use<'a> {
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
    let context = mount::FsContext::open("overlay").map_err(failed("overlay", target))?;
    let configure = || -> io::Result<()> {
        context.set("source", "overlay")?;
        // Since Linux 6.7: no limit of one page on all paths together.
        for lower in &lower {
            context.set_path("lowerdir+", lower)?;
        }
        context.set_path("upperdir", &upper)?;
        context.set_path("workdir", &work)?;
        context.flag("volatile")
    };
    let complain = |error: io::Error| {
        let detail = context.complaint().unwrap_or_default();
        Failure::sandbox("overlay", format!("{error} {detail}"))
    };
    if let Err(first) = configure() {
        if first.raw_os_error() != Some(libc::EINVAL) {
            return Err(complain(first));
        }
        let own = format!(",upperdir={},workdir={},volatile", escaped(&upper), escaped(&work));
        return overlay_by_mount(&lower, &own, target);
    }
    let mounted = context.mount(0).map_err(|error| Failure::sandbox("overlay", error))?;
    mount::attach(mounted.as_fd(), target).map_err(failed("overlay", target))
}

/// Mounts an image's layers on `target` to be read. The kernel wants two of them at least: an empty one is the last.
fn image_tree(lower: &[PathBuf], target: &Path, users: Option<Users<'_>>) -> Result<(), Failure> {
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

fn map_users(tree: BorrowedFd<'_>, users: Users<'_>, recursive: bool, shown: &Path) -> Result<(), Failure> {
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

/// Makes a directory inside the root, never following a link out of it (the working directory, which images may lack).
pub fn make_directory(rootfs: &Path, inside: &Path, users: Option<Users<'_>>) -> Result<(), Failure> {
    let wrap = failed("rootfs", inside);
    let root = open_path(rootfs).map_err(failed("rootfs", rootfs))?;
    let mut walked = PathBuf::new();
    for component in inside.components() {
        let Component::Normal(name) = component else { continue };
        let parent = open_in(root.as_fd(), &walked).map_err(&wrap)?;
        walked.push(name);
        if open_in(root.as_fd(), &walked).is_ok() {
            continue;
        }
        match mkdirat(&parent, Path::new(name), Mode::from_bits_truncate(0o755)) {
            Ok(()) => {
                if let Some(users) = users {
                    let (uid, gid) = (Uid::from_raw(users.range.first), Gid::from_raw(users.range.first));
                    let flags = AtFlags::AT_SYMLINK_NOFOLLOW;
                    fchownat(&parent, Path::new(name), Some(uid), Some(gid), flags)
                        .map_err(|errno| wrap(errno.into()))?;
                }
            }
            Err(Errno::EEXIST) => {}
            Err(errno) => return Err(wrap(errno.into())),
        }
    }
    Ok(())
}

fn open_path(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_CLOEXEC | OFlag::O_DIRECTORY;
    Ok(nix::fcntl::open(path, flags, Mode::empty())?)
}

fn open_in(root: BorrowedFd<'_>, path: &Path) -> io::Result<OwnedFd> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let how = OpenHow::new().flags(OFlag::O_PATH | OFlag::O_CLOEXEC).resolve(ResolveFlag::RESOLVE_IN_ROOT);
    Ok(openat2(root, path, how)?)
}

/// Opens every mount's source now and puts it where nobody else can exchange it. `opened` are those that are open already.
pub fn stage(
    mounts: &[Mount],
    opened: Vec<Option<OwnedFd>>,
    directory: &Path,
    users: Option<Users<'_>>,
) -> Result<Vec<Staged>, Failure> {
    let mut staged = Vec::with_capacity(mounts.len());
    for (index, (request, opened)) in mounts.iter().zip(opened).enumerate() {
        let name = format!("m{index}");
        let place = directory.join(&name);
        let field = || format!("mounts[{index}]");
        let (source, is_directory) = match &request.kind {
            MountKind::Tmpfs { size } => {
                let owner = users.map_or(0, |users| users.range.first);
                let tree = mount::tmpfs_of(owner, *size, "1777", mount::ATTR_NOSUID | mount::ATTR_NODEV)
                    .map_err(|error| Failure::sandbox("mounts", error))?;
                (tree, true)
            }
            MountKind::Image { lower, sub_path } => {
                let tree = directory.join(format!("i{index}"));
                fs::create_dir(&tree).map_err(failed("image", &tree))?;
                image_tree(lower, &tree, users)?;
                let root = open_path(&tree).map_err(failed("image", &tree))?;
                let inside = sub_path.as_deref().unwrap_or(Path::new("."));
                let part = open_in(root.as_fd(), inside)
                    .map_err(|error| Failure::config(field(), format!("subPath {}: {error}", inside.display())))?;
                let kind = fstat(&part).map_err(|errno| Failure::sandbox("mounts", errno))?.st_mode;
                let part = mount::clone_tree(Some(part.as_fd()), Path::new(""), false);
                let part = part.map_err(failed("image", &tree))?;
                mount::set_attributes(part.as_fd(), mount::ATTR_RDONLY | mount::ATTR_NOEXEC, 0, false)
                    .map_err(failed("image", &tree))?;
                (part, SFlag::from_bits_truncate(kind & libc::S_IFMT) == SFlag::S_IFDIR)
            }
            MountKind::Bind => {
                let shown = request.source.display();
                let source = match (opened, &request.source_fd) {
                    (Some(tree), _) => Ok(tree),
                    // The gateway has already made it a mount of its own: only who is in the mount namespace of a
                    // directory's descriptor can.
                    (None, Some(fd)) => fd.try_clone(),
                    (None, None) => mount::clone_tree(None, &request.source, true),
                }
                .map_err(|error| Failure::config(field(), format!("source {shown}: {error}")))?;
                let kind = fstat(&source).map_err(|errno| Failure::sandbox("mounts", errno))?.st_mode;
                if let Some(users) = users {
                    map_users(source.as_fd(), users, true, &request.source)?;
                }
                (source, SFlag::from_bits_truncate(kind & libc::S_IFMT) == SFlag::S_IFDIR)
            }
        };
        make_place(&place, is_directory)?;
        let propagation = match request.propagation {
            Propagation::Private => libc::MS_PRIVATE,
            Propagation::HostToContainer => libc::MS_SLAVE,
            // It came from the host's mount namespace, where it is shared: so it stays.
            Propagation::Bidirectional => libc::MS_SHARED,
        };
        let attributes = if request.read_only && request.recursive { mount::ATTR_RDONLY } else { 0 };
        mount::set_attributes(source.as_fd(), attributes, propagation, true)
            .map_err(|error| Failure::sandbox("mounts", error))?;
        mount::attach(source.as_fd(), &place).map_err(failed("mounts", &place))?;
        let mut options = if request.read_only { vec!["rbind", "ro"] } else { vec!["rbind"] };
        if matches!(request.kind, MountKind::Image { .. }) {
            options.push("noexec");
        }
        let source = Path::new("/").join(name);
        staged.push(Staged { source, destination: request.destination.clone(), options, directory: is_directory });
    }
    Ok(staged)
}

/// Where images have a link that leads nowhere (`/etc/resolv.conf` to what systemd would make), the place it leads to is
/// made, as runc does: the mount goes there. Destinations without such a link are libcontainer's to make.
pub fn make_linked_places(rootfs: &Path, mounts: &[Staged]) -> Result<(), Failure> {
    let root = open_path(rootfs).map_err(failed("rootfs", rootfs))?;
    for mount in mounts {
        let destination = Path::new(&mount.destination);
        // Below another mount the image's files are hidden.
        let below = |other: &Staged| {
            let other = Path::new(&other.destination);
            other != destination && destination.starts_with(other)
        };
        if !mounts.iter().any(below) && open_in(root.as_fd(), destination).is_err() {
            make_linked_place(root.as_fd(), destination, mount.directory).map_err(failed("rootfs", destination))?;
        }
    }
    Ok(())
}

/// More links than this in one path are a loop (the kernel's MAXSYMLINKS).
const LINKS_MAX: usize = 40;

/// Walks down `destination` as if `root` were `/`. What is missing after a link is made: directories, and at the end what
/// `directory` says. Nobody else is at work in this root.
fn make_linked_place(root: BorrowedFd<'_>, destination: &Path, directory: bool) -> io::Result<()> {
    let parts = |path: &Path| path.components().rev().map(|part| part.as_os_str().to_owned()).collect::<Vec<_>>();
    let mut rest = parts(destination);
    let mut walked = PathBuf::new();
    let mut links = 0;
    while let Some(name) = rest.pop() {
        match Path::new(&name).components().next() {
            Some(Component::Normal(_)) => {}
            Some(Component::RootDir) => {
                walked = PathBuf::new();
                continue;
            }
            Some(Component::ParentDir) => {
                walked.pop();
                continue;
            }
            _ => continue,
        }
        let parent = open_in(root, &walked)?;
        match fstatat(&parent, Path::new(&name), AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(found) if SFlag::from_bits_truncate(found.st_mode & libc::S_IFMT) == SFlag::S_IFLNK => {
                links += 1;
                if links > LINKS_MAX {
                    return Err(Errno::ELOOP.into());
                }
                rest.extend(parts(Path::new(&readlinkat(&parent, Path::new(&name))?)));
                continue;
            }
            Ok(_) => {}
            Err(Errno::ENOENT) if links == 0 => return Ok(()),
            Err(Errno::ENOENT) if directory || !rest.is_empty() => {
                mkdirat(&parent, Path::new(&name), Mode::from_bits_truncate(0o755))?;
            }
            Err(Errno::ENOENT) => {
                let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                openat(&parent, Path::new(&name), flags, Mode::from_bits_truncate(0o644))?;
            }
            Err(errno) => return Err(errno.into()),
        }
        walked.push(&name);
    }
    Ok(())
}

fn make_place(place: &Path, directory: bool) -> Result<(), Failure> {
    let made = if directory { fs::create_dir(place) } else { fs::write(place, "") };
    made.map_err(failed("mounts", place))
}

/// The pod's `/dev/shm`, as another staged bind.
pub fn stage_shm(source: &Path, directory: &Path) -> Result<Staged, Failure> {
    let place = directory.join("shm");
    make_place(&place, true)?;
    let tree = mount::clone_tree(None, source, true).map_err(failed("shm", source))?;
    mount::set_attributes(tree.as_fd(), 0, libc::MS_PRIVATE, true).map_err(failed("shm", source))?;
    mount::attach(tree.as_fd(), &place).map_err(failed("shm", &place))?;
    let options = vec!["rbind", "nosuid", "noexec", "nodev"];
    Ok(Staged { source: "/shm".into(), destination: "/dev/shm".to_owned(), options, directory: true })
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
    use std::os::unix::fs::symlink;

    fn staged(destination: &str, directory: bool) -> Staged {
        Staged { source: "/m".into(), destination: destination.to_owned(), options: vec![], directory }
    }

    #[test]
    fn what_a_links_target_lacks_is_made_inside_the_root_and_nothing_else_is() {
        let place = tempfile::tempdir().expect("directory");
        let root = place.path().join("root");
        fs::create_dir_all(root.join("etc")).expect("etc");
        for (target, link) in [
            ("../run/systemd/stub.conf", "etc/resolv.conf"),
            ("/../../../outside/hosts", "etc/hosts"),
            ("b", "etc/a"),
            ("/data/deep", "etc/b"),
            ("loop", "etc/loop"),
        ] {
            symlink(target, root.join(link)).expect("link");
        }
        let mounts = [
            staged("/etc/resolv.conf", false),
            staged("/etc/hosts", false),
            staged("/etc/a/inner", true),
            staged("/plain/missing", true),
        ];
        make_linked_places(&root, &mounts).expect("made");
        assert!(root.join("run/systemd/stub.conf").is_file());
        assert!(root.join("outside/hosts").is_file() && !place.path().join("outside").exists());
        assert!(root.join("data/deep/inner").is_dir());
        assert!(!root.join("plain").exists(), "libcontainer's to make");
        assert!(make_linked_places(&root, &[staged("/etc/loop/x", true)]).is_err());
    }
}
