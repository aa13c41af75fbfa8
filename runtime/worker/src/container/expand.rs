//! `$(NAME)` in commands, arguments and environment values.

/// Replaces each `$(NAME)` by what `lookup` knows of it. Names it doesn't know stay as written, and `$$` is one `$` that
/// starts no reference (Kubernetes: "Define Dependent Environment Variables").
pub(crate) fn expand(text: &str, lookup: impl Fn(&str) -> Option<String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(dollar) = rest.find('$') {
        out.push_str(&rest[..dollar]);
        let after = &rest[dollar + 1..];
        if let Some(tail) = after.strip_prefix('$') {
            out.push('$');
            rest = tail;
        } else if let Some((name, tail)) = after.strip_prefix('(').and_then(|inner| inner.split_once(')')) {
            match lookup(name) {
                Some(value) => out.push_str(&value),
                None => out.push_str(&rest[dollar..dollar + name.len() + 3]),
            }
            rest = tail;
        } else {
            out.push('$');
            rest = after;
        }
    }
    out.push_str(rest);
    out
}

/// The first name that `lookup` doesn't know, for `subPathExpr`, where an unknown name is an error.
pub(crate) fn first_unknown(text: &str, lookup: impl Fn(&str) -> Option<String>) -> Option<&str> {
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

    fn known(name: &str) -> Option<String> {
        match name {
            "A" => Some("one".into()),
            "EMPTY" => Some(String::new()),
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
            assert_eq!(expand(text, known), expanded, "{text}");
        }
    }

    #[test]
    fn the_first_unknown_name_is_found_but_not_an_escaped_one() {
        assert_eq!(first_unknown("$(A)/$(B)", known), Some("B"));
        assert_eq!(first_unknown("$$(B)/$(A)", known), None);
    }
}
