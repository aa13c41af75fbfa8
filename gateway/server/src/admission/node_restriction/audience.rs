//! For whom a node's tokens may be meant: for whom the Pod's volumes name, or whom a role lets the node ask for.

use std::collections::BTreeSet;

use carob_api::status::{GroupResource, Status};
use serde_json::Value;

use super::{find, read, refuse};
use crate::admission::Request;
use crate::authz::Attributes;
use crate::objects::text;

/// Under which drivers are stored.
const DRIVERS: &str = "/storage.k8s.io/csidrivers/";
/// What a role gives a node that may ask for audiences which no volume names; the audience is the rule's resource.
const VERB: &str = "request-serviceaccounts-token-audience";

/// Drivers of volumes that were Kubernetes' own once, by the field of the volume.
const MIGRATED: [(&str, &str); 7] = [
    ("awsElasticBlockStore", "ebs.csi.aws.com"),
    ("azureDisk", "disk.csi.azure.com"),
    ("azureFile", "file.csi.azure.com"),
    ("cinder", "cinder.csi.openstack.org"),
    ("gcePersistentDisk", "pd.csi.storage.gke.io"),
    ("portworxVolume", "pxd.portworx.com"),
    ("vsphereVolume", "csi.vsphere.vmware.com"),
];

/// Refuses an audience that the Pod has no use for. No audience is one too: that of volumes that name none.
pub(super) async fn check(request: &Request<'_>, pod: &Value) -> Result<(), Status> {
    let audience = match items(&request.object, "/spec/audiences") {
        [] => "",
        [one] => one.as_str().unwrap_or_default(),
        _ => return refuse(request, "node may only request 0 or 1 audiences".to_owned()),
    };
    match is_named(request, pod, audience).await {
        Ok(true) => return Ok(()),
        Ok(false) => {}
        Err(why) => return refuse(request, format!("error validating audience {audience:?}: {why}")),
    }
    let identity = &request.call.identity;
    let wanted = Attributes {
        verb: VERB.to_owned(),
        version: "v1".to_owned(),
        resource: audience.to_owned(),
        namespace: request.call.namespace.clone().unwrap_or_default(),
        name: request.name.clone(),
        ..Attributes::default()
    };
    if request.call.server.authorizer.allows(identity, &wanted) {
        return Ok(());
    }
    let user = &identity.user;
    let why = format!(
        "audience {audience:?} not found in pod spec volume, {user} is not authorized to request tokens for this \
         audience"
    );
    refuse(request, why)
}

/// Whether a volume of the Pod, or the driver of one, takes a token for the audience; or what wasn't found.
async fn is_named(request: &Request<'_>, pod: &Value, audience: &str) -> Result<bool, String> {
    let mut wrong = BTreeSet::new();
    for volume in items(pod, "/spec/volumes") {
        if is_projected(volume, audience) {
            return Ok(true);
        }
        match has_driver_for(request, pod, volume, audience).await {
            Ok(true) => return Ok(true),
            Ok(false) => {}
            Err(status) => {
                wrong.insert(status.message().to_owned());
            }
        }
    }
    let wrong: Vec<String> = wrong.into_iter().collect();
    match wrong.as_slice() {
        [] => Ok(false),
        [one] => Err(one.clone()),
        several => Err(format!("[{}]", several.join(", "))),
    }
}

fn is_projected(volume: &Value, audience: &str) -> bool {
    let tokens = items(volume, "/projected/sources").iter().filter_map(|source| filled(source, "/serviceAccountToken"));
    tokens.into_iter().any(|token| text(token, "/audience") == audience)
}

async fn has_driver_for(request: &Request<'_>, pod: &Value, volume: &Value, audience: &str) -> Result<bool, Status> {
    let driver = if filled(volume, "/ephemeral/volumeClaimTemplate").is_some() {
        let claim = format!("{}-{}", text(pod, "/metadata/name"), text(volume, "/name"));
        driver_of_claim(request, &claim).await?
    } else if let Some(source) = filled(volume, "/persistentVolumeClaim") {
        driver_of_claim(request, text(source, "/claimName")).await?
    } else {
        driver_of(volume)
    };
    if driver.is_empty() {
        return Ok(false);
    }
    let resource = GroupResource::new("storage.k8s.io", "csidrivers");
    let driver = read(request, &format!("{DRIVERS}{driver}"), &resource, &driver).await?;
    Ok(items(&driver, "/spec/tokenRequests").iter().any(|wanted| text(wanted, "/audience") == audience))
}

async fn driver_of_claim(request: &Request<'_>, claim: &str) -> Result<String, Status> {
    let claim = find(request, "persistentvolumeclaims", claim).await?;
    let volume = find(request, "persistentvolumes", text(&claim, "/spec/volumeName")).await?;
    Ok(driver_of(volume.get("spec").unwrap_or(&Value::Null)))
}

/// The driver of a volume, as a Pod has it or as an object's spec; empty if it has none.
fn driver_of(volume: &Value) -> String {
    let own = filled(volume, "/csi").map(|source| text(source, "/driver"));
    let migrated = || MIGRATED.iter().find(|(field, _)| volume.get(field).is_some_and(|source| !source.is_null()));
    own.or_else(|| migrated().map(|(_, driver)| *driver)).unwrap_or_default().to_owned()
}

fn items<'a>(object: &'a Value, pointer: &str) -> &'a [Value] {
    object.pointer(pointer).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

fn filled<'a>(object: &'a Value, pointer: &str) -> Option<&'a Value> {
    object.pointer(pointer).filter(|value| !value.is_null())
}
