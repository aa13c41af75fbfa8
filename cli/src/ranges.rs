//! Ranges of addresses, as flags name them: one of IPv4, and in a dual-stack cluster one of IPv6 after it.

use std::fmt;
use std::str::FromStr;

use anyhow::{Result, bail};
use carob_network::{Ipv4Net, Ipv6Net};

/// Addresses of unique local and of global networks: what pods and Services can have.
const USABLE: [&str; 2] = ["fc00::/7", "2000::/3"];
/// A pod's IPv6 address ends in its IPv4 one.
const LONGEST_POD_PREFIX: u8 = 96;
/// As many Services as in an IPv4 /12 at the most, and room for the ones of the cluster itself.
const SERVICE_PREFIXES: std::ops::RangeInclusive<u8> = 108..=123;

/// `10.42.0.0/16` or `10.42.0.0/16,fd42::/64`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ranges {
    pub v4: Ipv4Net,
    pub v6: Option<Ipv6Net>,
}

impl FromStr for Ranges {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for part in text.split(',').map(str::trim) {
            if let Ok(range) = part.parse::<Ipv4Net>() {
                if !v6.is_empty() {
                    return Err("the IPv4 range comes first: IPv4 is the primary family".to_owned());
                }
                v4.push(range.trunc());
            } else if let Ok(range) = part.parse::<Ipv6Net>() {
                v6.push(range.trunc());
            } else {
                return Err(format!("{part:?} is no range of addresses in CIDR notation"));
            }
        }
        match (v4[..].as_ref(), v6[..].as_ref()) {
            ([], _) => Err("an IPv4 range comes first: IPv4 is the primary family".to_owned()),
            ([v4], []) => Ok(Self { v4: *v4, v6: None }),
            ([v4], [v6]) if USABLE.iter().any(|usable| contains(usable, v6)) => Ok(Self { v4: *v4, v6: Some(*v6) }),
            ([_], [v6]) => Err(format!("{v6} is neither of {} nor of {}", USABLE[0], USABLE[1])),
            _ => Err("there is at most one range of each family: IPv4, then IPv6".to_owned()),
        }
    }
}

fn contains(usable: &str, range: &Ipv6Net) -> bool {
    usable.parse::<Ipv6Net>().is_ok_and(|usable| usable.contains(range))
}

impl fmt::Display for Ranges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.v4)?;
        self.v6.map_or(Ok(()), |v6| write!(f, ",{v6}"))
    }
}

/// Refuses ranges that can't be those of one cluster's pods and Services.
pub fn check(pods: Ranges, services: Ranges) -> Result<()> {
    let mut overlaps = overlap(pods.v4, services.v4);
    match (pods.v6, services.v6) {
        (Some(pods), None) => bail!(
            "pods have addresses of {pods} and Services none of IPv6: name a range of each family with --service-cidr too"
        ),
        (None, Some(services)) => bail!(
            "Services have addresses of {services} and pods none of IPv6: name a range of each family with --pod-cidr too"
        ),
        (Some(pods), Some(_)) if pods.prefix_len() > LONGEST_POD_PREFIX => bail!(
            "--pod-cidr: {pods} is too small: a pod's IPv6 address ends in its IPv4 one, so it is a \
             /{LONGEST_POD_PREFIX} or larger"
        ),
        (Some(_), Some(services)) if !SERVICE_PREFIXES.contains(&services.prefix_len()) => bail!(
            "--service-cidr: {services} is not from a /{} to a /{}",
            SERVICE_PREFIXES.start(),
            SERVICE_PREFIXES.end()
        ),
        (Some(pods), Some(services)) => overlaps |= pods.contains(&services) || services.contains(&pods),
        (None, None) => {}
    }
    if overlaps {
        bail!("--pod-cidr {pods} and --service-cidr {services} overlap");
    }
    Ok(())
}

/// Whether two ranges have addresses in common.
pub fn overlap(one: Ipv4Net, other: Ipv4Net) -> bool {
    one.contains(&other) || other.contains(&one)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Ranges, String> {
        text.parse()
    }

    #[test]
    fn an_ipv4_range_comes_first_and_one_of_ipv6_may_follow() {
        assert_eq!(read("10.42.7.0/16").unwrap().to_string(), "10.42.0.0/16");
        assert_eq!(read("10.42.0.0/16, fd42::9/64").unwrap().to_string(), "10.42.0.0/16,fd42::/64");
        for (wrong, why) in [
            ("fd42::/64,10.42.0.0/16", "IPv4 is the primary family"),
            ("fd42::/64", "IPv4 is the primary family"),
            ("10.42.0.0/16,10.43.0.0/16", "at most one range of each family"),
            ("10.42.0.0/16,fd42::/64,fd43::/64", "at most one range of each family"),
            ("10.42.0.0/16,", "\"\" is no range"),
            ("10.42.0.0/16,fe80::/64", "fe80::/64 is neither of fc00::/7 nor of 2000::/3"),
        ] {
            let refused = read(wrong).unwrap_err();
            assert!(refused.contains(why), "{wrong}: {refused}");
        }
    }

    #[test]
    fn pods_and_services_have_the_same_families_and_nothing_in_common() {
        let checked = |pods: &str, services: &str| {
            check(read(pods).unwrap(), read(services).unwrap()).map_err(|error| error.to_string())
        };
        checked("10.42.0.0/16", "10.96.0.0/16").unwrap();
        checked("10.42.0.0/16,fd42::/96", "10.96.0.0/16,fd96::/108").unwrap();
        for (pods, services, why) in [
            ("10.42.0.0/16,fd42::/64", "10.96.0.0/16", "with --service-cidr too"),
            ("10.42.0.0/16", "10.96.0.0/16,fd96::/112", "with --pod-cidr too"),
            ("10.42.0.0/16,fd42::/97", "10.96.0.0/16,fd96::/112", "a /96 or larger"),
            ("10.42.0.0/16,fd42::/64", "10.96.0.0/16,fd96::/107", "from a /108 to a /123"),
            ("10.42.0.0/16,fd42::/64", "10.96.0.0/16,fd96::/124", "from a /108 to a /123"),
            ("10.42.0.0/16,fd42::/64", "10.96.0.0/16,fd42::/112", "overlap"),
            ("10.96.0.0/12", "10.96.0.0/16", "overlap"),
        ] {
            let refused = checked(pods, services).unwrap_err();
            assert!(refused.contains(why), "{pods} {services}: {refused}");
        }
    }
}
