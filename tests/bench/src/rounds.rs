//! What is done with each peer, in rounds that take turns, so that the machine's noise hits all alike.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};

use crate::peer::Peer;
use crate::processes::{self, Process};

/// How much is measured.
#[derive(Clone, Debug)]
pub struct Amounts {
    /// Rounds of single starts.
    pub rounds: usize,
    /// Single starts per round.
    pub per_round: usize,
    /// Pods of a batch.
    pub batch: usize,
    /// A slow peer's batch ends after this long, with the pods that it has.
    pub batch_time: Duration,
    /// A slow peer takes part in rounds for this long.
    pub rounds_time: Duration,
    /// How long the idle are watched.
    pub idle: Duration,
}

impl Amounts {
    /// For numbers that mean something.
    pub fn full() -> Self {
        Self {
            rounds: 10,
            per_round: 10,
            batch: 100,
            batch_time: Duration::from_secs(20),
            rounds_time: Duration::from_secs(40),
            idle: Duration::from_secs(20),
        }
    }

    /// To see that the program works.
    pub fn quick() -> Self {
        Self {
            rounds: 2,
            per_round: 3,
            batch: 20,
            batch_time: Duration::from_secs(5),
            rounds_time: Duration::from_secs(5),
            idle: Duration::from_secs(3),
        }
    }
}

/// Starts of many pods.
#[derive(Clone, Debug)]
pub struct Batch {
    /// How many.
    pub pods: usize,
    /// From the first one's begin until the last one ran.
    pub took: Duration,
}

impl Batch {
    /// Pods per second.
    #[expect(clippy::cast_precision_loss, reason = "there are few pods")]
    pub fn rate(&self) -> f64 {
        self.pods as f64 / self.took.as_secs_f64()
    }
}

/// Processes at two moments.
#[derive(Clone, Debug)]
pub struct Span {
    /// Between the two.
    pub took: Duration,
    /// Pods that were running at the second one and not at the first.
    pub pods: usize,
    /// At the first.
    pub before: Vec<Process>,
    /// At the second.
    pub after: Vec<Process>,
}

/// All that was measured of one peer.
#[derive(Default)]
pub struct Figures {
    pub start: Vec<Duration>,
    pub exec: Vec<Duration>,
    pub delete: Vec<Duration>,
    /// Empty where there is no client of registries.
    pub pull: Vec<Duration>,
    /// One after the other.
    pub in_a_row: Option<Batch>,
    /// Eight at a time.
    pub at_once: Option<Batch>,
    /// Between no pods and a batch of them.
    pub loaded: Option<Span>,
    /// Without any pods.
    pub idle: Option<Span>,
    /// Resident bytes of all its processes in every second of that.
    pub resident: Vec<u64>,
    /// Why something is missing.
    pub problem: Option<String>,
}

/// A peer that takes part.
pub struct Contender<'a> {
    pub peer: &'a dyn Peer,
    pub figures: Figures,
    spent: Duration,
}

impl<'a> Contender<'a> {
    pub fn new(peer: &'a dyn Peer) -> Self {
        Self { peer, figures: Figures::default(), spent: Duration::ZERO }
    }

    /// Does something on a thread of its own, unless the peer has failed before.
    fn attempt<T: Send>(&mut self, work: impl FnOnce(&dyn Peer) -> Result<T> + Send) -> Option<T> {
        if self.figures.problem.is_some() {
            return None;
        }
        let peer = self.peer;
        let enter_and_work = || {
            peer.enter()?;
            work(peer)
        };
        let outcome = std::thread::scope(|scope| scope.spawn(enter_and_work).join());
        match outcome.unwrap_or_else(|_| Err(anyhow!("the benchmark itself failed"))) {
            Ok(value) => Some(value),
            Err(error) => {
                let home = peer.home().to_string_lossy().into_owned();
                self.figures.problem = Some(format!("{error:#}").replace(&home, "…"));
                None
            }
        }
    }
}

/// Set by Ctrl-C: the measurement ends early, and all is cleaned up.
pub static INTERRUPTED: AtomicBool = AtomicBool::new(false);

fn check_interrupted() -> Result<()> {
    if INTERRUPTED.load(Ordering::Relaxed) {
        bail!("interrupted");
    }
    Ok(())
}

