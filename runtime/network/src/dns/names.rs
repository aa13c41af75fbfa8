//! The names of the cluster, and what they stand for.

use std::collections::{BTreeSet, HashMap};
use std::net::Ipv4Addr;

use hickory_proto::rr::rdata::{A, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};

use crate::Protocol;

/// For how many seconds an answer may be kept.
pub(super) const TTL: u32 = 5;
/// The version of the specification that is followed.
const VERSION: &str = "1.1.0";

/// A port with a name, which gets SRV records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedPort {
    /// As in the Service; empty where its only port has no name.
    pub name: String,
    /// The protocol.
    pub protocol: Protocol,
    /// The number.
    pub port: u16,
}

/// An endpoint of a Service without an address of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedEndpoint {
    /// The pod's host name, where it is published; otherwise the address makes a name.
    pub hostname: Option<String>,
    /// The address.
    pub address: Ipv4Addr,
    /// Its ports.
    pub ports: Vec<NamedPort>,
}

/// What a Service's name stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServiceNames {
    /// The Service's own address.
    Address {
        /// The address.
        address: Ipv4Addr,
        /// The Service's ports.
        ports: Vec<NamedPort>,
    },
    /// The endpoints themselves: the Service has no address.
    Endpoints(Vec<NamedEndpoint>),
    /// Another name.
    Alias(String),
}

/// What is known of a name.
pub(super) enum Answer {
    /// It exists; these are the records of the type that was asked for, perhaps none.
    Records { answers: Vec<Record>, additionals: Vec<Record> },
    /// It stands for another name.
    Alias(Name),
    /// It would be of this cluster, and isn't there.
    Unknown,
    /// Not all names have been heard of.
    NotYet,
    /// It isn't of this cluster.
    Elsewhere,
}

/// All names of the cluster.
pub(super) struct Names {
    domain: Vec<String>,
    services: HashMap<(String, String), ServiceNames>,
    /// How many Services a namespace has.
    namespaces: HashMap<String, usize>,
    /// The names of addresses: of which Service, and how it is called there.
    addresses: HashMap<Ipv4Addr, BTreeSet<String>>,
    pub(super) complete: bool,
}

fn dashed(address: Ipv4Addr) -> String {
    address.to_string().replace('.', "-")
}

impl NamedEndpoint {
    fn label(&self) -> String {
        self.hostname.clone().unwrap_or_else(|| dashed(self.address))
    }

    fn is(&self, label: &str) -> bool {
        self.hostname.as_deref() == Some(label) || dashed(self.address) == label
    }
}

impl Names {
    pub(super) fn new(domain: &str) -> Self {
        Self {
            domain: domain.split('.').map(str::to_ascii_lowercase).collect(),
            services: HashMap::new(),
            namespaces: HashMap::new(),
            addresses: HashMap::new(),
            complete: false,
        }
    }

    pub(super) fn set(&mut self, namespace: &str, service: &str, names: Option<ServiceNames>) {
        let key = (namespace.to_owned(), service.to_owned());
        if let Some(old) = self.services.remove(&key) {
            for (address, name) in self.pointers(&key, &old) {
                if let Some(all) = self.addresses.get_mut(&address) {
                    all.remove(&name);
                    if all.is_empty() {
                        self.addresses.remove(&address);
                    }
                }
            }
            if let Some(count) = self.namespaces.get_mut(namespace) {
                *count -= 1;
                if *count == 0 {
                    self.namespaces.remove(namespace);
                }
            }
        }
        if let Some(new) = names {
            for (address, name) in self.pointers(&key, &new) {
                self.addresses.entry(address).or_default().insert(name);
            }
            *self.namespaces.entry(namespace.to_owned()).or_default() += 1;
            self.services.insert(key, new);
        }
    }

    /// Which addresses lead back to a Service's names.
    fn pointers(&self, (namespace, service): &(String, String), names: &ServiceNames) -> Vec<(Ipv4Addr, String)> {
        let whole = self.service_name(namespace, service);
        match names {
            ServiceNames::Address { address, .. } => vec![(*address, whole)],
            ServiceNames::Endpoints(endpoints) => {
                endpoints.iter().map(|one| (one.address, format!("{}.{whole}", one.label()))).collect()
            }
            ServiceNames::Alias(_) => Vec::new(),
        }
    }

