//! The price book: what a second of CPU and of memory costs, and a GiB on the network.

use std::path::Path;

use rust_decimal::Decimal;
use serde::{Deserialize, Serialize};

use crate::Traffic;

/// Prices, as the file has them:
///
/// ```yaml
/// currency: EUR
/// vcpuSecond: "0.0000112"      # one vCPU, busy for one second
/// gibSecond: "0.0000012"       # one GiB, held for one second
/// requestFloor: false          # true: at least what was requested is billed
/// internetSentGib: "0.09"      # one GiB that a pod sent out of the cluster; 0 if it isn't there, as the following
/// internetReceivedGib: "0"
/// clusterSentGib: "0"
/// clusterReceivedGib: "0"
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct PriceBook {
    /// ISO 4217.
    pub currency: String,
    /// Price of a vCPU-second.
    pub vcpu_second: Decimal,
    /// Price of a GiB-second.
    pub gib_second: Decimal,
    /// Bill what was requested where less was used.
    #[serde(default)]
    pub request_floor: bool,
    /// Price of a GiB from outside the cluster.
    #[serde(default)]
    pub internet_received_gib: Decimal,
    /// Price of a GiB to outside the cluster.
    #[serde(default)]
    pub internet_sent_gib: Decimal,
    /// Price of a GiB from within the cluster.
    #[serde(default)]
    pub cluster_received_gib: Decimal,
    /// Price of a GiB to within the cluster.
    #[serde(default)]
    pub cluster_sent_gib: Decimal,
}

/// List prices in the range of the large clouds', so that a bill without a price book shows something to think about.
impl Default for PriceBook {
    fn default() -> Self {
        Self {
            currency: "USD".to_owned(),
            vcpu_second: Decimal::new(112_444, 10),
            gib_second: Decimal::new(12_347, 10),
            request_floor: false,
            internet_received_gib: Decimal::ZERO,
            internet_sent_gib: Decimal::ZERO,
            cluster_received_gib: Decimal::ZERO,
            cluster_sent_gib: Decimal::ZERO,
        }
    }
}

/// What is wrong with a price book.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file can't be read.
    #[error("cannot read the price book")]
    Unreadable(#[source] std::io::Error),
    /// The file isn't a price book.
    #[error("not a price book")]
    Malformed(#[source] serde_saphyr::Error),
    /// A price that can't be.
    #[error("{field}: {value} is no price: from 0 to 1000000, with at most 18 decimals")]
    NoPrice {
        /// Which.
        field: &'static str,
        /// What it says.
        value: Decimal,
    },
}

impl PriceBook {
    /// Reads a file.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let text = std::fs::read_to_string(path).map_err(Error::Unreadable)?;
        Self::parse(&text)
    }

    /// Parses the YAML of a file.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let book: Self = serde_saphyr::from_str(text).map_err(Error::Malformed)?;
        for (field, value) in [
            ("vcpuSecond", book.vcpu_second),
            ("gibSecond", book.gib_second),
            ("internetReceivedGib", book.internet_received_gib),
            ("internetSentGib", book.internet_sent_gib),
            ("clusterReceivedGib", book.cluster_received_gib),
            ("clusterSentGib", book.cluster_sent_gib),
        ] {
            if value.is_sign_negative() || value > Decimal::from(1_000_000) || value.normalize().scale() > 18 {
                return Err(Error::NoPrice { field, value });
            }
        }
        Ok(book)
    }

    /// The cost of CPU time (nanoseconds) and memory (byte-nanoseconds).
    pub(crate) fn cost(&self, cpu_ns: u128, memory_byte_ns: u128) -> Cost {
        // price in 10^-18 units x seconds x 10^-9: 10^-27 units, exact. A GiB-second is 2^30 x 10^9 byte-nanoseconds.
        let cpu = cpu_ns.saturating_mul(atto(self.vcpu_second));
        let whole = (memory_byte_ns >> 30).saturating_mul(atto(self.gib_second));
        let rest = ((memory_byte_ns & ((1 << 30) - 1)).saturating_mul(atto(self.gib_second))) >> 30;
        Cost(cpu.saturating_add(whole).saturating_add(rest))
    }

    /// The cost of what was received and sent.
    pub(crate) fn traffic_cost(&self, traffic: Traffic) -> Cost {
        let prices =
            [self.internet_received_gib, self.internet_sent_gib, self.cluster_received_gib, self.cluster_sent_gib];
        let costs = traffic.all().into_iter().zip(prices).map(|(bytes, price)| {
            // A byte costs 2^-30 of the price: what is left below that is carried on to 10^-27 units.
            const NANO: u128 = 1_000_000_000;
            let (product, rest) = (u128::from(bytes).saturating_mul(atto(price)), (1 << 30) - 1);
            (product >> 30).saturating_mul(NANO).saturating_add(((product & rest) * NANO) >> 30)
        });
        Cost(costs.fold(0, u128::saturating_add))
    }
}

