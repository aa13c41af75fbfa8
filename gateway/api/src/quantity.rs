//! Amounts of CPU, memory and the like: `resource.Quantity` of Kubernetes, exact to a billionth of its unit.

use std::cmp::Ordering;
use std::fmt;
use std::ops::{Add, Neg, Sub};
use std::str::FromStr;

/// One whole unit (a core, a byte) in nanos.
const UNIT: i128 = 1_000_000_000;

/// Binary quantities hold at most this many whole units.
const BINARY_MAX: i128 = (i64::MAX as i128) * UNIT;

/// Suffixes of powers of ten, by exponent.
const DECIMAL: [(&str, i32); 10] =
    [("n", -9), ("u", -6), ("m", -3), ("", 0), ("k", 3), ("M", 6), ("G", 9), ("T", 12), ("P", 15), ("E", 18)];

/// Suffixes of powers of two, by exponent.
const BINARY: [(&str, i32); 6] = [("Ki", 10), ("Mi", 20), ("Gi", 30), ("Ti", 40), ("Pi", 50), ("Ei", 60)];

/// Why a text is no quantity; the words are Kubernetes'.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// The text doesn't look like a number with a suffix.
    #[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
    Format,
    /// The suffix is none that exists.
    #[error("unable to parse quantity's suffix")]
    Suffix,
}

/// How a quantity is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    /// `12e6`
    DecimalExponent,
    /// `12Mi`
    Binary,
    /// `12M`
    Decimal,
}

/// An amount and the family of suffixes it is written with.
///
/// Two quantities are equal if their amounts are, however they are written. Amounts beyond what 128 bits hold in nanos
/// (about 1.7e29 units) become the largest one.
#[derive(Clone, Copy, Debug)]
pub struct Quantity {
    nanos: i128,
    format: Format,
}

impl Quantity {
    /// Nothing.
    pub const ZERO: Self = Self { nanos: 0, format: Format::Decimal };

