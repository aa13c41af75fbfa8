//! Manifests, indexes and image configurations, as OCI and Docker (schema 2) write them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::{Error, ImageConfig};

pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(crate) const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";

/// What a registry is asked for, best first.
pub(crate) const ACCEPTED: [&str; 4] = [OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST];

/// An image with more layers than overlay can stack is of no use; real ones have fewer than 130.
const MAX_LAYERS: usize = 500;

/// A descriptor: the name, size and kind of another blob.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Part {
    #[serde(default)]
    pub media_type: String,
    pub digest: Digest,
    pub size: u64,
    #[serde(default, skip_serializing)]
    pub platform: Option<Platform>,
    #[serde(default, skip_serializing)]
    pub annotations: Option<BTreeMap<String, String>>,
}

impl Part {
    pub fn annotation(&self, key: &str) -> Option<&str> {
        self.annotations.as_ref()?.get(key).map(String::as_str)
    }
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Platform {
    #[serde(default)]
    pub architecture: String,
    #[serde(default)]
    pub os: String,
    #[serde(default)]
    pub variant: Option<String>,
}

impl Platform {
    fn runs_here(&self) -> bool {
        let variant = self.variant.as_deref().unwrap_or_default();
        self.os == "linux"
            && self.architecture == architecture()
            && (variant.is_empty() || self.architecture != "arm64" || variant == "v8")
    }
}

/// This machine's architecture by Go's names, which are those of image platforms.
pub(crate) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[derive(Debug)]
pub(crate) enum Document {
    Index(Vec<Part>),
    Manifest(Manifest),
}

#[derive(Clone, Debug)]
pub(crate) struct Manifest {
    pub config: Part,
    /// Lowest first.
    pub layers: Vec<Part>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDocument {
    schema_version: u32,
    #[serde(default)]
    media_type: Option<String>,
    #[serde(default)]
    config: Option<Part>,
    #[serde(default)]
    layers: Option<Vec<Part>>,
    #[serde(default)]
    manifests: Option<Vec<Part>>,
}

impl Document {
    /// Parses the document called `what` (its digest or file), which came as `content_type` if that is known.
    pub fn parse(what: &str, bytes: &[u8], content_type: Option<&str>) -> Result<Self, Error> {
        let malformed = |problem: String| Error::Malformed { what: what.to_owned(), problem };
        let raw: RawDocument = serde_json::from_slice(bytes).map_err(|error| malformed(error.to_string()))?;
        if raw.schema_version != 2 {
            return Err(malformed(format!("schema version {} is not supported", raw.schema_version)));
        }
        // A document that is both could be read as one by a scanner and as the other by us.
        if raw.manifests.is_some() && (raw.layers.is_some() || raw.config.is_some()) {
            return Err(malformed("it is both an index and a manifest".to_owned()));
        }
        let declared = raw.media_type.as_deref().or(content_type).unwrap_or_default();
        let fits = |kinds: [&str; 2]| kinds.contains(&declared) || !ACCEPTED.contains(&declared);
        match (raw.manifests, raw.config, raw.layers) {
            (Some(manifests), ..) if fits([OCI_INDEX, DOCKER_LIST]) => Ok(Self::Index(manifests)),
            (None, Some(config), Some(layers)) if fits([OCI_MANIFEST, DOCKER_MANIFEST]) => {
                if layers.is_empty() || layers.len() > MAX_LAYERS {
                    return Err(malformed(format!("{} layers", layers.len())));
                }
                Ok(Self::Manifest(Manifest { config, layers }))
            }
            _ => Err(malformed(format!("its content is not that of its type {declared:?}"))),
        }
    }
}

/// The entry of an index that runs on this machine.
pub(crate) fn choose<'a>(what: &str, entries: &'a [Part]) -> Result<&'a Part, Error> {
    let unlabelled = || match entries {
        [only] if only.platform.is_none() => Some(only),
        _ => None,
    };
    entries
        .iter()
        .find(|entry| entry.platform.as_ref().is_some_and(Platform::runs_here))
        .or_else(unlabelled)
        .ok_or_else(|| no_platform(what))
}

pub(crate) fn no_platform(what: &str) -> Error {
    Error::NoPlatform { platform: format!("linux/{}", architecture()), what: what.to_owned() }
}

/// An image configuration: what to run, and which layers it is made of.
#[derive(Clone, Debug)]
pub(crate) struct Configuration {
    pub run: ImageConfig,
    /// Digests of the uncompressed layers, lowest first.
    pub diff_ids: Vec<Digest>,
}

#[derive(Deserialize)]
struct RawConfiguration {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
    #[serde(default)]
    config: Option<RawRun>,
    rootfs: RawRootfs,
}

