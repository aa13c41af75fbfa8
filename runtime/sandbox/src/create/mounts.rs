//! What is mounted into a container's root. Most of it is put in place here, where its users are known; the rest is parked
//! in the builder's workshop, for the runtime to take it from there.

use super::Users;
use super::places::{as_root, make};
use super::rootfs::{failed, image_tree, map_users, open_in, open_path};
use super::spec::Staged;
use crate::config::{Mount, MountKind, Propagation};
use crate::kernel::mount;
use crate::protocol::Failure;
use nix::sys::stat::{SFlag, fstat};
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// A mount that is in no place yet: nobody can exchange what it shows any more.
#[derive(Debug)]
pub struct Tree {
    tree: OwnedFd,
    destination: PathBuf,
    directory: bool,
    propagation: Propagation,
    /// Of the uppermost mount alone.
    attributes: u64,
}

/// Where a container finds its pod's shared memory.
const SHM: &str = "/dev/shm";

/// Opens all that the container asks for, and the pod's `/dev/shm`. `opened` are those that are open already.
pub fn open(
    mounts: &[Mount],
    opened: Vec<Option<OwnedFd>>,
    shm: &Path,
    workshop: &Path,
    users: Option<Users<'_>>,
) -> Result<Vec<Tree>, Failure> {
    let all = mounts.iter().zip(opened).enumerate();
    let mut trees = all
        .map(|(index, (request, opened))| open_one(index, request, opened, workshop, users))
        .collect::<Result<Vec<_>, _>>()?;
    if !trees.iter().any(|tree| tree.destination == Path::new(SHM)) {
        let tree = mount::clone_tree(None, shm, true).map_err(failed("shm", shm))?;
        mount::set_attributes(tree.as_fd(), 0, libc::MS_PRIVATE, true).map_err(failed("shm", shm))?;
        trees.push(Tree {
            tree,
            destination: SHM.into(),
            directory: true,
            propagation: Propagation::Private,
            attributes: mount::ATTR_NOSUID | mount::ATTR_NODEV | mount::ATTR_NOEXEC,
        });
    }
    // A mount inside another one's destination has to come after it.
    trees.sort_by_key(|tree| tree.destination.components().count());
    Ok(trees)
}

fn open_one(
    index: usize,
    request: &Mount,
    opened: Option<OwnedFd>,
    workshop: &Path,
    users: Option<Users<'_>>,
) -> Result<Tree, Failure> {
    let field = || format!("mounts[{index}]");
    let (tree, directory) = match &request.kind {
        MountKind::Tmpfs { size } => {
            let owner = users.map_or(0, |users| users.range.first);
            let tree = mount::tmpfs_of(owner, *size, "1777", mount::ATTR_NOSUID | mount::ATTR_NODEV)
                .map_err(|error| Failure::sandbox("mounts", error))?;
            (tree, true)
        }
        MountKind::Image { lower, sub_path } => {
            let tree = workshop.join(format!("i{index}"));
            fs::create_dir(&tree).map_err(failed("image", &tree))?;
            image_tree(lower, &tree, users)?;
            let root = open_path(&tree).map_err(failed("image", &tree))?;
            let inside = sub_path.as_deref().unwrap_or(Path::new("."));
            let part = open_in(root.as_fd(), inside)
                .map_err(|error| Failure::config(field(), format!("subPath {}: {error}", inside.display())))?;
            let directory = is_directory(part.as_fd())?;
            let part = mount::clone_tree(Some(part.as_fd()), Path::new(""), false);
            let part = part.map_err(failed("image", &tree))?;
            mount::set_attributes(part.as_fd(), mount::ATTR_RDONLY | mount::ATTR_NOEXEC, 0, false)
                .map_err(failed("image", &tree))?;
            (part, directory)
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
            let directory = is_directory(source.as_fd())?;
            if let Some(users) = users {
                map_users(source.as_fd(), users, true, &request.source)?;
            }
            (source, directory)
        }
    };
    let propagation = match request.propagation {
        Propagation::Private => libc::MS_PRIVATE,
        Propagation::HostToContainer => libc::MS_SLAVE,
        // It came from the host's mount namespace, where it is shared: so it stays.
        Propagation::Bidirectional => libc::MS_SHARED,
    };
    let everywhere = if request.read_only && request.recursive { mount::ATTR_RDONLY } else { 0 };
    mount::set_attributes(tree.as_fd(), everywhere, propagation, true)
        .map_err(|error| Failure::sandbox("mounts", error))?;
    let mut attributes = if request.read_only { mount::ATTR_RDONLY } else { 0 };
    if matches!(request.kind, MountKind::Image { .. }) {
        attributes |= mount::ATTR_NOEXEC;
    }
    let destination = PathBuf::from(&request.destination);
    Ok(Tree { tree, destination, directory, propagation: request.propagation, attributes })
}