    /// Reads `100m`, `1.5Gi`, `2e3`, … More than nine decimal places are rounded away from zero.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let parts = Parts::split(text)?;
        let (power, mut format) = scale_of(parts.suffix).ok_or(ParseError::Suffix)?;
        let digits = parts.whole.bytes().chain(parts.fraction.bytes());
        let places = i32::try_from(parts.fraction.len()).unwrap_or(i32::MAX);
        let mut nanos = match power {
            Power::Ten(exponent) => decimal_nanos(digits, exponent.saturating_sub(places).saturating_add(9)),
            Power::Two(exponent) => binary_nanos(digits, exponent, 9_i32.saturating_sub(places)).min(BINARY_MAX),
        };
        if format == Format::Binary && (1..UNIT).contains(&nanos) {
            format = Format::Decimal;
        }
        if parts.negative {
            nanos = -nanos;
        }
        Ok(Self { nanos, format })
    }

    /// So many thousandths, written in decimal: `100m`.
    pub fn from_millis(millis: i64) -> Self {
        Self { nanos: i128::from(millis) * 1_000_000, format: Format::Decimal }
    }

    /// So many whole units, written in decimal: `3`.
    pub fn from_units(units: i64) -> Self {
        Self { nanos: i128::from(units) * UNIT, format: Format::Decimal }
    }

    /// So many bytes, written in binary: `64Mi`.
    pub fn from_bytes(bytes: i64) -> Self {
        Self { nanos: i128::from(bytes) * UNIT, format: Format::Binary }
    }

    /// So many billionths, written in decimal.
    pub fn from_nanos(nanos: i128) -> Self {
        Self { nanos, format: Format::Decimal }
    }

    /// The amount in billionths of the unit.
    pub fn nanos(&self) -> i128 {
        self.nanos
    }

    /// The amount in thousandths, rounded away from zero.
    pub fn millis_ceil(&self) -> i64 {
        clamp(divide_away(self.nanos, 1_000_000))
    }

    /// The amount in whole units, rounded away from zero.
    pub fn value_ceil(&self) -> i64 {
        clamp(divide_away(self.nanos, UNIT))
    }

    /// Memory or storage in bytes: [`Self::value_ceil`] under the name of its unit.
    pub fn bytes(&self) -> i64 {
        self.value_ceil()
    }

    /// Whether it is nothing.
    pub fn is_zero(&self) -> bool {
        self.nanos == 0
    }

    /// Whether it is less than nothing.
    pub fn is_negative(&self) -> bool {
        self.nanos < 0
    }

    /// Whether it is a whole number of units.
    pub fn is_whole(&self) -> bool {
        self.nanos % UNIT == 0
    }

    /// The one text that Kubernetes stores and shows for this amount: the largest suffix that leaves no fraction.
    pub fn canonical(&self) -> String {
        if self.nanos == 0 {
            return "0".to_owned();
        }
        let small = self.nanos.abs() < 1024 * UNIT;
        match self.format {
            Format::Binary if !small && self.is_whole() => self.canonical_binary(),
            Format::DecimalExponent => match self.canonical_decimal() {
                (mantissa, 0) => mantissa.to_string(),
                (mantissa, exponent) => format!("{mantissa}e{exponent}"),
            },
            Format::Binary | Format::Decimal => {
                let (mut mantissa, mut exponent) = self.canonical_decimal();
                while exponent > 18 {
                    mantissa *= 1000;
                    exponent -= 3;
                }
                let suffix = DECIMAL.iter().find(|(_, e)| *e == exponent).map_or("", |(suffix, _)| suffix);
                format!("{mantissa}{suffix}")
            }
        }
    }

    fn canonical_binary(&self) -> String {
        let mut mantissa = self.nanos / UNIT;
        let mut suffix = "";
        for (next, _) in BINARY {
            if mantissa % 1024 != 0 {
                break;
            }
            mantissa /= 1024;
            suffix = next;
        }
        format!("{mantissa}{suffix}")
    }

    /// Mantissa and exponent of ten; the exponent is the largest multiple of three that leaves no fraction.
    fn canonical_decimal(&self) -> (i128, i32) {
        let (mut mantissa, mut exponent) = (self.nanos, -9);
        while mantissa % 1000 == 0 {
            mantissa /= 1000;
            exponent += 3;
        }
        (mantissa, exponent)
    }
}

/// A text cut at its grammar's joints.
struct Parts<'a> {
    negative: bool,
    whole: &'a str,
    fraction: &'a str,
    suffix: &'a str,
}

impl<'a> Parts<'a> {
    fn split(text: &'a str) -> Result<Self, ParseError> {
        if text.is_empty() {
            return Err(ParseError::Format);
        }
        let (negative, rest) = match text.as_bytes()[0] {
            b'-' => (true, &text[1..]),
            b'+' => (false, &text[1..]),
            _ => (false, text),
        };
        let (whole, rest) = take(rest, |b| b.is_ascii_digit());
        let (fraction, suffix) = match rest.strip_prefix('.') {
            Some(rest) => take(rest, |b| b.is_ascii_digit()),
            None => ("", rest),
        };
        let (_, after) = take(suffix, |b| b"eEinumkKMGTP".contains(&b));
        let after = after.strip_prefix(['-', '+']).unwrap_or(after);
        if !after.bytes().all(|b| b.is_ascii_digit()) {
            return Err(ParseError::Format);
        }
        Ok(Self { negative, whole, fraction: fraction.trim_end_matches('0'), suffix })
    }
}

fn take(text: &str, wanted: impl Fn(u8) -> bool) -> (&str, &str) {
    let end = text.bytes().position(|b| !wanted(b)).unwrap_or(text.len());
    text.split_at(end)
}

enum Power {
    Ten(i32),
    Two(u32),
}

