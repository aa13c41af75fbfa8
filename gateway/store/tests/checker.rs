//! The checker of histories is itself checked: each kind of contradiction is found.

mod history;

use std::collections::BTreeMap;

use history::{Change, Fact, History, State};

fn put(key: &str, value: &str) -> Change {
    Change::Put { key: key.into(), value: value.into() }
}

/// Two transactions, both acknowledged and seen by a watcher.
fn sound() -> (History, BTreeMap<u64, Vec<Change>>, State) {
    let first = vec![put("/a", "t1"), put("/b", "t1")];
    let second = vec![put("/a", "t2"), Change::Delete { key: "/b".into() }];
    let log = BTreeMap::from([(1, first.clone()), (2, second.clone())]);
    let facts = vec![
        Fact::Watching { watcher: "w".into(), after: 0 },
        Fact::Asked { token: "t1".into(), changes: first.clone() },
        Fact::Acknowledged { token: "t1".into(), revision: 1 },
        Fact::Saw { watcher: "w".into(), revision: 1, changes: first },
        Fact::Asked { token: "t2".into(), changes: second.clone() },
        Fact::Acknowledged { token: "t2".into(), revision: 2 },
        Fact::Saw { watcher: "w".into(), revision: 2, changes: second },
        Fact::Progress { watcher: "w".into(), revision: 2 },
    ];
    let last = State { revision: 2, entries: BTreeMap::from([("/a".into(), ("t2".into(), 2))]) };
    (History { facts }, log, last)
}

fn complaint(spoil: impl FnOnce(&mut History, &mut BTreeMap<u64, Vec<Change>>, &mut State)) -> String {
    let (mut history, mut log, mut last) = sound();
    spoil(&mut history, &mut log, &mut last);
    history.check(&log, &last).expect_err("a contradiction")
}

#[test]
fn a_sound_history_passes() {
    let (history, log, last) = sound();
    history.check(&log, &last).unwrap();
}

#[test]
fn every_contradiction_is_found() {
    let lost = complaint(|_, log, last| {
        log.remove(&2);
        *last = State {
            revision: 1,
            entries: BTreeMap::from([("/a".into(), ("t1".into(), 1)), ("/b".into(), ("t1".into(), 1))]),
        };
    });
    assert!(lost.contains("t2, acknowledged at 2, is lost"), "{lost}");
    let half = complaint(|_, log, _| {
        log.get_mut(&1).unwrap().pop();
        log.get_mut(&2).unwrap().pop();
    });
    assert!(half.contains("t1 asked for"), "{half}");
    let stale = complaint(|_, _, last| last.entries.get_mut("/a").unwrap().1 = 1);
    assert!(stale.contains("differing keys: {\"/a\"}"), "{stale}");
    let gap = complaint(|history, _, _| drop(history.facts.remove(3)));
    assert!(gap.contains("saw 2, but not 1"), "{gap}");
    let double = complaint(|history, _, _| history.facts.insert(4, history.facts[3].clone()));
    assert!(double.contains("was at 1 and saw 1"), "{double}");
    let overtaken = complaint(|history, _, _| history.facts.swap(6, 7));
    assert!(overtaken.contains("told 2, but had not seen 2"), "{overtaken}");
    let refused = complaint(|history, _, _| history.facts[5] = Fact::Refused { token: "t2".into() });
    assert!(refused.contains("t2 was refused, but is at revision 2"), "{refused}");
    let unasked = complaint(|history, _, _| {
        history.facts.retain(
            |fact| !matches!(fact, Fact::Asked { token, .. } | Fact::Acknowledged { token, .. } if token == "t2"),
        );
    });
    assert!(unasked.contains("nobody asked for revision 2"), "{unasked}");
    let shared = complaint(|history, log, _| {
        history.facts.push(Fact::Asked { token: "t3".into(), changes: log[&2].clone() });
        history.facts.push(Fact::Acknowledged { token: "t3".into(), revision: 2 });
    });
    assert!(shared.contains("was given to t2 and t3"), "{shared}");
}
