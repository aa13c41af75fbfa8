//! YAML text to a tree.

use std::collections::HashMap;

use serde_saphyr::{DuplicateKeyPolicy, Spanned};

use super::raw::{Entry, Key, Raw, Tree};
use super::yaml_error;
use crate::status::quote;

impl Key for Spanned<String> {
    fn split(self) -> (String, u64) {
        (self.value, self.referenced.line())
    }
}

/// The tree without duplicate keys (the last one wins), and the texts about those.
///
/// # Errors
/// What is wrong with the text.
pub(super) fn parse(body: &[u8]) -> Result<(Raw, Vec<String>), String> {
    let text = std::str::from_utf8(body).map_err(|_| "yaml: invalid leading UTF-8 octet".to_owned())?;
    if text.trim().is_empty() {
        return Ok((Raw::Null, Vec::new()));
    }
    let options = serde_saphyr::options! { duplicate_keys: DuplicateKeyPolicy::PassThrough };
    let tree: Tree<Spanned<String>> =
        serde_saphyr::from_str_with_options(text, options).map_err(|error| yaml_error(&error, text))?;
    let mut raw = tree.0;
    let mut found = Vec::new();
    collect(&mut raw, &mut found);
    let texts =
        if found.is_empty() { Vec::new() } else { vec![format!("yaml: unmarshal errors:\n{}", found.join("\n"))] };
    Ok((raw, texts))
}

/// Takes out all but the last of equal keys.
fn collect(raw: &mut Raw, found: &mut Vec<String>) {
    match raw {
        Raw::Array(items) => items.iter_mut().for_each(|item| collect(item, found)),
        Raw::Object(entries) => {
            let mut unique: Vec<Entry> = Vec::with_capacity(entries.len());
            // Bodies may have hundreds of thousands of keys.
            let mut places: HashMap<String, usize> = HashMap::with_capacity(entries.len());
            for mut entry in entries.drain(..) {
                collect(&mut entry.value, found);
                if let Some(place) = places.get(&entry.key) {
                    found.push(format!("  line {}: key {} already set in map", entry.line, quote(&entry.key)));
                    unique[*place] = entry;
                } else {
                    places.insert(entry.key.clone(), unique.len());
                    unique.push(entry);
                }
            }
            *entries = unique;
        }
        _ => {}
    }
}
