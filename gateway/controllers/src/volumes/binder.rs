//! Binds claims to volumes, makes volumes for claims of a class of directories, and takes back those that are released.
//!
//! A binding is two references that agree. Each look sets one of them, the volume's first, so that two claims never get
//! one volume; whatever is cut off in between is finished by the next look.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use carob_api::quantity::Quantity;
use k8s_openapi::api::core::v1::{
    Node, ObjectReference, PersistentVolume, PersistentVolumeClaim, PersistentVolumeClaimStatus, PersistentVolumeStatus,
};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Amount;
use kube::api::{Api, DeleteParams, PostParams, Preconditions};
use serde_json::{Value, json};

use super::{
    BIND_COMPLETED, BOUND_BY_CONTROLLER, PROVISIONED_BY, annotation, claim_key, claim_phase, directory, is_for,
    volume_name, volume_phase,
};
use crate::cluster::Cluster;
use crate::controller::{Controller, Setup};
use crate::events::Voice;
use crate::informer::Key;
use crate::ownership::Selector;
use crate::queue::{Again, Queue};
use crate::replica_set::tolerate_gone;
use crate::scheduler::volumes::SELECTED_NODE;
use crate::status;

/// On claims: who is to make their volume.
const STORAGE_PROVISIONER: [&str; 2] =
    ["volume.beta.kubernetes.io/storage-provisioner", "volume.kubernetes.io/storage-provisioner"];

pub(crate) struct Binder {
    cluster: Cluster,
    voice: Voice,
    /// Where directories of volumes are made; none if nobody could mount them.
    root: Option<PathBuf>,
}

/// What is looked at.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Item {
    Claim(Key),
    Volume(String),
}

impl Controller for Binder {
    type Item = Item;
    const NAME: &'static str = "persistent-volume-binder";
    const VOICE: &'static str = "persistentvolume-controller";

    fn new(setup: &Setup<'_>) -> Self {
        let root = setup.options.volumes.clone();
        Self { cluster: setup.cluster.clone(), voice: setup.voice.clone(), root }
    }

    fn listen(self: &Arc<Self>, _: &Setup<'_>, queue: &Queue<Item>) {
        let items = queue.clone();
        self.cluster.claims.on_change(move |change| {
            let Some(claim) = change.new.or(change.old) else { return };
            items.add(Item::Claim(Key::of(&**claim)));
            volume_name(claim).into_iter().for_each(|name| items.add(Item::Volume(name.to_owned())));
        });
        let (claims, items) = (self.cluster.claims.clone(), queue.clone());
        self.cluster.volumes.on_change(move |change| {
            let Some(volume) = change.new.or(change.old) else { return };
            let name = volume.metadata.name.clone().unwrap_or_default();
            items.add(Item::Volume(name.clone()));
            claim_key(volume).into_iter().for_each(|key| items.add(Item::Claim(key)));
            // A volume that is free, or is the one that a claim asks for by name.
            let waits = |claim: &PersistentVolumeClaim| {
                volume_name(claim).map_or(claim_phase(claim) != "Bound", |known| known == name)
            };
            claims.list(waits).iter().for_each(|claim| items.add(Item::Claim(Key::of(&**claim))));
        });
        let (claims, items) = (self.cluster.claims.clone(), queue.clone());
        self.cluster.storage_classes.on_change(move |_| {
            let waiting = claims.list(|claim| claim_phase(claim) != "Bound");
            waiting.iter().for_each(|claim| items.add(Item::Claim(Key::of(&**claim))));
        });
    }

    async fn reconcile(&self, item: Item) -> Result<Again, kube::Error> {
        match item {
            Item::Claim(key) => {
                let Some(claim) = self.cluster.claims.get(&key) else { return Ok(None) };
                if annotation(&claim.metadata, BIND_COMPLETED).is_some() {
                    self.keep(&claim).await?;
                } else if claim.metadata.deletion_timestamp.is_none() {
                    self.find(&claim).await?;
                }
            }
            Item::Volume(name) => {
                if let Some(volume) = self.cluster.volumes.get(&Key::new("", name)) {
                    self.settle(&volume).await?;
                }
            }
        }
        Ok(None)
    }
}

