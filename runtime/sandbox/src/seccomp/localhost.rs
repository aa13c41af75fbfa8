//! OCI seccomp profiles from files (`seccompProfile.type: Localhost`).

use super::{Filters, Rules, SeccompError, compile, condition, only_if, table};
use seccompiler::{SeccompAction, SeccompCmpOp, SeccompRule};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::Path;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Profile {
    default_action: String,
    #[serde(default)]
    default_errno_ret: Option<u32>,
    #[serde(default)]
    syscalls: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    names: Vec<String>,
    action: String,
    #[serde(default)]
    errno_ret: Option<u32>,
    #[serde(default)]
    args: Option<Vec<Argument>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Argument {
    index: u8,
    value: u64,
    #[serde(default)]
    value_two: u64,
    op: String,
}

/// Reads and compiles an OCI profile.
pub fn from_file(path: &Path) -> Result<Filters, SeccompError> {
    let text = std::fs::read(path).map_err(SeccompError::Read)?;
    let profile: Profile = serde_json::from_slice(&text).map_err(|error| SeccompError::Invalid(error.to_string()))?;
    filters(&profile)
}

/// A filter has one action for what matches and one for what doesn't; a profile has many. So: one filter lets through
/// what any entry names and gives the rest the default action, and each stricter action gets a filter of its own.
fn filters(profile: &Profile) -> Result<Filters, SeccompError> {
    let default = action(&profile.default_action, profile.default_errno_ret)?;
    let mut named = Rules::new();
    let mut by_action: BTreeMap<u32, (SeccompAction, Rules)> = BTreeMap::new();
    for entry in &profile.syscalls {
        let action = action(&entry.action, entry.errno_ret)?;
        for name in &entry.names {
            let Some(number) = table::number(name) else { continue };
            let rule = rule(entry.args.as_deref().unwrap_or_default())?;
            add(&mut named, number, rule.clone());
            if action != SeccompAction::Allow && action != default {
                let (_, rules) =
                    by_action.entry(u32::from(action.clone())).or_insert_with(|| (action.clone(), Rules::new()));
                add(rules, number, rule);
            }
        }
    }
    let mut programs = Vec::new();
    if default != SeccompAction::Allow {
        programs.push(compile(named, default, SeccompAction::Allow)?);
    }
    for (action, rules) in by_action.into_values() {
        programs.push(compile(rules, SeccompAction::Allow, action)?);
    }
    Ok(Filters(programs))
}

/// An entry without conditions makes all others for the same call pointless: an empty list matches always.
fn add(rules: &mut Rules, number: i64, rule: Option<SeccompRule>) {
    match rule {
        None => {
            rules.insert(number, Vec::new());
        }
        Some(rule) => match rules.get_mut(&number) {
            Some(list) if list.is_empty() => {}
            Some(list) => list.push(rule),
            None => {
                rules.insert(number, vec![rule]);
            }
        },
    }
}

fn rule(arguments: &[Argument]) -> Result<Option<SeccompRule>, SeccompError> {
    if arguments.is_empty() {
        return Ok(None);
    }
    let mut conditions = Vec::new();
    for argument in arguments {
        let (operator, value) = match argument.op.as_str() {
            "SCMP_CMP_NE" => (SeccompCmpOp::Ne, argument.value),
            "SCMP_CMP_LT" => (SeccompCmpOp::Lt, argument.value),
            "SCMP_CMP_LE" => (SeccompCmpOp::Le, argument.value),
            "SCMP_CMP_EQ" => (SeccompCmpOp::Eq, argument.value),
            "SCMP_CMP_GE" => (SeccompCmpOp::Ge, argument.value),
            "SCMP_CMP_GT" => (SeccompCmpOp::Gt, argument.value),
            "SCMP_CMP_MASKED_EQ" => (SeccompCmpOp::MaskedEq(argument.value), argument.value_two),
            other => return Err(SeccompError::Invalid(format!("unknown operator {other:?}"))),
        };
        conditions.push(condition(argument.index, operator, value)?);
    }
    only_if(conditions).map(Some)
}

fn action(name: &str, errno: Option<u32>) -> Result<SeccompAction, SeccompError> {
    Ok(match name {
        "SCMP_ACT_ALLOW" => SeccompAction::Allow,
        "SCMP_ACT_LOG" => SeccompAction::Log,
        "SCMP_ACT_ERRNO" => SeccompAction::Errno(errno.unwrap_or(libc::EPERM.unsigned_abs())),
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => SeccompAction::KillThread,
        "SCMP_ACT_KILL_PROCESS" => SeccompAction::KillProcess,
        "SCMP_ACT_TRAP" => SeccompAction::Trap,
        other => return Err(SeccompError::Invalid(format!("action {other:?} is not supported"))),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_with_several_actions_becomes_one_filter_per_action() {
        let profile: Profile = serde_json::from_str(
            r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[
                {"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO"},
                {"names":["reboot"],"action":"SCMP_ACT_KILL_PROCESS"},
                {"names":["personality"],"action":"SCMP_ACT_ERRNO","args":[{"index":0,"value":8,"op":"SCMP_CMP_EQ"}]}]}"#,
        )
        .expect("parses");
        assert_eq!(filters(&profile).expect("compiles").0.len(), 2);
    }

    #[test]
    fn an_unknown_action_is_named() {
        let error = action("SCMP_ACT_NOTIFY", None).expect_err("refused");
        assert!(error.to_string().contains("SCMP_ACT_NOTIFY"));
    }
}
