//! The mounts of one container, prepared in its builder's private mount namespace.

use super::spec::Staged;
use crate::config::{Mount, MountKind, Propagation, Rootfs};
use crate::kernel::mount;
use crate::protocol::Failure;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::mount::MntFlags;
use nix::sys::stat::{Mode, SFlag, fstat, mkdirat};
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

fn failed<'a>(stage: &'static str, path: &'a Path) -> impl Fn(io::Error) -> Failure + use<'a> {
    move |error| Failure::sandbox(stage, format!("{}: {error}", path.display()))
}

/// Mounts the overlay on `target`. `volatile`: the writes of a container need not survive the machine, so nothing is
/// synchronised when it ends.
pub fn overlay(rootfs: &Rootfs, target: &Path) -> Result<(), Failure> {
    let (upper, work) = (rootfs.upper.join("upper"), rootfs.upper.join("work"));
    for directory in [&upper, &work] {
        fs::create_dir_all(directory).map_err(failed("overlay", directory))?;
    }
    let context = mount::FsContext::open("overlay").map_err(failed("overlay", target))?;
    let configure = |lower_one_by_one: bool| -> io::Result<()> {
        context.set("source", "overlay")?;
        if lower_one_by_one {
            // Since Linux 6.7: no limit of one page on all paths together.
            for lower in &rootfs.lower {
                context.set_path("lowerdir+", lower)?;
            }
        } else {
            let joined: Vec<String> = rootfs.lower.iter().map(|lower| escaped(lower)).collect();
            context.set("lowerdir", &joined.join(":"))?;
        }
        context.set_path("upperdir", &upper)?;
        context.set_path("workdir", &work)?;
        context.flag("volatile")
    };
    let complain = |error: io::Error| {
        let detail = context.complaint().unwrap_or_default();
        Failure::sandbox("overlay", format!("{error} {detail}"))
    };
    if let Err(first) = configure(true) {
        if first.raw_os_error() != Some(libc::EINVAL) {
            return Err(complain(first));
        }
        return overlay_by_mount(rootfs, &upper, &work, target);
    }
    let mounted = context.mount(0).map_err(|error| Failure::sandbox("overlay", error))?;
    mount::attach(mounted.as_fd(), target).map_err(failed("overlay", target))
}

/// Older kernels take all layers in one option string of a page: short links to them keep it short.
fn overlay_by_mount(rootfs: &Rootfs, upper: &Path, work: &Path, target: &Path) -> Result<(), Failure> {
    let links = target.with_file_name("l");
    fs::create_dir_all(&links).map_err(failed("overlay", &links))?;
    let mut lower = Vec::new();
    for (index, layer) in rootfs.lower.iter().enumerate() {
        let link = links.join(index.to_string());
        std::os::unix::fs::symlink(layer, &link).map_err(failed("overlay", &link))?;
        lower.push(index.to_string());
    }
    let options =
        format!("lowerdir={},upperdir={},workdir={},volatile", lower.join(":"), escaped(upper), escaped(work));
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
pub fn make_directory(rootfs: &Path, inside: &Path) -> Result<(), Failure> {
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
            Ok(()) | Err(nix::errno::Errno::EEXIST) => {}
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

/// Opens every mount's source now and puts it where nobody else can exchange it.
pub fn stage(mounts: &[Mount], directory: &Path) -> Result<Vec<Staged>, Failure> {
    let mut staged = Vec::with_capacity(mounts.len());
    for (index, request) in mounts.iter().enumerate() {
        let name = format!("m{index}");
        let place = directory.join(&name);
        let field = || format!("mounts[{index}]");
        let source = match &request.kind {
            MountKind::Tmpfs { size } => {
                make_place(&place, true)?;
                mount::tmpfs(*size, "1777", mount::ATTR_NOSUID | mount::ATTR_NODEV)
                    .map_err(|error| Failure::sandbox("mounts", error))?
            }
            MountKind::Bind => {
                let shown = request.source.display();
                let source = match &request.source_fd {
                    // The gateway has already made it a mount of its own: only who is in the mount namespace of a
                    // directory's descriptor can.
                    Some(fd) => fd.try_clone(),
                    None => mount::clone_tree(None, &request.source, true),
                }
                .map_err(|error| Failure::config(field(), format!("source {shown}: {error}")))?;
                let kind = fstat(&source).map_err(|errno| Failure::sandbox("mounts", errno))?.st_mode;
                let is_directory = SFlag::from_bits_truncate(kind & libc::S_IFMT) == SFlag::S_IFDIR;
                make_place(&place, is_directory)?;
                source
            }
        };
        let propagation = match request.propagation {
            Propagation::Private => libc::MS_PRIVATE,
            Propagation::HostToContainer => libc::MS_SLAVE,
            Propagation::Bidirectional => {
                return Err(Failure::config(field(), "mountPropagation Bidirectional is not supported"));
            }
        };
        mount::set_attributes(source.as_fd(), 0, propagation, true)
            .map_err(|error| Failure::sandbox("mounts", error))?;
        mount::attach(source.as_fd(), &place).map_err(failed("mounts", &place))?;
        let options = if request.read_only { vec!["rbind", "ro"] } else { vec!["rbind"] };
        staged.push(Staged { source: Path::new("/").join(name), destination: request.destination.clone(), options });
    }
    Ok(staged)
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
    Ok(Staged { source: "/shm".into(), destination: "/dev/shm".to_owned(), options })
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
