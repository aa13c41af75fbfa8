//! The spawner runs from a read-only mount of its own executable: a process in a container that gets hold of
//! `/proc/PID/exe` while one of our forks becomes a program (CVE-2019-5736) can open it for reading only.
#![allow(unsafe_code)]

use crate::kernel::mount;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

const DONE: &str = "CAROB_SPAWNER_SEALED";

/// Executes this program again from a read-only mount, once. Returns when that is done already.
pub fn seal() -> io::Result<()> {
    if std::env::var_os(DONE).is_some() {
        return Ok(());
    }
    // The mount belongs to a namespace of our own from the start, and is detached: no path leads to it.
    let exe = std::fs::read_link("/proc/self/exe")?;
    let tree = mount::clone_tree(None, Path::new("/proc/self/exe"), false)
        .or_else(|_| mount::clone_tree(None, &exe, false))?;
    mount::set_attributes(tree.as_fd(), mount::ATTR_RDONLY | mount::ATTR_NOSUID | mount::ATTR_NODEV, 0, false)?;
    let argv: Vec<CString> =
        std::env::args_os().map(|argument| CString::new(argument.into_vec())).collect::<Result<_, _>>()?;
    let mut env: Vec<CString> = Vec::new();
    for (name, value) in std::env::vars_os() {
        let mut entry = name.into_vec();
        entry.push(b'=');
        entry.extend(value.as_bytes());
        env.push(CString::new(entry)?);
    }
    env.push(CString::new(format!("{DONE}=1"))?);
    let pointers = |list: &[CString]| {
        let mut pointers: Vec<*const libc::c_char> = list.iter().map(|text| text.as_ptr()).collect();
        pointers.push(std::ptr::null());
        pointers
    };
    let (argv, env) = (pointers(&argv), pointers(&env));
    // SAFETY: terminated strings in null-terminated lists, all of which outlive the call.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            tree.as_raw_fd(),
            c"".as_ptr(),
            argv.as_ptr(),
            env.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    Err(io::Error::last_os_error())
}
