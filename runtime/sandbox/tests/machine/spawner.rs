//! What `carob spawner` is in the real binary: the tests start this one.

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    match args.next() {
        Some(command) if command == "spawner" => carob_sandbox::spawner_main(args),
        _ => ExitCode::FAILURE,
    }
}
