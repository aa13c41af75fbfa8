//! Paths of files that stay below a directory.

use crate::field::{ErrorList, Path};

/// A path that never steps up.
pub fn no_backsteps(text: &str, path: &Path) -> ErrorList {
    if text.split('/').any(|part| part == "..") {
        return vec![path.invalid(text, "must not contain '..'")];
    }
    ErrorList::new()
}

/// A relative path that never steps up.
pub fn descending(text: &str, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    if text.starts_with('/') {
        errors.push(path.invalid(text, "must be a relative path"));
    }
    errors.extend(no_backsteps(text, path));
    errors
}

/// The same, where names that begin with two dots are the volume's own.
pub fn descending_unreserved(text: &str, path: &Path) -> ErrorList {
    let mut errors = descending(text, path);
    if text.starts_with("..") && !text.starts_with("../") && text != ".." {
        errors.push(path.invalid(text, "must not start with '..'"));
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_below() {
        let path = Path::new("p");
        assert!(descending_unreserved("a/b..c", &path).is_empty());
        assert_eq!(descending("/a", &path)[0].detail, "must be a relative path");
        assert_eq!(descending("a/../b", &path)[0].detail, "must not contain '..'");
        assert_eq!(descending_unreserved("..data", &path)[0].detail, "must not start with '..'");
        assert_eq!(descending_unreserved("..", &path).len(), 1);
    }
}