fn is_directory(file: BorrowedFd<'_>) -> Result<bool, Failure> {
    let kind = fstat(file).map_err(|errno| Failure::sandbox("mounts", errno))?.st_mode & libc::S_IFMT;
    Ok(SFlag::from_bits_truncate(kind) == SFlag::S_IFDIR)
}

/// Puts in place what can be, in the order of `trees`, and makes `cwd`. Gives what is left to the runtime, parked.
pub fn place(
    trees: Vec<Tree>,
    root: &Path,
    cwd: &Path,
    workshop: &Path,
    users: Option<Users<'_>>,
) -> Result<Vec<Staged>, Failure> {
    let root = open_path(root).map_err(failed("rootfs", root))?;
    let mut parked: Vec<Staged> = Vec::new();
    as_root(users, || {
        for tree in trees {
            if tree.is_the_runtimes() || parked.iter().any(|other| tree.destination.starts_with(&other.destination)) {
                parked.push(park(tree, parked.len(), workshop)?);
                continue;
            }
            let shown = tree.destination.clone();
            let put = || -> io::Result<()> {
                mount::set_attributes(tree.tree.as_fd(), tree.attributes, 0, false)?;
                make(root.as_fd(), &tree.destination, tree.directory)?;
                let place = open_in(root.as_fd(), &tree.destination)?;
                mount::attach_at(tree.tree.as_fd(), place.as_fd())
            };
            put().map_err(|error| unplaceable(&shown, &error))?;
        }
        make(root.as_fd(), cwd, true).map_err(failed("rootfs", cwd))
    })?;
    Ok(parked)
}

fn unplaceable(destination: &Path, error: &io::Error) -> Failure {
    let message = format!("cannot create the container: cannot mount on {}: {error}", destination.display());
    Failure::Start { message, exit_code: 128 }
}

impl Tree {
    /// What lies on file systems that the container has of its own comes after them, and those are the runtime's; so is what
    /// tells the container or the host of later mounts, because it does so from the container's mount namespace only.
    fn is_the_runtimes(&self) -> bool {
        let own = ["/proc", "/sys", "/dev"].iter().any(|own| self.destination.starts_with(own));
        own || self.propagation != Propagation::Private
    }
}

/// Parks all of them, after their places in the root were made.
pub fn park_all(trees: Vec<Tree>, root: &Path, workshop: &Path) -> Result<Vec<Staged>, Failure> {
    let root = open_path(root).map_err(failed("rootfs", root))?;
    let mut parked: Vec<Staged> = Vec::new();
    for tree in trees {
        // Below another mount the image's files are hidden.
        let hidden = parked.iter().any(|other| tree.destination.starts_with(&other.destination));
        if !hidden && !tree.is_the_runtimes() {
            make(root.as_fd(), &tree.destination, tree.directory)
                .map_err(|error| unplaceable(&tree.destination, &error))?;
        }
        parked.push(park(tree, parked.len(), workshop)?);
    }
    Ok(parked)
}

fn park(tree: Tree, number: usize, workshop: &Path) -> Result<Staged, Failure> {
    let name = format!("m{number}");
    let place = workshop.join(&name);
    let made = if tree.directory { fs::create_dir(&place) } else { fs::write(&place, "") };
    made.and_then(|()| mount::attach(tree.tree.as_fd(), &place)).map_err(failed("mounts", &place))?;
    let mut options = vec!["rbind"];
    for (attribute, option) in [
        (mount::ATTR_RDONLY, "ro"),
        (mount::ATTR_NOSUID, "nosuid"),
        (mount::ATTR_NODEV, "nodev"),
        (mount::ATTR_NOEXEC, "noexec"),
    ] {
        options.extend((tree.attributes & attribute != 0).then_some(option));
    }
    let destination = tree.destination.to_string_lossy().into_owned();
    Ok(Staged { source: Path::new("/").join(name), destination, options })
}
