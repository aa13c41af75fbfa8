//! Where a proxied request leads: a pod's address, an endpoint of a Service, a node's worker.

use std::net::IpAddr;

use carob_api::status::Status;
use carob_store::KeyRange;
use serde_json::Value;

use crate::call::Call;
use crate::handlers::get;
use crate::objects::{self, text};
use crate::random;

/// The port of workers, as nodes tell it.
const WORKER_PORT: u64 = 10250;

/// Where a request is sent.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// `http` or `https`, and `host:port`.
    Network { scheme: &'static str, authority: String },
    /// The worker of this node.
    Worker(String),
}

/// What the name in the path says: `NAME`, `NAME:PORT` or `SCHEME:NAME:PORT`.
#[derive(Debug, PartialEq, Eq)]
struct Meant<'a> {
    scheme: &'static str,
    name: &'a str,
    port: &'a str,
}

impl<'a> Meant<'a> {
    fn read(id: &'a str) -> Option<Self> {
        let parts: Vec<&str> = id.split(':').collect();
        let (scheme, name, port) = match parts.as_slice() {
            [name] => ("", *name, ""),
            [name, port] => ("", *name, *port),
            [scheme, name, port] => (*scheme, *name, *port),
            _ => return None,
        };
        let scheme = match scheme {
            "" | "http" => "http",
            "https" => "https",
            _ => return None,
        };
        // A name is a Service's port's; of pods and nodes a number only, which those look at.
        let sound = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        (!name.is_empty() && port.bytes().all(sound)).then_some(Self { scheme, name, port })
    }
}

/// Finds the place; the call's name becomes that of the object alone.
pub(super) async fn find(call: &mut Call) -> Result<Place, Status> {
    let id = call.name().to_owned();
    let what = call.kind.singular;
    let Some(meant) = Meant::read(&id) else {
        return Err(Status::bad_request(format!("invalid {what} request {id:?}")));
    };
    call.name = Some(meant.name.to_owned());
    let object = objects::decode(&get::find(call).await?.value)?;
    match call.kind.plural {
        "pods" => of_pod(&object, &meant),
        "nodes" => of_node(&object, &meant),
        _ => of_service(call, &object, &meant).await,
    }
}

fn of_pod(pod: &Value, meant: &Meant<'_>) -> Result<Place, Status> {
    let first_port = || {
        let containers = pod.pointer("/spec/containers").and_then(Value::as_array).into_iter().flatten();
        let mut ports = containers.filter_map(|container| container.pointer("/ports/0/containerPort")?.as_u64());
        ports.next().map(|port| port.to_string()).unwrap_or_default()
    };
    let address = allowed(text(pod, "/status/podIPs/0/ip")).or_else(|_| allowed(text(pod, "/status/podIP")))?;
    let port = if meant.port.is_empty() { first_port() } else { number(meant.port)? };
    Ok(Place::Network { scheme: meant.scheme, authority: authority(address, &port) })
}

fn of_node(node: &Value, meant: &Meant<'_>) -> Result<Place, Status> {
    let own = node.pointer("/status/daemonEndpoints/kubeletEndpoint/Port").and_then(Value::as_u64);
    let own = own.filter(|port| *port != 0).unwrap_or(WORKER_PORT).to_string();
    if meant.port.is_empty() || meant.port == own {
        return Ok(Place::Worker(meant.name.to_owned()));
    }
    let addresses = node.pointer("/status/addresses").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let of_type = |wanted: &str| addresses.iter().find(|known| known["type"] == wanted);
    let Some(address) = of_type("InternalIP").or_else(|| of_type("ExternalIP")) else {
        return Err(Status::generic(500, "", "no preferred addresses found; known addresses: []"));
    };
    let address = allowed(text(address, "/address"))?;
    Ok(Place::Network { scheme: meant.scheme, authority: authority(address, &number(meant.port)?) })
}