fn atto(price: Decimal) -> u128 {
    let scale = price.scale();
    let mantissa = price.mantissa().unsigned_abs();
    if scale <= 18 { mantissa * 10_u128.pow(18 - scale) } else { mantissa / 10_u128.pow(scale - 18) }
}

/// Money in 10^-27 of the currency's unit: fine enough that no reading's cost is ever rounded away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Cost(pub(crate) u128);

impl Cost {
    /// In nano-units, rounded down.
    pub(crate) fn nano_units(self) -> u128 {
        self.0 / 10_u128.pow(18)
    }
}

/// Nano-units as a decimal number of units.
pub(crate) fn decimal(nano_units: u128) -> String {
    format!("{}.{:09}", nano_units / 1_000_000_000, nano_units % 1_000_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn book(vcpu: &str, gib: &str) -> PriceBook {
        PriceBook::parse(&format!("currency: EUR\nvcpuSecond: {vcpu:?}\ngibSecond: {gib:?}\n")).unwrap()
    }

    #[test]
    fn a_vcpu_second_and_a_gib_second_cost_their_price() {
        let book = book("0.5", "0.25");
        assert_eq!(book.cost(1_000_000_000, 0).nano_units(), 500_000_000);
        assert_eq!(book.cost(0, (1 << 30) * 1_000_000_000).nano_units(), 250_000_000);
        assert_eq!(decimal(750_000_000), "0.750000000");
    }

    #[test]
    fn each_way_of_a_gib_has_its_price_and_a_byte_is_not_rounded_away() {
        let text = "currency: EUR\nvcpuSecond: '0'\ngibSecond: '0'\ninternetReceivedGib: '1'\ninternetSentGib: '2'\n\
            clusterReceivedGib: '4'\nclusterSentGib: '8'\n";
        let book = PriceBook::parse(text).unwrap();
        let gib = 1 << 30;
        let traffic = Traffic {
            internet_received_bytes: gib,
            internet_sent_bytes: gib,
            cluster_received_bytes: gib,
            cluster_sent_bytes: gib,
        };
        assert_eq!(book.traffic_cost(traffic).nano_units(), 15_000_000_000);
        let byte = Traffic { internet_sent_bytes: 1, ..Traffic::default() };
        assert_eq!(book.traffic_cost(byte), Cost((2 * 10_u128.pow(27)) >> 30));
        assert_eq!(PriceBook::default().traffic_cost(traffic), Cost(0));
        assert!(PriceBook::parse(&text.replace("'8'", "'-8'")).is_err());
    }

    #[test]
    fn a_single_nanosecond_is_not_rounded_away() {
        assert_eq!(book("0.0000112", "0").cost(1, 0), Cost(11_200_000_000_000));
    }

    #[test]
    fn impossible_prices_and_unknown_fields_are_refused() {
        for text in [
            "currency: EUR\nvcpuSecond: '-1'\ngibSecond: '0'\n",
            "currency: EUR\nvcpuSecond: '1'\ngibSecond: '2000000'\n",
            "currency: EUR\nvcpuSecond: '1'\n",
            "currency: EUR\nvcpuSecond: '1'\ngibSecond: '1'\ngibHour: '1'\n",
        ] {
            assert!(PriceBook::parse(text).is_err(), "{text}");
        }
    }
}
