//! Limits into the kernel's files.

use super::{Cgroup, CgroupError, write};
use crate::Limits;
use std::fs;
use std::path::Path;

/// The period of a CPU quota when none is given, in µs.
const DEFAULT_PERIOD_US: u64 = 100_000;

pub(super) fn apply(cgroup: &Cgroup<'_>, limits: &Limits) -> Result<(), CgroupError> {
    let is_v2 = |controller: &str| cgroup.layout.with(controller).is_some_and(|hierarchy| hierarchy.v2);
    if let Some(directory) = cgroup.of("cpu") {
        if is_v2("cpu") { cpu_v2(&directory, limits)? } else { cpu_v1(&directory, limits)? }
    }
    if let (Some(directory), Some(bytes)) = (cgroup.of("memory"), limits.memory_bytes) {
        if is_v2("memory") { memory_v2(&directory, bytes)? } else { memory_v1(&directory, bytes)? }
    }
    if let (Some(directory), Some(count)) = (cgroup.of("pids"), limits.pids) {
        let value = if count < 0 { "max".to_owned() } else { count.to_string() };
        write(&directory.join("pids.max"), &value)?;
    }
    if let Some(directory) = cgroup.of("hugetlb") {
        huge_pages(&directory, &limits.huge_pages, is_v2("hugetlb"))?;
    }
    if let Some(directory) = cgroup.of("cpuset") {
        for (file, value) in [("cpuset.cpus", &limits.cpuset_cpus), ("cpuset.mems", &limits.cpuset_mems)] {
            if let Some(value) = value {
                write(&directory.join(file), value)?;
            }
        }
    }
    Ok(())
}

/// Pages in use, and, on kernels that count them (5.7), reservations.
fn huge_pages(directory: &Path, limits: &[(String, u64)], is_v2: bool) -> Result<(), CgroupError> {
    let limit = if is_v2 { "max" } else { "limit_in_bytes" };
    for (size, bytes) in limits {
        write(&directory.join(format!("hugetlb.{size}.{limit}")), &bytes.to_string())?;
        let reserved = directory.join(format!("hugetlb.{size}.rsvd.{limit}"));
        if reserved.exists() {
            write(&reserved, &bytes.to_string())?;
        }
    }
    Ok(())
}

fn v2_quota(quota: i64, period: u64) -> String {
    if quota < 0 { format!("max {period}") } else { format!("{quota} {period}") }
}

fn v1_period(directory: &Path, period: u64) -> Result<(), CgroupError> {
    let file = directory.join("cpu.cfs_period_us");
    let current = fs::read_to_string(&file).unwrap_or_default();
    if current.trim() == period.to_string() { Ok(()) } else { write(&file, &period.to_string()) }
}

fn cpu_v1(directory: &Path, limits: &Limits) -> Result<(), CgroupError> {
    if let Some(shares) = limits.cpu_shares {
        write(&directory.join("cpu.shares"), &shares.max(2).to_string())?;
    }
    if let Some(quota) = limits.cpu_quota_us {
        v1_period(directory, limits.cpu_period_us.unwrap_or(DEFAULT_PERIOD_US))?;
        write(&directory.join("cpu.cfs_quota_us"), &quota.to_string())?;
    }
    Ok(())
}

fn cpu_v2(directory: &Path, limits: &Limits) -> Result<(), CgroupError> {
    if let Some(shares) = limits.cpu_shares {
        write(&directory.join("cpu.weight"), &weight(shares).to_string())?;
    }
    if let Some(quota) = limits.cpu_quota_us {
        let period = limits.cpu_period_us.unwrap_or(DEFAULT_PERIOD_US);
        write(&directory.join("cpu.max"), &v2_quota(quota, period))?;
    }
    Ok(())
}

/// v1 shares (2 to 262144) on the scale of v2 weights (1 to 10000), as the OCI runtimes map them.
fn weight(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9_999 / 262_142
}

fn memory_v1(directory: &Path, bytes: i64) -> Result<(), CgroupError> {
    let memory = directory.join("memory.limit_in_bytes");
    let with_swap = directory.join("memory.memsw.limit_in_bytes");
    let value = bytes.to_string();
    if !with_swap.exists() {
        return write(&memory, &value);
    }
    // The kernel keeps memory <= memory and swap at every moment: which must move first depends on the direction.
    if write(&memory, &value).is_ok() {
        return write(&with_swap, &value);
    }
    write(&with_swap, &value)?;
    write(&memory, &value)
}

fn memory_v2(directory: &Path, bytes: i64) -> Result<(), CgroupError> {
    let value = if bytes < 0 { "max".to_owned() } else { bytes.to_string() };
    write(&directory.join("memory.max"), &value)?;
    let swap = directory.join("memory.swap.max");
    if swap.exists() {
        write(&swap, if bytes < 0 { "max" } else { "0" })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_map_onto_the_ends_and_the_default_of_the_weight_scale() {
        assert_eq!(weight(2), 1);
        assert_eq!(weight(262_144), 10_000);
        assert_eq!(weight(1024), 39);
        assert_eq!(weight(0), 1);
    }
}
