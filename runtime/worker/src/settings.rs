//! What of this node its owner may set: thresholds under which pods are evicted, when unused images go, which sysctls pods
//! may ask for, and what is kept back from pods. Names and meanings are those of the kubelet's configuration.

use crate::users::UserNamespacePolicy;
use carob_api::quantity::Quantity;
use serde::{Deserialize, Deserializer, de};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// The settings. Unknown ones are refused.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct NodeSettings {
    /// Below these, pods are evicted at once: `{memory.available: 100Mi, nodefs.available: 5%}`.
    pub eviction_hard: BTreeMap<Signal, Threshold>,
    /// Below these for as long as `eviction_soft_grace_period` says, pods are evicted.
    pub eviction_soft: BTreeMap<Signal, Threshold>,
    /// How long each soft threshold may be passed.
    #[serde(deserialize_with = "durations")]
    pub eviction_soft_grace_period: BTreeMap<Signal, Duration>,
    /// How long a condition stays after its threshold was last passed.
    #[serde(deserialize_with = "duration")]
    pub eviction_pressure_transition_period: Duration,
    /// Above this part of the images' disk, unused images are removed…
    #[serde(rename = "imageGCHighThresholdPercent")]
    pub image_gc_high: u64,
    /// … until no more than this part is used.
    #[serde(rename = "imageGCLowThresholdPercent")]
    pub image_gc_low: u64,
    /// Images that were used more recently stay, however full the disk is.
    #[serde(rename = "imageMinimumGCAge", deserialize_with = "duration")]
    pub image_gc_min_age: Duration,
    /// Images that nobody has used for so long go; zero is never.
    #[serde(rename = "imageMaximumGCAge", deserialize_with = "duration")]
    pub image_gc_max_age: Duration,
    /// How often unused images are looked for (a constant in the kubelet).
    #[serde(rename = "imageGCPeriod", deserialize_with = "duration")]
    pub image_gc_period: Duration,
    /// Sysctls beyond the safe ones that pods may set: names, or beginnings of names followed by `*`.
    pub allowed_unsafe_sysctls: Vec<String>,
    /// How many pods the node takes.
    pub max_pods: u32,
    /// Which pods get users of their own.
    pub user_namespaces: UserNamespacePolicy,
    /// A `CredentialProviderConfig`: programs that know registries' credentials.
    pub image_credential_provider_config: Option<PathBuf>,
    /// The directory of these programs.
    pub image_credential_provider_bin_dir: Option<PathBuf>,
}

impl Default for NodeSettings {
    /// The kubelet's, but for the number of pods (110), who gets users of their own (who asks), and disks. It evicts where
    /// less than 10% and 15% is left: much of a large disk, and more than people's own machines often have. An amount is
    /// what pods and the store need whatever the disk's size.
    fn default() -> Self {
        let hard = [
            (Signal::MemoryAvailable, Threshold::Bytes(100 << 20)),
            (Signal::NodefsAvailable, Threshold::Bytes(512 << 20)),
            (Signal::NodefsInodesFree, Threshold::Part(0.01)),
            (Signal::ImagefsAvailable, Threshold::Bytes(512 << 20)),
            (Signal::ImagefsInodesFree, Threshold::Part(0.01)),
        ];
        Self {
            eviction_hard: hard.into(),
            eviction_soft: BTreeMap::new(),
            eviction_soft_grace_period: BTreeMap::new(),
            eviction_pressure_transition_period: Duration::from_secs(300),
            image_gc_high: 85,
            image_gc_low: 80,
            image_gc_min_age: Duration::from_secs(120),
            image_gc_max_age: Duration::ZERO,
            image_gc_period: Duration::from_secs(300),
            allowed_unsafe_sysctls: Vec::new(),
            max_pods: 1000,
            user_namespaces: UserNamespacePolicy::default(),
            image_credential_provider_config: None,
            image_credential_provider_bin_dir: None,
        }
    }
}

impl NodeSettings {
    /// What two settings together make wrong, if anything.
    pub fn check(&self) -> Result<(), String> {
        if self.image_gc_low >= self.image_gc_high || self.image_gc_high > 100 {
            return Err(
                "imageGCLowThresholdPercent must be below imageGCHighThresholdPercent, and that at most 100".into()
            );
        }
        match self.eviction_soft.keys().find(|signal| !self.eviction_soft_grace_period.contains_key(signal)) {
            Some(signal) => Err(format!("evictionSoftGracePeriod is missing for {}", signal.name())),
            None => Ok(()),
        }
    }
}