fn scale_of(suffix: &str) -> Option<(Power, Format)> {
    if let Some((_, exponent)) = DECIMAL.iter().find(|(known, _)| *known == suffix) {
        return Some((Power::Ten(*exponent), Format::Decimal));
    }
    if let Some((_, exponent)) = BINARY.iter().find(|(known, _)| *known == suffix) {
        return Some((Power::Two(exponent.unsigned_abs()), Format::Binary));
    }
    let exponent: i64 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
    let exponent = i32::try_from(exponent).unwrap_or(if exponent < 0 { i32::MIN } else { i32::MAX });
    Some((Power::Ten(exponent), Format::DecimalExponent))
}

/// `digits * 10^power`, rounded up where digits fall off the end.
fn decimal_nanos(digits: impl Iterator<Item = u8>, power: i32) -> i128 {
    let digits: Vec<u8> = digits.collect();
    let dropped = usize::try_from(power.saturating_neg()).unwrap_or(0);
    let kept = digits.len().saturating_sub(dropped);
    let mut amount = 0_i128;
    for digit in &digits[..kept] {
        amount = amount.saturating_mul(10).saturating_add(i128::from(digit - b'0'));
    }
    if digits[kept..].iter().any(|digit| *digit != b'0') {
        amount = amount.saturating_add(1);
    }
    if amount == 0 {
        return 0;
    }
    // 10^39 is beyond i128 already, so further steps change nothing.
    for _ in 0..power.clamp(0, 39) {
        amount = amount.saturating_mul(10);
    }
    amount
}

/// `digits * 2^exponent * 10^power`, rounded up.
fn binary_nanos(digits: impl Iterator<Item = u8>, exponent: u32, power: i32) -> i128 {
    let mut amount = 0_i128;
    for digit in digits {
        amount = amount.saturating_mul(10).saturating_add(i128::from(digit - b'0'));
    }
    amount = amount.saturating_mul(1 << exponent);
    for _ in 0..power.clamp(0, 9) {
        amount = amount.saturating_mul(10);
    }
    let mut lost = false;
    for _ in power.min(0)..0 {
        lost |= amount % 10 != 0;
        amount /= 10;
        if amount == 0 {
            break;
        }
    }
    if lost { amount + 1 } else { amount }
}

fn divide_away(amount: i128, by: i128) -> i128 {
    let quotient = amount / by;
    if amount % by == 0 { quotient } else { quotient + amount.signum() }
}

fn clamp(amount: i128) -> i64 {
    i64::try_from(amount).unwrap_or(if amount < 0 { i64::MIN } else { i64::MAX })
}

impl FromStr for Quantity {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        Self::parse(text)
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.canonical())
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

impl Add for Quantity {
    type Output = Self;

    /// The sum, written as the left side is (as the right one, if the left is nothing).
    fn add(self, other: Self) -> Self {
        let format = if self.is_zero() { other.format } else { self.format };
        Self { nanos: self.nanos.saturating_add(other.nanos), format }
    }
}

impl Sub for Quantity {
    type Output = Self;

    /// The difference, written as in a sum.
    fn sub(self, other: Self) -> Self {
        self + -other
    }
}

impl Neg for Quantity {
    type Output = Self;

    fn neg(self) -> Self {
        Self { nanos: self.nanos.saturating_neg(), format: self.format }
    }
}

