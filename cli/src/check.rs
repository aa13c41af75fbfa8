//! `carob check`: what this machine has and lacks.

use std::process::ExitCode;

use carob_sandbox::CheckState;
use comfy_table::{ContentArrangement, Table, presets};

/// What is told.
#[derive(clap::Args)]
pub struct Options {
    /// Tell instead what holds a container that asks for nothing: namespaces, capabilities, system calls, mounts, paths,
    /// devices, cgroup
    #[arg(long)]
    pod: bool,
}

/// Prints one line per need; fails when pods could not run here.
pub fn run(options: &Options) -> ExitCode {
    if options.pod {
        print!("{}", carob_sandbox::profile());
        return ExitCode::SUCCESS;
    }
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(["ITEM", "STATE", "FOUND", "COST"]);
    let mut missing = 0;
    for item in carob_sandbox::check() {
        let state = match item.state {
            CheckState::Ok => "ok",
            CheckState::Degraded => "degraded",
            CheckState::Missing => "missing",
        };
        missing += usize::from(item.state == CheckState::Missing);
        table.add_row([item.name, state, &item.detail, &item.cost]);
    }
    for (name, outcome) in carob_network::check() {
        match outcome {
            Ok(()) => table.add_row([name, "ok", "", ""]),
            Err(error) => {
                missing += 1;
                table.add_row([name, "missing", &chain(&error), "pods have no network"])
            }
        };
    }
    println!("{table}");
    if missing > 0 {
        println!("\n{missing} missing: pods can't run here");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
