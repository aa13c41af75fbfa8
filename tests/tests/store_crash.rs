//! The API server is killed under load, many times: what it acknowledged is there, and watchers saw everything once and
//! in order.
//!
//! Writers record what was acknowledged, watchers what they were told; both go on where they were after each crash. The
//! two records are then held against each other.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use carob_tests::{Carob, Setup};
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, DeleteParams, PostParams, WatchEvent, WatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::json;

const KILLS: u32 = 12;
const WRITERS: u32 = 6;
const WATCHERS: usize = 3;

/// What happened to an object at a revision: its value, or none for its deletion.
type Happened = (String, Option<String>);

#[derive(Default)]
struct Record {
    /// Acknowledged writes by revision (deletions are acknowledged without one).
    acknowledged: BTreeMap<u64, (String, String)>,
    deleted: Vec<String>,
    /// Writes whose answer never came: they may have happened or not.
    unanswered: BTreeSet<Happened>,
    /// What each watcher was told, in order.
    watched: Vec<Vec<(u64, Happened)>>,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_writes_survive_and_watchers_see_every_event_once_and_in_order() {
    let mut carob = Carob::start_with(&Setup { arguments: &["--workers", "0"], ..Setup::default() });
    let kubeconfig = carob.kubeconfig();
    let record = Arc::new(Mutex::new(Record { watched: vec![Vec::new(); WATCHERS], ..Record::default() }));
    let done = Arc::new(AtomicBool::new(false));
    let begin = revision(&api(&kubeconfig).await).await;

    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| tokio::spawn(write(kubeconfig.clone(), writer, Arc::clone(&record), Arc::clone(&done))))
        .collect();
    let watchers: Vec<_> = (0..WATCHERS)
        .map(|watcher| tokio::spawn(follow(kubeconfig.clone(), watcher, begin, Arc::clone(&record), Arc::clone(&done))))
        .collect();
    for kill in 0..KILLS {
        let enough = record.lock().unwrap().acknowledged.len() + 40;
        while record.lock().unwrap().acknowledged.len() < enough + usize::try_from(kill * 7 % 13).unwrap() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        tokio::task::block_in_place(|| {
            carob.kill();
            carob.up(&["--workers", "0"]);
        });
    }
    done.store(true, Ordering::SeqCst);
    for writer in writers {
        writer.await.unwrap();
    }
    let last = record.lock().unwrap().acknowledged.last_key_value().map_or(0, |(revision, _)| *revision);
    for watcher in watchers {
        assert!(watcher.await.unwrap() >= last, "a watcher reached the end");
    }
    let listed = api(&kubeconfig).await.list(&kube::api::ListParams::default()).await.unwrap();
    let state = listed.items.iter().map(|object| (name(object), value(object))).collect();
    check(&record.lock().unwrap(), &state);
}

async fn api(kubeconfig: &std::path::Path) -> Api<ConfigMap> {
    let file = Kubeconfig::read_from(kubeconfig).unwrap();
    let config = kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.unwrap();
    Api::namespaced(kube::Client::try_from(config).unwrap(), "kube-public")
}

async fn revision(api: &Api<ConfigMap>) -> u64 {
    let list = api.list_metadata(&kube::api::ListParams::default()).await.unwrap();
    list.metadata.resource_version.unwrap().parse().unwrap()
}

fn name(object: &ConfigMap) -> String {
    object.metadata.name.clone().unwrap()
}

fn value(object: &ConfigMap) -> String {
    object.data.as_ref().and_then(|data| data.get("v").cloned()).unwrap_or_default()
}

fn version(object: &ConfigMap) -> u64 {
    object.metadata.resource_version.as_ref().unwrap().parse().unwrap()
}

