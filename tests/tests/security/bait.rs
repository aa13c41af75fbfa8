//! A directory of the machine that attacks reach for.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// What the bait's file holds; found anywhere else, an attack has read the machine's files.
pub const CONTENT: &str = "the-machines-own-secret";

/// A directory with one readable file in it, open to all users, as the attacker would want it.
pub struct Bait {
    dir: tempfile::TempDir,
    before: BTreeMap<PathBuf, (u32, u32, u64)>,
}

impl Bait {
    pub fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("carob-bait-").tempdir().expect("a temporary directory");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).expect("it is ours");
        fs::write(dir.path().join("bait"), CONTENT).expect("a file");
        fs::write(dir.path().join("passwd"), "root:x:4242:4242::/:/bin/sh\nlured:x:4242:4242::/:/bin/sh\n")
            .expect("a file");
        let before = inventory(dir.path());
        Self { dir, before }
    }

    /// The same with what the test itself has put there since.
    pub fn again(self) -> Self {
        let before = inventory(self.dir.path());
        Self { before, ..self }
    }

    /// Where it is, as an absolute path of the machine.
    pub fn path(&self) -> &str {
        self.dir.path().to_str().expect("UTF-8")
    }

    /// Nothing was added, removed, changed or mounted.
    pub fn assert_untouched(&self, by: &str) {
        assert_eq!(inventory(self.dir.path()), self.before, "{by} reached the machine's files");
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("the mount table");
        let over = mounts.lines().find(|line| line.contains(self.path()));
        assert_eq!(over, None, "{by} mounted something over the machine's files");
    }
}

fn inventory(root: &Path) -> BTreeMap<PathBuf, (u32, u32, u64)> {
    let mut found = BTreeMap::new();
    let mut pending = vec![root.to_owned()];
    while let Some(path) = pending.pop() {
        let meta = fs::symlink_metadata(&path).expect("it can be looked at");
        if meta.is_dir() {
            pending.extend(fs::read_dir(&path).expect("a directory").flatten().map(|entry| entry.path()));
        }
        found.insert(path, (meta.mode(), meta.uid(), if meta.is_dir() { 0 } else { meta.len() }));
    }
    found
}
