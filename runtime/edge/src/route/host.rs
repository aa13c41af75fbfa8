//! Host names and the patterns that they are compared with.

/// Which host names something is for.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Pattern {
    /// All of them.
    Any,
    /// Those that end so (`.example.com`), with one label before it or, if `deep`, with any number.
    Wildcard { suffix: String, deep: bool },
    /// This one.
    Exact(String),
}

impl Pattern {
    /// Reads an Ingress' host: `*` stands for one label.
    pub fn of_ingress(host: Option<&str>) -> Self {
        Self::read(host, false)
    }

    /// Reads a host name of the Gateway API: `*` stands for one label or more.
    pub fn of_gateway(host: Option<&str>) -> Self {
        Self::read(host, true)
    }

    fn read(host: Option<&str>, deep: bool) -> Self {
        match host.filter(|host| !host.is_empty() && *host != "*") {
            None => Self::Any,
            Some(host) => match host.strip_prefix('*') {
                Some(suffix) => Self::Wildcard { suffix: suffix.to_ascii_lowercase(), deep },
                None => Self::Exact(host.to_ascii_lowercase()),
            },
        }
    }

    /// Whether a host name, in lower case, is one of these.
    pub fn matches(&self, host: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Exact(name) => name == host,
            Self::Wildcard { suffix, deep } => host
                .strip_suffix(suffix.as_str())
                .is_some_and(|before| !before.is_empty() && (*deep || !before.contains('.'))),
        }
    }

    /// How specific it is: exact names before wildcards, longer ones before shorter ones.
    pub fn weight(&self) -> (u8, usize) {
        match self {
            Self::Any => (0, 0),
            Self::Wildcard { suffix, .. } => (1, suffix.len()),
            Self::Exact(name) => (2, name.len()),
        }
    }

    /// What is in both; nothing if they have nothing in common.
    pub fn intersection(&self, other: &Self) -> Option<Self> {
        let (narrow, wide) = if self.weight() >= other.weight() { (self, other) } else { (other, self) };
        let inside = match (narrow, wide) {
            (_, Self::Any) => true,
            (Self::Exact(name), wide) => wide.matches(name),
            (Self::Wildcard { suffix: narrow, .. }, Self::Wildcard { suffix: wide, .. }) => narrow.ends_with(wide),
            _ => false,
        };
        inside.then(|| narrow.clone())
    }
}

/// `.b.c`, then `.c`, of `a.b.c`.
pub fn parents(host: &str) -> impl Iterator<Item = &str> {
    host.match_indices('.').map(|(at, _)| &host[at..])
}

/// The name of an authority, without its port, in lower case. Nothing if it is malformed.
pub fn name_of(authority: &str) -> Option<String> {
    let authority = authority.parse::<http::uri::Authority>().ok()?;
    if authority.as_str().contains('@') {
        return None;
    }
    let name = authority.host().trim_end_matches('.').to_ascii_lowercase();
    (!name.is_empty()).then_some(name)
}
