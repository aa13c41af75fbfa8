//! What each fuzz target does with its bytes: ordinary functions, so that the targets of cargo-fuzz
//! (`tests/fuzz/fuzz_targets`) and the bounded run in the test suite (`tests/bounded.rs`) are the same.
//!
//! A body panics if a property doesn't hold. That nothing panics is only the first of them: what is decoded decodes to
//! itself, defaults are filled in once, an empty patch changes nothing, an apply repeated changes nothing, every form can
//! be read back, nothing is written outside of its directory, and answers are no larger than their questions allow.

pub mod apply;
pub mod decode;
pub mod expressions;
#[cfg(feature = "whole")]
pub mod image;
pub mod mutate;
pub mod object;
pub mod objects;
pub mod patch;
pub mod source;
#[cfg(feature = "whole")]
pub mod spec;
pub mod text;
#[cfg(feature = "whole")]
pub mod wire;

/// A fuzz target.
#[derive(Clone, Copy)]
pub struct Target {
    /// Also the name of its file in `fuzz_targets` and of its directory in `seeds`.
    pub name: &'static str,
    /// What it does with its bytes.
    pub run: fn(&[u8]),
    /// Inputs that lead somewhere, beside those in its directory.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target { name: "apply", run: apply::apply, seeds: none },
    Target { name: "cel", run: expressions::cel, seeds: expressions::cel_seeds },
    Target { name: "custom_resource", run: expressions::custom_resource, seeds: none },
    Target { name: "decode_json", run: decode::json, seeds: decode::json_seeds },
    Target { name: "decode_yaml", run: decode::yaml, seeds: decode::yaml_seeds },
    #[cfg(feature = "whole")]
    Target { name: "dns", run: wire::dns, seeds: wire::dns_seeds },
    Target { name: "field_selector", run: text::field_selector, seeds: text::field_selector_seeds },
    #[cfg(feature = "whole")]
    Target { name: "image_document", run: image::document, seeds: image::document_seeds },
    #[cfg(feature = "whole")]
    Target { name: "image_layer", run: image::layer, seeds: none },
    Target { name: "label_selector", run: text::label_selector, seeds: text::label_selector_seeds },
    #[cfg(feature = "whole")]
    Target { name: "netlink", run: wire::netlink, seeds: none },
    Target { name: "object", run: object::life, seeds: none },
    Target { name: "patch_json", run: patch::json, seeds: patch::json_seeds },
    Target { name: "patch_merge", run: patch::merge, seeds: none },
    Target { name: "patch_strategic", run: patch::strategic, seeds: none },
    #[cfg(feature = "whole")]
    Target { name: "protobuf_decode", run: wire::protobuf, seeds: wire::protobuf_seeds },
    #[cfg(feature = "whole")]
    Target { name: "protobuf_round_trip", run: wire::protobuf_round_trip, seeds: none },
    #[cfg(feature = "whole")]
    Target { name: "request", run: wire::request, seeds: wire::request_seeds },
    Target { name: "scalars", run: text::scalars, seeds: text::scalar_seeds },
    #[cfg(feature = "whole")]
    Target { name: "spdy", run: wire::spdy, seeds: wire::spdy_seeds },
    #[cfg(feature = "whole")]
    Target { name: "spec", run: spec::spec, seeds: none },
];

/// For targets that make something of any bytes.
fn none() -> Vec<Vec<u8>> {
    Vec::new()
}

/// Text as seeds are.
fn texts(list: &[&str]) -> Vec<Vec<u8>> {
    list.iter().map(|text| text.as_bytes().to_vec()).collect()
}
