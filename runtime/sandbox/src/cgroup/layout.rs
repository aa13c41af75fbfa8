//! Which hierarchies this machine has, and where.

use std::fs;
use std::io;
use std::path::PathBuf;

/// One mounted hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchy {
    /// Its name below `/sys/fs/cgroup`: `cpu,cpuacct`, `systemd`, `unified`.
    pub name: String,
    /// Its controllers; empty for named ones.
    pub controllers: Vec<String>,
    /// Whether it is the unified one.
    pub v2: bool,
    /// Where it is mounted.
    pub root: PathBuf,
}

impl Hierarchy {
    /// Whether it has this controller. v2 counts CPU time with or without the cpu controller.
    pub fn controls(&self, controller: &str) -> bool {
        let wanted = if self.v2 && controller == "cpuacct" { "cpu" } else { controller };
        self.controllers.iter().any(|own| own == wanted)
    }
}

/// Whether the machine's cgroups can limit what this controller is for.
#[must_use]
pub fn has_controller(name: &str) -> bool {
    Layout::detect().is_ok_and(|layout| layout.with(name).is_some())
}

/// All hierarchies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// In the order of the mount table; one per controller set.
    pub hierarchies: Vec<Hierarchy>,
}

impl Layout {
    /// Reads it from the mount table.
    pub fn detect() -> io::Result<Self> {
        let mut layout = Self::parse(&fs::read_to_string("/proc/self/mountinfo")?);
        for hierarchy in layout.hierarchies.iter_mut().filter(|hierarchy| hierarchy.v2) {
            let text = fs::read_to_string(hierarchy.root.join("cgroup.controllers"))?;
            hierarchy.controllers = text.split_whitespace().map(str::to_owned).collect();
        }
        if layout.hierarchies.is_empty() {
            return Err(io::Error::new(io::ErrorKind::NotFound, "no cgroup hierarchy is mounted"));
        }
        Ok(layout)
    }

    fn parse(mountinfo: &str) -> Self {
        let mut hierarchies: Vec<Hierarchy> = Vec::new();
        for line in mountinfo.lines() {
            let Some((place, kind)) = line.split_once(" - ") else { continue };
            let mut kind = kind.split(' ');
            let (Some(filesystem), _, options) = (kind.next(), kind.next(), kind.next().unwrap_or("")) else {
                continue;
            };
            let fields: Vec<&str> = place.split(' ').collect();
            let (Some(root), Some(point)) = (fields.get(3), fields.get(4)) else { continue };
            // A bind of a part of a hierarchy isn't its root.
            if *root != "/" || !matches!(filesystem, "cgroup" | "cgroup2") {
                continue;
            }
            let point = PathBuf::from(point);
            let name = point.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            let v2 = filesystem == "cgroup2";
            let known = ["cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids", "hugetlb"];
            let controllers: Vec<String> = if v2 {
                Vec::new()
            } else {
                options.split(',').filter(|option| known.contains(option)).map(str::to_owned).collect()
            };
            let named = options.split(',').any(|option| option == "name=systemd");
            // Hierarchies of others (and our own favour) are none of a container's business.
            if !v2 && controllers.is_empty() && !named {
                continue;
            }
            if hierarchies.iter().any(|other| other.v2 == v2 && other.controllers == controllers && (v2 || !named)) {
                continue;
            }
            hierarchies.push(Hierarchy { name, controllers, v2, root: point });
        }
        Self { hierarchies }
    }

    /// The hierarchy of a controller.
    pub fn with(&self, controller: &str) -> Option<&Hierarchy> {
        self.hierarchies.iter().find(|hierarchy| hierarchy.controls(controller))
    }

    /// The unified hierarchy, also in the hybrid layout.
    pub fn unified(&self) -> Option<&Hierarchy> {
        self.hierarchies.iter().find(|hierarchy| hierarchy.v2)
    }

    /// Whether there is only the unified hierarchy.
    pub fn is_v2(&self) -> bool {
        self.hierarchies.iter().all(|hierarchy| hierarchy.v2)
    }

    /// `v1`, `v2` or `hybrid`.
    pub fn kind(&self) -> &'static str {
        match (self.is_v2(), self.unified().is_some()) {
            (true, _) => "v2",
            (false, true) => "hybrid",
            (false, false) => "v1",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
30 22 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
31 30 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
32 30 0:28 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
33 30 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
34 30 0:30 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
35 30 0:30 /docker/x /mnt/part rw - cgroup cgroup rw,memory
36 30 0:31 / /mnt/favour rw - cgroup none rw,favordynmods,name=carob-0
";

    #[test]
    fn the_hybrid_layout_is_read_with_comounted_controllers_and_without_partial_binds() {
        let layout = Layout::parse(HYBRID);
        let names: Vec<&str> = layout.hierarchies.iter().map(|hierarchy| hierarchy.name.as_str()).collect();
        assert_eq!(names, ["unified", "systemd", "cpu,cpuacct", "memory"]);
        assert_eq!(layout.with("cpuacct").map(|hierarchy| hierarchy.name.as_str()), Some("cpu,cpuacct"));
        assert_eq!(layout.kind(), "hybrid");
    }

    #[test]
    fn the_unified_layout_counts_cpu_time_in_its_only_hierarchy() {
        let mut layout = Layout::parse("30 22 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n");
        layout.hierarchies[0].controllers = vec!["cpu".to_owned(), "memory".to_owned()];
        assert_eq!(layout.kind(), "v2");
        assert!(layout.with("cpuacct").is_some());
    }
}
