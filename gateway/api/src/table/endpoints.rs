//! Columns of `Endpoints`.

use serde_json::Value;

use super::NAME;
use super::cells::{AGE, column, list, text};
use crate::kind::Column;

/// Name, the first addresses, age.
pub const COLUMNS: &[Column] = &[NAME, column("Endpoints", "string", 0, |object, _| addresses(object).into()), AGE];

const SHOWN: usize = 3;

fn addresses(object: &Value) -> String {
    let mut all = Vec::new();
    for subset in list(object, "/subsets") {
        let ips = list(subset, "/addresses").iter().map(|address| text(address, "/ip"));
        let ports = list(subset, "/ports");
        if ports.is_empty() {
            all.extend(ips.map(str::to_owned));
            continue;
        }
        for port in ports {
            for ip in ips.clone() {
                let ip = if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() };
                all.push(format!("{ip}:{}", port["port"]));
            }
        }
    }
    if all.is_empty() {
        return "<none>".to_owned();
    }
    let more = all.len().saturating_sub(SHOWN);
    all.truncate(SHOWN);
    let shown = all.join(",");
    if more > 0 { format!("{shown} + {more} more...") } else { shown }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn three_are_shown() {
        let ips: Vec<_> = (1..=4).map(|n| json!({"ip": format!("192.0.2.{n}")})).collect();
        let object = json!({"subsets": [{"addresses": ips, "ports": [{"port": 80}]}]});
        assert_eq!(addresses(&object), "192.0.2.1:80,192.0.2.2:80,192.0.2.3:80 + 1 more...");
        assert_eq!(addresses(&json!({})), "<none>");
    }
}
