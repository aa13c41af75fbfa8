//! Which rule a request belongs to: a pure function of the request's head and of data that never changes.
//!
//! A [`Port`] has listeners by host name; a listener has rules by host name; the rules of one host are in the order in
//! which they are tried. Ingress and the Gateway API have the same order: hosts before wildcards, exact paths before
//! prefixes, longer prefixes first, then method, headers, query parameters, then the older object.

pub mod action;
pub mod host;
pub mod matches;
pub mod path;

use std::collections::HashMap;
use std::sync::Arc;

use http::request::Parts;
use rustls::sign::CertifiedKey;

pub use self::action::{Action, Affinity, Backend, HeaderChange, Mirror, Protocol, Redirect, Rule, Split, Target};
pub use self::host::Pattern;
pub use self::matches::{Call, Match, PathMatch, Text};

/// What is served on one port.
#[derive(Debug, Default)]
pub struct Port {
    /// Whether clients speak TLS here.
    pub tls: bool,
    /// The most specific host names first.
    listeners: Vec<Listener>,
}

/// A part of a port, chosen by the request's host.
#[derive(Debug)]
pub struct Listener {
    pub host: Pattern,
    /// What it identifies itself with, if the port speaks TLS; the first one is for names that none is for.
    pub certificates: Vec<Certificate>,
    exact: HashMap<String, Vec<Entry>>,
    /// By what follows the `*`.
    wildcard: HashMap<String, Vec<Entry>>,
    any: Vec<Entry>,
}

/// A certificate with its key, and the names that it is for.
#[derive(Clone, Debug)]
pub struct Certificate {
    pub key: Arc<CertifiedKey>,
    pub names: Vec<Pattern>,
}

/// A rule under one of its matches.
#[derive(Clone, Debug)]
pub struct Entry {
    pub host: Pattern,
    pub matches: Match,
    pub rule: Arc<Rule>,
    /// Orders what is equally specific: age and name of the object, then the place in it.
    pub rank: Rank,
}

/// When an object was made, its namespace and name, and the place of a rule in it.
pub type Rank = (Option<jiff::Timestamp>, String, usize);

/// What was found for a request.
#[derive(Debug)]
pub enum Found<'a> {
    /// This rule, under this match.
    Entry(&'a Entry),
    /// No rule.
    Nothing,
    /// No listener of this port serves this host on this connection.
    Misdirected,
}

impl Listener {
    /// A listener with its rules, in any order.
    pub fn new(host: Pattern, certificates: Vec<Certificate>, entries: Vec<Entry>) -> Self {
        let mut listener =
            Self { host, certificates, exact: HashMap::new(), wildcard: HashMap::new(), any: Vec::new() };
        for entry in entries {
            let bucket = match &entry.host {
                Pattern::Exact(name) => listener.exact.entry(name.clone()).or_default(),
                Pattern::Wildcard { suffix, .. } => listener.wildcard.entry(suffix.clone()).or_default(),
                Pattern::Any => &mut listener.any,
            };
            bucket.push(entry);
        }
        let buckets = listener.exact.values_mut().chain(listener.wildcard.values_mut());
        for bucket in buckets.chain([&mut listener.any]) {
            bucket.sort_by(|a, b| b.matches.weight().cmp(&a.matches.weight()).then_with(|| a.rank.cmp(&b.rank)));
        }
        listener
    }

    fn find(&self, host: &str, parts: &Parts) -> Option<&Entry> {
        let request = matches::Asked::new(parts);
        let of = |is_rest: bool| {
            let exact = self.exact.get(host).into_iter();
            // `a.b.c`: what ends in `.b.c` is closer than what ends in `.c`.
            let wildcards = host::parents(host).filter_map(|parent| self.wildcard.get(parent));
            let mut entries = exact.chain(wildcards).chain([&self.any]).flatten();
            entries.find(|entry| {
                entry.matches.path.is_rest() == is_rest && entry.host.matches(host) && entry.matches.holds(&request)
            })
        };
        // A default backend comes after every rule, those for all hosts included.
        of(false).or_else(|| of(true))
    }
}

impl Port {
    /// A port with its listeners, in any order.
    pub fn new(tls: bool, mut listeners: Vec<Listener>) -> Self {
        listeners.sort_by_key(|listener| std::cmp::Reverse(listener.host.weight()));
        Self { tls, listeners }
    }

    /// The listener that is closest to a host name.
    pub fn listener(&self, host: &str) -> Option<&Listener> {
        self.listeners.iter().find(|listener| listener.host.matches(host))
    }

    /// The rule of a request. `server_name` is what the client called this side when it opened a TLS connection.
    pub fn find(&self, host: &str, server_name: Option<&str>, parts: &Parts) -> Found<'_> {
        let Some(listener) = self.listener(host) else { return Found::Nothing };
        // A connection that was opened to one listener is no way into another.
        if let Some(opened) = server_name.and_then(|name| self.listener(name))
            && !std::ptr::eq(opened, listener)
        {
            return Found::Misdirected;
        }
        listener.find(host, parts).map_or(Found::Nothing, Found::Entry)
    }

    /// The certificate for a client that calls this side by a name, or by none.
    pub fn certificate(&self, name: Option<&str>) -> Option<Arc<CertifiedKey>> {
        let listener = match name {
            Some(name) => self.listener(name)?,
            // Whoever says no name means no host in particular: the listener that is for most of them.
            None => self.listeners.iter().rev().find(|listener| !listener.certificates.is_empty())?,
        };
        let fits = |certificate: &&Certificate| {
            let name = name?;
            let fitting = certificate.names.iter().filter(|pattern| pattern.matches(name));
            fitting.map(Pattern::weight).max()
        };
        let fitting = listener.certificates.iter().filter(|certificate| fits(certificate).is_some());
        // The first of several that fit equally well.
        let best = fitting.rev().max_by_key(fits).or(listener.certificates.first());
        best.map(|certificate| Arc::clone(&certificate.key))
    }

    /// All that requests may be sent to.
    pub fn backends(&self) -> impl Iterator<Item = &Arc<Backend>> {
        let entries = self.listeners.iter().flat_map(|listener| {
            listener.exact.values().chain(listener.wildcard.values()).chain([&listener.any]).flatten()
        });
        entries.flat_map(|entry| entry.rule.backends())
    }
}

#[cfg(test)]
mod tests;
