//! Objects made after the schemas of their kinds: right in form, and in content what people and attackers write.

use std::sync::OnceLock;

use carob_api::kind::Kind;
use carob_api::kinds;
use carob_api::schema::{Schema, Type, schema_of};
use serde_json::{Map, Number, Value, json};

use crate::source::Source;

/// Texts that something somewhere looks into.
const TEXTS: &[&str] = &[
    "a",
    "b",
    "web",
    "default",
    "kube-system",
    "v1",
    "apps/v1",
    "Always",
    "OnFailure",
    "Never",
    "TCP",
    "UDP",
    "SCTP",
    "/",
    "/data",
    "/proc",
    "..",
    "../etc/passwd",
    "a/../b",
    "$(A)$(A)",
    "$(POD)",
    "example.com/a",
    "10.0.0.1",
    "fd00::1",
    "10.0.0.0/8",
    "0.0.0.0",
    "nginx:1.27",
    "localhost:5000/x@sha256:0",
    "",
    " ",
    "\u{0}",
    "\u{202e}",
    "ß",
    "𝕏",
    "\n",
    "\"",
    "a=b",
    "a in (b)",
    "!a",
    "*",
    "*/5 * * * *",
    "@every 1h",
    "100%",
    "50%",
    "1Gi",
    "-1",
    "9223372036854775807",
    "1e400",
    "NaN",
    "true",
    "null",
    "RollingUpdate",
    "Recreate",
    "ClusterIP",
    "LoadBalancer",
    "ExternalName",
    "Exists",
    "In",
    "NotIn",
    "DoesNotExist",
    "NoSchedule",
    "NoExecute",
    "HostToContainer",
    "Unconfined",
    "RuntimeDefault",
    "Localhost",
    "ALL",
    "SYS_ADMIN",
    "CHOWN",
    "metadata.name",
    "status.podIP",
    "limits.memory",
    "A",
    "B",
    "POD",
    "Retain",
    "Delete",
    "ReadWriteOnce",
    "Filesystem",
    "Block",
    "object",
    "string",
    "self.a > 1",
    "kubernetes.io/tls",
    "0123456789012345678901234567890123456789012345678901234567890123456789",
];

const QUANTITIES: &[&str] = &[
    "0",
    "1",
    "100m",
    "1.5",
    "1Gi",
    "1k",
    "1e3",
    "0.1n",
    "-1",
    "1E",
    "9223372036854775807",
    "1e18",
    "99999999999999999999",
    "0.0000000000001",
    "1Ei",
    "00.10",
];

const TIMES: &[&str] = &[
    "2026-01-02T03:04:05Z",
    "1970-01-01T00:00:00Z",
    "9999-12-31T23:59:59Z",
    "0001-01-01T00:00:00Z",
    "2026-06-30T23:59:60Z",
];

const NUMBERS: &[i64] = &[
    0,
    1,
    2,
    -1,
    3,
    10,
    80,
    443,
    420,
    1000,
    1001,
    30_000,
    65_535,
    65_536,
    2_147_483_647,
    -2_147_483_648,
    4_294_967_296,
    9_007_199_254_740_993,
    i64::MAX,
    i64::MIN,
];

/// The built-in kinds, and the types of subresources.
pub fn all_kinds() -> &'static [&'static Kind] {
    static KINDS: OnceLock<Vec<&'static Kind>> = OnceLock::new();
    KINDS.get_or_init(|| kinds::builtin().chain(kinds::parts()).collect())
}

/// A built-in kind.
pub fn kind(source: &mut Source<'_>) -> &'static Kind {
    let kind: &&Kind = source.pick(all_kinds());
    kind
}

/// The built-in kind of this name.
pub fn kind_named(name: &str) -> &'static Kind {
    all_kinds().iter().find(|kind| kind.kind == name).expect("a built-in kind")
}

