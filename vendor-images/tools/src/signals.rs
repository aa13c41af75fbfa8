//! Ending on request as pid 1, and a log of signals.

use std::io::{self, Write};
use std::str::FromStr;
use std::thread;
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};

/// Ends the process on SIGTERM and SIGINT with `code`, or with 128 plus the signal. To be called before any thread is
/// started, since threads inherit the signal mask.
pub fn end_on_request(code: Option<i32>) -> io::Result<()> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    signals.thread_block()?;
    thread::spawn(move || {
        if let Ok(signal) = signals.wait() {
            std::process::exit(code.unwrap_or(128 + signal as i32));
        }
    });
    Ok(())
}

/// Prints `ready`, then the name of each signal that arrives, until that of `exit_on`.
pub fn log(exit_on: &str, linger: Duration) -> io::Result<()> {
    let exit_on = match exit_on {
        "none" => None,
        name if name.starts_with("SIG") => Some(Signal::from_str(name)?),
        name => Some(Signal::from_str(&format!("SIG{name}"))?),
    };
    let mut all = SigSet::all();
    // A fault of the program itself must still end it.
    for fault in [Signal::SIGSEGV, Signal::SIGBUS, Signal::SIGILL, Signal::SIGFPE] {
        all.remove(fault);
    }
    all.thread_block()?;
    let mut out = io::stdout().lock();
    writeln!(out, "ready")?;
    out.flush()?;
    loop {
        let signal = all.wait()?;
        writeln!(out, "{signal}")?;
        out.flush()?;
        if Some(signal) == exit_on {
            thread::sleep(linger);
            return Ok(());
        }
    }
}
