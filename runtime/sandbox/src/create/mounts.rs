//! What is mounted into a container's root: opened here, and put in place when the container has its root
//! ([`super::volumes`]), or parked in the builder's workshop for another runtime to take it from there.

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
    /// What is mounted.
    pub fd: OwnedFd,
    /// Where it goes.
    pub destination: PathBuf,
    /// A directory, not a file.
    pub directory: bool,
    /// What becomes of later mounts.
    pub propagation: Propagation,
    /// Of the uppermost mount alone.
    pub attributes: u64,
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
            fd: tree,
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
    Ok(Tree { fd: tree, destination, directory, propagation: request.propagation, attributes })
}

fn is_directory(file: BorrowedFd<'_>) -> Result<bool, Failure> {
    let kind = fstat(file).map_err(|errno| Failure::sandbox("mounts", errno))?.st_mode & libc::S_IFMT;
    Ok(SFlag::from_bits_truncate(kind) == SFlag::S_IFDIR)
}

/// Makes places in the root for what comes when the container has it: then it may be read-only.
pub fn prepare(trees: &[Tree], root: &Path, cwd: &Path, users: Option<Users<'_>>) -> Result<(), Failure> {
    let root = open_path(root).map_err(failed("rootfs", root))?;
    as_root(users, || {
        for (index, tree) in trees.iter().enumerate() {
            // Below another mount the image's files are hidden.
            let hidden = trees[..index].iter().any(|other| tree.destination.starts_with(&other.destination));
            if !hidden && !is_covered(&tree.destination) {
                let made = make(root.as_fd(), &tree.destination, tree.directory);
                made.map_err(|error| unplaceable(&tree.destination, &error))?;
            }
        }
        let hidden = is_covered(cwd) || trees.iter().any(|tree| cwd.starts_with(&tree.destination));
        if hidden { Ok(()) } else { make(root.as_fd(), cwd, true).map_err(failed("rootfs", cwd)) }
    })
}

/// What the image has here is covered by a mount that every container has.
fn is_covered(path: &Path) -> bool {
    ["/proc", "/sys", "/dev"].iter().any(|own| path.starts_with(own))
}

fn unplaceable(destination: &Path, error: &io::Error) -> Failure {
    let message = format!("cannot create the container: cannot mount on {}: {error}", destination.display());
    Failure::Start { message, exit_code: 128 }
}

/// Parks all of them, after [`prepare`] made their places.
pub fn park_all(trees: Vec<Tree>, workshop: &Path) -> Result<Vec<Staged>, Failure> {
    trees.into_iter().enumerate().map(|(number, tree)| park(tree, number, workshop)).collect()
}

fn park(tree: Tree, number: usize, workshop: &Path) -> Result<Staged, Failure> {
    let name = format!("m{number}");
    let place = workshop.join(&name);
    let made = if tree.directory { fs::create_dir(&place) } else { fs::write(&place, "") };
    made.and_then(|()| mount::attach(tree.fd.as_fd(), &place)).map_err(failed("mounts", &place))?;
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
