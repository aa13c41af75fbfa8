//! What a worker must know of its cluster before it can run pods: a ConfigMap that the gateway writes and nodes may read.

use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Context, Result};
use carob_network::{Ipv4Net, Ipv6Net};
use carob_worker::ClusterInfo;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::site::Site;

const NAMESPACE: &str = "kube-system";
const NAME: &str = "carob-cluster";
const KEY: &str = "cluster.json";

/// The cluster, as its workers see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Facts {
    /// All pods' addresses.
    pub pod_cidr: Ipv4Net,
    /// Their IPv6 addresses, in a dual-stack cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_cidr6: Option<Ipv6Net>,
    pub service_cidr: Ipv4Net,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_cidr6: Option<Ipv6Net>,
    pub api_service: Ipv4Addr,
    pub api_port: u16,
    pub dns_service: Ipv4Addr,
    pub cluster_domain: String,
    pub open_metadata: bool,
}

impl Facts {
    /// Of this Carob.
    pub fn of(site: &Site) -> Self {
        Self {
            pod_cidr: site.pod_cidr,
            pod_cidr6: site.instance.pod_cidr6,
            service_cidr: site.instance.service_cidr,
            service_cidr6: site.instance.service_cidr6,
            api_service: *site.service.ip(),
            api_port: site.service.port(),
            dns_service: *site.dns_service().ip(),
            cluster_domain: crate::site::CLUSTER_DOMAIN.to_owned(),
            open_metadata: site.open_metadata(),
        }
    }

    /// Tells workers.
    pub async fn publish(&self, admin: &kube::Client) -> Result<()> {
        let api: Api<ConfigMap> = Api::namespaced(admin.clone(), NAMESPACE);
        let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": NAME},
            "data": {KEY: serde_json::to_string(self)?}});
        api.patch(NAME, &PatchParams::apply("carob").force(), &Patch::Apply(map))
            .await
            .map(drop)
            .context("cannot write what workers on other machines need to know")
    }

    /// Asks the gateway.
    pub async fn ask(node: &kube::Client) -> Result<Self> {
        let api: Api<ConfigMap> = Api::namespaced(node.clone(), NAMESPACE);
        let map = api.get(NAME).await.context("the gateway doesn't tell what a worker must know")?;
        let text = map.data.as_ref().and_then(|data| data.get(KEY)).context("the gateway tells workers nothing")?;
        serde_json::from_str(text).context("the gateway is of a version that this worker doesn't understand")
    }

    /// What pods are told.
    pub fn cluster(&self, ca_pem: &str, resolvers: Vec<std::net::SocketAddr>) -> ClusterInfo {
        ClusterInfo {
            api_service_ip: IpAddr::V4(self.api_service),
            api_port: self.api_port,
            ca_pem: ca_pem.to_owned(),
            cluster_domain: self.cluster_domain.clone(),
            dns_servers: vec![IpAddr::V4(self.dns_service)],
            // The gateway's machine answers for those.
            load_balancers: Vec::new(),
            upstream_dns: resolvers,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gateway_that_knew_one_family_alone_is_understood() {
        let told = r#"{"podCidr": "10.42.0.0/16", "serviceCidr": "10.96.0.0/16", "apiService": "10.96.0.1", "apiPort": 443,
            "dnsService": "10.96.0.10", "clusterDomain": "cluster.local", "openMetadata": false}"#;
        let facts: Facts = serde_json::from_str(told).unwrap();
        assert_eq!((facts.pod_cidr6, facts.service_cidr6), (None, None));
        let both = Facts { pod_cidr6: Some("fd42::/64".parse().unwrap()), ..facts.clone() };
        let again = serde_json::to_string(&both).unwrap();
        assert_eq!(serde_json::from_str::<Facts>(&again).unwrap(), both);
        assert!(!serde_json::to_string(&facts).unwrap().contains("Cidr6"));
    }
}
