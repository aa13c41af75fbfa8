//! Columns of Services.

use serde_json::Value;

use super::NAME;
use super::cells::{AGE, column, labels, list, text, text_or};
use crate::kind::Column;

/// Name, type, addresses, ports, age; the selector when wide.
pub const COLUMNS: &[Column] = &[
    NAME,
    column("Type", "string", 0, |object, _| text(object, "/spec/type").into()),
    column("Cluster-IP", "string", 0, |object, _| text_or(object, "/spec/clusterIPs/0", "<none>").into()),
    column("External-IP", "string", 0, |object, _| external(object).into()),
    column("Port(s)", "string", 0, |object, _| ports(object).into()),
    AGE,
    column("Selector", "string", 1, |object, _| labels(object.pointer("/spec/selector")).into()),
];

/// Where it is reached from outside of the cluster.
fn external(service: &Value) -> String {
    let mut points: Vec<String> =
        list(service, "/spec/externalIPs").iter().filter_map(Value::as_str).map(str::to_owned).collect();
    match text(service, "/spec/type") {
        "ExternalName" => return text(service, "/spec/externalName").to_owned(),
        "LoadBalancer" => {
            let mut balanced: Vec<&str> = list(service, "/status/loadBalancer/ingress")
                .iter()
                .map(|point| text_or(point, "/ip", text(point, "/hostname")))
                .filter(|point| !point.is_empty())
                .collect();
            balanced.sort_unstable();
            balanced.dedup();
            if !balanced.is_empty() {
                points.insert(0, balanced.join(","));
            }
            if points.is_empty() {
                return "<pending>".to_owned();
            }
        }
        _ => {}
    }
    if points.is_empty() { "<none>".to_owned() } else { points.join(",") }
}

fn ports(service: &Value) -> String {
    let shown = list(service, "/spec/ports").iter().map(|port| {
        let protocol = text_or(port, "/protocol", "TCP");
        match port["nodePort"].as_i64() {
            Some(node) if node > 0 => format!("{}:{node}/{protocol}", port["port"]),
            _ => format!("{}/{protocol}", port["port"]),
        }
    });
    let shown: Vec<String> = shown.collect();
    if shown.is_empty() { "<none>".to_owned() } else { shown.join(",") }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_load_balancer_is_pending_until_it_has_an_address() {
        let mut service = json!({"spec": {"type": "LoadBalancer"}});
        assert_eq!(external(&service), "<pending>");
        service["status"] = json!({"loadBalancer": {"ingress": [{"hostname": "b.example"}, {"ip": "192.0.2.1"}]}});
        assert_eq!(external(&service), "192.0.2.1,b.example");
        assert_eq!(external(&json!({"spec": {"type": "ClusterIP"}})), "<none>");
        assert_eq!(external(&json!({"spec": {"type": "ExternalName", "externalName": "x.example"}})), "x.example");
    }

    #[test]
    fn ports_show_their_port_on_the_nodes() {
        let service = json!({"spec": {"ports": [{"port": 80, "nodePort": 30080}, {"port": 53, "protocol": "UDP"}]}});
        assert_eq!(ports(&service), "80:30080/TCP,53/UDP");
    }
}
