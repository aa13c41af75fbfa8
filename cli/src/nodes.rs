//! The Node objects of this machine's workers, as far as a worker can't care for its own.

use anyhow::{Context, Result};
use carob_network::Ipv4Net;
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::api::{DeleteParams, PostParams};

/// Makes room for a worker whose pods have the addresses of `block`: a node's range can't change, so one that was
/// registered with another, before `carob down`, is made anew with all that people gave it.
pub async fn settle(admin: &kube::Client, name: &str, block: Ipv4Net) -> Result<()> {
    let api: Api<Node> = Api::all(admin.clone());
    let doing = || format!("cannot prepare the node {name}");
    let Some(mut node) = api.get_opt(name).await.with_context(doing)? else { return Ok(()) };
    let Some(spec) = &mut node.spec else { return Ok(()) };
    let range = block.to_string();
    if spec.pod_cidr.as_ref().is_none_or(|known| *known == range) {
        return Ok(());
    }
    spec.pod_cidr = Some(range.clone());
    spec.pod_cidrs = Some(vec![range]);
    let meta = &mut node.metadata;
    (meta.uid, meta.resource_version, meta.creation_timestamp, meta.managed_fields) = (None, None, None, None);
    remove(admin, name).await?;
    let created = api.create(&PostParams::default(), &node).await.with_context(doing)?;
    // The worker writes its status with its first words; until then, it is as it was.
    node.metadata = created.metadata;
    api.replace_status(name, &PostParams::default(), &node).await.with_context(doing)?;
    Ok(())
}

/// Removes the node of a worker that is no more.
pub async fn remove(admin: &kube::Client, name: &str) -> Result<()> {
    let api: Api<Node> = Api::all(admin.clone());
    match api.delete(name, &DeleteParams::default()).await {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        other => other.map(drop).with_context(|| format!("cannot remove the node {name}")),
    }
}
