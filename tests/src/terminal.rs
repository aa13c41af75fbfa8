//! Programs that run for longer than one answer: beside the test, and on a terminal.

use std::fs::File;
use std::io::{Read, Write};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use nix::pty::{Winsize, openpty};

use crate::eventually;

/// A program that runs beside the test; killed when the test is done with it.
pub struct Running {
    child: Child,
    stdin: Option<File>,
    seen: Arc<Mutex<String>>,
}

impl Running {
    /// Starts a program whose output (and errors) are collected.
    pub fn start(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let seen = Arc::default();
        collect(child.stdout.take().expect("a pipe"), &seen);
        collect(child.stderr.take().expect("a pipe"), &seen);
        Self { child, stdin: None, seen }
    }

    /// Starts a program on a terminal of its own of this size.
    pub fn on_terminal(command: &Command, rows: u16, columns: u16) -> Self {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = openpty(Some(&size), None).expect("a terminal");
        // setsid makes the terminal the controlling one, so that the program learns of a new size.
        let mut all = Command::new("setsid");
        all.args(["--ctty", "--wait"]).arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            if let Some(value) = value {
                all.env(name, value);
            }
        }
        let end = || pty.slave.try_clone().expect("a descriptor");
        let child = all.stdin(end()).stdout(end()).stderr(end()).spawn().expect("setsid (package util-linux)");
        drop(pty.slave);
        drop(all);
        let terminal = File::from(pty.master);
        let seen = Arc::default();
        collect(terminal.try_clone().expect("a descriptor"), &seen);
        Self { child, stdin: Some(terminal), seen }
    }

    /// What it printed so far.
    pub fn output(&self) -> String {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until it has printed this.
    pub fn expect(&self, text: &str) {
        let mut seen = String::new();
        let found = crate::holds_within(crate::PATIENCE, || {
            seen = self.output();
            seen.contains(text)
        });
        assert!(found, "{text:?} was never printed, but:\n{seen}");
    }

    /// Types on its terminal.
    pub fn send(&mut self, text: &str) {
        let terminal = self.stdin.as_mut().expect("it was started on a terminal");
        terminal.write_all(text.as_bytes()).expect("the terminal takes it");
    }

    /// Changes its terminal's size.
    pub fn resize(&self, rows: u16, columns: u16) {
        let terminal = self.stdin.as_ref().expect("it was started on a terminal");
        let size = rustix::termios::Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(terminal, size).expect("a new size");
    }

    /// Waits for its end; how it ended.
    pub fn end(&mut self) -> ExitStatus {
        let mut status = None;
        eventually("the program ends", || {
            status = self.child.try_wait().expect("its state can be read");
            status.is_some()
        });
        status.expect("it has ended")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn collect(mut from: impl Read + Send + 'static, into: &Arc<Mutex<String>>) {
    let into = Arc::clone(into);
    // Ends with the pipe, or with the terminal's other end (EIO).
    std::thread::spawn(move || {
        let mut block = [0; 4096];
        while let Ok(count @ 1..) = from.read(&mut block) {
            into.lock().unwrap_or_else(PoisonError::into_inner).push_str(&String::from_utf8_lossy(&block[..count]));
        }
    });
}
