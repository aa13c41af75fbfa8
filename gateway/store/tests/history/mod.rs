//! Checks recorded histories of a store: what clients were told and what watchers saw must fit one sequence of
//! transactions, across crashes too.
//!
//! The checker knows nothing of an engine or a transport. A test records [`Fact`]s, in any way that survives what it does
//! to the store, and asks [`History::check`].

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::{Deserialize, Serialize};

/// One change of a key, as every observer must see it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Change {
    Put { key: String, value: String },
    Delete { key: String },
}

/// Something that was observed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fact {
    /// A client is about to ask for these changes. `token` is unique.
    Asked { token: String, changes: Vec<Change> },
    /// The client was told that they are committed.
    Acknowledged { token: String, revision: u64 },
    /// The client was told that they conflict: nothing was written.
    Refused { token: String },
    /// A watcher of all keys begins behind this revision, or goes on there, which must be where it was.
    Watching { watcher: String, after: u64 },
    /// It saw one transaction.
    Saw { watcher: String, revision: u64, changes: Vec<Change> },
    /// It was told that nothing else happened up to here.
    Progress { watcher: String, revision: u64 },
}

/// What is in a store at the end: its newest revision, and key -> (value, revision of the last write).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    pub revision: u64,
    pub entries: BTreeMap<String, (String, u64)>,
}

/// Facts in the order in which each observer recorded them; those of different observers may be mixed in any way.
#[derive(Debug, Default)]
pub struct History {
    pub facts: Vec<Fact>,
}

impl History {
    /// Checks the facts against the whole log of a store (revision -> changes, from the first) and its final state.
    ///
    /// # Errors
    /// What contradicts.
    pub fn check(&self, log: &BTreeMap<u64, Vec<Change>>, last: &State) -> Result<(), String> {
        check_log(log, last)?;
        self.check_clients(log)?;
        self.check_watchers(log)
    }

    /// Every acknowledged transaction is in the log as asked, whole and under its revision; every logged one was asked
    /// for, exactly once, and not refused. (One that was neither acknowledged nor refused may be there or not.)
    fn check_clients(&self, log: &BTreeMap<u64, Vec<Change>>) -> Result<(), String> {
        let mut asked: HashMap<&str, &Vec<Change>> = HashMap::new();
        let mut acknowledged: HashMap<u64, &str> = HashMap::new();
        let mut fate: HashMap<&str, bool> = HashMap::new();
        for fact in &self.facts {
            match fact {
                Fact::Asked { token, changes } => {
                    let before = asked.insert(token, changes);
                    assert!(before.is_none(), "the test used token {token} twice");
                }
                Fact::Acknowledged { token, revision } => {
                    let wanted = asked.get(token.as_str()).ok_or(format!("{token} was acknowledged unasked"))?;
                    let found = log.get(revision).ok_or(format!("{token}, acknowledged at {revision}, is lost"))?;
                    if found != *wanted {
                        return Err(format!("{token} asked for {wanted:?}; revision {revision} has {found:?}"));
                    }
                    if let Some(other) = acknowledged.insert(*revision, token) {
                        return Err(format!("revision {revision} was given to {other} and {token}"));
                    }
                    fate.insert(token, true);
                }
                Fact::Refused { token } => {
                    fate.insert(token, false);
                }
                _ => {}
            }
        }
        // A transaction is recognised by its changes, whose values are unique to it; deletions alone are not, and are
        // told by their revision if they were acknowledged.
        let mut requests: HashMap<&Vec<Change>, &str> = HashMap::new();
        for (token, changes) in &asked {
            requests.insert(changes, token);
        }
        let mut seen = HashMap::new();
        for (revision, changes) in log {
            let token = acknowledged.get(revision).copied().or_else(|| requests.get(changes).copied());
            let token = token.ok_or(format!("nobody asked for revision {revision}: {changes:?}"))?;
            let unique = changes.iter().any(|change| matches!(change, Change::Put { .. }));
            if unique && let Some(first) = seen.insert(token, *revision) {
                return Err(format!("{token} was carried out twice, at {first} and {revision}"));
            }
            if unique && fate.get(token) == Some(&false) {
                return Err(format!("{token} was refused, but is at revision {revision}"));
            }
        }
        Ok(())
    }

    /// Every watcher saw the log from where it began, transaction by transaction, without a gap, a double or a swap.
    fn check_watchers(&self, log: &BTreeMap<u64, Vec<Change>>) -> Result<(), String> {
        let mut cursors: HashMap<&str, u64> = HashMap::new();
        for fact in &self.facts {
            match fact {
                Fact::Watching { watcher, after } => {
                    if let Some(cursor) = cursors.insert(watcher, *after).filter(|cursor| cursor != after) {
                        return Err(format!("{watcher} was at {cursor} and goes on behind {after}"));
                    }
                }
                Fact::Saw { watcher, revision, changes } => {
                    let cursor = cursors.get_mut(watcher.as_str()).ok_or(format!("{watcher} never began"))?;
                    if *revision <= *cursor {
                        return Err(format!("{watcher} was at {cursor} and saw {revision}"));
                    }
                    if let Some((missed, _)) = log.range(*cursor + 1..*revision).next() {
                        return Err(format!("{watcher} was at {cursor} and saw {revision}, but not {missed}"));
                    }
                    if log.get(revision) != Some(changes) {
                        let found = log.get(revision);
                        return Err(format!("{watcher} saw {changes:?} at {revision}; the log has {found:?}"));
                    }
                    *cursor = *revision;
                }
                Fact::Progress { watcher, revision } => {
                    let cursor = cursors.get_mut(watcher.as_str()).ok_or(format!("{watcher} never began"))?;
                    if *revision < *cursor {
                        return Err(format!("{watcher} was at {cursor} and went back to {revision}"));
                    }
                    let missed = log.range(*cursor + 1..).next().filter(|(next, _)| *next <= revision);
                    if let Some((missed, _)) = missed {
                        return Err(format!("{watcher} was at {cursor}, told {revision}, but had not seen {missed}"));
                    }
                    *cursor = *revision;
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// The log has every revision up to the newest, and ends in the state that the store shows.
fn check_log(log: &BTreeMap<u64, Vec<Change>>, last: &State) -> Result<(), String> {
    let mut state = State::default();
    for (revision, changes) in log {
        if *revision != state.revision + 1 {
            return Err(format!("the log goes from {} to {revision}", state.revision));
        }
        state.revision = *revision;
        for change in changes {
            match change {
                Change::Put { key, value } => {
                    state.entries.insert(key.clone(), (value.clone(), *revision));
                }
                Change::Delete { key } => {
                    if state.entries.remove(key).is_none() {
                        return Err(format!("revision {revision} deletes {key}, which was not there"));
                    }
                }
            }
        }
    }
    if state == *last {
        return Ok(());
    }
    let keys = state.entries.keys().chain(last.entries.keys());
    let differing = keys.filter(|key| state.entries.get(*key) != last.entries.get(*key)).collect::<BTreeSet<_>>();
    Err(format!("the log ends at {}, the store is at {}; differing keys: {differing:?}", state.revision, last.revision))
}
