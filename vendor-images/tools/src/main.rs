//! Small programs that the tests run inside pods: each subcommand does one observable thing.
//!
//! As pid 1 of a container a program has no default signal handlers, so every subcommand but `signal-log` ends on
//! SIGTERM and SIGINT by its own hand, with code 0 for the servers and 128 plus the signal for the rest.

// To wait is what several of these programs are for, and none has an event loop.
#![allow(clippy::disallowed_methods)]

mod burn;
mod echo;
mod http;
mod lookup;
mod output;
mod signals;
mod units;

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};

use units::{parse_bytes, parse_duration};

#[derive(Parser)]
#[command(name = "carob-tools", version, about = "Small programs that the tests run inside pods")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Answers every request with the hostname and what was asked; see `/healthz`, `/env`, `/exit?code=N`,
    /// `?status=503`, `?delay=200ms`, `?bytes=1Mi`.
    HttpServer {
        #[arg(long, default_value = "8080", env = "PORT")]
        port: u16,
        /// `/healthz` answers 503 before this much time has passed.
        #[arg(long, default_value = "0s", value_parser = parse_duration)]
        ready_after: Duration,
        /// `/healthz` answers 503 once this much time has passed.
        #[arg(long, value_parser = parse_duration)]
        unhealthy_after: Option<Duration>,
    },
    /// Sends back what it receives, on TCP and UDP.
    Echo {
        #[arg(long, default_value = "7")]
        port: u16,
    },
    /// Prints the addresses of NAME, one a line, as /etc/hosts and the servers of /etc/resolv.conf give them.
    Lookup { name: String },
    /// Fetches http://HOST:PORT/PATH and prints the body; fails for a status that isn't 2xx.
    Get {
        url: String,
        #[arg(long, default_value = "5s", value_parser = parse_duration)]
        timeout: Duration,
    },
    /// Uses processor time, then prints its own rusage as JSON.
    BurnCpu {
        /// Ends after this much wall time.
        #[arg(long, default_value = "1s", value_parser = parse_duration)]
        seconds: Duration,
        /// Ends when the process has used this much processor time, if that is earlier.
        #[arg(long, value_parser = parse_duration)]
        cpu_seconds: Option<Duration>,
        #[arg(long, default_value = "1")]
        cores: usize,
    },
    /// Allocates and touches memory, holds it, then prints its own rusage as JSON.
    BurnMemory {
        #[arg(long, value_parser = parse_bytes)]
        bytes: u64,
        #[arg(long, default_value = "1s", value_parser = parse_duration)]
        hold: Duration,
    },
    /// Writes a file of a size, in blocks of 1 MiB, and syncs it.
    DiskWrite {
        #[arg(long, value_parser = parse_bytes)]
        bytes: u64,
        #[arg(long)]
        path: PathBuf,
    },
    /// Prints each signal it gets; ends with code 0 on that of --exit-on.
    SignalLog {
        /// As TERM or SIGTERM; `none` to go on until killed.
        #[arg(long, default_value = "TERM")]
        exit_on: String,
        /// Goes on this long after the signal to exit on.
        #[arg(long, default_value = "0s", value_parser = parse_duration)]
        linger: Duration,
    },
    /// Waits.
    Sleep {
        #[arg(value_parser = parse_duration)]
        time: Duration,
    },
    /// Ends with CODE.
    Exit {
        code: u8,
        #[arg(long, default_value = "0s", value_parser = parse_duration)]
        after: Duration,
    },
    /// Prints numbered lines.
    Print {
        #[arg(default_value = "line")]
        text: String,
        /// Without it, prints for ever.
        #[arg(long)]
        lines: Option<u64>,
        #[arg(long, default_value = "0s", value_parser = parse_duration)]
        interval: Duration,
        /// Fills each line up to this many bytes.
        #[arg(long, default_value = "0", value_parser = parse_bytes)]
        width: u64,
        /// Prints on stderr.
        #[arg(long)]
        stderr: bool,
        /// Leaves out the last line's end.
        #[arg(long)]
        no_newline: bool,
    },
    /// Prints its user, groups, capabilities, environment, directory and mounts as the kernel shows them.
    Whoami,
}

fn main() -> ExitCode {
    let command = Arguments::parse().command;
    match run(command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("carob-tools: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> io::Result<ExitCode> {
    match &command {
        Command::SignalLog { .. } => {}
        Command::HttpServer { .. } | Command::Echo { .. } => signals::end_on_request(Some(0))?,
        _ => signals::end_on_request(None)?,
    }
    match command {
        Command::HttpServer { port, ready_after, unhealthy_after } => {
            http::serve(port, &http::Health { ready_after, unhealthy_after })?;
        }
        Command::Echo { port } => echo::serve(port)?,
        Command::Lookup { name } => {
            for address in lookup::lookup(&name)? {
                println!("{address}");
            }
        }
        Command::Get { url, timeout } => http::get(&url, timeout)?,
        Command::BurnCpu { seconds, cpu_seconds, cores } => burn::cpu(seconds, cpu_seconds, cores)?,
        Command::BurnMemory { bytes, hold } => burn::memory(bytes, hold)?,
        Command::DiskWrite { bytes, path } => burn::disk(bytes, &path)?,
        Command::SignalLog { exit_on, linger } => signals::log(&exit_on, linger)?,
        Command::Sleep { time } => std::thread::sleep(time),
        Command::Exit { code, after } => {
            std::thread::sleep(after);
            return Ok(ExitCode::from(code));
        }
        Command::Print { text, lines, interval, width, stderr, no_newline } => {
            let form = output::Form { text, lines, interval, width, no_newline };
            if stderr { output::print(io::stderr().lock(), &form)? } else { output::print(io::stdout().lock(), &form)? }
        }
        Command::Whoami => output::whoami()?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Opens a port on all addresses, those of IPv6 too where the kernel has it.
fn everywhere<T>(port: u16, open: impl Fn(SocketAddr) -> io::Result<T>) -> io::Result<T> {
    open((Ipv6Addr::UNSPECIFIED, port).into()).or_else(|_| open((Ipv4Addr::UNSPECIFIED, port).into()))
}
