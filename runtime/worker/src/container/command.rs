//! Which program runs: the spec's command and args over the image's entrypoint and cmd.

use super::ConfigError;
use super::expand::{Room, expand};
use k8s_openapi::api::core::v1::Container;
use std::collections::HashMap;

/// The argument vector. `command` replaces entrypoint and cmd; `args` alone replaces cmd (Kubernetes: "Define a Command
/// and Arguments for a Container"). References to variables are expanded in the spec's words only.
pub(crate) fn argv(
    container: &Container,
    entrypoint: &[String],
    cmd: &[String],
    env: &[(String, String)],
) -> Result<Vec<String>, ConfigError> {
    let known: HashMap<&str, &str> = env.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let mut room = Room::default();
    let mut words = |list: &Option<Vec<String>>| -> Result<Vec<String>, ConfigError> {
        list.iter().flatten().map(|word| expand(word, |name| known.get(name).copied(), &mut room)).collect()
    };
    let (program, given) = (words(&container.command)?, words(&container.args)?);
    let mut argv = if program.is_empty() { entrypoint.to_vec() } else { program.clone() };
    if !given.is_empty() {
        argv.extend(given);
    } else if program.is_empty() {
        argv.extend_from_slice(cmd);
    }
    if argv.is_empty() {
        return Err(ConfigError("no command specified".to_owned()));
    }
    Ok(argv)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn command_and_args_replace_what_kubernetes_says_they_replace() {
        let (entrypoint, cmd) = (strings(&["/ep"]), strings(&["c1", "c2"]));
        for (command, args, expected) in [
            (None, None, vec!["/ep", "c1", "c2"]),
            (Some(vec!["/x"]), None, vec!["/x"]),
            (None, Some(vec!["$(N)"]), vec!["/ep", "5"]),
            (Some(vec!["/x"]), Some(vec!["a"]), vec!["/x", "a"]),
        ] {
            let container = Container {
                command: command.map(|words| strings(&words)),
                args: args.map(|words| strings(&words)),
                ..Container::default()
            };
            let argv = argv(&container, &entrypoint, &cmd, &[("N".into(), "5".into())]).unwrap();
            assert_eq!(argv, expected);
        }
    }

    #[test]
    fn nothing_to_run_is_an_error() {
        assert!(argv(&Container::default(), &[], &[], &[]).is_err());
    }
}
