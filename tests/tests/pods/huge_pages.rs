//! Huge pages that the machine has set aside.

use std::fs;
use std::path::Path;
use std::time::Duration;

use carob_tests::pods::{idle, list, pod};
use carob_tests::{Carob, holds_within};
use serde_json::json;

const PAGES: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";

/// Sets pages aside as long as it lives.
struct Reserved(String);

impl Reserved {
    /// None where so many are not to be had: free memory may lie in pieces that are too small.
    fn pages(count: u32) -> Option<Self> {
        let read = || fs::read_to_string(PAGES).expect("the kernel has pages of this size");
        let reserved = Self(read());
        fs::write("/proc/sys/vm/compact_memory", "1").expect("root may");
        let had = holds_within(Duration::from_secs(10), || {
            fs::write(PAGES, count.to_string()).expect("root may");
            read().trim() == count.to_string()
        });
        had.then_some(reserved)
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        if let Err(error) = fs::write(PAGES, self.0.trim()) {
            eprintln!("{PAGES}: {error}");
        }
    }
}

/// Whether cgroups can limit huge pages here: otherwise the node offers none.
fn limited() -> bool {
    let has =
        |path: &str| fs::read_to_string(path).is_ok_and(|text| text.split_whitespace().any(|word| word == "hugetlb"));
    has("/sys/fs/cgroup/cgroup.controllers")
        || has("/sys/fs/cgroup/unified/cgroup.controllers")
        || Path::new("/sys/fs/cgroup/hugetlb").exists()
}

#[test]
fn huge_pages_are_counted_given_mounted_and_limited() {
    if !Path::new(PAGES).exists() || !limited() {
        eprintln!("this kernel has no huge pages that cgroups limit");
        return;
    }
    let Some(_reserved) = Reserved::pages(8) else {
        eprintln!("the machine's memory is too much in pieces for huge pages");
        return;
    };
    let carob = Carob::start(&["busybox", "tools"]);
    let node = carob.get(&["nodes"])["items"][0]["status"].clone();
    assert_eq!(
        (&node["capacity"]["hugepages-2Mi"], &node["allocatable"]["hugepages-2Mi"]),
        (&json!("16Mi"), &json!("16Mi"))
    );

    let with = |name: &str, amount: &str| {
        let mut container = idle("main");
        container["resources"] = json!({"limits": {"hugepages-2Mi": amount, "memory": "32Mi"}});
        container["volumeMounts"] = json!([{"name": "huge", "mountPath": "/huge"}]);
        let mut manifest = pod(name, &[container, idle("without")]);
        manifest["spec"]["volumes"] = json!([{"name": "huge", "emptyDir": {"medium": "HugePages"}}]);
        manifest
    };
    let mut unasked = pod("unasked", &[idle("main")]);
    unasked["spec"]["volumes"] = json!([{"name": "huge", "emptyDir": {"medium": "HugePages-2Mi"}}]);
    let warnings = carob.apply(&list(&[with("some", "4Mi"), with("many", "64Mi"), unasked]));
    assert!(!warnings.contains("not carried out"), "{warnings}");
    carob.wait("pod/some", "condition=Ready");
    carob.wait_event("many", "Insufficient hugepages-2Mi");
    carob.wait_event("unasked", "hugePages storage requested, but there is no resource request for huge pages");

    let mounts = carob.kubectl(&["exec", "some", "-c", "main", "--", "cat", "/proc/mounts"]);
    let mount = mounts.lines().find(|line| line.contains(" /huge ")).unwrap_or_default();
    assert!(mount.contains("hugetlbfs") && mount.contains("pagesize=2M"), "{mounts}");
    // A file there can be grown to what the container may have, and no further.
    let limit = |container: &str| {
        let find = "cat $(find /sys/fs/cgroup -name hugetlb.2MB.max -o -name hugetlb.2MB.limit_in_bytes 2>/dev/null | head -n 1)";
        carob.kubectl(&["exec", "some", "-c", container, "--", "sh", "-c", find]).trim().to_owned()
    };
    assert_eq!((limit("main"), limit("without")), ((4 << 20).to_string(), "0".to_owned()));
}
