//! The last steps before someone else's program runs: environment, filter, capabilities, execve. The same for a
//! container's init (inside libcontainer's executor) and for an exec'd process.
#![allow(unsafe_code)]

use crate::capabilities::{self, CapabilitySet};
use crate::kernel::process;
use crate::seccomp::Filters;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::ffi::CString;
use std::io;

/// What a container gets when neither it nor its image names a path.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A program about to be executed.
#[derive(Debug, Clone)]
pub struct Program {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// `NAME=value`, each name once.
    pub env: Vec<String>,
    /// What it may have at most.
    pub capabilities: CapabilitySet,
    /// Whether it may gain more through set-user-id files.
    pub no_new_privs: bool,
    /// What it may call.
    pub filters: Filters,
}

/// Why a program could not be executed; small enough to go through a pipe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecFailure {
    /// One line, as container runtimes put it.
    pub message: String,
    /// 127 when there is no such program, 126 when it cannot be executed.
    pub exit_code: i32,
}

impl ExecFailure {
    /// A failure before the program itself was tried.
    pub fn setup(what: &str, error: impl std::fmt::Display) -> Self {
        Self { message: format!("{what}: {error}"), exit_code: 128 }
    }
}

/// `NAME=value` from pairs: the last of a name wins, in the place of the first.
pub fn environment(pairs: &[(String, String)]) -> Vec<String> {
    let mut list: Vec<String> = Vec::with_capacity(pairs.len() + 1);
    let mut places: HashMap<&str, usize> = HashMap::with_capacity(pairs.len());
    for (name, value) in pairs {
        let entry = format!("{name}={value}");
        if let Some(place) = places.get(name.as_str()) {
            list[*place] = entry;
        } else {
            places.insert(name, list.len());
            list.push(entry);
        }
    }
    if !places.contains_key("PATH") {
        list.push(format!("PATH={DEFAULT_PATH}"));
    }
    list
}

impl Program {
    /// Sheds what the program must not have and executes it. Returns only to say why it could not. The caller has already
    /// changed user; all capabilities it may keep are still permitted.
    pub fn execute(&self) -> ExecFailure {
        process::reset_signals();
        if let Err(error) = self.restrict() {
            return ExecFailure::setup("restrict the process", error);
        }
        let Ok(argv) = strings(&self.argv) else {
            return ExecFailure::setup("argument", "contains a zero byte");
        };
        let Ok(env) = strings(&self.env) else {
            return ExecFailure::setup("environment", "contains a zero byte");
        };
        let Some(name) = self.argv.first() else {
            return ExecFailure::setup("command", "is empty");
        };
        if name.contains('/') {
            let error = execve(&argv[0], &argv, &env);
            return failure(name, &error);
        }
        let path = self.env.iter().find_map(|entry| entry.strip_prefix("PATH=")).unwrap_or(DEFAULT_PATH);
        let mut denied = None;
        for directory in path.split(':') {
            // An empty entry would be the working directory, which no container means.
            if directory.is_empty() {
                continue;
            }
            let Ok(candidate) = CString::new(format!("{directory}/{name}")) else { continue };
            let error = execve(&candidate, &argv, &env);
            match error.raw_os_error() {
                Some(libc::ENOENT | libc::ENOTDIR) => {}
                Some(libc::EACCES) => denied = Some(error),
                _ => return failure(name, &error),
            }
        }
        match denied {
            Some(error) => failure(name, &error),
            None => {
                ExecFailure { message: format!("exec: {name:?}: executable file not found in $PATH"), exit_code: 127 }
            }
        }
    }

    /// Without no_new_privs the filter can only be loaded while CAP_SYS_ADMIN is there, so it comes before the last
    /// capabilities go (a filter then has to allow capset, as with every runtime); otherwise it comes last.
    fn restrict(&self) -> io::Result<()> {
        capabilities::drop_bounding(self.capabilities)?;
        if self.no_new_privs {
            capabilities::set(self.capabilities)?;
            process::prctl(libc::PR_SET_NO_NEW_PRIVS, 1)?;
            self.filters.load()
        } else {
            self.filters.load()?;
            capabilities::set(self.capabilities)
        }
    }
}

fn failure(name: &str, error: &io::Error) -> ExecFailure {
    let (text, exit_code) = match error.raw_os_error() {
        Some(libc::ENOENT) => (format!("stat {name}: no such file or directory"), 127),
        Some(libc::ENOTDIR) => (format!("stat {name}: not a directory"), 127),
        Some(libc::EACCES) => ("permission denied".to_owned(), 126),
        Some(libc::ENOEXEC) => ("exec format error".to_owned(), 126),
        Some(libc::E2BIG) => ("argument list too long".to_owned(), 126),
        _ => (error.to_string(), 126),
    };
    ExecFailure { message: format!("exec: {name:?}: {text}"), exit_code }
}

fn strings(list: &[String]) -> Result<Vec<CString>, std::ffi::NulError> {
    list.iter().map(|text| CString::new(text.as_bytes())).collect()
}

fn execve(path: &CString, argv: &[CString], env: &[CString]) -> io::Error {
    let pointers = |list: &[CString]| {
        let mut pointers: Vec<*const libc::c_char> = list.iter().map(|text| text.as_ptr()).collect();
        pointers.push(std::ptr::null());
        pointers
    };
    let (argv, env) = (pointers(argv), pointers(env));
    // SAFETY: terminated strings in null-terminated lists, all of which outlive the call.
    unsafe { libc::execve(path.as_ptr(), argv.as_ptr(), env.as_ptr()) };
    io::Error::last_os_error()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_value_of_a_name_wins_in_the_place_of_the_first() {
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(environment(&[pair("A", "1"), pair("PATH", "/x"), pair("A", "2=3")]), ["A=2=3", "PATH=/x"]);
        assert_eq!(environment(&[]), [format!("PATH={DEFAULT_PATH}")]);
    }
}
