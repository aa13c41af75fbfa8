//! The names of the cluster, and what they stand for.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, Ipv6Addr};

use hickory_proto::rr::rdata::{A, AAAA, PTR, SOA, SRV, TXT};
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
    pub address: IpAddr,
    /// Its ports.
    pub ports: Vec<NamedPort>,
}

/// What a Service's name stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServiceNames {
    /// The Service's own addresses.
    Address {
        /// One of each family that the Service has.
        addresses: Vec<IpAddr>,
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
    addresses: HashMap<IpAddr, BTreeSet<String>>,
    pub(super) complete: bool,
}

/// An address as a label, as CoreDNS makes it: in its short form, and never with a dash at its end.
fn dashed(address: IpAddr) -> String {
    let mut label = address.to_string().replace(['.', ':'], "-");
    if label.ends_with('-') {
        label.push('0');
    }
    label
}

/// A name as it is written: the label of an address may begin with a dash.
fn named(text: &str) -> Option<Name> {
    Name::from_labels(text.trim_end_matches('.').split('.').map(str::as_bytes)).ok()
}

/// The address that the name of a pod consists of: three dashes, none beside another, are IPv4's dots.
fn undashed(label: &str) -> Option<IpAddr> {
    if label.matches('-').count() == 3 && !label.contains("--") {
        return label.replace('-', ".").parse().ok().map(IpAddr::V4);
    }
    label.replace('-', ":").parse().ok().map(IpAddr::V6)
}

