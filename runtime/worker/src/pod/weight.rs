//! What a pod says of itself when the node is short of something: what it asked for, and where what it takes can be read.

use super::actor::Actor;
use crate::container::resources;
use crate::files::PodFiles;
use carob_sandbox::ContainerId;
use std::path::PathBuf;

/// From this priority on nothing is evicted (Kubernetes' system-cluster-critical).
const CRITICAL: i32 = 2_000_000_000;
const STORAGE: &str = "ephemeral-storage";

/// A pod's share of the node.
#[derive(Debug, Clone)]
pub(crate) struct Weight {
    pub uid: String,
    pub priority: i32,
    pub critical: bool,
    /// It is on its way out already.
    pub ending: bool,
    pub containers: Vec<Part>,
    /// Its volumes on this node's disk.
    pub volumes: Vec<PathBuf>,
    /// The images that it runs, by all the names that they are known by here.
    pub images: Vec<String>,
}

/// One container's share.
#[derive(Debug, Clone)]
pub(crate) struct Part {
    pub name: String,
    pub running: Option<ContainerId>,
    pub memory_request: u64,
    pub storage_request: u64,
    /// Its writable layers and its logs.
    pub places: [PathBuf; 2],
}

/// Whether the pod is never evicted for others' sake.
pub(crate) fn is_critical(priority: Option<i32>) -> bool {
    priority.is_some_and(|priority| priority >= CRITICAL)
}

impl Actor {
    pub(super) fn weight(&self) -> Weight {
        let spec = self.spec();
        let directory = self.ctx.dirs.pod(&self.uid);
        let logs = self.ctx.dirs.pod_logs(&self.namespace, &self.name, &self.uid);
        let part = |index: usize| {
            let (record, container) = (&self.records[index], self.container(index));
            let asked = resources::requests(container.resources.as_ref()).and_then(|asked| asked.get(STORAGE));
            let storage = asked.map_or(0, resources::value);
            Part {
                name: record.name.clone(),
                running: self.controls[index].live.as_ref().map(|live| live.id.clone()),
                memory_request: u64::try_from(resources::container_requests(container).memory_bytes).unwrap_or(0),
                storage_request: u64::try_from(storage).unwrap_or(0),
                places: [directory.join("containers").join(&record.name), logs.join(&record.name)],
            }
        };
        let resolved = self.records.iter().flat_map(|record| record.resolved.iter());
        let resolved = resolved.flat_map(|(reference, id)| [reference.clone(), id.clone()]);
        let wanted = self.records.iter().map(|record| record.image.clone());
        let shown = spec.volumes.iter().flatten().filter_map(|volume| volume.image.as_ref()?.reference.clone());
        let local = spec.volumes.iter().flatten().filter(|volume| {
            volume.empty_dir.as_ref().is_some_and(|source| source.medium.as_deref() != Some("Memory"))
                || volume.config_map.is_some()
                || volume.downward_api.is_some()
        });
        Weight {
            uid: self.uid.clone(),
            priority: spec.priority.unwrap_or(0),
            critical: is_critical(spec.priority),
            ending: self.stopping.is_some() || self.verdict.is_some(),
            containers: (0..self.records.len()).map(part).collect(),
            volumes: local
                .map(|volume| directory.join("volumes").join(&volume.name))
                .chain(PodFiles::existing(&directory).paths())
                .collect(),
            images: resolved.chain(wanted).chain(shown).collect(),
        }
    }
}