    fn service_name(&self, namespace: &str, service: &str) -> String {
        format!("{service}.{namespace}.svc.{}.", self.domain.join("."))
    }

    /// Says whose the cluster's names are, and for how long what isn't there may be remembered.
    pub(super) fn authority(&self) -> Record {
        let domain = self.domain.join(".");
        let name = |text: String| Name::from_ascii(text).unwrap_or_default();
        let soa = SOA::new(
            name(format!("ns.dns.{domain}.")),
            name(format!("hostmaster.{domain}.")),
            1,
            7200,
            1800,
            86_400,
            TTL,
        );
        Record::from_rdata(name(format!("{domain}.")), TTL, RData::SOA(soa))
    }

    pub(super) fn answer(&self, name: &Name, kind: RecordType) -> Answer {
        let labels: Vec<String> =
            name.iter().map(|label| String::from_utf8_lossy(label).to_ascii_lowercase()).collect();
        if let [d, c, b, a, "in-addr", "arpa"] = labels.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            return self.pointer(name, kind, &[a, b, c, d].join("."));
        }
        let Some(below) = labels.len().checked_sub(self.domain.len()) else { return Answer::Elsewhere };
        if labels[below..] != self.domain {
            return Answer::Elsewhere;
        }
        let labels: Vec<&str> = labels[..below].iter().map(String::as_str).collect();
        let answer = self.cluster_name(name, kind, &labels);
        if matches!(answer, Answer::Unknown) && !self.complete { Answer::NotYet } else { answer }
    }

    fn pointer(&self, name: &Name, kind: RecordType, address: &str) -> Answer {
        let Some(names) = address.parse().ok().and_then(|address: Ipv4Addr| self.addresses.get(&address)) else {
            return Answer::Elsewhere;
        };
        let wanted = names.iter().filter(|_| kind == RecordType::PTR);
        let targets = wanted.filter_map(|target| Name::from_ascii(target).ok());
        records(targets.map(|target| Record::from_rdata(name.clone(), TTL, RData::PTR(PTR(target)))).collect())
    }

    fn cluster_name(&self, name: &Name, kind: RecordType, labels: &[&str]) -> Answer {
        match labels {
            [] if kind == RecordType::SOA => records(vec![self.authority()]),
            [] | ["svc" | "pod"] => records(Vec::new()),
            ["dns-version"] => {
                let version = RData::TXT(TXT::new(vec![VERSION.to_owned()]));
                let wanted = kind == RecordType::TXT;
                records(wanted.then(|| Record::from_rdata(name.clone(), TTL, version)).into_iter().collect())
            }
            [namespace, "svc" | "pod"] if self.namespaces.contains_key(*namespace) => records(Vec::new()),
            // The name says it all. Which namespaces there are isn't known here, only those that have Services.
            [address, _, "pod"] => match address.replace('-', ".").parse() {
                Ok(address) => addresses(name, kind, [address]),
                Err(_) => Answer::Unknown,
            },
            [rest @ .., service, namespace, "svc"] => {
                let key = ((*namespace).to_owned(), (*service).to_owned());
                match self.services.get(&key) {
                    Some(names) => self.service(name, kind, &key, names, rest),
                    None => Answer::Unknown,
                }
            }
            _ => Answer::Unknown,
        }
    }

    fn service(
        &self,
        name: &Name,
        kind: RecordType,
        (namespace, service): &(String, String),
        names: &ServiceNames,
        rest: &[&str],
    ) -> Answer {
        let whole = self.service_name(namespace, service);
        match (rest, names) {
            ([], ServiceNames::Alias(target)) => {
                Name::from_ascii(format!("{}.", target.trim_end_matches('.'))).map_or(Answer::Unknown, Answer::Alias)
            }
            ([], ServiceNames::Address { address, ports }) => match kind {
                RecordType::SRV => services(name, ports.iter().map(|port| (port.port, whole.clone(), *address))),
                _ => addresses(name, kind, [*address]),
            },
            ([], ServiceNames::Endpoints(endpoints)) if endpoints.is_empty() => Answer::Unknown,
            ([], ServiceNames::Endpoints(endpoints)) => match kind {
                RecordType::SRV => services(name, each_port(endpoints, &whole, |_| true)),
                _ => addresses(name, kind, endpoints.iter().map(|endpoint| endpoint.address)),
            },
            ([host], ServiceNames::Endpoints(endpoints)) if endpoints.iter().any(|endpoint| endpoint.is(host)) => {
                let of_host = endpoints.iter().filter(|endpoint| endpoint.is(host));
                addresses(name, kind, of_host.map(|endpoint| endpoint.address))
            }
            ([port, protocol], names) => {
                let (Some(port), Some(protocol)) = (port.strip_prefix('_'), protocol.strip_prefix('_')) else {
                    return Answer::Unknown;
                };
                let wanted = |candidate: &NamedPort| {
                    candidate.name.eq_ignore_ascii_case(port) && protocol_name(candidate.protocol) == protocol
                };
                let found: Vec<_> = match names {
                    ServiceNames::Address { address, ports } => ports
                        .iter()
                        .filter(|port| wanted(port))
                        .map(|port| (port.port, whole.clone(), *address))
                        .collect(),
                    ServiceNames::Endpoints(endpoints) => each_port(endpoints, &whole, wanted).collect(),
                    ServiceNames::Alias(_) => Vec::new(),
                };
                match found.is_empty() {
                    true => Answer::Unknown,
                    false if kind == RecordType::SRV => services(name, found.into_iter()),
                    false => records(Vec::new()),
                }
            }
            _ => Answer::Unknown,
        }
    }
}

