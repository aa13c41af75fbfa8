//! The Node objects of workers, as far as a worker can't care for its own.

use anyhow::{Context, Result};
use carob_network::{Ipv4Net, Ipv6Net};
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::api::{DeleteParams, ListParams, PostParams};

use crate::site::Site;

/// The ranges of a node whose pods have the addresses of a block, as its object lists them.
pub fn ranges(block: Ipv4Net, block6: Option<Ipv6Net>) -> Vec<String> {
    [block.to_string()].into_iter().chain(block6.map(|block| block.to_string())).collect()
}

/// Makes room for a worker whose pods have the addresses of `ranges`: a node's can't change, so one that was
/// registered with another, before `carob down`, is made anew with all that people gave it.
pub async fn settle(admin: &kube::Client, name: &str, ranges: &[String]) -> Result<()> {
    let api: Api<Node> = Api::all(admin.clone());
    let doing = || format!("cannot prepare the node {name}");
    let Some(mut node) = api.get_opt(name).await.with_context(doing)? else { return Ok(()) };
    let Some(spec) = &mut node.spec else { return Ok(()) };
    if spec.pod_cidrs.as_ref().is_none_or(|known| known == ranges) {
        return Ok(());
    }
    spec.pod_cidr = ranges.first().cloned();
    spec.pod_cidrs = Some(ranges.to_vec());
    let meta = &mut node.metadata;
    (meta.uid, meta.resource_version, meta.creation_timestamp, meta.managed_fields) = (None, None, None, None);
    remove(admin, name).await?;
    let created = api.create(&PostParams::default(), &node).await.with_context(doing)?;
    // The worker writes its status with its first words; until then, it is as it was.
    node.metadata = created.metadata;
    api.replace_status(name, &PostParams::default(), &node).await.with_context(doing)?;
    Ok(())
}

/// Gives nodes, also those of workers elsewhere, the IPv6 ranges that they lack since the cluster has become dual-stack.
pub async fn complete(admin: &kube::Client, site: &Site) -> Result<()> {
    if site.instance.pod_cidr6.is_none() {
        return Ok(());
    }
    let api: Api<Node> = Api::all(admin.clone());
    for node in api.list(&ListParams::default()).await.context("cannot list the nodes")? {
        let block = node.spec.as_ref().and_then(|spec| spec.pod_cidr.as_ref()?.parse::<Ipv4Net>().ok());
        if let (Some(name), Some(block)) = (&node.metadata.name, block.filter(|block| site.pod_cidr.contains(block))) {
            settle(admin, name, &ranges(block, site.block6(block))).await?;
        }
    }
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
