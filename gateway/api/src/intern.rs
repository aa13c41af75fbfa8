//! Texts that are kept once and for good: the names of kinds that are made at run time.
//!
//! Rows of built-in kinds name themselves with texts of the program. Kinds of CustomResourceDefinitions name themselves
//! with these, so that all code sees the same type. They are short, few and come again: a definition that is made
//! anew finds the names of its predecessor.

use std::collections::HashSet;
use std::hash::Hash;
use std::sync::{Mutex, OnceLock, PoisonError};

use crate::kind::Subresource;

type Kept<T> = OnceLock<Mutex<HashSet<&'static T>>>;

/// One copy of a text, kept for good.
pub fn text(text: &str) -> &'static str {
    static KEPT: Kept<str> = OnceLock::new();
    keep(&KEPT, text, |text| Box::leak(text.to_owned().into_boxed_str()))
}

/// One copy of a list of texts, kept for good.
pub fn texts<T: AsRef<str>>(texts: impl IntoIterator<Item = T>) -> &'static [&'static str] {
    static KEPT: Kept<[&'static str]> = OnceLock::new();
    let list: Vec<&'static str> = texts.into_iter().map(|item| text(item.as_ref())).collect();
    keep(&KEPT, &list, |list| Box::leak(list.to_vec().into_boxed_slice()))
}

/// One copy of a list of subresources, kept for good.
pub fn subresources(list: &[Subresource]) -> &'static [Subresource] {
    static KEPT: Kept<[Subresource]> = OnceLock::new();
    keep(&KEPT, list, |list| Box::leak(list.to_vec().into_boxed_slice()))
}

/// One copy of a value, kept for good.
fn keep<T: Eq + Hash + ?Sized>(kept: &Kept<T>, value: &T, copy: impl FnOnce(&T) -> &'static T) -> &'static T {
    let mut kept = kept.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = kept.get(value) {
        return known;
    }
    let copy = copy(value);
    kept.insert(copy);
    copy
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_texts_are_kept_once() {
        assert!(std::ptr::eq(text(&"wid".repeat(2)), text("widwid")));
        assert!(std::ptr::eq(texts(["a", "b"]), texts([String::from("a"), String::from("b")])));
        assert_eq!(texts::<&str>([]), &[] as &[&str]);
    }
}