fn protocol_name(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Sctp => "sctp",
    }
}

/// Port, name and address of what an SRV record leads to.
type Target = (u16, String, Ipv4Addr);

fn each_port<'a>(
    endpoints: &'a [NamedEndpoint],
    service: &'a str,
    wanted: impl Fn(&NamedPort) -> bool + 'a,
) -> impl Iterator<Item = Target> + 'a {
    endpoints.iter().flat_map(move |endpoint| {
        let name = format!("{}.{service}", endpoint.label());
        let ports: Vec<_> = endpoint.ports.iter().filter(|port| wanted(port)).map(|port| port.port).collect();
        ports.into_iter().map(move |port| (port, name.clone(), endpoint.address))
    })
}

fn records(answers: Vec<Record>) -> Answer {
    Answer::Records { answers, additionals: Vec::new() }
}

fn addresses(name: &Name, kind: RecordType, all: impl IntoIterator<Item = Ipv4Addr>) -> Answer {
    let wanted = matches!(kind, RecordType::A | RecordType::ANY);
    let distinct: BTreeSet<Ipv4Addr> = all.into_iter().filter(|_| wanted).collect();
    records(distinct.into_iter().map(|address| Record::from_rdata(name.clone(), TTL, RData::A(A(address)))).collect())
}

/// SRV records, with the addresses of what they lead to.
fn services(name: &Name, targets: impl Iterator<Item = Target>) -> Answer {
    let (mut answers, mut additionals, mut seen) = (Vec::new(), Vec::new(), BTreeSet::new());
    let targets: Vec<Target> = targets.collect();
    let weight = u16::try_from(100 / targets.len().max(1)).unwrap_or(1).max(1);
    for (port, target, address) in targets {
        let Ok(target) = Name::from_ascii(target) else { continue };
        if seen.insert((target.clone(), address)) {
            additionals.push(Record::from_rdata(target.clone(), TTL, RData::A(A(address))));
        }
        answers.push(Record::from_rdata(name.clone(), TTL, RData::SRV(SRV::new(0, weight, port, target))));
    }
    Answer::Records { answers, additionals }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> Names {
        let mut names = Names::new("cluster.local");
        let port = |number| NamedPort { name: "http".into(), protocol: Protocol::Tcp, port: number };
        let address = ServiceNames::Address { address: [10, 96, 0, 7].into(), ports: vec![port(80)] };
        names.set("shop", "web", Some(address));
        let endpoint = |hostname: Option<&str>, last| NamedEndpoint {
            hostname: hostname.map(str::to_owned),
            address: [10, 42, 0, last].into(),
            ports: vec![port(8080)],
        };
        names.set("shop", "db", Some(ServiceNames::Endpoints(vec![endpoint(Some("db-0"), 2), endpoint(None, 3)])));
        names.set("shop", "other", Some(ServiceNames::Alias("example.test".into())));
        names.complete = true;
        names
    }

    fn ask(names: &Names, name: &str, kind: RecordType) -> String {
        let name = Name::from_ascii(name).unwrap();
        match names.answer(&name, kind) {
            Answer::Records { answers, .. } => {
                let mut all: Vec<_> = answers.iter().map(|record| record.data.to_string()).collect();
                all.sort();
                all.join(", ")
            }
            Answer::Alias(target) => format!("alias {target}"),
            Answer::Unknown => "unknown".to_owned(),
            Answer::NotYet => "not yet".to_owned(),
            Answer::Elsewhere => "elsewhere".to_owned(),
        }
    }

    #[test]
    fn services_and_pods_have_their_names() {
        use RecordType::{A, AAAA, PTR, SRV, TXT};
        let names = names();
        let cases = [
            ("web.shop.svc.cluster.local.", A, "10.96.0.7"),
            ("WEB.shop.svc.Cluster.Local.", A, "10.96.0.7"),
            ("web.shop.svc.cluster.local.", AAAA, ""),
            ("_http._tcp.web.shop.svc.cluster.local.", SRV, "0 100 80 web.shop.svc.cluster.local."),
            ("_http._udp.web.shop.svc.cluster.local.", SRV, "unknown"),
            ("db.shop.svc.cluster.local.", A, "10.42.0.2, 10.42.0.3"),
            ("db-0.db.shop.svc.cluster.local.", A, "10.42.0.2"),
            ("10-42-0-3.db.shop.svc.cluster.local.", A, "10.42.0.3"),
            ("db-1.db.shop.svc.cluster.local.", A, "unknown"),
            (
                "_http._tcp.db.shop.svc.cluster.local.",
                SRV,
                "0 50 8080 10-42-0-3.db.shop.svc.cluster.local., 0 50 8080 db-0.db.shop.svc.cluster.local.",
            ),
            ("7.0.96.10.in-addr.arpa.", PTR, "web.shop.svc.cluster.local."),
            ("2.0.42.10.in-addr.arpa.", PTR, "db-0.db.shop.svc.cluster.local."),
            ("9.9.9.9.in-addr.arpa.", PTR, "elsewhere"),
            ("other.shop.svc.cluster.local.", A, "alias example.test."),
            ("10-42-0-9.shop.pod.cluster.local.", A, "10.42.0.9"),
            ("10-42-0-9.empty.pod.cluster.local.", A, "10.42.0.9"),
            ("10-42-0.shop.pod.cluster.local.", A, "unknown"),
            ("shop.svc.cluster.local.", A, ""),
            ("nowhere.svc.cluster.local.", A, "unknown"),
            ("web.nowhere.svc.cluster.local.", A, "unknown"),
            ("dns-version.cluster.local.", TXT, "1.1.0"),
            ("example.test.", A, "elsewhere"),
        ];
        for (name, kind, expected) in cases {
            assert_eq!(ask(&names, name, kind), expected, "{name} {kind}");
        }
    }

    #[test]
    fn what_goes_leaves_nothing_behind() {
        let mut names = names();
        for service in ["web", "db", "other"] {
            names.set("shop", service, None);
        }
        assert_eq!(ask(&names, "web.shop.svc.cluster.local.", RecordType::A), "unknown");
        assert_eq!(ask(&names, "2.0.42.10.in-addr.arpa.", RecordType::PTR), "elsewhere");
        assert!(names.namespaces.is_empty() && names.addresses.is_empty());
    }

    #[test]
    fn before_all_is_known_nothing_is_said_not_to_exist() {
        let mut names = names();
        names.complete = false;
        assert_eq!(ask(&names, "new.shop.svc.cluster.local.", RecordType::A), "not yet");
        assert_eq!(ask(&names, "web.shop.svc.cluster.local.", RecordType::A), "10.96.0.7");
    }
}