/// One of everything, which isn't counted; shows who works at all.
pub fn warm_up(contenders: &mut [Contender<'_>]) {
    for contender in contenders {
        contender.attempt(|peer| single(peer, "warm-up").map(drop));
    }
}

/// Start, exec, delete.
fn single(peer: &dyn Peer, id: &str) -> Result<(Duration, Duration, Duration)> {
    check_interrupted()?;
    peer.prepare(id)?;
    Ok((peer.start(id)?, peer.exec(id)?, peer.delete(id)?))
}

/// Watches what all of them do while nothing is asked of them.
pub fn idle(contenders: &mut [Contender<'_>], amounts: &Amounts, sleep: impl Fn(Duration)) -> Result<()> {
    let look = |contenders: &[Contender<'_>]| -> Result<Vec<Vec<Process>>> {
        contenders.iter().map(|contender| processes::with_path(contender.peer.home())).collect()
    };
    let begin = Instant::now();
    let before = look(contenders)?;
    while begin.elapsed() < amounts.idle {
        sleep(Duration::from_secs(1));
        let seen = look(contenders)?;
        for (contender, processes) in contenders.iter_mut().zip(seen) {
            contender.figures.resident.push(processes::total(&processes, |process| process.rss));
        }
    }
    let after = look(contenders)?;
    for (contender, (before, after)) in contenders.iter_mut().zip(before.into_iter().zip(after)) {
        contender.figures.idle = Some(Span { took: begin.elapsed(), pods: 0, before, after });
    }
    Ok(())
}

/// Single starts, execs and deletes.
pub fn singles(contenders: &mut [Contender<'_>], amounts: &Amounts) {
    for round in 0..amounts.rounds {
        // Nobody always comes first.
        let count = contenders.len();
        for turn in 0..count {
            let contender = &mut contenders[(round + turn) % count];
            if contender.spent > amounts.rounds_time {
                continue;
            }
            let begin = Instant::now();
            let samples = contender.attempt(|peer| {
                let ids = (0..amounts.per_round).map(|index| format!("single-{round}-{index}"));
                ids.map(|id| single(peer, &id)).collect::<Result<Vec<_>>>()
            });
            contender.spent += begin.elapsed();
            for (start, exec, delete) in samples.unwrap_or_default() {
                contender.figures.start.push(start);
                contender.figures.exec.push(exec);
                contender.figures.delete.push(delete);
            }
        }
    }
}

/// A batch in a row, with the memory that its helpers take, then a batch eight at a time.
pub fn batches(contenders: &mut [Contender<'_>], amounts: &Amounts, sleep: impl Fn(Duration) + Sync) {
    for contender in &mut *contenders {
        let measured = contender.attempt(|peer| {
            let before = processes::with_path(peer.home())?;
            let begin = Instant::now();
            let (batch, ids) = start_many(peer, "row", 1, amounts)?;
            // What only the starts needed is given back.
            sleep(Duration::from_secs(2));
            let after = processes::with_path(peer.home())?;
            let span = Span { took: begin.elapsed(), pods: ids.len(), before, after };
            delete_many(peer, &ids)?;
            Ok((batch, span))
        });
        if let Some((batch, span)) = measured {
            contender.figures.in_a_row = Some(batch);
            contender.figures.loaded = Some(span);
        }
    }
    for contender in contenders {
        contender.figures.at_once = contender.attempt(|peer| {
            let (batch, ids) = start_many(peer, "eight", 8, amounts)?;
            delete_many(peer, &ids)?;
            Ok(batch)
        });
    }
}

/// Cold pulls of one image, in turns.
pub fn pulls(contenders: &mut [Contender<'_>], reference: &str, times: usize) {
    for round in 0..times {
        let count = contenders.len();
        for turn in 0..count {
            let contender = &mut contenders[(round + turn) % count];
            let took = contender.attempt(|peer| {
                check_interrupted()?;
                let took = peer.pull(reference)?;
                if took.is_some() {
                    peer.forget(reference)?;
                }
                Ok(took)
            });
            contender.figures.pull.extend(took.flatten());
        }
    }
}

/// Starts a batch, and tells what was started.
pub fn start_many(peer: &dyn Peer, prefix: &str, threads: usize, amounts: &Amounts) -> Result<(Batch, Vec<String>)> {
    let ids: Vec<String> = (0..amounts.batch).map(|index| format!("{prefix}-{index}")).collect();
    ids.iter().try_for_each(|id| peer.prepare(id))?;
    let (next, started) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let ready = std::sync::Barrier::new(threads);
    let begin = Mutex::new(None);
    let work = || -> Result<()> {
        let entered = peer.enter();
        ready.wait();
        entered?;
        let begin = *begin.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(Instant::now);
        while begin.elapsed() < amounts.batch_time {
            check_interrupted()?;
            let Some(id) = ids.get(next.fetch_add(1, Ordering::Relaxed)) else { break };
            peer.start(id)?;
            started.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers
            .into_iter()
            .try_for_each(|worker| worker.join().unwrap_or_else(|_| bail!("the benchmark itself failed")))
    })?;
    let begin = begin.into_inner().unwrap_or_else(PoisonError::into_inner).unwrap_or_else(Instant::now);
    let batch = Batch { pods: started.into_inner(), took: begin.elapsed() };
    let started = ids.into_iter().take(next.into_inner()).collect();
    Ok((batch, started))
}

/// Deletes them, four at a time.
pub fn delete_many(peer: &dyn Peer, ids: &[String]) -> Result<()> {
    let next = AtomicUsize::new(0);
    let work = || -> Result<()> {
        peer.enter()?;
        while let Some(id) = ids.get(next.fetch_add(1, Ordering::Relaxed)) {
            peer.delete(id)?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..4).map(|_| scope.spawn(work)).collect();
        workers
            .into_iter()
            .try_for_each(|worker| worker.join().unwrap_or_else(|_| bail!("the benchmark itself failed")))
    })
}
