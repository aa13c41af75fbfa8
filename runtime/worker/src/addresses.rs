//! The addresses of a pod or a machine: one, or one of each kind.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// The first one is what counts where there can be one only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Addresses {
    pub first: IpAddr,
    pub second: Option<IpAddr>,
}

impl Addresses {
    pub fn new(first: impl Into<IpAddr>, second: Option<impl Into<IpAddr>>) -> Self {
        Self { first: first.into(), second: second.map(Into::into) }
    }

    pub fn all(self) -> impl Iterator<Item = IpAddr> {
        std::iter::once(self.first).chain(self.second)
    }
}

impl From<IpAddr> for Addresses {
    fn from(first: IpAddr) -> Self {
        Self { first, second: None }
    }
}

/// With a comma between them, as the downward API has them.
impl fmt::Display for Addresses {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "{}", self.first)?;
        self.second.map_or(Ok(()), |second| write!(to, ",{second}"))
    }
}

impl FromStr for Addresses {
    type Err = std::net::AddrParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (first, second) = text.split_once(',').map_or((text, None), |(first, second)| (first, Some(second)));
        Ok(Self { first: first.parse()?, second: second.map(str::parse).transpose()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_or_two_are_read_as_they_are_written() {
        for text in ["10.0.0.5", "10.0.0.5,fd00::a00:5"] {
            let addresses: Addresses = text.parse().unwrap();
            assert_eq!(addresses.to_string(), text);
            assert_eq!(addresses.all().count(), text.split(',').count());
        }
        assert!("".parse::<Addresses>().is_err() && "10.0.0.5,x".parse::<Addresses>().is_err());
    }
}
