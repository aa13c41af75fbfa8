//! Layers that take for granted what lies below them.
//!
//! An archive may hold `tmp/file` without `tmp/`, or `lib/x.so` where a lower layer has `lib` as a link to `usr/lib`. A
//! runtime that unpacks onto the mounted lower layers gets the lower `tmp`'s mode and goes through the link. Here layers
//! are unpacked on their own, to be shared between images, so such a layer gets a second form that fits what is below
//! it in this image: the same files as hard links, in folders with the right owner, mode and place.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::sys::stat::{FileStat, Mode, SFlag, fchmod, fstat, futimens, mkdirat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchown, linkat};
use xattr::FileExt as _;

use super::tree::{self, Tree, is};
use crate::Error;
use crate::digest::Digest;
use crate::merged::{Found, Merged};
use crate::store::{LayerLease, LayerRecord, Store, layer_name};

/// The layers to mount, lowest first: those that take nothing for granted as they are, the others fitted, and none that
/// a layer above hides entirely.
pub(crate) fn fit(store: &Store, layers: &[Arc<LayerLease>]) -> Result<Vec<Arc<LayerLease>>, Error> {
    let mut mounted: Vec<Arc<LayerLease>> = Vec::new();
    let mut chain = String::new();
    for layer in layers {
        chain.push_str(layer.record.diff_id.as_str());
        chain.push('\n');
        if layer.record.opaque_root {
            mounted.clear();
        }
        let fitted = if mounted.is_empty() { None } else { fit_one(store, layer, &mounted, &chain)? };
        mounted.push(fitted.unwrap_or_else(|| Arc::clone(layer)));
    }
    Ok(mounted)
}

fn fit_one(
    store: &Store,
    layer: &LayerLease,
    mounted: &[Arc<LayerLease>],
    chain: &str,
) -> Result<Option<Arc<LayerLease>>, Error> {
    let paths: Vec<PathBuf> = mounted.iter().rev().map(|below| below.path.clone()).collect();
    let below = Merged::open(&paths)?;
    let failed = |errno: Errno| Error::io("fit", &layer.path)(errno.into());
    let tree = Tree::open(&layer.path).map_err(Error::io("open", &layer.path))?;
    if !takes_for_granted(&tree, &layer.record, &below).map_err(failed)? {
        return Ok(None);
    }
    let id = Digest::of(format!("fitted\n{chain}").as_bytes());
    let name = layer_name(&id);
    {
        let _guard = store.shared()?;
        if let Some(present) = store.lease_named(&name)?.filter(|present| present.record.diff_id == id) {
            return Ok(Some(present));
        }
    }
    let temp = store.temp()?;
    let root = Store::layer_in_making(&temp)?;
    let target = Tree::open(&root).map_err(Error::io("open", &root))?;
    let implied = layer.record.implied.iter().map(Vec::as_slice).collect();
    Fitting { source: tree, target, below, implied }.copy().map_err(failed)?;
    let record = LayerRecord { diff_id: id, implied: Vec::new(), ..layer.record.clone() };
    store.commit_layer(&temp, &name, record, None).map(Some)
}

fn takes_for_granted(tree: &Tree, record: &LayerRecord, below: &Merged) -> Result<bool, Errno> {
    for path in &record.implied {
        let Some(Found::Directory(real, dirs)) = below.find(path)? else { continue };
        if real.join(&b'/') != *path {
            return Ok(true);
        }
        let (lower, ours) = (fstat(&dirs[0])?, fstat(tree.dir(path)?)?);
        let look = |stat: &FileStat| (stat.st_mode, stat.st_uid, stat.st_gid);
        if look(&lower) != look(&ours) {
            return Ok(true);
        }
    }
    Ok(false)
}

struct Fitting<'a> {
    source: Tree,
    target: Tree,
    below: Merged,
    implied: BTreeSet<&'a [u8]>,
}

impl Fitting<'_> {
    fn copy(&self) -> Result<(), Errno> {
        // Folders of the layer, each with its place in the copy.
        let mut pending: Vec<(Vec<u8>, Vec<Vec<u8>>)> = vec![(Vec::new(), Vec::new())];
        let mut times = Vec::new();
        while let Some((path, mut place)) = pending.pop() {
            let source = self.source.real_dir(&path)?;
            let implied = self.implied.contains(path.as_slice());
            if implied && let Some(Found::Directory(real, _)) = self.below.find(&place.join(&b'/'))? {
                place = real;
            }
            let target = self.folder(&place)?;
            if !implied {
                let stat = copy_attributes(&source, &target, true)?;
                times.push((place.clone(), stat));
            }
            for child in tree::names(source.as_fd())? {
                let found = tree::stat(&source, child.as_bytes())?.ok_or(Errno::ENOENT)?;
                if is(&found, SFlag::S_IFDIR) {
                    let mut inside = path.clone();
                    if !inside.is_empty() {
                        inside.push(b'/');
                    }
                    inside.extend_from_slice(child.as_bytes());
                    let mut place = place.clone();
                    place.push(child.as_bytes().to_vec());
                    pending.push((inside, place));
                } else {
                    match linkat(&source, child.as_os_str(), &target, child.as_os_str(), AtFlags::empty()) {
                        // The same file by its real path and by that through a link: the first stays.
                        Ok(()) | Err(Errno::EEXIST) => {}
                        Err(error) => return Err(error),
                    }
                }
            }
        }
        for (place, stat) in times {
            let time = TimeSpec::new(stat.st_mtime, stat.st_mtime_nsec);
            futimens(self.target.real_dir(&place.join(&b'/'))?, &time, &time)?;
        }
        Ok(())
    }

    /// A folder in the copy; what is new on the way looks as in the layers below.
    fn folder(&self, place: &[Vec<u8>]) -> Result<OwnedFd, Errno> {
        let mut at = self.target.real_dir(b"")?;
        self.as_below(b"", &at)?;
        for (number, name) in place.iter().enumerate() {
            if tree::stat(&at, name)?.is_none() {
                mkdirat(&at, OsStr::from_bytes(name), Mode::from_bits_truncate(0o755))?;
                let made = tree::open_child(&at, name)?;
                self.as_below(&place[..=number].join(&b'/'), &made)?;
            }
            at = tree::open_child(&at, name)?;
        }
        Ok(at)
    }

    fn as_below(&self, path: &[u8], folder: &OwnedFd) -> Result<(), Errno> {
        if let Some(Found::Directory(_, dirs)) = self.below.find(path)? {
            copy_attributes(&dirs[0], folder, false)?;
        }
        Ok(())
    }
}

/// Copies owner, mode and extended attributes; `marks` says whether overlay's own are among them.
fn copy_attributes(from: &OwnedFd, to: &OwnedFd, marks: bool) -> Result<FileStat, Errno> {
    let stat = fstat(from)?;
    fchown(to, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
    fchmod(to, Mode::from_bits_truncate(stat.st_mode & 0o7777))?;
    let file = |fd: &OwnedFd| fd.try_clone().map(File::from).map_err(|_| Errno::EMFILE);
    let errno = |error: std::io::Error| Errno::from_raw(error.raw_os_error().unwrap_or_default());
    let (from, to) = (file(from)?, file(to)?);
    for name in from.list_xattr().map_err(errno)? {
        let wanted = match name.as_bytes() {
            name if name.starts_with(b"trusted.overlay.") => marks,
            name => name.starts_with(b"user."),
        };
        if let Some(value) = from.get_xattr(&name).map_err(errno)?.filter(|_| wanted) {
            to.set_xattr(&name, &value).map_err(errno)?;
        }
    }
    Ok(stat)
}
