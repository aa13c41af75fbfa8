//! Texts of small languages: selectors, quantities, schedules, the first line of a request.

use std::cmp::Ordering;

use carob_api::quantity::Quantity;
use carob_api::selector::{FieldSelector, LabelSelector};
use carob_api::validation::cron;
use serde_json::json;

use crate::texts;

/// A label selector, and what it chooses.
pub fn label_selector(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let Ok(selector) = LabelSelector::parse(&text) else { return };
    let labels = json!({"a": "b", "app": "web", "tier": "", "n": "7", "example.com/x": "y"});
    let _ = (selector.matches(Some(&labels)), selector.matches(None));
    assert_eq!(selector.is_everything(), selector.requirements().is_empty());
    let each = selector.requirements().iter().all(|requirement| requirement.matches(Some(&labels)));
    assert_eq!(each, selector.matches(Some(&labels)), "all requirements count");
    let twice = LabelSelector::parse(&format!("{text},{text}"));
    if !text.trim().is_empty() {
        let twice = twice.unwrap_or_else(|error| panic!("{text:?} twice: {error}"));
        assert_eq!(twice.matches(Some(&labels)), selector.matches(Some(&labels)), "saying it twice changes nothing");
    }
}

/// Selectors of every form.
pub fn label_selector_seeds() -> Vec<Vec<u8>> {
    texts(&[
        "a=b",
        "a==b,c!=d",
        "a in (b,c),d notin (e)",
        "!a,b",
        "n>5,n<10",
        "",
        "a in ()",
        "in in (in)",
        "example.com/x=y",
    ])
}

/// A field selector.
pub fn field_selector(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let Ok(selector) = FieldSelector::parse(&text) else { return };
    assert_eq!(selector.is_everything(), selector.requirements().is_empty());
    for (field, equals, value) in selector.requirements() {
        assert!(!equals || selector.exact(field).is_some(), "{field}={value}");
    }
}

/// Selectors of every form.
pub fn field_selector_seeds() -> Vec<Vec<u8>> {
    texts(&["metadata.name=a", "a==b,c!=d", r"a=b\,c\=d\\", "", ",", "=", "a=b=c"])
}

/// A quantity and a schedule of the same text.
pub fn scalars(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let _ = cron::error(&text);
    let _ = cron::is_time_zone(&text);
    let Ok(quantity) = Quantity::parse(&text) else { return };
    let canonical = quantity.canonical();
    let again = Quantity::parse(&canonical).unwrap_or_else(|error| panic!("{text:?} is {canonical:?}: {error}"));
    assert_eq!(again.canonical(), canonical, "{text:?}");
    assert_eq!(again.cmp(&quantity), Ordering::Equal, "{text:?} is {canonical:?}");
    let _ = (quantity.millis_ceil(), quantity.value_ceil(), quantity.bytes());
    assert_eq!(quantity.is_zero(), quantity.nanos() == 0);
}

/// Quantities and schedules, usual and not.
pub fn scalar_seeds() -> Vec<Vec<u8>> {
    texts(&[
        "100m",
        "1.5Gi",
        "-2e3",
        "1E-3",
        "+0.000000001",
        "9223372036854775807Ei",
        "0.1n",
        ".5",
        "5.",
        "1e",
        "1e99999999999",
        "00000000000000000000000000000000000000001",
        "*/5 * * * *",
        "TZ=Europe/Berlin 0 0 1 jan sun",
        "@every 1h30m",
        "1-5/2 , 3 ? L *",
    ])
}
