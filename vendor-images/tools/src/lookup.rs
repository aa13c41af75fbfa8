//! Name lookup as a C library does it, without one: a static program has no resolver.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

const TIMEOUT: Duration = Duration::from_secs(2);
const ATTEMPTS: u16 = 2;
const TYPE_A: u16 = 1;
const TYPE_AAAA: u16 = 28;

/// What /etc/resolv.conf says.
struct Resolver {
    servers: Vec<IpAddr>,
    search: Vec<String>,
    ndots: usize,
}

/// All addresses of a name: itself if it is an address, else /etc/hosts, else the DNS servers with search domains.
pub fn lookup(name: &str) -> io::Result<Vec<IpAddr>> {
    if let Ok(address) = name.parse() {
        return Ok(vec![address]);
    }
    let hosts = fs::read_to_string("/etc/hosts").unwrap_or_default();
    let known = in_hosts(&hosts, name);
    if !known.is_empty() {
        return Ok(known);
    }
    let resolver = Resolver::parse(&fs::read_to_string("/etc/resolv.conf").unwrap_or_default());
    let mut last = io::Error::new(io::ErrorKind::NotFound, format!("{name}: no such name"));
    for candidate in resolver.candidates(name) {
        let mut found = Vec::new();
        for kind in [TYPE_A, TYPE_AAAA] {
            match resolver.ask(&candidate, kind) {
                Ok(addresses) => found.extend(addresses),
                Err(error) => last = error,
            }
        }
        if !found.is_empty() {
            return Ok(found);
        }
    }
    Err(last)
}

fn in_hosts(hosts: &str, name: &str) -> Vec<IpAddr> {
    hosts
        .lines()
        .filter_map(|line| {
            let mut words = line.split('#').next()?.split_whitespace();
            let address = words.next()?.parse().ok()?;
            words.any(|word| word.eq_ignore_ascii_case(name)).then_some(address)
        })
        .collect()
}

impl Resolver {
    fn parse(text: &str) -> Self {
        let mut resolver = Self { servers: Vec::new(), search: Vec::new(), ndots: 1 };
        for line in text.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => resolver.servers.extend(words.filter_map(|word| word.parse::<IpAddr>().ok())),
                Some("search" | "domain") => resolver.search = words.map(str::to_owned).collect(),
                Some("options") => {
                    for option in words {
                        if let Some(Ok(ndots)) = option.strip_prefix("ndots:").map(str::parse) {
                            resolver.ndots = ndots;
                        }
                    }
                }
                _ => {}
            }
        }
        resolver
    }

    fn candidates(&self, name: &str) -> Vec<String> {
        if let Some(absolute) = name.strip_suffix('.') {
            return vec![absolute.to_owned()];
        }
        let mut names: Vec<String> = self.search.iter().map(|domain| format!("{name}.{domain}")).collect();
        let place = if name.matches('.').count() >= self.ndots { 0 } else { names.len() };
        names.insert(place, name.to_owned());
        names
    }

    fn ask(&self, name: &str, kind: u16) -> io::Result<Vec<IpAddr>> {
        let mut last = io::Error::other("no nameserver in /etc/resolv.conf");
        for attempt in 0..ATTEMPTS {
            for server in &self.servers {
                match exchange(*server, name, kind, attempt) {
                    Ok(addresses) => return Ok(addresses),
                    Err(error) => last = error,
                }
            }
        }
        Err(last)
    }
}

fn exchange(server: IpAddr, name: &str, kind: u16, attempt: u16) -> io::Result<Vec<IpAddr>> {
    let local: IpAddr = if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind(SocketAddr::new(local, 0))?;
    socket.set_read_timeout(Some(TIMEOUT))?;
    socket.connect(SocketAddr::new(server, 53))?;
    let id = 0x4361 ^ (kind << 4) ^ attempt;
    socket.send(&question(id, name, kind)?)?;
    let mut packet = [0; 4096];
    let size = socket.recv(&mut packet)?;
    addresses(&packet[..size], id).ok_or_else(|| io::Error::other(format!("{name}: broken answer from {server}")))
}

fn question(id: u16, name: &str, kind: u16) -> io::Result<Vec<u8>> {
    let mut packet = Vec::with_capacity(name.len() + 18);
    packet.extend_from_slice(&id.to_be_bytes());
    // Recursion desired, one question.
    packet.extend_from_slice(&[1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.') {
        let length = u8::try_from(label.len()).ok().filter(|length| (1..64).contains(length));
        packet.push(length.ok_or_else(|| io::Error::other(format!("{name}: not a domain name")))?);
        packet.extend_from_slice(label.as_bytes());
    }
    packet.push(0);
    packet.extend_from_slice(&kind.to_be_bytes());
    packet.extend_from_slice(&1_u16.to_be_bytes());
    Ok(packet)
}

/// The A and AAAA records of an answer; empty for a name that doesn't exist, `None` for bytes that aren't an answer.
fn addresses(packet: &[u8], id: u16) -> Option<Vec<IpAddr>> {
    let word = |at: usize| Some(u16::from_be_bytes(packet.get(at..at + 2)?.try_into().ok()?));
    if word(0)? != id {
        return None;
    }
    let (questions, answers) = (word(4)?, word(6)?);
    let mut at = 12;
    for _ in 0..questions {
        at = after_name(packet, at)? + 4;
    }
    let mut found = Vec::new();
    for _ in 0..answers {
        at = after_name(packet, at)?;
        let (kind, length) = (word(at)?, usize::from(word(at + 8)?));
        let data = packet.get(at + 10..at + 10 + length)?;
        match kind {
            TYPE_A => found.push(<[u8; 4]>::try_from(data).ok()?.into()),
            TYPE_AAAA => found.push(<[u8; 16]>::try_from(data).ok()?.into()),
            _ => {}
        }
        at += 10 + length;
    }
    Some(found)
}

fn after_name(packet: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *packet.get(at)? {
            0 => return Some(at + 1),
            pointer if pointer >= 0xc0 => return Some(at + 2),
            length => at += usize::from(length) + 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn search_domains_come_first_for_names_with_few_dots() {
        let resolver = Resolver::parse("nameserver 10.0.0.1\nsearch a.local local\noptions ndots:5\n");
        assert_eq!(resolver.candidates("web"), ["web.a.local", "web.local", "web"]);
        assert_eq!(resolver.candidates("web."), ["web"]);
        assert_eq!(Resolver::parse("search x\n").candidates("a.b"), ["a.b", "a.b.x"]);
    }

    #[test]
    fn an_answer_gives_its_addresses() {
        let mut packet = question(7, "a.b", TYPE_A).unwrap();
        packet[7] = 1;
        packet.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4, 10, 1, 2, 3]);
        assert_eq!(addresses(&packet, 7), Some(vec![IpAddr::from([10, 1, 2, 3])]));
        assert_eq!(addresses(&packet, 8), None);
        assert_eq!(addresses(&packet[..packet.len() - 1], 7), None);
    }

    #[test]
    fn hosts_are_found_by_any_of_their_names() {
        assert_eq!(in_hosts("127.0.0.1 localhost x # y\n", "X"), [IpAddr::from([127, 0, 0, 1])]);
        assert!(in_hosts("127.0.0.1 localhost # y\n", "y").is_empty());
    }
}