/// What is observed, in the order in which it is acted upon: memory first, as in the kubelet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
pub enum Signal {
    /// Memory that processes could get without swapping.
    #[serde(rename = "memory.available")]
    MemoryAvailable,
    /// Bytes of the disk that pods write to.
    #[serde(rename = "nodefs.available")]
    NodefsAvailable,
    /// Its inodes.
    #[serde(rename = "nodefs.inodesFree")]
    NodefsInodesFree,
    /// Bytes of the disk that images lie on.
    #[serde(rename = "imagefs.available")]
    ImagefsAvailable,
    /// Its inodes.
    #[serde(rename = "imagefs.inodesFree")]
    ImagefsInodesFree,
    /// Process ids.
    #[serde(rename = "pid.available")]
    PidAvailable,
}

impl Signal {
    /// As settings and messages write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::MemoryAvailable => "memory.available",
            Self::NodefsAvailable => "nodefs.available",
            Self::NodefsInodesFree => "nodefs.inodesFree",
            Self::ImagefsAvailable => "imagefs.available",
            Self::ImagefsInodesFree => "imagefs.inodesFree",
            Self::PidAvailable => "pid.available",
        }
    }
}

/// The least that must be left.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Threshold {
    /// An amount.
    Bytes(u64),
    /// A part of the whole, 0 to 1.
    Part(f64),
}

impl Threshold {
    /// The amount, of this whole.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_precision_loss,
        clippy::cast_sign_loss,
        reason = "parts are rough, and between nothing and the whole"
    )]
    pub fn of(self, capacity: u64) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Part(part) => (capacity as f64 * part) as u64,
        }
    }

    fn parse(text: &str) -> Option<Self> {
        if let Some(percent) = text.strip_suffix('%') {
            let percent: f64 = percent.parse().ok()?;
            return (0.0..=100.0).contains(&percent).then_some(Self::Part(percent / 100.0));
        }
        let amount = Quantity::parse(text).ok()?.value_ceil();
        u64::try_from(amount).ok().map(Self::Bytes)
    }
}

impl<'de> Deserialize<'de> for Threshold {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| de::Error::custom(format!("{text:?} is neither an amount nor a percentage")))
    }
}

fn parse_duration<E: de::Error>(text: &str) -> Result<Duration, E> {
    let wrong = || E::custom(format!("{text:?} is no duration, as in 2m or 1h30m"));
    let signed: jiff::SignedDuration = text.parse().map_err(|_| wrong())?;
    Duration::try_from(signed).map_err(|_| wrong())
}

fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    parse_duration(&String::deserialize(deserializer)?)
}

fn durations<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<Signal, Duration>, D::Error> {
    let all: BTreeMap<Signal, String> = BTreeMap::deserialize(deserializer)?;
    all.into_iter().map(|(signal, text)| Ok((signal, parse_duration(&text)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn thresholds_are_amounts_or_parts_and_soft_ones_need_their_time() {
        let read = |value: serde_json::Value| serde_json::from_value::<NodeSettings>(value);
        let settings = read(json!({"evictionHard": {"memory.available": "1Gi", "nodefs.available": "12.5%"},
            "evictionSoft": {"pid.available": "100"}, "imageMaximumGCAge": "1h30m"}))
        .unwrap();
        assert_eq!(settings.eviction_hard[&Signal::MemoryAvailable].of(0), 1 << 30);
        assert_eq!(settings.eviction_hard[&Signal::NodefsAvailable].of(800), 100);
        assert_eq!(settings.image_gc_max_age, Duration::from_secs(5400));
        assert_eq!(settings.check().unwrap_err(), "evictionSoftGracePeriod is missing for pid.available");
        assert!(NodeSettings::default().check().is_ok());
        for wrong in [
            json!({"evictionHard": {"memory": "1Gi"}}),
            json!({"evictionHard": {"memory.available": "lots"}}),
            json!({"evictionHard": {"nodefs.available": "101%"}}),
            json!({"imageMinimumGCAge": "soon"}),
            json!({"evictions": {}}),
        ] {
            assert!(read(wrong.clone()).is_err(), "{wrong}");
        }
    }
}