impl Binder {
    /// A claim that was bound: whether it still is.
    async fn keep(&self, claim: &Arc<PersistentVolumeClaim>) -> Result<(), kube::Error> {
        let volume = volume_name(claim).and_then(|name| self.cluster.volumes.get(&Key::new("", name)));
        match volume {
            Some(volume) if is_for(&volume, claim) => {
                let volume = self.grow(claim, volume).await?;
                self.bind(claim, &volume).await
            }
            Some(volume) if claim_key(&volume).is_none() => self.bind(claim, &volume).await,
            other => {
                if claim_phase(claim) != "Lost" {
                    let (reason, text) = match other {
                        Some(_) => {
                            ("ClaimMisbound", "Two claims are bound to the same volume, this one is bound incorrectly")
                        }
                        None => ("ClaimLost", "Bound claim has lost its PersistentVolume. Data on the volume is lost!"),
                    };
                    // The copy of the volumes may be behind that of the claims.
                    let api: Api<PersistentVolume> = Api::all(self.cluster.client.clone());
                    let live = api.get_opt(volume_name(claim).unwrap_or_default()).await?;
                    if live.is_some_and(|volume| is_for(&volume, claim)) {
                        return Ok(());
                    }
                    self.voice.warning(&**claim, reason, text.to_owned());
                    let lost = PersistentVolumeClaimStatus {
                        phase: Some("Lost".to_owned()),
                        ..PersistentVolumeClaimStatus::default()
                    };
                    self.claim_status(claim, &lost).await?;
                }
                Ok(())
            }
        }
    }

    /// A directory grows with its claim: nothing has to be done to it. Other volumes' makers see to theirs.
    async fn grow(
        &self,
        claim: &Arc<PersistentVolumeClaim>,
        volume: Arc<PersistentVolume>,
    ) -> Result<Arc<PersistentVolume>, kube::Error> {
        let requests = claim.spec.as_ref().and_then(|spec| spec.resources.as_ref()?.requests.as_ref());
        let capacity = volume.spec.as_ref().and_then(|spec| spec.capacity.as_ref());
        let is_directory = annotation(&volume.metadata, PROVISIONED_BY) == Some(directory::PROVISIONER);
        if !is_directory || storage(requests) <= storage(capacity) {
            return Ok(volume);
        }
        let patch = json!({
            "metadata": {"uid": volume.metadata.uid, "resourceVersion": volume.metadata.resource_version},
            "spec": {"capacity": requests},
        });
        let api: Api<PersistentVolume> = Api::all(self.cluster.client.clone());
        match status::change(&api, &volume, patch).await {
            Ok(grown) => {
                self.cluster.volumes.learn(grown.clone());
                self.voice.normal(&**claim, "VolumeResizeSuccessful", "Resize volume succeeded".to_owned());
                Ok(Arc::new(grown))
            }
            // Somebody was faster: another look, at what there is then.
            Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => Ok(volume),
            Err(error) => Err(error),
        }
    }