/// An object of a kind, with a type and mostly with a usable name.
pub fn object(source: &mut Source<'_>, kind: &Kind) -> Value {
    let Value::Object(fields) = value(source, schema_of(kind), 0) else { return json!({}) };
    let mut object = Map::new();
    object.insert("kind".to_owned(), kind.kind.into());
    object.insert("apiVersion".to_owned(), kind.api_version().into());
    object.extend(fields.into_iter().filter(|(name, _)| !matches!(name.as_str(), "kind" | "apiVersion")));
    if !source.one_in(8) {
        let metadata = object.entry("metadata").or_insert_with(|| json!({}));
        if let Value::Object(metadata) = metadata {
            metadata.insert("name".to_owned(), "a".into());
            metadata.shift_remove("managedFields");
        }
    }
    Value::Object(object)
}

/// A value that a schema takes; the deeper, the less there is of it.
pub fn value(source: &mut Source<'_>, schema: &Schema, depth: usize) -> Value {
    match schema.type_() {
        Type::Object => {
            let rarely = 1 + depth;
            let fields = schema.properties().filter(|(name, _)| {
                let required = schema.required().contains(name);
                if source.is_empty() { required && depth < 12 } else { required || source.below(rarely + 1) == 0 }
            });
            let fields: Vec<_> = fields.collect();
            fields
                .into_iter()
                .map(|(name, field)| (name.to_owned(), value(source, field, depth + 1)))
                .collect::<Map<_, _>>()
                .into()
        }
        Type::Map => {
            let Some(element) = schema.additional() else { return json!({}) };
            (0..source.below(4))
                .map(|_| (text(source), value(source, element, depth + 1)))
                .collect::<Map<_, _>>()
                .into()
        }
        Type::Array => {
            let Some(element) = schema.items() else { return json!([]) };
            (0..source.below(4)).map(|_| value(source, element, depth + 1)).collect()
        }
        Type::Bytes => {
            use base64::Engine as _;
            base64::engine::general_purpose::STANDARD.encode(source.bytes(12)).into()
        }
        Type::Time => (*source.pick(&TIMES[..4])).into(),
        Type::MicroTime => "2026-01-02T03:04:05.000006Z".into(),
        Type::Int32 => i32::try_from(*source.pick(NUMBERS)).unwrap_or(7).into(),
        Type::Int64 => (*source.pick(NUMBERS)).into(),
        Type::Double => Number::from_f64(f64::from(source.byte()) / 8.0).map_or(Value::Null, Value::Number),
        Type::Boolean => source.one_in(2).into(),
        Type::IntOrString if source.one_in(2) => i32::try_from(*source.pick(NUMBERS)).unwrap_or(7).into(),
        Type::String | Type::IntOrString => text(source).into(),
        Type::Quantity => (*source.pick(QUANTITIES)).into(),
        Type::Any => any(source, depth),
    }
}

/// Any JSON.
pub fn any(source: &mut Source<'_>, depth: usize) -> Value {
    match source.below(if depth > 8 { 6 } else { 8 }) {
        0 => Value::Null,
        1 => source.one_in(2).into(),
        2 => (*source.pick(NUMBERS)).into(),
        3 => double(source),
        4 | 5 => text(source).into(),
        6 => (0..source.below(4)).map(|_| any(source, depth + 1)).collect(),
        _ => (0..source.below(4)).map(|_| (text(source), any(source, depth + 1))).collect::<Map<_, _>>().into(),
    }
}

/// A number with a fraction, of few digits: of seventeen, `serde_json` may lose the last as long as its feature
/// `float_roundtrip` is off.
fn double(source: &mut Source<'_>) -> Value {
    let (digits, exponent) = (source.byte().cast_signed(), source.below(40));
    serde_json::from_str(&format!("{digits}.5e{}", exponent.cast_signed() - 20)).unwrap_or(Value::Null)
}

/// A text: mostly a known one, sometimes a quantity, a time, or noise.
pub fn text(source: &mut Source<'_>) -> String {
    match source.below(16) {
        13 => (*source.pick(QUANTITIES)).to_owned(),
        14 => (*source.pick(TIMES)).to_owned(),
        15 => String::from_utf8_lossy(source.bytes(40)).into_owned(),
        _ => (*source.pick(TEXTS)).to_owned(),
    }
}
