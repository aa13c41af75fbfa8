//! A process that writes under load is killed again and again at random moments. What its clients and watchers put down
//! until then, and what the file shows afterwards, must be one history.

mod history;
mod observer;

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use carob_store::redb::{Options, RedbStore};
use carob_store::{Error, Store};
use history::{Fact, History};
use observer::Dice;

const ROUNDS: u64 = 30;
const CLIENTS: u64 = 8;
const WATCHERS: u64 = 3;
/// Set in the child: the directory, the round, and up to where the parent has read the log.
const CHILD: &str = "CAROB_STORE_CRASH_CHILD";
const NAME: &str = "a_killed_store_loses_nothing_it_acknowledged";

#[test]
fn a_killed_store_loses_nothing_it_acknowledged() {
    if let Ok(orders) = std::env::var(CHILD) {
        return child(&orders);
    }
    let directory = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let seed = std::env::var("CAROB_STORE_SEED").map_or_else(|_| u64::from(std::process::id()), |s| s.parse().unwrap());
    println!("CAROB_STORE_SEED={seed}");
    let mut dice = Dice::new(seed);
    let mut log = BTreeMap::new();
    let mut last = history::State::default();
    for round in 0..ROUNDS {
        last = runtime.block_on(async {
            kill_a_child(directory.path(), round, last.revision, &mut dice).await;
            let store = RedbStore::open(directory.path().join("store.redb"), options()).unwrap();
            let state = observer::inspect(&store, &mut log).await;
            store.close().await;
            state
        });
    }
    let facts = std::fs::read_dir(directory.path()).unwrap().map(|file| file.unwrap().path());
    let facts = facts.filter(|path| path.extension().is_some_and(|end| end == "facts"));
    let history = History { facts: facts.flat_map(|path| read_facts(&path)).collect() };
    println!("{} facts about {} transactions", history.facts.len(), log.len());
    // Progress is told to idle watchers only: under load it may not come up, and it has tests of its own.
    let kinds: [fn(&Fact) -> bool; 3] = [
        |fact| matches!(fact, Fact::Acknowledged { .. }),
        |fact| matches!(fact, Fact::Refused { .. }),
        |fact| matches!(fact, Fact::Saw { .. }),
    ];
    for (number, kind) in kinds.iter().enumerate() {
        assert!(history.facts.iter().any(kind), "kind {number} never happened: the test tests nothing");
    }
    history.check(&log, &last).unwrap();
}

fn options() -> Options {
    // Few transactions in memory, so that slow watchers must read the log; a short journal, and progress so often that it
    // happens.
    Options {
        ring_transactions: 32,
        journal_bytes: 50_000,
        progress_interval: Duration::from_millis(5),
        ..Options::default()
    }
}

async fn kill_a_child(directory: &Path, round: u64, seen: u64, dice: &mut Dice) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", NAME, "--nocapture"])
        .env(CHILD, format!("{round}:{seen}:{}", directory.display()))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // Sometimes in the middle of starting, mostly under load.
    let pause = if round % 5 == 4 {
        dice.roll(30)
    } else {
        let output = BufReader::new(child.stdout.take().unwrap());
        assert!(output.lines().map_while(Result::ok).any(|line| line.ends_with("ready")), "the child did not start");
        dice.roll(350)
    };
    tokio::time::sleep(Duration::from_millis(pause)).await;
    assert!(child.try_wait().unwrap().is_none(), "the child ended by itself in round {round}");
    child.kill().unwrap();
    child.wait().unwrap();
}

#[tokio::main(worker_threads = 2)]
async fn child(orders: &str) {
    let (round, rest) = orders.split_once(':').unwrap();
    let (seen, directory) = rest.split_once(':').unwrap();
    let (round, seen): (u64, u64) = (round.parse().unwrap(), seen.parse().unwrap());
    let directory = Path::new(directory);
    let store = Arc::new(RedbStore::open(directory.join("store.redb"), options()).unwrap());
    // The test ends when any task ends: none has a reason to.
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..WATCHERS {
        tasks.spawn(watch(store.clone(), directory.into(), round, number));
    }
    for number in 0..CLIENTS {
        let (store, file) = (store.clone(), directory.join(format!("client-{number}.facts")));
        tasks.spawn(async move {
            let mut record = recorder(&file);
            let mut dice = Dice::new(round * 100 + number + 1);
            let client = format!("client-{number}");
            for count in 0_u64.. {
                let token = format!("{round}.{number}.{count}");
                observer::transact(&*store, &client, &token, &mut dice, &mut record).await.unwrap();
                if count % 16 == 0 {
                    store.request_progress().await.unwrap();
                }
            }
        });
    }
    println!("\nready");
    if round % 3 == 2 {
        store.compact(seen).await.unwrap();
    }
    tasks.join_next().await.unwrap().unwrap();
}

/// Goes on where the facts end. If that has been compacted meanwhile, another watcher begins where the log does.
async fn watch(store: Arc<RedbStore>, directory: PathBuf, round: u64, number: u64) {
    let mut name = format!("watcher-{number}");
    let mut after = 0;
    for fact in read_facts(&directory.join(format!("watcher-{number}.facts"))) {
        if let Fact::Watching { watcher, after: revision } = fact {
            (name, after) = (watcher, revision);
        } else if let Fact::Saw { revision, .. } | Fact::Progress { revision, .. } = fact {
            after = revision;
        }
    }
    for attempt in 0.. {
        let record = recorder(&directory.join(format!("watcher-{number}.facts")));
        // Watcher 0 keeps up, the others fall ever farther behind.
        let pace = || tokio::time::sleep(Duration::from_millis(number));
        match observer::observe(&*store, &name, after, record, pace).await {
            Err(Error::Compacted { oldest, .. }) => {
                (name, after) = (format!("watcher-{number}-{round}-{attempt}"), oldest);
            }
            ended => panic!("{name} ended: {ended:?}"),
        }
    }
}

/// Appends facts to a file, each with one write, so that a killed process leaves whole facts and at most one torn.
fn recorder(path: &Path) -> impl FnMut(Fact) + use<> {
    let whole: usize = read_facts(path).iter().map(|fact| encode(fact).len()).sum();
    let mut file = OpenOptions::new().append(true).create(true).open(path).unwrap();
    file.set_len(whole as u64).unwrap();
    move |fact| file.write_all(&encode(&fact)).unwrap()
}

fn encode(fact: &Fact) -> Vec<u8> {
    let body = postcard::to_stdvec(fact).unwrap();
    [&u32::try_from(body.len()).unwrap().to_le_bytes()[..], &body].concat()
}

fn read_facts(path: &Path) -> Vec<Fact> {
    let mut bytes = Vec::new();
    if let Ok(mut file) = File::open(path) {
        std::io::Read::read_to_end(&mut file, &mut bytes).unwrap();
    }
    let (mut rest, mut facts) = (&bytes[..], Vec::new());
    while let Some((length, body)) = rest.split_first_chunk() {
        let length = u32::from_le_bytes(*length) as usize;
        let Some((body, tail)) = body.split_at_checked(length) else { break };
        facts.push(postcard::from_bytes(body).unwrap());
        rest = tail;
    }
    facts
}