impl std::iter::Sum for Quantity {
    fn sum<I: Iterator<Item = Self>>(amounts: I) -> Self {
        amounts.fold(Self::ZERO, Add::add)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn quantity(text: &str) -> Quantity {
        Quantity::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn canonical_forms_are_kubernetes_own() {
        for (text, canonical) in [
            ("0", "0"),
            ("0Ki", "0"),
            ("-0", "0"),
            ("+", "0"),
            (".", "0"),
            ("1000m", "1"),
            ("0.5", "500m"),
            ("1.0", "1"),
            ("1.", "1"),
            (".5", "500m"),
            ("0.25", "250m"),
            ("100m", "100m"),
            ("1500m", "1500m"),
            ("1e3", "1e3"),
            ("1E3", "1e3"),
            ("12e4", "120e3"),
            ("1e-3", "1e-3"),
            ("5e0", "5"),
            ("1024Mi", "1Gi"),
            ("1.5Gi", "1536Mi"),
            ("100Ki", "100Ki"),
            ("0.5Ki", "512"),
            ("0.1Ki", "102400m"),
            ("1.1Ki", "1126400m"),
            ("0.0001Ki", "102400u"),
            ("1000", "1k"),
            ("1000k", "1M"),
            ("123456", "123456"),
            ("1000000000", "1G"),
            ("1E", "1E"),
            ("1000E", "1000E"),
            ("8Ei", "9223372036854775807"),
            ("0.1n", "1n"),
            ("0.0000000001", "1n"),
            ("1.0000000001", "1000000001n"),
            ("-0.0000000001", "-1n"),
            ("-1.5", "-1500m"),
            ("-1Gi", "-1Gi"),
            ("007", "7"),
            ("512", "512"),
            ("1023Ki", "1023Ki"),
            ("1.00000000000000000Gi", "1Gi"),
        ] {
            assert_eq!(quantity(text).canonical(), canonical, "{text}");
        }
    }

    #[test]
    fn texts_that_are_no_quantity_are_refused() {
        for text in ["", "x", "1.5.2", "1 Gi", " 1", "1e3x", "1Gi ", "١"] {
            assert_eq!(Quantity::parse(text), Err(ParseError::Format), "{text}");
        }
        for text in ["1ki", "1e", "1Kim", "1mm", "1i", "--1", "1e99999999999999999999"] {
            assert_eq!(Quantity::parse(text), Err(ParseError::Suffix), "{text}");
        }
        assert!(
            Quantity::parse("x").is_err_and(|error| error.to_string().contains("'^([+-]?[0-9.]+)([eEinumkKMGTP]*"))
        );
    }

    #[test]
    fn whole_units_and_thousandths_round_away_from_zero() {
        for (text, units, millis) in
            [("0.0001", 1, 1), ("1500m", 2, 1500), ("-1500m", -2, -1500), ("1Ki", 1024, 1_024_000), ("1u", 1, 1)]
        {
            assert_eq!((quantity(text).value_ceil(), quantity(text).millis_ceil()), (units, millis), "{text}");
        }
        assert_eq!(quantity("1e30").value_ceil(), i64::MAX);
    }

    #[test]
    fn equal_amounts_are_equal_however_written() {
        assert_eq!(quantity("1Gi"), quantity("1073741824"));
        assert_eq!(quantity("1e3"), quantity("1k"));
        assert!(quantity("1G") < quantity("1Gi"));
        assert!(quantity("-1") < quantity("1n"));
    }

    #[test]
    fn sums_are_written_as_their_left_side() {
        assert_eq!((quantity("1Gi") + quantity("1Mi")).canonical(), "1025Mi");
        assert_eq!((Quantity::ZERO + quantity("1Gi")).canonical(), "1Gi");
        assert_eq!((quantity("1") - quantity("250m")).canonical(), "750m");
        assert_eq!(["100m", "200m"].map(quantity).into_iter().sum::<Quantity>().canonical(), "300m");
    }

    #[test]
    fn enormous_amounts_saturate() {
        assert_eq!(quantity("1e2147483648").nanos(), i128::MAX);
        assert_eq!(quantity("1e-2147483648").nanos(), 1);
        assert_eq!(quantity(&"9".repeat(200)).nanos(), i128::MAX);
    }

    proptest! {
        #[test]
        fn canonical_texts_keep_the_amount_and_are_stable(
            number in 0_u64..10_000_000, fraction in 0_u32..1000, suffix in "n|u|m||k|M|G|Ki|Mi|Gi|e3|e-3|e6",
        ) {
            let parsed = quantity(&format!("{number}.{fraction:03}{suffix}"));
            let canonical = parsed.canonical();
            let again = quantity(&canonical);
            prop_assert_eq!(again.nanos(), parsed.nanos());
            prop_assert_eq!(again.canonical(), canonical);
        }

        #[test]
        fn any_text_is_answered(text in "[-+0-9.eEinumkKMGTPx]{0,12}") {
            let _ = Quantity::parse(&text);
        }
    }
}
