//! The init of a pod's shared PID namespace: a program of a few bytes that waits for ever, alone in a root of its own.
//! What the pod's containers find at `/proc/1` is `/pause`, and nothing of the spawner or the host.

use crate::cgroup::Cgroup;
use crate::config::UserRange;
use crate::kernel::mount;
use crate::kernel::process::{self, Fork};
use crate::protocol::Failure;
use nix::fcntl::OFlag;
use nix::mount::{MntFlags, MsFlags};
use nix::unistd::{Gid, Uid};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Who it runs as: nobody else's user, as Kubernetes' pause image has it.
const USER: u32 = 65535;
/// The kubelet's for pause processes.
const OOM_SCORE: &str = "-998";

/// `for (;;) pause();` as machine code, and the machine's number in ELF headers.
#[cfg(target_arch = "x86_64")]
const CODE: (u16, &[u8]) = (62, &[0xb8, 34, 0, 0, 0, 0x0f, 0x05, 0xeb, 0xf7]);
/// The same with ppoll(NULL, 0, NULL, NULL): there is no pause here.
#[cfg(target_arch = "aarch64")]
const CODE: (u16, &[u8]) = (
    183,
    &[
        0x00, 0x00, 0x80, 0xd2, 0x01, 0x00, 0x80, 0xd2, 0x02, 0x00, 0x80, 0xd2, 0x03, 0x00, 0x80, 0xd2, 0x28, 0x09,
        0x80, 0xd2, 0x01, 0x00, 0x00, 0xd4, 0xfa, 0xff, 0xff, 0x17,
    ],
);

/// A static ELF executable (System V ABI, chapter 4) of one segment.
fn program() -> Vec<u8> {
    const HEADERS: u64 = 64 + 56;
    const BASE: u64 = 0x40_0000;
    let (machine, code) = CODE;
    let size = HEADERS + u64::try_from(code.len()).unwrap_or(0);
    let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    // Executable, machine, version; entry, program headers, no sections, no flags; sizes and counts.
    elf.extend(2u16.to_le_bytes());
    elf.extend(machine.to_le_bytes());
    elf.extend(1u32.to_le_bytes());
    for word in [BASE + HEADERS, 64, 0] {
        elf.extend(word.to_le_bytes());
    }
    elf.extend(0u32.to_le_bytes());
    for half in [64u16, 56, 1, 0, 0, 0] {
        elf.extend(half.to_le_bytes());
    }
    // Loaded, readable and executable: offset, addresses, sizes, alignment.
    elf.extend(1u32.to_le_bytes());
    elf.extend(5u32.to_le_bytes());
    for word in [0, BASE, BASE, size, size, 0x1000] {
        elf.extend(word.to_le_bytes());
    }
    elf.extend(code);
    elf
}

/// Starts it in a new PID namespace, in the pod's other `namespaces`. `place` is a directory that its root may cover in its
/// own mount namespace. Gives the PID namespace and its process id; it dies with the spawner.
#[expect(unsafe_code, reason = "forks")]
pub fn start(
    cgroup: &Cgroup<'_>,
    namespaces: &[BorrowedFd<'_>],
    users: Option<UserRange>,
    place: &Path,
) -> Result<(OwnedFd, i32), Failure> {
    let wrap = |error: io::Error| Failure::sandbox("pid namespace", error);
    let own = cgroup.child("init");
    own.create(false).map_err(|error| Failure::sandbox("cgroup", error))?;
    let (report, report_writer) = nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(|errno| wrap(errno.into()))?;
    let flags = u64::try_from(libc::CLONE_NEWPID | libc::CLONE_NEWNS).unwrap_or(0);
    // SAFETY: the spawner has one thread.
    match unsafe { process::clone3(flags, None) }.map_err(wrap)? {
        Fork::Child => {
            let entered = own.enter().map_err(io::Error::other);
            let error = entered.and_then(|()| become_pause(namespaces, users, place, report_writer.as_fd())).err();
            let text = error.map(|error| error.to_string()).unwrap_or_default();
            let _ = nix::unistd::write(&report_writer, text.as_bytes());
            process::exit_now(1);
        }
        Fork::Parent(pid) => {
            drop(report_writer);
            let mut text = String::new();
            // Its end closes with the execve that succeeds.
            File::from(report).read_to_string(&mut text).map_err(wrap)?;
            if !text.is_empty() {
                return Err(Failure::sandbox("pid namespace", text));
            }
            let namespace = File::open(format!("/proc/{pid}/ns/pid")).map_err(wrap)?;
            Ok((namespace.into(), pid))
        }
    }
}

/// Everything between the fork and the program; returns only an error.
#[expect(unsafe_code, reason = "gives up inherited descriptors")]
fn become_pause(
    namespaces: &[BorrowedFd<'_>],
    users: Option<UserRange>,
    place: &Path,
    report: BorrowedFd<'_>,
) -> io::Result<()> {
    for namespace in namespaces {
        process::setns(*namespace, 0)?;
    }
    // Without CAP_SYS_RESOURCE it stays the spawner's, which is lower.
    let _ = fs::write("/proc/self/oom_score_adj", OOM_SCORE);
    nix::unistd::setsid()?;
    enter_root(place)?;
    process::reset_signals();
    process::ignore_children()?;
    nix::unistd::setgroups(&[])?;
    let user = users.and_then(|users| users.host(USER)).unwrap_or(USER);
    let (gid, uid) = (Gid::from_raw(user), Uid::from_raw(user));
    nix::unistd::setresgid(gid, gid, gid)?;
    nix::unistd::setresuid(uid, uid, uid)?;
    process::prctl(libc::PR_SET_NO_NEW_PRIVS, 1)?;
    // Changing users clears it.
    process::die_with_parent()?;
    // SAFETY: of what was inherited only `report` is used any more, and no destructor runs after a fork's end.
    unsafe { process::close_all_but(&[report.as_raw_fd()]) };
    for standard in 0..3 {
        // SAFETY: as above; std uses the standard descriptors by number only.
        unsafe { libc::close(standard) };
    }
    let Err(errno) = nix::unistd::execve(c"/pause", &[c"/pause"], &[] as &[&std::ffi::CStr]);
    Err(errno.into())
}

/// A root that holds the program and nothing else. Nobody can read the program: so the kernel lets no other process of
/// this user look into the one that executes it.
fn enter_root(place: &Path) -> io::Result<()> {
    let flags = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    nix::mount::mount(None::<&str>, "/", None::<&str>, flags, None::<&str>)?;
    let root = mount::tmpfs(Some(16 * 1024), "555", mount::ATTR_NOSUID | mount::ATTR_NODEV)?;
    mount::attach(root.as_fd(), place)?;
    nix::unistd::chdir(place)?;
    File::options().write(true).create_new(true).mode(0o111).open("pause")?.write_all(&program())?;
    mount::set_attributes(root.as_fd(), mount::ATTR_RDONLY, 0, false)?;
    nix::unistd::pivot_root(".", ".")?;
    nix::mount::umount2(".", MntFlags::MNT_DETACH)?;
    nix::unistd::chdir("/")?;
    Ok(())
}
