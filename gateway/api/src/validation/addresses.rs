//! IP addresses, address ranges and domain names in fields.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::field::{ErrorList, Path};
use crate::validation::names;

const NO_IP: &str = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
const NO_RANGE: &str = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";

/// An address as old fields take it: numbers of IPv4 may begin with zeros.
pub fn parse_ip(text: &str) -> Option<IpAddr> {
    if text.contains(':') {
        return text.parse::<Ipv6Addr>().ok().map(|ip| ip.to_ipv4_mapped().map_or(IpAddr::V6(ip), IpAddr::V4));
    }
    let mut octets = [0; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        let part = parts.next().filter(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()))?;
        *octet = part.parse().ok()?;
    }
    parts.next().is_none().then(|| Ipv4Addr::from(octets).into())
}

/// A range `ADDRESS/BITS`: its first address and how many bits are fixed.
pub fn parse_range(text: &str) -> Option<(IpAddr, u8)> {
    let (address, bits) = text.split_once('/')?;
    let ip = parse_ip(address)?;
    let bits: u8 = bits.parse().ok().filter(|_| !bits.starts_with('+'))?;
    (bits <= width(ip)).then(|| (first(ip, bits), bits))
}

/// Whether a range contains an address; never if they are of different families.
pub fn contains((start, bits): (IpAddr, u8), ip: IpAddr) -> bool {
    start.is_ipv4() == ip.is_ipv4() && first(ip, bits) == start
}

fn width(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { 32 } else { 128 }
}

/// The first address of the range of so many bits in which an address lies.
fn first(ip: IpAddr, bits: u8) -> IpAddr {
    match ip {
        IpAddr::V4(ip) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0);
            Ipv4Addr::from(u32::from(ip) & mask).into()
        }
        IpAddr::V6(ip) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0);
            Ipv6Addr::from(u128::from(ip) & mask).into()
        }
    }
}

/// What is wrong with an address.
pub fn ip(text: &str, path: &Path) -> ErrorList {
    if parse_ip(text).is_some() { ErrorList::new() } else { vec![path.invalid(text, NO_IP)] }
}

/// What is wrong with an address in the form that new fields take: the one canonical form.
pub fn canonical_ip(text: &str, path: &Path) -> ErrorList {
    match text.parse::<IpAddr>() {
        Err(_) => vec![path.invalid(text, NO_IP)],
        Ok(ip) if ip.to_string() != text => {
            vec![path.invalid(text, format!("must be in canonical form (\"{ip}\")"))]
        }
        Ok(_) => ErrorList::new(),
    }
}

/// What is wrong with a range.
pub fn range(text: &str, path: &Path) -> ErrorList {
    if parse_range(text).is_some() { ErrorList::new() } else { vec![path.invalid(text, NO_RANGE)] }
}

/// What is wrong with the address of an endpoint: one that means something else on every machine.
pub fn of_endpoint(text: &str, path: &Path) -> ErrorList {
    let Some(ip) = parse_ip(text) else { return vec![path.invalid(text, "must be a valid IP address")] };
    let (link_local, link_local_multicast) = match ip {
        IpAddr::V4(ip) => (ip.is_link_local(), ip.octets()[..3] == [224, 0, 0]),
        IpAddr::V6(ip) => (ip.is_unicast_link_local(), ip.segments()[0] & 0xff0f == 0xff02),
    };
    let special = [
        (ip.is_unspecified(), "may not be unspecified (0.0.0.0 or ::)"),
        (ip.is_loopback(), "may not be in the loopback range (127.0.0.0/8, ::1/128)"),
        (link_local, "may not be in the link-local range (169.254.0.0/16, fe80::/10)"),
        (link_local_multicast, "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)"),
    ];
    special.into_iter().filter(|(is, _)| *is).map(|(_, why)| path.invalid(text, why)).collect()
}

/// What is wrong with the domain name of a machine: two labels at least, perhaps a dot at the end.
pub fn domain(text: &str, path: &Path) -> ErrorList {
    if text.is_empty() {
        return vec![path.required("")];
    }
    let name = text.strip_suffix('.').unwrap_or(text);
    let wrong = names::dns1123_subdomain(name);
    if !wrong.is_empty() {
        return vec![path.invalid(name, wrong.join(","))];
    }
    if !name.contains('.') {
        return vec![path.invalid(name, "should be a domain with at least two segments separated by dots")];
    }
    let labels = name.split('.').map(|label| (label, names::dns1123_label(label)));
    labels.filter(|(_, wrong)| !wrong.is_empty()).map(|(label, wrong)| path.invalid(label, wrong.join(","))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_they_were_always_read() {
        assert_eq!(parse_ip("010.0.0.1"), "10.0.0.1".parse().ok());
        assert_eq!(parse_ip("::ffff:1.2.3.4"), "1.2.3.4".parse().ok());
        for wrong in ["", "1.2.3", "1.2.3.4.5", "256.0.0.1", "a", "1..2.3"] {
            assert_eq!(parse_ip(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn ranges_contain_their_addresses() {
        let range = parse_range("10.1.2.3/8").unwrap();
        assert!(contains(range, "10.255.0.1".parse().unwrap()) && !contains(range, "11.0.0.0".parse().unwrap()));
        assert!(contains(parse_range("0.0.0.0/0").unwrap(), "1.2.3.4".parse().unwrap()));
        assert!(!contains(parse_range("::/0").unwrap(), "1.2.3.4".parse().unwrap()));
        for wrong in ["10.0.0.0", "10.0.0.0/33", "10.0.0.0/-1", "10.0.0.0/+8", "x/8"] {
            assert_eq!(parse_range(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn endpoints_have_addresses_that_others_reach() {
        let wrong = |text: &str| of_endpoint(text, &Path::new("a")).len();
        assert_eq!(wrong("192.0.2.1"), 0);
        for text in ["0.0.0.0", "127.0.0.1", "169.254.1.1", "224.0.0.1", "::1", "fe80::1", "ff02::1", "x"] {
            assert_eq!(wrong(text), 1, "{text}");
        }
    }

    #[test]
    fn a_domain_has_two_labels() {
        assert!(domain("a.example.", &Path::new("a")).is_empty());
        assert_eq!(
            domain("a", &Path::new("a"))[0].detail,
            "should be a domain with at least two segments separated by dots"
        );
    }
}
