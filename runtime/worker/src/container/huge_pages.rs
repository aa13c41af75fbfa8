//! Huge pages: what the machine has set aside, what pods hold of it, and what their cgroups may use.

use super::resources::value;
use k8s_openapi::api::core::v1::{EmptyDirVolumeSource, PodSpec};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// A size of page that some machine has.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Size {
    /// Name of the resource.
    pub resource: &'static str,
    /// Why a pod was refused that asks for too many.
    pub refusal: &'static str,
    /// Bytes of one page.
    pub bytes: i64,
    /// What the cgroup's files call it.
    pub cgroup: &'static str,
}

const fn size(resource: &'static str, refusal: &'static str, bytes: i64, cgroup: &'static str) -> Size {
    Size { resource, refusal, bytes, cgroup }
}

const COUNT: usize = 6;

/// All sizes of x86-64 and arm64.
pub(crate) static SIZES: [Size; COUNT] = [
    size("hugepages-64Ki", "OutOfhugepages-64Ki", 64 << 10, "64KB"),
    size("hugepages-2Mi", "OutOfhugepages-2Mi", 2 << 20, "2MB"),
    size("hugepages-32Mi", "OutOfhugepages-32Mi", 32 << 20, "32MB"),
    size("hugepages-512Mi", "OutOfhugepages-512Mi", 512 << 20, "512MB"),
    size("hugepages-1Gi", "OutOfhugepages-1Gi", 1 << 30, "1GB"),
    size("hugepages-16Gi", "OutOfhugepages-16Gi", 16 << 30, "16GB"),
];

type Amounts = BTreeMap<String, ApiQuantity>;

/// Bytes in pages of each size; none where there is no such size.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct HugePages([Option<i64>; COUNT]);

impl HugePages {
    /// What the machine has set aside, below `/sys/kernel/mm/hugepages`. A size that the kernel knows counts, also without a
    /// page of it.
    pub fn of_machine(directory: &Path) -> Self {
        Self(std::array::from_fn(|place| {
            let bytes = SIZES[place].bytes;
            let count = directory.join(format!("hugepages-{}kB/nr_hugepages", bytes >> 10));
            let count = fs::read_to_string(count).ok()?.trim().parse::<i64>().ok()?;
            Some(count.saturating_mul(bytes))
        }))
    }

    /// What a list of requests or limits says.
    pub fn of(list: Option<&Amounts>) -> Self {
        Self(std::array::from_fn(|place| list.and_then(|list| list.get(SIZES[place].resource)).map(value)))
    }

    /// What is said here, and otherwise there.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self(std::array::from_fn(|place| self.0[place].or(other.0[place])))
    }

    /// Of each size what `combine` makes of both.
    #[must_use]
    pub fn with(self, other: Self, combine: fn(i64, i64) -> i64) -> Self {
        Self(std::array::from_fn(|place| match (self.0[place], other.0[place]) {
            (None, None) => None,
            (one, other) => Some(combine(one.unwrap_or(0), other.unwrap_or(0))),
        }))
    }

    /// In pages of this size.
    pub fn of_size(self, size: &Size) -> i64 {
        self.iter().find(|(other, _)| *other == size).map_or(0, |(_, bytes)| bytes)
    }

    /// Together.
    pub fn total(self) -> i64 {
        self.0.iter().flatten().sum()
    }

    /// The sizes of which something is said.
    pub fn iter(self) -> impl Iterator<Item = (&'static Size, i64)> {
        SIZES.iter().zip(self.0).filter_map(|(size, bytes)| bytes.map(|bytes| (size, bytes)))
    }

    /// What a cgroup may use, of each size that the machine has set aside: nothing that isn't asked for.
    pub fn limits(self, machine: Self) -> Vec<(String, u64)> {
        let there = machine.iter().filter(|(_, bytes)| *bytes > 0);
        there.map(|(size, _)| (size.cgroup.to_owned(), self.of_size(size).max(0).unsigned_abs())).collect()
    }
}

/// The size of the pages of an `emptyDir` whose medium is `HugePages` or `HugePages-SIZE`; `None` for other media. The
/// errors are the kubelet's.
pub(crate) fn of_volume(source: &EmptyDirVolumeSource, spec: &PodSpec) -> Result<Option<u64>, String> {
    let medium = source.medium.as_deref().unwrap_or_default();
    let Some(wanted) = medium.strip_prefix("HugePages") else { return Ok(None) };
    let wanted = wanted.strip_prefix('-').map(|size| value(&ApiQuantity(size.to_owned())));
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let all = containers.map(|container| container.resources.as_ref()).chain([spec.resources.as_ref()]);
    let requests = all.flatten().flat_map(|resources| HugePages::of(resources.requests.as_ref()).iter());
    let mut sizes: Vec<i64> = requests.map(|(size, _)| size.bytes).collect();
    sizes.sort_unstable();
    sizes.dedup();
    match wanted {
        Some(wanted) => sizes.retain(|bytes| *bytes == wanted),
        None if sizes.len() > 1 => {
            return Err(format!("medium: {medium} can't be used if container requests multiple huge page sizes"));
        }
        None => {}
    }
    let found = sizes.first().map(|bytes| bytes.unsigned_abs());
    let missing = "hugePages storage requested, but there is no resource request for huge pages";
    found.map(Some).ok_or_else(|| format!("medium {medium}: {missing}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn asked(amounts: serde_json::Value) -> HugePages {
        HugePages::of(Some(&serde_json::from_value(amounts).unwrap()))
    }

    #[test]
    fn a_cgroup_may_use_what_was_asked_for_of_each_size_that_is_there() {
        let sys = tempfile::tempdir().unwrap();
        for (size, count) in [("2048kB", "8\n"), ("1048576kB", "0\n")] {
            let directory = sys.path().join(format!("hugepages-{size}"));
            fs::create_dir(&directory).unwrap();
            fs::write(directory.join("nr_hugepages"), count).unwrap();
        }
        let machine = HugePages::of_machine(sys.path());
        let known: Vec<_> = machine.iter().map(|(size, bytes)| (size.resource, bytes)).collect();
        assert_eq!(known, [("hugepages-2Mi", 16 << 20), ("hugepages-1Gi", 0)]);
        let limits = |pages: HugePages| pages.limits(machine);
        assert_eq!(limits(asked(json!({"hugepages-2Mi": "4Mi", "cpu": "1"}))), [("2MB".to_owned(), 4 << 20)]);
        assert_eq!(limits(HugePages::default()), [("2MB".to_owned(), 0)]);
    }

    #[test]
    fn a_volumes_pages_are_of_a_size_that_the_pod_requests() {
        let size = |medium: &str, requests: serde_json::Value| {
            let spec = json!({"containers": [{"name": "c", "resources": {"requests": requests}}]});
            let source = EmptyDirVolumeSource { medium: Some(medium.to_owned()), size_limit: None };
            of_volume(&source, &serde_json::from_value(spec).unwrap())
        };
        assert_eq!(size("Memory", json!({})), Ok(None));
        assert_eq!(size("HugePages", json!({"hugepages-2Mi": "2Mi"})), Ok(Some(2 << 20)));
        let both = json!({"hugepages-2Mi": "2Mi", "hugepages-1Gi": "1Gi"});
        assert_eq!(size("HugePages-1Gi", both.clone()), Ok(Some(1 << 30)));
        assert!(size("HugePages", both).unwrap_err().contains("multiple huge page sizes"));
        assert!(size("HugePages-2Mi", json!({})).unwrap_err().contains("there is no resource request"));
    }
}