/// Creates, changes and deletes objects of its own, one after the other.
async fn write(kubeconfig: std::path::PathBuf, writer: u32, record: Arc<Mutex<Record>>, done: Arc<AtomicBool>) {
    let api = api(&kubeconfig).await;
    let mut step = 0;
    while !done.load(Ordering::SeqCst) {
        let name = format!("w{writer}-{}", step / 4);
        let text = format!("{writer}.{step}");
        let object: ConfigMap =
            serde_json::from_value(json!({"metadata": {"name": name}, "data": {"v": text}})).unwrap();
        let deletes = step % 8 == 7;
        let outcome = if deletes {
            api.delete(&name, &DeleteParams::default()).await.map(|_| None)
        } else if step % 4 == 0 {
            api.create(&PostParams::default(), &object).await.map(Some)
        } else {
            api.replace(&name, &PostParams::default(), &object).await.map(Some)
        };
        let mut record = record.lock().unwrap();
        match outcome {
            Ok(Some(object)) => {
                let old = record.acknowledged.insert(version(&object), (name, text));
                assert_eq!(old, None, "two writes at one revision");
            }
            Ok(None) => record.deleted.push(name),
            // The API answered: the write did not happen (a create that had been unanswered, a change of what isn't there).
            Err(kube::Error::Api(_)) => {}
            Err(_) => {
                record.unanswered.insert((name, (!deletes).then_some(text)));
            }
        }
        step += 1;
    }
}

/// Watches, and goes on from the last revision it was told of; gives the last one.
async fn follow(
    kubeconfig: std::path::PathBuf,
    watcher: usize,
    begin: u64,
    record: Arc<Mutex<Record>>,
    done: Arc<AtomicBool>,
) -> u64 {
    let api = api(&kubeconfig).await;
    let mut at = begin;
    loop {
        let ended = done.load(Ordering::SeqCst);
        let parameters = WatchParams::default().timeout(2);
        if let Ok(stream) = api.watch(&parameters, &at.to_string()).await {
            let mut stream = stream.boxed();
            while let Ok(Some(event)) = stream.try_next().await {
                let happened = match event {
                    WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                        (version(&object), (name(&object), Some(value(&object))))
                    }
                    WatchEvent::Deleted(object) => (version(&object), (name(&object), None)),
                    WatchEvent::Bookmark(bookmark) => {
                        at = at.max(bookmark.metadata.resource_version.parse().unwrap());
                        continue;
                    }
                    WatchEvent::Error(status) => panic!("watch: {status:?}"),
                };
                at = happened.0;
                record.lock().unwrap().watched[watcher].push(happened);
            }
            if ended {
                return at;
            }
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn check(record: &Record, state: &BTreeMap<String, String>) {
    let told = &record.watched[0];
    assert!(record.acknowledged.len() > 400, "a load: {}", record.acknowledged.len());
    for watched in &record.watched {
        assert!(watched.windows(2).all(|pair| pair[0].0 < pair[1].0), "in order, none twice");
        assert_eq!(watched, told, "all watchers were told the same");
    }
    let told: BTreeMap<u64, Happened> = told.iter().cloned().collect();
    for (revision, happened) in &record.acknowledged {
        let expected = (happened.0.clone(), Some(happened.1.clone()));
        assert_eq!(told.get(revision), Some(&expected), "an acknowledged write was told at its revision");
    }
    // What was told beyond that is a deletion, or a write whose answer was lost.
    for (revision, happened) in &told {
        let known =
            record.acknowledged.contains_key(revision) || happened.1.is_none() || record.unanswered.contains(happened);
        assert!(known, "nobody wrote {happened:?} at {revision}");
    }
    let mut model: BTreeMap<String, String> = BTreeMap::new();
    for (name, value) in told.into_values() {
        match value {
            Some(value) => model.insert(name, value),
            None => model.remove(&name),
        };
    }
    let ours = |map: &BTreeMap<String, String>| -> BTreeMap<String, String> {
        map.iter()
            .filter(|(name, _)| name.starts_with('w'))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect()
    };
    assert_eq!(ours(state), ours(&model), "what is listed is what the events lead to");
    for name in &record.deleted {
        assert!(!state.contains_key(name), "{name} was deleted");
    }
}
