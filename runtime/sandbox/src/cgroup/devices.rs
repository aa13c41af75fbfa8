//! Which device nodes a container may open: a list on v1, a small BPF program on v2.
#![allow(unsafe_code)]

use super::{Cgroup, CgroupError, at, write};
use crate::DeviceNode;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

/// What a container asks for beside the default devices.
#[derive(Debug, Clone, Copy)]
pub struct DeviceRules<'a> {
    /// Everything is allowed.
    pub privileged: bool,
    /// Devices beyond the default ones.
    pub extra: &'a [DeviceNode],
}

#[derive(Debug, Clone, Copy)]
struct Rule {
    block: bool,
    /// `None` is any.
    major: Option<u32>,
    minor: Option<u32>,
    access: &'static str,
}

const fn rule(block: bool, major: Option<u32>, minor: Option<u32>, access: &'static str) -> Rule {
    Rule { block, major, minor, access }
}

/// containerd's default: any node may be made, these may be opened.
const DEFAULT: [Rule; 11] = [
    rule(false, None, None, "m"),
    rule(true, None, None, "m"),
    rule(false, Some(1), Some(3), "rwm"), // null
    rule(false, Some(1), Some(8), "rwm"), // random
    rule(false, Some(1), Some(7), "rwm"), // full
    rule(false, Some(5), Some(0), "rwm"), // tty
    rule(false, Some(1), Some(5), "rwm"), // zero
    rule(false, Some(1), Some(9), "rwm"), // urandom
    rule(false, Some(5), Some(1), "rwm"), // console
    rule(false, Some(136), None, "rwm"),  // pts/*
    rule(false, Some(5), Some(2), "rwm"), // ptmx
];

/// The same rules as the OCI specification writes them.
pub fn oci_rules(rules: &DeviceRules<'_>) -> serde_json::Value {
    use serde_json::json;
    if rules.privileged {
        return json!([{"allow": true, "access": "rwm"}]);
    }
    let mut all = vec![json!({"allow": false, "access": "rwm"})];
    for (block, major, minor, access) in list(rules) {
        let mut rule = json!({"allow": true, "type": if block { "b" } else { "c" }, "access": access});
        for (name, number) in [("major", major), ("minor", minor)] {
            if let Some(number) = number {
                rule[name] = json!(number);
            }
        }
        all.push(rule);
    }
    all.into()
}

/// Block device or not, major and minor number (`None` is any), and what is allowed.
type Allowed = (bool, Option<u32>, Option<u32>, String);

fn list(rules: &DeviceRules<'_>) -> Vec<Allowed> {
    let mut list: Vec<Allowed> =
        DEFAULT.iter().map(|rule| (rule.block, rule.major, rule.minor, rule.access.to_owned())).collect();
    for device in rules.extra {
        list.push((
            device.block,
            u32::try_from(device.major).ok(),
            u32::try_from(device.minor).ok(),
            device.access.clone(),
        ));
    }
    list
}

pub(super) fn apply(cgroup: &Cgroup<'_>, rules: &DeviceRules<'_>) -> Result<(), CgroupError> {
    if rules.privileged {
        return Ok(());
    }
    let list = list(rules);
    if let Some(directory) = cgroup.of("devices") {
        return v1(&directory, &list);
    }
    match cgroup.layout.unified() {
        Some(hierarchy) => {
            let directory = cgroup.directory(hierarchy);
            v2(&directory, &list).map_err(at(&directory))
        }
        None => Err(at(Path::new("devices"))(io::Error::other("no hierarchy keeps devices from a container"))),
    }
}

fn v1(directory: &Path, list: &[Allowed]) -> Result<(), CgroupError> {
    write(&directory.join("devices.deny"), "a")?;
    let allow = directory.join("devices.allow");
    let number = |number: Option<u32>| number.map_or_else(|| "*".to_owned(), |number| number.to_string());
    for (block, major, minor, access) in list {
        let kind = if *block { 'b' } else { 'c' };
        write(&allow, &format!("{kind} {}:{} {access}", number(*major), number(*minor)))?;
    }
    Ok(())
}

/// One eBPF instruction (linux/bpf.h).
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

const fn instruction(code: u8, dst: u8, src: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction { code, registers: (src << 4) | dst, offset, immediate }
}

const LDX_W: u8 = 0x61;
const AND32_K: u8 = 0x54;
const RSH32_K: u8 = 0x74;
const MOV32_X: u8 = 0xbc;
const MOV64_K: u8 = 0xb7;
const JNE_K: u8 = 0x55;
const JNE_X: u8 = 0x5d;
const EXIT: u8 = 0x95;

