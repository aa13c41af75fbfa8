//! Whether what is mounted below a path can be seen by others: what `mountPropagation: Bidirectional` needs.

use crate::Error;
use std::path::Path;

/// An error in containerd's words where the mount that holds `path` isn't shared.
pub fn check(path: &Path) -> Result<(), Error> {
    let failed = |message: String| Error::InvalidConfig { field: "mountPropagation".to_owned(), message };
    let real = path.canonicalize().map_err(|error| failed(format!("{}: {error}", path.display())))?;
    let table = std::fs::read_to_string("/proc/self/mountinfo").map_err(|error| failed(error.to_string()))?;
    match holder(&table, &real) {
        Some((_, true)) => Ok(()),
        found => {
            let point = found.map_or_else(|| "/".to_owned(), |(point, _)| point);
            Err(failed(format!("path {:?} is mounted on {point:?} but it is not a shared mount", real.display())))
        }
    }
}

/// The mount point that holds a path, the last of the deepest, and whether it is shared (proc(5), mountinfo).
fn holder(table: &str, path: &Path) -> Option<(String, bool)> {
    let mut best: Option<(String, bool)> = None;
    for line in table.lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        let Some(point) = fields.get(4).map(|point| point.replace("\\040", " ")) else { continue };
        let deeper = best.as_ref().is_none_or(|(best, _)| Path::new(&point).starts_with(best));
        if path.starts_with(&point) && deeper {
            let optional = fields.iter().skip(6).take_while(|field| **field != "-");
            best = Some((point, optional.into_iter().any(|field| field.starts_with("shared:"))));
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_deepest_mount_that_holds_a_path_decides() {
        let table = "\
22 1 0:2 / / rw shared:1 - ext4 /dev/vda rw
23 22 0:3 / /mnt rw - tmpfs tmpfs rw
24 23 0:4 / /mnt/deep\\040er rw shared:2 master:1 - tmpfs tmpfs rw
";
        assert_eq!(holder(table, Path::new("/home")), Some(("/".into(), true)));
        assert_eq!(holder(table, Path::new("/mnt/x")), Some(("/mnt".into(), false)));
        assert_eq!(holder(table, Path::new("/mnt/deep er/x")), Some(("/mnt/deep er".into(), true)));
        assert_eq!(holder("", Path::new("/")), None);
    }
}