async fn of_service(call: &Call, service: &Value, meant: &Meant<'_>) -> Result<Place, Status> {
    let name = meant.name;
    let none = || Status::service_unavailable(format!("no endpoints available for service {name:?}"));
    let port = match meant.port.parse::<i64>() {
        Err(_) => meant.port.to_owned(),
        Ok(number) => {
            let mut ports = service.pointer("/spec/ports").and_then(Value::as_array).into_iter().flatten();
            let port = ports.find(|known| known["port"] == number).ok_or_else(|| {
                Status::service_unavailable(format!("no service port {number} found for service {name:?}"))
            })?;
            text(port, "/name").to_owned()
        }
    };
    let namespace = call.namespace.as_deref().unwrap_or_default();
    let mut found = Vec::new();
    let range = KeyRange::prefix(format!("/discovery.k8s.io/endpointslices/{namespace}/"));
    let page = call.server.store.range(&range, None, None).await.map_err(|error| objects::store_failure(&error))?;
    for entry in page.entries {
        let slice = objects::decode(&entry.value)?;
        if slice["metadata"]["labels"]["kubernetes.io/service-name"] == name {
            found.extend(endpoints(&slice, &port));
        }
    }
    // Any of them first, then the others in their order.
    if let Some(count) = u32::try_from(found.len()).ok().filter(|count| *count > 0) {
        found.rotate_left(random::below(count) as usize);
    }
    for Endpoint { address, port, pod } in found {
        // Only pods are proxied to: whoever writes endpoints must not choose where the server connects to.
        if is_of_pod(call, namespace, &pod, &address).await?
            && let Ok(address) = allowed(&address)
        {
            return Ok(Place::Network { scheme: meant.scheme, authority: authority(address, &port.to_string()) });
        }
    }
    Err(none())
}

/// Somewhere behind a Service.
#[derive(Debug, PartialEq, Eq)]
struct Endpoint {
    address: String,
    port: u64,
    /// The pod in the Service's namespace that it is said to be.
    pod: String,
}

/// The ready endpoints of a slice that have a port of this name.
fn endpoints(slice: &Value, port: &str) -> Vec<Endpoint> {
    let list = |name: &str| slice[name].as_array().map_or(&[][..], Vec::as_slice);
    let Some(port) = list("ports").iter().find(|known| text(known, "/name") == port) else { return Vec::new() };
    let Some(port) = port["port"].as_u64() else { return Vec::new() };
    let ready = list("endpoints").iter().filter(|endpoint| endpoint["conditions"]["ready"] != false);
    let of_pods = ready.filter(|endpoint| {
        let target = &endpoint["targetRef"];
        target["kind"] == "Pod" && target["namespace"] == slice["metadata"]["namespace"]
    });
    of_pods
        .filter_map(|endpoint| {
            let address = endpoint.pointer("/addresses/0")?.as_str()?.to_owned();
            Some(Endpoint { address, port, pod: text(endpoint, "/targetRef/name").to_owned() })
        })
        .collect()
}

async fn is_of_pod(call: &Call, namespace: &str, pod: &str, address: &str) -> Result<bool, Status> {
    let key = objects::core_key("pods", Some(namespace), pod);
    let entry = call.server.store.get(&key).await.map_err(|error| objects::store_failure(&error))?;
    let Some(entry) = entry else { return Ok(false) };
    let pod = objects::decode(&entry.value)?;
    let addresses = pod.pointer("/status/podIPs").and_then(Value::as_array).into_iter().flatten();
    Ok(addresses.map(|one| text(one, "/ip")).any(|one| one == address))
}

/// An address to which the server connects in somebody's name: none of its own, none that has a meaning on a link only.
fn allowed(address: &str) -> Result<IpAddr, Status> {
    let parsed = address.parse::<IpAddr>().ok().filter(|address| {
        let special = match address.to_canonical() {
            IpAddr::V4(v4) => v4.is_broadcast() || v4.is_link_local(),
            IpAddr::V6(v6) => v6.is_unicast_link_local(),
        };
        let address = address.to_canonical();
        !special && !address.is_loopback() && !address.is_unspecified() && !address.is_multicast()
    });
    parsed.ok_or_else(|| Status::bad_request("address not allowed"))
}