/// The kernel's numbers of struct bpf_cgroup_dev_ctx: type 1 is block, 2 character; access 1 mknod, 2 read, 4 write.
fn program(list: &[Allowed]) -> Vec<Instruction> {
    let mut code = vec![
        instruction(LDX_W, 2, 1, 0, 0), // r2 = access << 16 | type
        instruction(MOV32_X, 3, 2, 0, 0),
        instruction(AND32_K, 2, 0, 0, 0xffff), // r2 = type
        instruction(RSH32_K, 3, 0, 0, 16),     // r3 = access
        instruction(LDX_W, 4, 1, 4, 0),        // r4 = major
        instruction(LDX_W, 5, 1, 8, 0),        // r5 = minor
    ];
    for (block, major, minor, access) in list {
        let mask = access.bytes().fold(0, |mask, letter| {
            mask | match letter {
                b'm' => 1,
                b'r' => 2,
                b'w' => 4,
                _ => 0,
            }
        });
        let mut tests = vec![(JNE_K, 2u8, if *block { 1 } else { 2 })];
        if let Some(major) = major {
            tests.push((JNE_K, 4, i32::try_from(*major).unwrap_or(i32::MAX)));
        }
        if let Some(minor) = minor {
            tests.push((JNE_K, 5, i32::try_from(*minor).unwrap_or(i32::MAX)));
        }
        // Tests, then three instructions for the access, then two that allow.
        let total = tests.len() + 5;
        let mut body = Vec::with_capacity(total);
        for (index, (code, register, value)) in tests.iter().enumerate() {
            let skip = i16::try_from(total - index - 1).unwrap_or(i16::MAX);
            body.push(instruction(*code, *register, 0, skip, *value));
        }
        body.push(instruction(MOV32_X, 1, 3, 0, 0));
        body.push(instruction(AND32_K, 1, 0, 0, mask));
        body.push(instruction(JNE_X, 1, 3, 2, 0)); // something is asked for that isn't in the mask
        body.push(instruction(MOV64_K, 0, 0, 0, 1));
        body.push(instruction(EXIT, 0, 0, 0, 0));
        code.extend(body);
    }
    code.push(instruction(MOV64_K, 0, 0, 0, 0));
    code.push(instruction(EXIT, 0, 0, 0, 0));
    code
}

fn v2(directory: &Path, list: &[Allowed]) -> io::Result<()> {
    const BPF_PROG_LOAD: i32 = 5;
    const BPF_PROG_ATTACH: i32 = 8;
    const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
    const BPF_CGROUP_DEVICE: u32 = 6;
    const BPF_F_ALLOW_MULTI: u32 = 2;

    #[repr(C)]
    #[derive(Default)]
    struct Load {
        kind: u32,
        count: u32,
        instructions: u64,
        license: u64,
        log_level: u32,
        log_size: u32,
        log: u64,
        kernel_version: u32,
        flags: u32,
    }
    #[repr(C)]
    #[derive(Default)]
    struct Attach {
        target: u32,
        program: u32,
        kind: u32,
        flags: u32,
        replace: u32,
    }

    let code = program(list);
    let license = c"Apache-2.0";
    let load = Load {
        kind: BPF_PROG_TYPE_CGROUP_DEVICE,
        count: u32::try_from(code.len()).unwrap_or(u32::MAX),
        instructions: code.as_ptr() as u64,
        license: license.as_ptr() as u64,
        ..Load::default()
    };
    // SAFETY: the structure has the kernel's layout up to `flags` and the size that is passed; the pointers in it are to
    // memory that outlives the call.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const load, size_of::<Load>()) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the system call has just returned this descriptor to us alone. The kernel keeps the program while the cgroup
    // is there.
    let program: std::os::fd::OwnedFd =
        unsafe { std::os::fd::FromRawFd::from_raw_fd(i32::try_from(fd).map_err(io::Error::other)?) };
    let target = File::open(directory)?;
    let attach = Attach {
        target: target.as_raw_fd().unsigned_abs(),
        program: program.as_raw_fd().unsigned_abs(),
        kind: BPF_CGROUP_DEVICE,
        flags: BPF_F_ALLOW_MULTI,
        replace: 0,
    };
    // SAFETY: as above.
    if unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_ATTACH, &raw const attach, size_of::<Attach>()) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Needs root and the unified hierarchy (also in the hybrid layout).
    #[test]
    fn the_kernel_takes_the_program_and_refuses_what_is_not_in_it() {
        let layout = crate::cgroup::Layout::detect().expect("cgroups");
        let Some(unified) = layout.unified() else { return };
        let directory = unified.root.join(format!("carob-devices-{}", std::process::id()));
        std::fs::create_dir(&directory).expect("cgroup");
        let allowed = vec![(false, Some(1), Some(3), "rwm".to_owned()), (false, None, None, "m".to_owned())];
        let attached = v2(&directory, &allowed);
        let script = format!(
            "echo $$ > {}/cgroup.procs; echo x > /dev/null && echo null; head -c 1 /dev/zero || echo refused",
            directory.display()
        );
        let output = std::process::Command::new("sh").args(["-c", &script]).output().expect("sh");
        std::fs::remove_dir(&directory).expect("removed");
        attached.expect("attached");
        assert_eq!(String::from_utf8_lossy(&output.stdout), "null\nrefused\n");
    }

    #[test]
    fn every_jump_of_the_program_lands_behind_its_rule() {
        let list = vec![(false, Some(1), Some(3), "rwm".to_owned()), (true, None, None, "m".to_owned())];
        let code = program(&list);
        assert_eq!(code.len(), 6 + (3 + 5) + (1 + 5) + 2);
        // The first test of the first rule jumps to the first test of the second.
        assert_eq!(6 + 1 + usize::try_from(code[6].offset).expect("forward"), 14);
        // The only test of the second rule jumps to the refusal.
        assert_eq!(14 + 1 + usize::try_from(code[14].offset).expect("forward"), 20);
        assert_eq!(code[20], instruction(MOV64_K, 0, 0, 0, 0));
    }
}