#[derive(Deserialize)]
struct RawRootfs {
    #[serde(default)]
    diff_ids: Vec<Digest>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct RawRun {
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    env: Option<Vec<String>>,
    working_dir: Option<String>,
    user: Option<String>,
    stop_signal: Option<String>,
    exposed_ports: Option<BTreeMap<String, serde_json::Value>>,
    volumes: Option<BTreeMap<String, serde_json::Value>>,
    labels: Option<BTreeMap<String, String>>,
}

impl Configuration {
    pub fn parse(what: &str, bytes: &[u8]) -> Result<Self, Error> {
        let raw: RawConfiguration = serde_json::from_slice(bytes)
            .map_err(|error| Error::Malformed { what: what.to_owned(), problem: error.to_string() })?;
        let other = |value: &str, ours: &str| !value.is_empty() && value != ours;
        if other(&raw.os, "linux") || other(&raw.architecture, architecture()) {
            return Err(no_platform(what));
        }
        let run = raw.config.unwrap_or_default();
        let pair = |text: String| match text.split_once('=') {
            Some((name, value)) => (name.to_owned(), value.to_owned()),
            None => (text, String::new()),
        };
        Ok(Self {
            diff_ids: raw.rootfs.diff_ids,
            run: ImageConfig {
                entrypoint: run.entrypoint.unwrap_or_default(),
                cmd: run.cmd.unwrap_or_default(),
                env: run.env.unwrap_or_default().into_iter().map(pair).collect(),
                working_dir: run.working_dir.unwrap_or_default(),
                user: run.user.unwrap_or_default(),
                stop_signal: run.stop_signal.filter(|signal| !signal.is_empty()),
                exposed_ports: run.exposed_ports.unwrap_or_default().into_keys().collect(),
                volumes: run.volumes.unwrap_or_default().into_keys().collect(),
                labels: run.labels.unwrap_or_default().into_iter().collect(),
            },
        })
    }

    /// The diff ids, which must be as many as the manifest has layers.
    pub fn check_layers(&self, what: &str, manifest: &Manifest) -> Result<(), Error> {
        if self.diff_ids.len() == manifest.layers.len() {
            return Ok(());
        }
        let problem = format!(
            "the configuration lists {} layers and the manifest {}",
            self.diff_ids.len(),
            manifest.layers.len()
        );
        Err(Error::Malformed { what: what.to_owned(), problem })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(platform: Option<(&str, &str)>) -> Part {
        Part {
            media_type: OCI_MANIFEST.to_owned(),
            digest: Digest::of(format!("{platform:?}").as_bytes()),
            size: 1,
            platform: platform.map(|(os, architecture)| Platform {
                architecture: architecture.to_owned(),
                os: os.to_owned(),
                variant: None,
            }),
            annotations: None,
        }
    }

    #[test]
    fn an_index_gives_this_machines_image() {
        let here = part(Some(("linux", architecture())));
        let entries = [part(Some(("unknown", "unknown"))), part(Some(("windows", architecture()))), here.clone()];
        assert_eq!(choose("x", &entries).unwrap().digest, here.digest);
        assert!(matches!(choose("x", &entries[..2]), Err(Error::NoPlatform { .. })));
        assert!(choose("x", &[part(None)]).is_ok());
    }

    #[test]
    fn a_document_cannot_be_two_things() {
        let digest = Digest::of(b"x");
        let part = format!(r#"{{"mediaType":"m","digest":"{digest}","size":3}}"#);
        let both = format!(r#"{{"schemaVersion":2,"config":{part},"layers":[{part}],"manifests":[]}}"#);
        let manifest = format!(r#"{{"schemaVersion":2,"config":{part},"layers":[{part}]}}"#);
        assert!(Document::parse("x", both.as_bytes(), None).is_err());
        assert!(Document::parse("x", manifest.as_bytes(), Some(OCI_INDEX)).is_err());
        assert!(matches!(Document::parse("x", manifest.as_bytes(), Some("text/plain")), Ok(Document::Manifest(_))));
        assert!(Document::parse("x", br#"{"schemaVersion":1}"#, None).is_err());
    }

    #[test]
    fn a_configuration_with_nulls_is_read() {
        let text = r#"{"os":"linux","config":{"Entrypoint":null,"Cmd":["sh"],"Env":["A=b=c"],"Volumes":{"/d":{}},
            "StopSignal":""},"rootfs":{"type":"layers","diff_ids":[]}}"#;
        let run = Configuration::parse("x", text.as_bytes()).unwrap().run;
        assert_eq!(run.env, [("A".to_owned(), "b=c".to_owned())]);
        assert_eq!((run.cmd, run.volumes, run.stop_signal), (vec!["sh".to_owned()], vec!["/d".to_owned()], None));
        let other = r#"{"os":"linux","architecture":"s390x","rootfs":{}}"#;
        assert!(matches!(Configuration::parse("x", other.as_bytes()), Err(Error::NoPlatform { .. })));
    }
}