/// A port: what isn't one would be taken for another part of the address (`x@169.254.169.254`).
fn number(port: &str) -> Result<String, Status> {
    let number = port.parse::<u16>().ok().filter(|number| *number > 0);
    number.map(|number| number.to_string()).ok_or_else(|| Status::bad_request(format!("invalid port {port:?}")))
}

fn authority(address: IpAddr, port: &str) -> String {
    let host = match address {
        IpAddr::V4(v4) => v4.to_string(),
        IpAddr::V6(v6) => format!("[{v6}]"),
    };
    if port.is_empty() { host } else { format!("{host}:{port}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_name_may_have_a_scheme_and_a_port() {
        assert_eq!(Meant::read("p"), Some(Meant { scheme: "http", name: "p", port: "" }));
        assert_eq!(Meant::read("p:80"), Some(Meant { scheme: "http", name: "p", port: "80" }));
        assert_eq!(Meant::read("https:p:web"), Some(Meant { scheme: "https", name: "p", port: "web" }));
        for bad in ["", ":80", "ftp:p:80", "a:b:c:d", "p:x@169.254.169.254", "https:p:x@localhost", "p:80/x", "p:80?"] {
            assert_eq!(Meant::read(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_pod_is_reached_at_its_first_port_unless_another_is_named() {
        let pod = json!({"spec": {"containers": [{"name": "a"}, {"name": "b", "ports": [{"containerPort": 8080}]}]},
            "status": {"podIPs": [{"ip": "10.1.0.5"}]}});
        let place = |id| of_pod(&pod, &Meant::read(id).expect("valid")).expect("a place");
        let network = |scheme, authority: &str| Place::Network { scheme, authority: authority.to_owned() };
        assert_eq!(place("p"), network("http", "10.1.0.5:8080"));
        assert_eq!(place("https:p:443"), network("https", "10.1.0.5:443"));
        for bad in ["p:web", "p:0", "p:65536", "https:p:-1"] {
            assert_eq!(of_pod(&pod, &Meant::read(bad).expect(bad)).expect_err(bad).code(), 400);
        }
    }

    #[test]
    fn the_servers_own_and_link_local_addresses_are_refused() {
        for bad in ["", "127.0.0.1", "169.254.169.254", "::1", "fe80::1", "::ffff:127.0.0.1", "0.0.0.0", "224.0.0.1"] {
            let pod = json!({"status": {"podIPs": [{"ip": bad}]}});
            let refused = of_pod(&pod, &Meant::read("p:80").expect("valid")).expect_err(bad);
            assert_eq!((refused.code(), refused.message()), (400, "address not allowed"), "{bad}");
        }
    }

    #[test]
    fn only_ready_pods_with_the_port_are_endpoints() {
        let endpoint = |address: &str, ready: bool, kind: &str, namespace: &str| {
            json!({"addresses": [address], "conditions": {"ready": ready},
                "targetRef": {"kind": kind, "namespace": namespace, "name": "p"}})
        };
        let slice = json!({"metadata": {"namespace": "n"}, "ports": [{"name": "web", "port": 80}], "endpoints": [
            endpoint("10.1.0.1", true, "Pod", "n"), endpoint("10.1.0.2", false, "Pod", "n"),
            endpoint("10.1.0.3", true, "Pod", "other"), endpoint("10.1.0.4", true, "Node", "n"),
            {"addresses": ["10.1.0.5"]}]});
        let found = endpoints(&slice, "web");
        assert_eq!(found, [Endpoint { address: "10.1.0.1".into(), port: 80, pod: "p".into() }]);
        assert!(endpoints(&slice, "other").is_empty());
    }
}
