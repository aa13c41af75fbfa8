//! Lines for log tests, and what a process can see of its own sandbox.

use std::fs;
use std::io::{self, Write};
use std::thread;
use std::time::Duration;

/// What [`print`] writes.
pub struct Form {
    pub text: String,
    pub lines: Option<u64>,
    pub interval: Duration,
    pub width: u64,
    pub no_newline: bool,
}

pub fn print(mut out: impl Write, form: &Form) -> io::Result<()> {
    let width = usize::try_from(form.width).map_err(io::Error::other)?;
    let mut number = 0;
    while form.lines.is_none_or(|lines| number < lines) {
        number += 1;
        let mut line = format!("{} {number}", form.text);
        if line.len() < width {
            line.push(' ');
            line.extend(std::iter::repeat_n('x', width - line.len()));
        }
        if !(form.no_newline && Some(number) == form.lines) {
            line.push('\n');
        }
        out.write_all(line.as_bytes())?;
        if !form.interval.is_zero() {
            out.flush()?;
            thread::sleep(form.interval);
        }
    }
    out.flush()
}

pub fn whoami() -> io::Result<()> {
    for line in fs::read_to_string("/proc/self/status")?.lines() {
        let name = line.split(':').next().unwrap_or_default();
        if ["Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp"]
            .contains(&name)
        {
            println!("{line}");
        }
    }
    println!("Cwd:\t{}", std::env::current_dir()?.display());
    println!("Cgroup:\t{}", fs::read_to_string("/proc/self/cgroup")?.trim().replace('\n', " "));
    for (name, value) in std::env::vars_os() {
        println!("Env:\t{}={}", name.display(), value.display());
    }
    for line in fs::read_to_string("/proc/self/mountinfo")?.lines() {
        println!("Mount:\t{line}");
    }
    Ok(())
}