/// The address that a reverse name is about (RFC 1035, 3.5; RFC 3596, 2.5).
fn reversed(labels: &[&str]) -> Option<IpAddr> {
    match labels {
        [d, c, b, a, "in-addr", "arpa"] => [*a, *b, *c, *d].join(".").parse().ok().map(IpAddr::V4),
        [nibbles @ .., "ip6", "arpa"] if nibbles.len() == 32 => {
            let digit = |label: &&str| match label.as_bytes() {
                [digit] => char::from(*digit).to_digit(16),
                _ => None,
            };
            let shifted = |bits: u128, label| Some(bits << 4 | u128::from(digit(label)?));
            nibbles.iter().rev().try_fold(0, shifted).map(|bits| IpAddr::V6(Ipv6Addr::from_bits(bits)))
        }
        _ => None,
    }
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
    fn pointers(&self, (namespace, service): &(String, String), names: &ServiceNames) -> Vec<(IpAddr, String)> {
        let whole = self.service_name(namespace, service);
        match names {
            ServiceNames::Address { addresses, .. } => {
                addresses.iter().map(|address| (*address, whole.clone())).collect()
            }
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
        if let Some(address) = reversed(&labels.iter().map(String::as_str).collect::<Vec<_>>()) {
            return self.pointer(name, kind, address);
        }
        let Some(below) = labels.len().checked_sub(self.domain.len()) else { return Answer::Elsewhere };
        if labels[below..] != self.domain {
            return Answer::Elsewhere;
        }
        let labels: Vec<&str> = labels[..below].iter().map(String::as_str).collect();
        let answer = self.cluster_name(name, kind, &labels);
        if matches!(answer, Answer::Unknown) && !self.complete { Answer::NotYet } else { answer }
    }

    fn pointer(&self, name: &Name, kind: RecordType, address: IpAddr) -> Answer {
        let Some(names) = self.addresses.get(&address) else { return Answer::Elsewhere };
        let wanted = names.iter().filter(|_| kind == RecordType::PTR);
        let targets = wanted.filter_map(|target| named(target));
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
            [address, _, "pod"] => match undashed(address) {
                Some(address) => addresses(name, kind, [address]),
                None => Answer::Unknown,
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
            ([], ServiceNames::Address { addresses: all, ports }) => match kind {
                RecordType::SRV => services(name, at_each(all, ports, &whole, |_| true)),
                _ => addresses(name, kind, all.iter().copied()),
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
                    ServiceNames::Address { addresses, ports } => at_each(addresses, ports, &whole, wanted).collect(),
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
type Target = (u16, String, IpAddr);

/// A Service's ports, at each of its addresses.
fn at_each<'a>(
    addresses: &'a [IpAddr],
    ports: &'a [NamedPort],
    service: &'a str,
    wanted: impl Fn(&NamedPort) -> bool + 'a,
) -> impl Iterator<Item = Target> + 'a {
    let ports = ports.iter().filter(move |port| wanted(port));
    ports.flat_map(move |port| addresses.iter().map(move |address| (port.port, service.to_owned(), *address)))
}

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

fn address(name: &Name, address: IpAddr) -> Record {
    let data = match address {
        IpAddr::V4(address) => RData::A(A(address)),
        IpAddr::V6(address) => RData::AAAA(AAAA(address)),
    };
    Record::from_rdata(name.clone(), TTL, data)
}

fn addresses(name: &Name, kind: RecordType, all: impl IntoIterator<Item = IpAddr>) -> Answer {
    let wanted = |address: &IpAddr| match kind {
        RecordType::ANY => true,
        RecordType::A => address.is_ipv4(),
        RecordType::AAAA => address.is_ipv6(),
        _ => false,
    };
    let distinct: BTreeSet<IpAddr> = all.into_iter().filter(wanted).collect();
    records(distinct.into_iter().map(|one| address(name, one)).collect())
}

/// SRV records, with the addresses of what they lead to. What has an address of each family is one target.
fn services(name: &Name, targets: impl Iterator<Item = Target>) -> Answer {
    let (mut ports, mut additionals) = (BTreeSet::new(), BTreeSet::new());
    for (port, target, address) in targets {
        let Some(target) = named(&target) else { continue };
        ports.insert((target.clone(), port));
        additionals.insert((target, address));
    }
    let weight = u16::try_from(100 / ports.len().max(1)).unwrap_or(1).max(1);
    let answer = |(target, port)| RData::SRV(SRV::new(0, weight, port, target));
    Answer::Records {
        answers: ports.into_iter().map(|port| Record::from_rdata(name.clone(), TTL, answer(port))).collect(),
        additionals: additionals.into_iter().map(|(target, one)| address(&target, one)).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> Names {
        let mut names = Names::new("cluster.local");
        let port = |number| NamedPort { name: "http".into(), protocol: Protocol::Tcp, port: number };
        let at = |all: &[&str]| ServiceNames::Address {
            addresses: all.iter().map(|address| address.parse().unwrap()).collect(),
            ports: vec![port(80)],
        };
        names.set("shop", "web", Some(at(&["10.96.0.7"])));
        names.set("shop", "six", Some(at(&["fd00:96::8"])));
        names.set("shop", "dual", Some(at(&["10.96.0.9", "fd00:96::9"])));
        let endpoint = |hostname: Option<&str>, address: &str| NamedEndpoint {
            hostname: hostname.map(str::to_owned),
            address: address.parse().unwrap(),
            ports: vec![port(8080)],
        };
        let db = vec![endpoint(Some("db-0"), "10.42.0.2"), endpoint(None, "10.42.0.3")];
        names.set("shop", "db", Some(ServiceNames::Endpoints(db)));
        let both = vec![
            endpoint(Some("a"), "10.42.0.4"),
            endpoint(None, "10.42.0.5"),
            endpoint(Some("a"), "fd00:42::a2a:4"),
            endpoint(None, "fd00:42::a2a:5"),
            endpoint(Some("b"), "fd00:42::"),
            endpoint(None, "fd00:43::"),
            endpoint(None, "::a2a:6"),
        ];
        names.set("shop", "both", Some(ServiceNames::Endpoints(both)));
        names.set("shop", "other", Some(ServiceNames::Alias("example.test".into())));
        names.complete = true;
        names
    }

    fn ask(names: &Names, name: &str, kind: RecordType) -> String {
        let name = named(name).unwrap();
        match names.answer(&name, kind) {
            Answer::Records { answers, .. } => {
                answers.iter().map(|record| record.data.to_string()).collect::<Vec<_>>().join(", ")
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

    const ZEROS: &str = "0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0";

    #[test]
    fn both_families_have_their_names_and_one_alone_leaves_no_name_unknown() {
        use RecordType::{A, AAAA, ANY, PTR, SRV};
        let names = names();
        let cases = [
            ("dual.shop.svc.cluster.local.", A, "10.96.0.9"),
            ("dual.shop.svc.cluster.local.", AAAA, "fd00:96::9"),
            ("dual.shop.svc.cluster.local.", ANY, "10.96.0.9, fd00:96::9"),
            ("six.shop.svc.cluster.local.", A, ""),
            ("six.shop.svc.cluster.local.", AAAA, "fd00:96::8"),
            ("_http._tcp.dual.shop.svc.cluster.local.", SRV, "0 100 80 dual.shop.svc.cluster.local."),
            ("both.shop.svc.cluster.local.", A, "10.42.0.4, 10.42.0.5"),
            ("both.shop.svc.cluster.local.", AAAA, "::a2a:6, fd00:42::, fd00:42::a2a:4, fd00:42::a2a:5, fd00:43::"),
            ("db.shop.svc.cluster.local.", AAAA, ""),
            ("a.both.shop.svc.cluster.local.", A, "10.42.0.4"),
            ("a.both.shop.svc.cluster.local.", AAAA, "fd00:42::a2a:4"),
            ("b.both.shop.svc.cluster.local.", A, ""),
            ("fd00-42--a2a-5.both.shop.svc.cluster.local.", AAAA, "fd00:42::a2a:5"),
            ("FD00-42--A2A-5.both.shop.svc.cluster.local.", AAAA, "fd00:42::a2a:5"),
            ("fd00-43--0.both.shop.svc.cluster.local.", AAAA, "fd00:43::"),
            ("--a2a-6.both.shop.svc.cluster.local.", AAAA, "::a2a:6"),
            ("fd00-42--a2a-6.both.shop.svc.cluster.local.", AAAA, "unknown"),
            (
                "_http._tcp.both.shop.svc.cluster.local.",
                SRV,
                "0 16 8080 \\--a2a-6.both.shop.svc.cluster.local., 0 16 8080 10-42-0-5.both.shop.svc.cluster.local., 0 16 8080 a.both.shop.svc.cluster.local., \
                 0 16 8080 b.both.shop.svc.cluster.local., 0 16 8080 fd00-42--a2a-5.both.shop.svc.cluster.local., \
                 0 16 8080 fd00-43--0.both.shop.svc.cluster.local.",
            ),
            ("fd00-42--a2a-9.shop.pod.cluster.local.", AAAA, "fd00:42::a2a:9"),
            ("FD00-42--A2A-9.shop.pod.cluster.local.", AAAA, "fd00:42::a2a:9"),
            ("fd00-42--a2a-9.shop.pod.cluster.local.", A, ""),
            ("fd00-43--0.shop.pod.cluster.local.", AAAA, "fd00:43::"),
            ("--1.shop.pod.cluster.local.", AAAA, "::1"),
            ("1-2-3-4-5-6-7-8.shop.pod.cluster.local.", AAAA, "1:2:3:4:5:6:7:8"),
            ("10-42-0-9.shop.pod.cluster.local.", AAAA, ""),
            ("1-2--4.shop.pod.cluster.local.", AAAA, "1:2::4"),
            ("1-2-3-4-5.shop.pod.cluster.local.", AAAA, "unknown"),
            ("fd00-43--.shop.pod.cluster.local.", PTR, ""),
            ("fd00-43--g.shop.pod.cluster.local.", AAAA, "unknown"),
        ];
        for (name, kind, expected) in cases {
            assert_eq!(ask(&names, name, kind), expected, "{name} {kind}");
        }
        let reverse = [
            (format!("9.0.0.0.{ZEROS}.6.9.0.0.0.0.d.f.ip6.arpa."), "dual.shop.svc.cluster.local."),
            (format!("4.0.0.0.a.2.a.0.{}.2.4.0.0.0.0.d.f.ip6.arpa.", &ZEROS[8..]), "a.both.shop.svc.cluster.local."),
            (
                format!("5.0.0.0.A.2.A.0.{}.2.4.0.0.0.0.D.F.IP6.arpa.", &ZEROS[8..]),
                "fd00-42--a2a-5.both.shop.svc.cluster.local.",
            ),
            ("9.0.96.10.in-addr.arpa.".to_owned(), "dual.shop.svc.cluster.local."),
            // Others', and what is no address' name.
            (format!("a.0.0.0.{ZEROS}.6.9.0.0.0.0.d.f.ip6.arpa."), "elsewhere"),
            (format!("9.0.0.0.{ZEROS}.6.9.0.0.0.0.d.ip6.arpa."), "elsewhere"),
            (format!("0.9.0.0.0.{ZEROS}.6.9.0.0.0.0.d.f.ip6.arpa."), "elsewhere"),
            (format!("09.0.0.0.{ZEROS}.6.9.0.0.0.0.d.f.ip6.arpa."), "elsewhere"),
            (format!("9.0.0.0.{ZEROS}.6.9.0.0.0.0.d.g.ip6.arpa."), "elsewhere"),
            (format!("9.0.0.0.{ZEROS}.6.9.0.0.0.0.d.+.ip6.arpa."), "elsewhere"),
            ("ip6.arpa.".to_owned(), "elsewhere"),
        ];
        for (name, expected) in reverse {
            assert_eq!(ask(&names, &name, PTR), expected, "{name}");
        }
    }

    #[test]
    fn what_srv_records_lead_to_comes_with_addresses_of_both_families() {
        let names = names();
        let additionals = |name: &str| match names.answer(&Name::from_ascii(name).unwrap(), RecordType::SRV) {
            Answer::Records { additionals, .. } => {
                additionals.iter().map(|record| format!("{} {}", record.name, record.data)).collect::<Vec<_>>()
            }
            _ => panic!("no records of {name}"),
        };
        assert_eq!(
            additionals("_http._tcp.dual.shop.svc.cluster.local."),
            ["dual.shop.svc.cluster.local. 10.96.0.9", "dual.shop.svc.cluster.local. fd00:96::9"]
        );
        let both = additionals("_http._tcp.both.shop.svc.cluster.local.");
        let of_a: Vec<_> = both.iter().filter(|one| one.starts_with("a.")).collect();
        assert_eq!(both.len(), 7);
        assert_eq!(of_a, ["a.both.shop.svc.cluster.local. 10.42.0.4", "a.both.shop.svc.cluster.local. fd00:42::a2a:4"]);
    }

    #[test]
    fn what_goes_leaves_nothing_behind() {
        let mut names = names();
        for service in ["web", "six", "dual", "db", "both", "other"] {
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
