//! `carob`: the command that wires the crates together.

mod agent;
mod annex;
mod bill;
mod check;
mod config;
mod data_dir;
mod down;
mod image;
mod machine;
mod memory;
mod metrics;
mod nodes;
mod ranges;
mod remote;
mod rest;
mod site;
mod tasks;
mod up;
mod wiring;

use std::fmt;
use std::io::{IsTerminal as _, Write as _};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;

/// Serverless Kubernetes in one binary.
#[derive(Parser)]
#[command(name = "carob", version, about, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the gateway, the controllers, a worker and billing, until SIGTERM; pods go on running after that.
    Up(up::Options),
    /// Run a worker of a gateway on another machine, until SIGTERM; pods go on running after that.
    Worker(remote::worker::Options),
    /// Let workers join: make their tokens.
    Token(remote::token::Options),
    /// Stop the pods of a data directory and remove all that Carob made on this machine for them.
    Down(down::Options),
    /// Say what this machine lacks, item by item, and what that costs.
    Check(check::Options),
    /// Show what pods used and what it costs, as a running gateway has it in its ledger.
    Bill(bill::Options),
    /// Manage the images of a data directory, beside a running gateway or without one.
    Image(image::Options),
}

/// Where Carob keeps its state.
#[derive(clap::Args, Clone)]
struct DataDirOption {
    /// Directory of all state: objects, ledger, images, pods.
    #[arg(long, global = true, env = "CAROB_DATA_DIR", default_value = "/var/lib/carob", value_name = "DIR")]
    data_dir: PathBuf,
}

fn main() -> ExitCode {
    // The spawner must be alone in its process: it runs before anything starts a thread.
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_some_and(|first| first == "spawner") {
        return carob_sandbox::spawner_main(arguments);
    }
    match run(Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            complain(format_args!("{error:#}"));
            if is_of_the_spawner(&error) {
                complain(format_args!("cannot start again: {}", start_again()));
            }
            ExitCode::FAILURE
        }
    }
}

/// Prints a line, if it can be printed: `println!` panics where a pipe was closed or a disk is full, and what comes next
/// matters more.
fn say(text: fmt::Arguments<'_>) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

/// The same for what went wrong.
fn complain(text: fmt::Arguments<'_>) {
    let _ = writeln!(std::io::stderr(), "carob: {text}");
}

fn is_of_the_spawner(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(carob_worker::Error::Spawner))
}

/// Becomes this program anew, with the arguments that it was started with: it finds what there is of pods and goes on from
/// there, as after any other end. Comes back only with what keeps it from that.
fn start_again() -> std::io::Error {
    let mut arguments = std::env::args_os();
    let mut command = std::process::Command::new(own_program());
    if let Some(name) = arguments.next() {
        command.arg0(name);
    }
    command.args(arguments).exec()
}

/// This program's file, or where it was replaced or removed meanwhile, what this process was made of.
fn own_program() -> PathBuf {
    let own = std::env::current_exe().ok().filter(|path| path.exists());
    own.unwrap_or_else(|| "/proc/self/exe".into())
}

fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    // Whatever speaks TLS in this process does it with the same library.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let outcome = carry_out(cli.command).await;
        // Whatever ended the spawner may do so again: what follows is not without a pause.
        if outcome.as_ref().is_err_and(is_of_the_spawner) {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        outcome
    })
}

async fn carry_out(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Up(options) => {
            log_to_stderr("info");
            up::run(options).await.map(|()| ExitCode::SUCCESS)
        }
        Command::Down(options) => {
            log_to_stderr("warn");
            down::run(options).await.map(|()| ExitCode::SUCCESS)
        }
        Command::Worker(options) => {
            log_to_stderr("info");
            Box::pin(remote::worker::run(options)).await.map(|()| ExitCode::SUCCESS)
        }
        Command::Token(options) => {
            log_to_stderr("warn");
            remote::token::run(options).await.map(|()| ExitCode::SUCCESS)
        }
        Command::Bill(options) => {
            log_to_stderr("warn");
            bill::run(options).await.map(|()| ExitCode::SUCCESS)
        }
        Command::Check(options) => Ok(check::run(&options)),
        Command::Image(options) => {
            log_to_stderr("warn");
            image::run(options).await.map(|()| ExitCode::SUCCESS)
        }
    }
}

/// `CAROB_LOG` takes tracing's filters, for example `debug` or `carob_worker=debug`.
fn log_to_stderr(default: &str) {
    let filter = EnvFilter::try_from_env("CAROB_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    // A line that can't be written is lost: to say so on the same standard error is a panic.
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // Colours are for people, who read terminals.
    let lines = lines.with_ansi(std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none());
    lines.log_internal_errors(false).init();
}