    /// A claim without a volume: finds one, has one made, or says what it waits for.
    async fn find(&self, claim: &Arc<PersistentVolumeClaim>) -> Result<(), kube::Error> {
        if let Some(name) = volume_name(claim) {
            let Some(volume) = self.cluster.volumes.get(&Key::new("", name)) else {
                return self.pend(claim).await;
            };
            if claim_key(&volume).is_none() || is_for(&volume, claim) {
                return self.bind(claim, &volume).await;
            }
            let text = format!("volume {name:?} already bound to a different claim.");
            self.voice.warning(&**claim, "FailedBinding", text);
            return self.pend(claim).await;
        }
        let class_name = claim.spec.as_ref().and_then(|spec| spec.storage_class_name.clone()).unwrap_or_default();
        let class = self.cluster.storage_classes.get(&Key::new("", &class_name));
        let waits =
            class.as_ref().is_some_and(|class| class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer"));
        let node = annotation(&claim.metadata, SELECTED_NODE);
        let undecided = waits && node.is_none();
        if let Some(volume) = self.match_for(claim, undecided) {
            return self.bind(claim, &volume).await;
        }
        self.pend(claim).await?;
        match class {
            _ if undecided => {
                let text = "waiting for first consumer to be created before binding";
                self.voice.normal(&**claim, "WaitForFirstConsumer", text.to_owned());
                Ok(())
            }
            Some(class) => self.provision(claim, &class, node).await,
            None if class_name.is_empty() => {
                let text = "no persistent volumes available for this claim and no storage class is set";
                self.voice.normal(&**claim, "FailedBinding", text.to_owned());
                Ok(())
            }
            None => {
                let text = format!("storageclass.storage.k8s.io {class_name:?} not found");
                self.voice.warning(&**claim, "ProvisioningFailed", text);
                Ok(())
            }
        }
    }

    async fn provision(
        &self,
        claim: &Arc<PersistentVolumeClaim>,
        class: &StorageClass,
        node: Option<&str>,
    ) -> Result<(), kube::Error> {
        let provisioner = &class.provisioner;
        if provisioner == "kubernetes.io/no-provisioner" {
            let text = "no volume plugin matched name: kubernetes.io/no-provisioner";
            self.voice.warning(&**claim, "ProvisioningFailed", text.to_owned());
            return Ok(());
        }
        let notes: Value = STORAGE_PROVISIONER.iter().map(|key| ((*key).to_owned(), json!(provisioner))).collect();
        if STORAGE_PROVISIONER.iter().any(|key| annotation(&claim.metadata, key) != Some(provisioner)) {
            self.patch_claim(claim, json!({"metadata": {"annotations": notes}})).await?;
        }
        let Some(root) = self.root.as_ref().filter(|_| provisioner == directory::PROVISIONER) else {
            let text = format!(
                "Waiting for a volume to be created either by the external provisioner '{provisioner}' or manually by the \
                 system administrator. If volume creation is delayed, please verify that the provisioner is running and \
                 correctly registered."
            );
            self.voice.normal(&**claim, "ExternalProvisioning", text);
            return Ok(());
        };
        if claim.spec.as_ref().and_then(|spec| spec.volume_mode.as_deref()) == Some("Block") {
            let text = format!("{provisioner} does not support block volume provisioning");
            self.voice.warning(&**claim, "ProvisioningFailed", text);
            return Ok(());
        }
        let nodes = self.cluster.nodes.list(|known: &Node| node.is_none() || known.metadata.name.as_deref() == node);
        let Some(node) = nodes.first() else { return Ok(()) };
        let made = match directory::make(root, claim, class, node).await {
            Ok(volume) => volume,
            Err(error) => {
                let text = format!(
                    "failed to provision volume with StorageClass {:?}: {error}",
                    class.metadata.name.as_deref().unwrap_or_default()
                );
                self.voice.warning(&**claim, "ProvisioningFailed", text);
                return Ok(());
            }
        };
        let api: Api<PersistentVolume> = Api::all(self.cluster.client.clone());
        let name = made.metadata.name.clone().unwrap_or_default();
        match api.create(&PostParams::default(), &made).await {
            Ok(volume) => {
                let text = format!("Successfully provisioned volume {name}");
                self.voice.normal(&**claim, "ProvisioningSucceeded", text);
                self.cluster.volumes.put(volume);
                Ok(())
            }
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The smallest volume that will do; of those that are reserved for the claim, that one.
    fn match_for(&self, claim: &PersistentVolumeClaim, reserved_only: bool) -> Option<Arc<PersistentVolume>> {
        let spec = claim.spec.clone().unwrap_or_default();
        let selector = spec.selector.as_ref().map(|written| Selector::read_or_everything(Some(written)));
        let size = storage;
        let wanted = size(spec.resources.as_ref().and_then(|resources| resources.requests.as_ref()));
        let modes = spec.access_modes.clone().unwrap_or_default();
        let mode = |mode: Option<&String>| mode.map_or("Filesystem", String::as_str).to_owned();
        let mut fitting: Vec<(bool, i128, Arc<PersistentVolume>)> = Vec::new();
        for volume in self.cluster.volumes.list(|volume| volume.metadata.deletion_timestamp.is_none()) {
            let known = volume.spec.clone().unwrap_or_default();
            let reserved = claim_key(&volume).is_some();
            if reserved && !is_for(&volume, claim) || !reserved && reserved_only {
                continue;
            }
            let fits = size(known.capacity.as_ref()) >= wanted
                && mode(known.volume_mode.as_ref()) == mode(spec.volume_mode.as_ref())
                && known.storage_class_name.unwrap_or_default() == spec.storage_class_name.clone().unwrap_or_default()
                && modes.iter().all(|mode| known.access_modes.iter().flatten().any(|known| known == mode))
                && selector.as_ref().is_none_or(|selector| selector.matches(&volume.metadata));
            let free = reserved || matches!(volume_phase(&volume), "" | "Pending" | "Available");
            if fits && free || reserved {
                fitting.push((!reserved, size(known.capacity.as_ref()), volume));
            }
        }
        fitting.sort_by_key(|(free, size, volume)| (*free, *size, volume.metadata.name.clone()));
        fitting.into_iter().next().map(|(_, _, volume)| volume)
    }

    /// Makes claim and volume refer to each other: first the volume, then the claim.
    async fn bind(
        &self,
        claim: &Arc<PersistentVolumeClaim>,
        volume: &Arc<PersistentVolume>,
    ) -> Result<(), kube::Error> {
        let reference = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
        if reference.and_then(|reference| reference.uid.as_ref()) != claim.metadata.uid.as_ref() {
            let reference = ObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("PersistentVolumeClaim".to_owned()),
                namespace: claim.metadata.namespace.clone(),
                name: claim.metadata.name.clone(),
                uid: claim.metadata.uid.clone(),
                resource_version: claim.metadata.resource_version.clone(),
                field_path: None,
            };
            let mut patch = json!({
                "metadata": {"uid": volume.metadata.uid, "resourceVersion": volume.metadata.resource_version},
                "spec": {"claimRef": reference},
            });
            if claim_key(volume).is_none() {
                patch["metadata"]["annotations"] = json!({BOUND_BY_CONTROLLER: "yes"});
            }
            let api: Api<PersistentVolume> = Api::all(self.cluster.client.clone());
            match status::change(&api, volume, patch).await {
                Ok(volume) => self.cluster.volumes.learn(volume),
                // Somebody was faster: another look, at what there is then.
                Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        let name = volume.metadata.name.as_deref().unwrap_or_default();
        let mut notes = json!({});
        if annotation(&claim.metadata, BIND_COMPLETED).is_none() {
            notes[BIND_COMPLETED] = json!("yes");
            if volume_name(claim).is_none() {
                notes[BOUND_BY_CONTROLLER] = json!("yes");
            }
        }
        let mut claim = Arc::clone(claim);
        if volume_name(&claim) != Some(name) || notes != json!({}) {
            let patch = json!({"metadata": {"annotations": notes}, "spec": {"volumeName": name}});
            let Some(written) = self.patch_claim(&claim, patch).await? else { return Ok(()) };
            claim = Arc::new(written);
        }
        let spec = volume.spec.clone().unwrap_or_default();
        let bound = PersistentVolumeClaimStatus {
            phase: Some("Bound".to_owned()),
            access_modes: spec.access_modes,
            capacity: spec.capacity,
            ..claim.status.clone().unwrap_or_default()
        };
        self.claim_status(&claim, &bound).await
    }

    async fn pend(&self, claim: &Arc<PersistentVolumeClaim>) -> Result<(), kube::Error> {
        let pending = PersistentVolumeClaimStatus {
            phase: Some("Pending".to_owned()),
            ..claim.status.clone().unwrap_or_default()
        };
        self.claim_status(claim, &pending).await
    }

    /// What a volume's phase should be; and its end, if it is released and to be deleted.
    async fn settle(&self, volume: &Arc<PersistentVolume>) -> Result<(), kube::Error> {
        let phase = match claim_key(volume) {
            None => "Available",
            Some(key) => {
                let uid =
                    volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref()?.uid.clone()).unwrap_or_default();
                let claim = self.cluster.claims.get(&key);
                match claim {
                    // Reserved for a claim by name; it will say so itself.
                    _ if uid.is_empty() => "Available",
                    Some(claim) if claim.metadata.uid.as_ref() == Some(&uid) => match volume_name(&claim) {
                        Some(name) if Some(name) == volume.metadata.name.as_deref() => "Bound",
                        // Being bound at this moment, from the other side.
                        None => return Ok(()),
                        Some(_) => "Released",
                    },
                    _ => {
                        // The copy of the claims may be behind that of the volumes.
                        let api: Api<PersistentVolumeClaim> =
                            Api::namespaced(self.cluster.client.clone(), &key.namespace);
                        let live = api.get_opt(&key.name).await?;
                        if live.is_some_and(|live| live.metadata.uid.as_ref() == Some(&uid)) {
                            return Ok(());
                        }
                        "Released"
                    }
                }
            }
        };
        // One that failed to be deleted stays so until somebody looks after it.
        if volume_phase(volume) != phase && !(phase == "Released" && volume_phase(volume) == "Failed") {
            self.volume_status(volume, phase, None).await?;
        }
        let reclaims =
            volume.spec.as_ref().and_then(|spec| spec.persistent_volume_reclaim_policy.as_deref()) == Some("Delete");
        if phase == "Released" && reclaims && volume.metadata.deletion_timestamp.is_none() {
            self.reclaim(volume).await?;
        }
        Ok(())
    }

    async fn reclaim(&self, volume: &Arc<PersistentVolume>) -> Result<(), kube::Error> {
        let by = annotation(&volume.metadata, PROVISIONED_BY);
        let Some(root) = self.root.as_ref().filter(|_| by == Some(directory::PROVISIONER)) else {
            if by.is_none() && volume_phase(volume) != "Failed" {
                let text = "error getting deleter volume plugin for volume: no deletable volume plugin matched";
                self.voice.warning(&**volume, "VolumeFailedDelete", text.to_owned());
                self.volume_status(volume, "Failed", Some(text)).await?;
            }
            return Ok(());
        };
        if let Err(error) = directory::remove(root, volume).await {
            let text = error.to_string();
            self.voice.warning(&**volume, "VolumeFailedDelete", text.clone());
            return self.volume_status(volume, "Failed", Some(&text)).await;
        }
        let api: Api<PersistentVolume> = Api::all(self.cluster.client.clone());
        let preconditions = Preconditions { uid: volume.metadata.uid.clone(), resource_version: None };
        let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
        tolerate_gone(api.delete(volume.metadata.name.as_deref().unwrap_or_default(), &params).await.map(|_| ()))
    }

    async fn volume_status(
        &self,
        volume: &PersistentVolume,
        phase: &str,
        message: Option<&str>,
    ) -> Result<(), kube::Error> {
        let new = PersistentVolumeStatus {
            phase: Some(phase.to_owned()),
            last_phase_transition_time: Some(status::now()),
            message: message.map(str::to_owned),
            reason: None,
        };
        let api: Api<PersistentVolume> = Api::all(self.cluster.client.clone());
        status::write_in(&api, &self.cluster.volumes, volume, volume.status.as_ref(), &new).await.map(|_| ())
    }

    async fn claim_status(
        &self,
        claim: &PersistentVolumeClaim,
        new: &PersistentVolumeClaimStatus,
    ) -> Result<(), kube::Error> {
        status::write(&self.cluster.client, &self.cluster.claims, claim, claim.status.as_ref(), new).await.map(|_| ())
    }

    /// Changes a claim that is still as it was looked at; none if it isn't.
    async fn patch_claim(
        &self,
        claim: &PersistentVolumeClaim,
        mut patch: Value,
    ) -> Result<Option<PersistentVolumeClaim>, kube::Error> {
        patch["metadata"]["uid"] = json!(claim.metadata.uid);
        patch["metadata"]["resourceVersion"] = json!(claim.metadata.resource_version);
        let namespace = claim.metadata.namespace.as_deref().unwrap_or_default();
        let api: Api<PersistentVolumeClaim> = Api::namespaced(self.cluster.client.clone(), namespace);
        match status::change(&api, claim, patch).await {
            Ok(claim) => {
                self.cluster.claims.learn(claim.clone());
                Ok(Some(claim))
            }
            Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => Ok(None),
            Err(error) => Err(error),
        }
    }
}
/// How much storage amounts speak of.
fn storage(amounts: Option<&BTreeMap<String, Amount>>) -> i128 {
    let amount = amounts.and_then(|amounts| amounts.get("storage"));
    amount.and_then(|amount| Quantity::parse(&amount.0).ok()).map_or(0, |quantity| quantity.nanos())
}
