//! Every fuzz target for a moment: its seeds, then changes of them, the same ones at every run.
//!
//! `CAROB_FUZZ_SECONDS` makes the moment longer, `CAROB_FUZZ_SEED` makes it another one.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::time::Duration;

use carob_fuzz_bodies::mutate::{Dice, input};
use carob_fuzz_bodies::{TARGETS, Target};
use nix::time::{ClockId, clock_gettime};

/// CPU time for each target, unless the environment says more.
const MOMENT: Duration = Duration::from_secs(2);
/// CPU time for one input. Inputs are small: whatever takes this long is not linear.
const LONGEST: Duration = Duration::from_secs(5);
/// How much a target's process may grow by, in bytes.
const MOST_MEMORY: usize = 768 << 20;

fn cpu_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).expect("every kernel has it").into()
}

/// The most memory that this process has had, in bytes.
fn peak() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("readable");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
    line.trim().trim_end_matches(" kB").parse::<usize>().expect("a number") << 10
}

/// Inputs that are kept as files: those that once failed, and those that lead far.
fn kept(target: &Target) -> Vec<(String, Vec<u8>)> {
    let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../seeds").join(target.name);
    let files = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let mut files: Vec<_> = files
        .map(|file| (file.file_name().to_string_lossy().into_owned(), std::fs::read(file.path()).expect("readable")))
        .collect();
    files.sort();
    files
}

fn attempt(target: &Target, what: &str, data: &[u8]) {
    let before = cpu_time();
    let outcome = catch_unwind(AssertUnwindSafe(|| (target.run)(data)));
    let taken = cpu_time().saturating_sub(before);
    if outcome.is_err() || taken > LONGEST {
        let file = std::env::temp_dir().join(format!("carob-fuzz-{}", target.name));
        let _ = std::fs::write(&file, data);
        panic!("{} fails at {what} after {taken:?}; its input is in {}", target.name, file.display());
    }
}

fn run(name: &str) {
    let target = TARGETS.iter().find(|target| target.name == name).expect("a target of this name");
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let moment = number("CAROB_FUZZ_SECONDS").map_or(MOMENT, Duration::from_secs);
    let memory = peak();
    let mut known = Vec::new();
    for (file, data) in kept(target) {
        attempt(target, &file, &data);
        known.push(data);
    }
    for (index, data) in (target.seeds)().into_iter().enumerate() {
        attempt(target, &format!("seed {index}"), &data);
        known.push(data);
    }
    let mut dice = Dice::new(number("CAROB_FUZZ_SEED").unwrap_or(1));
    let (start, mut rounds) = (cpu_time(), 0u64);
    while cpu_time().saturating_sub(start) < moment {
        let data = input(&mut dice, &known);
        attempt(target, &format!("round {rounds}"), &data);
        rounds += 1;
    }
    let grown = peak().saturating_sub(memory);
    println!("{name}: {rounds} rounds, {} MiB", grown >> 20);
    assert!(rounds > 0 && grown < MOST_MEMORY, "{name}: {rounds} rounds took {grown} bytes");
}

macro_rules! targets {
    ($($(#[$when:meta])? $name:ident)*) => {
        $($(#[$when])?
        #[test]
        fn $name() {
            run(stringify!($name));
        })*

        /// A target that isn't run here, or has no file, would be forgotten.
        #[test]
        #[cfg(feature = "whole")]
        fn every_target_is_run_and_has_its_file() {
            let here: Vec<&str> = vec![$(stringify!($name)),*];
            let all: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
            assert_eq!(here, all);
            let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../fuzz_targets");
            let mut files: Vec<String> = std::fs::read_dir(directory)
                .expect("readable")
                .map(|file| file.expect("an entry").file_name().to_string_lossy().replace(".rs", ""))
                .collect();
            files.sort();
            assert_eq!(files, all);
        }
    };
}

targets! {
    apply
    cel
    custom_resource
    decode_json
    decode_yaml
    #[cfg(feature = "whole")]
    dns
    field_selector
    #[cfg(feature = "whole")]
    image_document
    #[cfg(feature = "whole")]
    image_layer
    label_selector
    #[cfg(feature = "whole")]
    netlink
    object
    patch_json
    patch_merge
    patch_strategic
    #[cfg(feature = "whole")]
    protobuf_decode
    #[cfg(feature = "whole")]
    protobuf_round_trip
    #[cfg(feature = "whole")]
    request
    scalars
    #[cfg(feature = "whole")]
    spdy
    #[cfg(feature = "whole")]
    spec
}

/// A target whose inputs are all refused would find nothing.
#[test]
#[cfg(feature = "whole")]
fn much_of_what_is_made_of_pods_is_valid() {
    let mut dice = Dice::new(1);
    let specified = (0..300).filter(|_| carob_fuzz_bodies::spec::specified(&input(&mut dice, &[])) > 0).count();
    assert!(specified >= 30, "{specified} of 300");
}
