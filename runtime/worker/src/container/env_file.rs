//! Environment variables from files that other containers of the pod have written (`fileKeyRef`).

use super::ConfigError;
use crate::volumes::{MountedVolume, sub_path};
use k8s_openapi::api::core::v1::FileKeySelector;
use std::collections::HashMap;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::path::PathBuf;

/// Bytes of such a file that are read.
const FILE_MAX: u64 = 64 * 1024;

/// The value of a key in a volume's file; `None` when it is optional and isn't there.
pub(crate) fn value(
    volumes: &HashMap<String, MountedVolume>,
    reference: &FileKeySelector,
) -> Result<Option<String>, ConfigError> {
    let optional = reference.optional == Some(true);
    let volume = volumes.get(&reference.volume_name).ok_or_else(|| {
        ConfigError(format!("cannot find the volume {:?} referenced by FileKeyRef", reference.volume_name))
    })?;
    // In memory, this process reaches the volume by its descriptor only.
    let reachable = volume.memory.as_ref().map(|root| PathBuf::from(format!("/proc/self/fd/{}", root.as_raw_fd())));
    let opened = sub_path::open_file(reachable.as_ref().unwrap_or(&volume.path), &reference.path);
    let file = match opened {
        Ok(file) => file,
        Err(_) if optional => return Ok(None),
        Err(error) => {
            let path = &reference.path;
            return Err(ConfigError(format!("failed to open environment variable file {path:?}: {error}")));
        }
    };
    let mut text = String::new();
    file.take(FILE_MAX).read_to_string(&mut text).map_err(|error| {
        ConfigError(format!("error reading environment variable file {:?}: {error}", reference.path))
    })?;
    match find(&text, &reference.key).map_err(ConfigError)? {
        None if !optional => {
            let (key, path) = (&reference.key, &reference.path);
            Err(ConfigError(format!("environment variable key {key:?} not found in file {path:?}")))
        }
        found => Ok(found),
    }
}

/// Reads `NAME='value'` lines until the key is found: values stand in single quotes, over several lines if need be, and
/// mean what they say; lines that begin with `#` and what follows a value's end are comments (Kubernetes: "Define
/// Environment Variable Values Using An Init Container").
fn find(text: &str, key: &str) -> Result<Option<String>, String> {
    let mut rest = text;
    let mut line = 0;
    while !rest.is_empty() {
        line += 1;
        let (current, after) = rest.split_once('\n').unwrap_or((rest, ""));
        let invalid = |why: &str| Err(format!("invalid environment variable format at line {line}: {why}"));
        let trimmed = current.trim_start_matches([' ', '\t']);
        if trimmed.trim_end().is_empty() || trimmed.starts_with('#') {
            rest = after;
            continue;
        }
        let Some((name, value)) = trimmed.split_once('=') else { return invalid("missing '='") };
        if name.is_empty() {
            return invalid("empty variable name");
        }
        if name.contains([' ', '\t']) {
            return invalid("whitespace before '=' is not allowed");
        }
        if value.starts_with([' ', '\t']) || value.trim_end().is_empty() {
            // An assignment of nothing; what follows is none of its business.
            if name == key {
                return Ok(Some(String::new()));
            }
            rest = after;
            continue;
        }
        let Some(quoted) = value.strip_prefix('\'') else { return invalid("value must be enclosed in single quotes") };
        // From the quote on, lines don't count: the value goes on to the next one.
        let offset = current.len() - quoted.len();
        let Some(length) = rest[offset..].find('\'') else { return invalid("unclosed single quote") };
        let found = &rest[offset..offset + length];
        let tail = &rest[offset + length + 1..];
        let (ending, after) = tail.split_once('\n').unwrap_or((tail, ""));
        let ending = ending.trim();
        if !ending.is_empty() && !ending.starts_with('#') {
            return invalid("unexpected content after the closing quote");
        }
        if name == key {
            return Ok(Some(found.to_owned()));
        }
        line += found.matches('\n').count();
        rest = after;
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "# comment\n\n  A='one'\nB='two\nlines' # said\nC=\nD='$A \"x\"'\n";

    #[test]
    fn values_are_literal_and_may_have_several_lines() {
        let get = |key| find(FILE, key).unwrap();
        assert_eq!(get("A").as_deref(), Some("one"));
        assert_eq!(get("B").as_deref(), Some("two\nlines"));
        assert_eq!(get("C").as_deref(), Some(""));
        assert_eq!(get("D").as_deref(), Some("$A \"x\""));
        assert_eq!(get("E"), None);
        assert_eq!(find("", "A").unwrap(), None);
    }

    #[test]
    fn what_is_no_declaration_is_refused_with_its_line() {
        for (text, line, why) in [
            ("A='x'\nB\n", 2, "missing '='"),
            ("A='x\ny'\nB=plain\n", 3, "single quotes"),
            ("A ='x'", 1, "whitespace before"),
            ("A='x", 1, "unclosed"),
            ("='x'", 1, "empty variable name"),
        ] {
            let error = find(text, "Z").unwrap_err();
            assert!(error.contains(&format!("line {line}:")) && error.contains(why), "{text}: {error}");
        }
    }
}
