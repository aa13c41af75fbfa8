//! `$(NAME)` in commands, arguments and environment values.

use super::ConfigError;

/// One argument or variable may be so long, in bytes: the kernel executes nothing with a longer one (`MAX_ARG_STRLEN`).
const LONGEST: usize = 128 << 10;
/// All arguments and variables together: three quarters of `_STK_LIM` are the kernel's limit.
const MOST: usize = 6 << 20;

/// Room for what references lead to. A variable may be made of others: a text that is doubled thirty times is short to
/// write and fills any memory.
pub(crate) struct Room(usize);

impl Default for Room {
    fn default() -> Self {
        Self(MOST)
    }
}

/// Replaces each `$(NAME)` by what `lookup` knows of it. Names it doesn't know stay as written, and `$$` is one `$` that
/// starts no reference (Kubernetes: "Define Dependent Environment Variables").
///
/// # Errors
/// When more would come of it than can be executed.
pub(crate) fn expand<'a>(
    text: &str,
    lookup: impl Fn(&str) -> Option<&'a str>,
    room: &mut Room,
) -> Result<String, ConfigError> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(dollar) = rest.find('$') {
        out.push_str(&rest[..dollar]);
        let after = &rest[dollar + 1..];
        if let Some(tail) = after.strip_prefix('$') {
            out.push('$');
            rest = tail;
        } else if let Some((name, tail)) = after.strip_prefix('(').and_then(|inner| inner.split_once(')')) {
            if let Some(value) = lookup(name) {
                if out.len() + value.len() > LONGEST || value.len() > room.0 {
                    return Err(ConfigError(format!("argument list too long: $({name}) is {} bytes", value.len())));
                }
                room.0 -= value.len();
                out.push_str(value);
            } else {
                out.push_str(&rest[dollar..dollar + name.len() + 3]);
            }
            rest = tail;
        } else {
            out.push('$');
            rest = after;
        }
    }
    out.push_str(rest);
    Ok(out)
}

/// The first name that `lookup` doesn't know, for `subPathExpr`, where an unknown name is an error.
pub(crate) fn first_unknown<'a, 'b>(text: &'a str, lookup: impl Fn(&str) -> Option<&'b str>) -> Option<&'a str> {
    let mut rest = text;
    while let Some(dollar) = rest.find('$') {
        let after = &rest[dollar + 1..];
        if let Some(tail) = after.strip_prefix('$') {
            rest = tail;
        } else if let Some((name, tail)) = after.strip_prefix('(').and_then(|inner| inner.split_once(')')) {
            if lookup(name).is_none() {
                return Some(name);
            }
            rest = tail;
        } else {
            rest = after;
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(name: &str) -> Option<&'static str> {
        match name {
            "A" => Some("one"),
            "EMPTY" => Some(""),
            _ => None,
        }
    }

    #[test]
    fn references_escapes_and_unknown_names_follow_kubernetes() {
        for (text, expanded) in [
            ("x$(A)y", "xoney"),
            ("$(A)$(A)", "oneone"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$one"),
            ("$(UNKNOWN)", "$(UNKNOWN)"),
            ("$(EMPTY)", ""),
            ("$(A", "$(A"),
            ("$A", "$A"),
            ("end$", "end$"),
            ("$()", "$()"),
            ("Grüße $(A)", "Grüße one"),
        ] {
            assert_eq!(expand(text, known, &mut Room::default()).unwrap(), expanded, "{text}");
        }
    }

    #[test]
    fn the_first_unknown_name_is_found_but_not_an_escaped_one() {
        assert_eq!(first_unknown("$(A)/$(B)", known), Some("B"));
        assert_eq!(first_unknown("$$(B)/$(A)", known), None);
    }
    #[test]
    fn more_than_can_be_executed_is_refused_and_not_made() {
        let long = "x".repeat(LONGEST);
        let lookup = |name: &str| (name == "L").then_some(long.as_str());
        let mut room = Room::default();
        assert!(expand("$(L)$(L)", lookup, &mut room).is_err(), "one text");
        let mut room = Room::default();
        let made = (0..1000).take_while(|_| expand("$(L)", lookup, &mut room).is_ok()).count();
        assert_eq!(made, MOST / LONGEST, "all texts");
    }
}
