//! Where the Service of an APIService leads.

use carob_store::KeyRange;
use serde_json::Value;

use crate::objects::{self, text};
use crate::proxy::path;
use crate::{Server, random};

/// What an APIService says of its Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reference {
    pub namespace: String,
    pub name: String,
    pub port: i64,
}

/// Why a Service leads nowhere: the reason and the message of the APIService's condition.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Nowhere {
    pub reason: &'static str,
    pub message: String,
}

impl Reference {
    pub fn read(service: &Value) -> Self {
        Self {
            namespace: text(service, "/namespace").to_owned(),
            name: text(service, "/name").to_owned(),
            port: service["port"].as_i64().unwrap_or(443),
        }
    }

    /// The name that the server's certificate must have.
    pub fn host(&self) -> String {
        format!("{}.{}.svc", self.name, self.namespace)
    }

    /// `host:port` of one of its ready endpoints.
    pub async fn resolve(&self, server: &Server) -> Result<String, Nowhere> {
        let Self { namespace, name, port } = self;
        let inaccessible = |error: carob_store::Error| Nowhere {
            reason: "ServiceAccessError",
            message: format!(
                "service/{name} in {namespace:?} cannot be checked due to: {}",
                objects::store_failure(&error).message()
            ),
        };
        let key = objects::core_key("services", Some(namespace), name);
        let entry = server.store.get(&key).await.map_err(inaccessible)?;
        let service = entry.and_then(|entry| objects::decode(&entry.value).ok()).ok_or_else(|| Nowhere {
            reason: "ServiceNotFound",
            message: format!("service/{name} in {namespace:?} is not present"),
        })?;
        if text(&service, "/spec/type") == "ExternalName" {
            return Ok(format!("{}:{port}", path::encode(text(&service, "/spec/externalName"))));
        }
        let port_name = self.port_name(&service)?;
        let range = KeyRange::prefix(format!("/discovery.k8s.io/endpointslices/{namespace}/"));
        let mut ready = Vec::new();
        for entry in server.store.range(&range, None, None).await.map_err(inaccessible)?.entries {
            let Ok(slice) = objects::decode(&entry.value) else { continue };
            if slice["metadata"]["labels"]["kubernetes.io/service-name"] == *name {
                ready.extend(addresses(&slice, &port_name));
            }
        }
        let count = u32::try_from(ready.len()).ok().filter(|count| *count > 0).ok_or_else(|| Nowhere {
            reason: "MissingEndpoints",
            message: format!(
                "endpoints for service/{name} in {namespace:?} have no addresses with port name {port_name:?}"
            ),
        })?;
        Ok(ready.swap_remove(random::below(count) as usize))
    }

    fn port_name(&self, service: &Value) -> Result<String, Nowhere> {
        let Self { namespace, name, port } = self;
        let ports = service.pointer("/spec/ports").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        let found = ports.iter().find(|known| known["port"] == *port).ok_or_else(|| Nowhere {
            reason: "ServicePortError",
            message: format!("service/{name} in {namespace:?} is not listening on port {port}"),
        })?;
        Ok(text(found, "/name").to_owned())
    }
}

/// `host:port` of the ready endpoints of a slice that have a port of this name.
fn addresses(slice: &Value, port_name: &str) -> Vec<String> {
    let list = |name: &str| slice[name].as_array().map_or(&[][..], Vec::as_slice);
    let port = list("ports").iter().find(|known| text(known, "/name") == port_name);
    let Some(port) = port.and_then(|port| port["port"].as_u64()) else { return Vec::new() };
    let ready = list("endpoints").iter().filter(|endpoint| endpoint["conditions"]["ready"] != false);
    let of_endpoint = |endpoint: &Value| {
        let address = endpoint.pointer("/addresses/0")?.as_str()?;
        Some(if address.contains(':') { format!("[{address}]:{port}") } else { format!("{address}:{port}") })
    };
    ready.filter_map(of_endpoint).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn endpoints_that_are_ready_and_have_the_port_are_taken() {
        let slice = json!({"ports": [{"port": 8443}], "endpoints": [
            {"addresses": ["10.1.0.1"]}, {"addresses": ["10.1.0.2"], "conditions": {"ready": false}},
            {"addresses": ["fd00::1"], "conditions": {"ready": true}}]});
        assert_eq!(addresses(&slice, ""), ["10.1.0.1:8443", "[fd00::1]:8443"]);
        assert!(addresses(&slice, "https").is_empty());
    }
}
