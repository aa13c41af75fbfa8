//! `make bench`: Carob beside its peers in one run, and one table of it.

mod api;
mod carob;
mod containerd;
mod crowd;
mod crun;
mod lists;
mod machine;
mod metrics;
mod objects;
mod oci;
mod page;
mod peer;
mod podman;
mod processes;
mod pull;
mod readers;
mod rounds;
mod runc;
mod statistics;
mod table;
mod watchers;
mod wire;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Parser;
use tokio::runtime::Handle;

use crate::carob::Carob;
use crate::page::{Column, Results, Stages};
use crate::peer::Peer;
use crate::readers::Shape;
use crate::rounds::{Amounts, Contender, INTERRUPTED};

/// How long everything rests before it is watched idle.
const SETTLE: Duration = Duration::from_secs(5);
const CLIENTS: usize = 8;
const WATCHERS: usize = 1000;
const WRITES: usize = 100;
/// HTTP/2 streams of one connection.
const STREAMS: usize = 250;
const PODS: usize = 10_000;
const LISTS: usize = 11;
const WRITE_PAUSE: Duration = Duration::from_millis(100);
const REPORTS: usize = 11;
const CROWD: usize = 1000;
const PULLS: usize = 5;
/// Of a layer of the image that is pulled, before it is compressed: four of them are about 100 MB then.
const LAYER: u64 = 68_000_000;

/// Measures Carob beside podman, containerd, runc and crun, and writes the table.
#[derive(Parser)]
struct Options {
    /// Carob's binary [default: the release build]
    #[arg(long, env = "CAROB_BIN", value_name = "FILE")]
    carob: Option<PathBuf>,
    /// Where the page is written [default: README.md beside the benchmark]
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Few samples: shows that it works, and no more.
    #[arg(long)]
    quick: bool,
    /// Only these: carob, podman, containerd, runc, crun.
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    only: Vec<String>,
    /// Only these parts: pods, pull, crowd, gateway, watchers, lists, objects. Peers take part in the first two.
    #[arg(long, value_delimiter = ',', value_name = "PARTS")]
    parts: Vec<Part>,
}

/// What there is to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// Containers, beside the peers.
    Pods,
    /// Cold pulls, beside the peers.
    Pull,
    /// A thousand pods at once.
    Crowd,
    /// Creates and bills.
    Gateway,
    /// Writes as many watchers see them.
    Watchers,
    /// Lists of many pods.
    Lists,
    /// Many objects.
    Objects,
}

fn main() -> Result<()> {
    let options = Options::parse();
    if !nix::unistd::geteuid().is_root() {
        bail!("containers are started here: run this as root");
    }
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = here.ancestors().nth(2).context("the workspace")?;
    let binary = options.carob.clone().unwrap_or_else(|| root.join("target/release/carob"));
    let image = root.join("target/images/busybox");
    if !image.exists() {
        bail!("{} is missing: make images builds it", image.display());
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.spawn(async {
        if tokio::signal::ctrl_c().await.is_ok() {
            INTERRUPTED.store(true, Ordering::Relaxed);
        }
    });
    let bench = Bench::new(&options, runtime.handle().clone(), binary, image)?;
    let results = bench.measure();
    let page = page::render(&results?);
    if INTERRUPTED.load(Ordering::Relaxed) {
        bail!("interrupted; everything was removed");
    }
    print!("{page}");
    // A part is no page.
    if !options.parts.is_empty() && options.output.is_none() {
        return Ok(());
    }
    let output = options.output.unwrap_or_else(|| here.join("README.md"));
    fs::write(&output, page).with_context(|| format!("cannot write {}", output.display()))
}

/// What all parts of a run share.
struct Bench {
    runtime: Handle,
    binary: PathBuf,
    image: PathBuf,
    amounts: Amounts,
    quick: bool,
    only: Vec<String>,
    parts: Vec<Part>,
    dir: tempfile::TempDir,
    /// In the names of all that is made outside of the directory.
    id: String,
}

impl Bench {
    fn new(options: &Options, runtime: Handle, binary: PathBuf, image: PathBuf) -> Result<Self> {
        let amounts = if options.quick { Amounts::quick() } else { Amounts::full() };
        let dir = tempfile::Builder::new().prefix("carob-bench-").tempdir()?;
        let id = format!("{:x}", std::process::id());
        let Options { quick, only, parts, .. } = options;
        let (only, parts) = (only.clone(), parts.clone());
        Ok(Self { runtime, binary, image, amounts, quick: *quick, only, parts, dir, id })
    }

    fn measure(&self) -> Result<Results> {
        let mut results = Results { facts: machine::facts(), batch: self.amounts.batch, ..Results::default() };
        if self.measures(Part::Objects) {
            say("many objects");
            match self.many_objects() {
                Ok(objects) => results.objects = Some(objects),
                Err(error) => results.problems.push(format!("Not measured: many objects: {error:#}")),
            }
        }
        if self.parts == [Part::Objects] {
            results.columns.push(column("Carob", Err(&String::new()), None));
            return Ok(results);
        }
        let carob = self.set_up("carob", |home| Carob::set_up(&self.runtime, &self.binary, home, &self.image));
        let peers = self.peers();
        let outcome = self.take_turns(&mut results, &carob, &peers);
        // All of them are ended before their cgroups and directories can go.
        drop((carob, peers));
        remove_cgroups(&self.cgroup());
        outcome.map(|()| results)
    }

    fn many_objects(&self) -> Result<objects::Objects> {
        let home = self.dir.path().join("objects");
        fs::create_dir(&home)?;
        let amounts = if self.quick { objects::Amounts::QUICK } else { objects::Amounts::FULL };
        objects::measure(&self.runtime, &self.binary, &home, amounts)
    }

    fn take_turns(&self, results: &mut Results, carob: &SetUp<Carob>, peers: &[SetUp<Box<dyn Peer>>]) -> Result<()> {
        let ready_carob = carob.outcome.as_ref().ok();
        let metrics = || ready_carob.and_then(|carob| carob.metrics().ok()).unwrap_or_default();
        let ready = ready_carob.map(|carob| carob as &dyn Peer).into_iter();
        let ready = ready.chain(peers.iter().filter_map(|peer| peer.outcome.as_deref().ok()));
        let mut contenders: Vec<Contender<'_>> = ready.map(Contender::new).collect();

        if self.measures(Part::Pods) {
            say("idle");
            self.sleep(SETTLE);
            rounds::idle(&mut contenders, &self.amounts, |length| self.sleep(length))?;
            say("single starts");
            rounds::warm_up(&mut contenders);
            let before = metrics();
            rounds::singles(&mut contenders, &self.amounts);
            let between = metrics();
            say("batches");
            rounds::batches(&mut contenders, &self.amounts, |length| self.sleep(length));
            let after = metrics();
            results.stages_single = stages(&before, &between);
            results.stages_batches = stages(&between, &after);
        }
        if self.measures(Part::Pull)
            && let Err(error) = self.pulls(results, &mut contenders)
        {
            results.problems.push(format!("Not measured: cold pulls: {error:#}"));
        }
        let mut figures: Vec<_> =
            contenders.into_iter().map(|contender| (contender.peer.name(), contender.figures)).collect();
        let mut take = |name: &str| {
            let index = figures.iter().position(|(of, _)| *of == name)?;
            Some(figures.swap_remove(index).1)
        };
        let peer = carob.outcome.as_ref().map(|carob| carob as &dyn Peer);
        results.columns.push(column("Carob", peer, take("Carob")));
        for peer in peers {
            results.columns.push(column(peer.name, peer.outcome.as_deref(), take(peer.name)));
        }
        if let Some(carob) = ready_carob {
            say("the control plane");
            results.gateway = carob.gateway();
            self.control_plane(results, carob);
        }
        Ok(())
    }

    fn pulls(&self, results: &mut Results, contenders: &mut [Contender<'_>]) -> Result<()> {
        say("cold pulls");
        let home = self.dir.path().join("registry");
        fs::create_dir(&home)?;
        let (layer, times) = if self.quick { (LAYER / 10, 1) } else { (LAYER, PULLS) };
        let source = pull::Source::set_up(&self.runtime, &home, layer)?;
        let mut downloads = Vec::new();
        for _ in 0..times {
            downloads.push(source.download_and_gunzip()?);
            rounds::pulls(contenders, &source.reference(), 1);
        }
        results.downloads = Some((source.bytes, downloads));
        Ok(())
    }

    fn control_plane(&self, results: &mut Results, carob: &Carob) {
        let (length, watchers) =
            if self.quick { (Duration::from_secs(1), WATCHERS / 10) } else { (Duration::from_secs(5), WATCHERS) };
        let mut problems = Vec::new();
        let mut note = |what: &str, error: anyhow::Error| problems.push(format!("Not measured: {what}: {error:#}"));
        if self.measures(Part::Crowd) {
            say("a crowd");
            let crowd = crowd::crowd(&self.runtime, carob, if self.quick { CROWD / 10 } else { CROWD });
            results.crowd = crowd.map_err(|error| note("a crowd of pods", error)).ok();
        }
        if self.measures(Part::Gateway) {
            // The bill first: it is about the pods.
            results.report = api::report(carob, REPORTS).map_err(|error| note("the bill", error)).ok();
            let before = carob.metrics().unwrap_or_default();
            let creates = api::creates(&self.runtime, carob, CLIENTS, length);
            results.creates = creates.map_err(|error| note("creates", error)).ok();
            let after = carob.metrics().unwrap_or_default();
            let selector = ["resource=\"configmaps\""];
            let name = "apiserver_request_duration_seconds";
            results.creates_in_gateway = metrics::growth(&before, &after, name, "verb", &selector).remove("POST");
        }
        if self.measures(Part::Watchers) {
            for shape in [Shape::Connections, Shape::Streams(STREAMS)] {
                let deliveries = watchers::deliveries(&self.runtime, carob, shape, watchers, WRITES, WRITE_PAUSE);
                results.deliveries.extend(deliveries.map_err(|error| note("watch delivery", error)).ok());
            }
        }
        if self.measures(Part::Lists) {
            let lists = lists::lists(&self.runtime, carob, if self.quick { PODS / 10 } else { PODS }, LISTS);
            results.lists = lists.map_err(|error| note("lists", error)).ok();
        }
        results.problems.extend(problems);
    }

    fn peers(&self) -> Vec<SetUp<Box<dyn Peer>>> {
        let (runtime, image, cgroup) = (&self.runtime, &self.image, self.cgroup());
        let bridge = format!("cbb{}", self.id);
        let namespace = format!("carob-bench-{}", self.id);
        let mut peers = vec![
            self.set_up("podman", |home| {
                Ok(Box::new(podman::Podman::set_up(runtime, home, &cgroup, &bridge, image)?) as Box<dyn Peer>)
            }),
            self.set_up("containerd", |home| {
                Ok(Box::new(containerd::Containerd::set_up(runtime, home, &cgroup, &namespace, image)?) as _)
            }),
            self.set_up("runc", |home| Ok(Box::new(runc::Runc::set_up(runtime, home, &cgroup, image)?) as _)),
            self.set_up("crun", |home| Ok(Box::new(crun::Crun::set_up(runtime, home, &cgroup, image)?) as _)),
        ];
        peers.retain(|peer| self.wanted(peer.name));
        peers
    }

    /// Gives a contender its directory.
    fn set_up<T>(&self, name: &'static str, make: impl FnOnce(&Path) -> Result<T>) -> SetUp<T> {
        let home = self.dir.path().join(name);
        let attempt = || {
            if !self.wanted(name) {
                bail!("it was left out");
            }
            say(name);
            fs::create_dir(&home)?;
            make(&home)
        };
        let outcome = attempt().map_err(|error| {
            let problem = format!("{error:#}").replace(&*self.dir.path().to_string_lossy(), "…");
            say(&format!("{name}: {problem}"));
            problem
        });
        SetUp { name, outcome }
    }

    fn measures(&self, part: Part) -> bool {
        self.parts.is_empty() || self.parts.contains(&part)
    }

    fn wanted(&self, name: &str) -> bool {
        if name != "carob" && !self.measures(Part::Pods) && !self.measures(Part::Pull) {
            return false;
        }
        self.only.is_empty() || self.only.iter().any(|only| only == name)
    }

    fn cgroup(&self) -> String {
        format!("/carob-bench-{}", self.id)
    }

    fn sleep(&self, length: Duration) {
        self.runtime.block_on(async { tokio::time::sleep(length).await });
    }
}

/// A contender, or why it can't take part.
struct SetUp<T> {
    name: &'static str,
    outcome: std::result::Result<T, String>,
}

fn column(name: &'static str, peer: Result<&dyn Peer, &String>, figures: Option<rounds::Figures>) -> Column {
    let (comprises, version) = peer.map_or(("", String::new()), |peer| (peer.comprises(), peer.version()));
    Column { name, comprises, version, figures, problem: peer.err().cloned() }
}

fn stages(before: &str, after: &str) -> Stages {
    metrics::growth(before, after, "carob_worker_pod_start_stage_seconds", "stage", &[])
}

/// Progress, on standard error: the page is on standard output.
fn say(what: &str) {
    eprintln!("bench: {what}");
}

/// Removes the groups under this path in every hierarchy; containers are gone, so they are empty.
fn remove_cgroups(path: &str) {
    let base = Path::new("/sys/fs/cgroup");
    let hierarchies = fs::read_dir(base).into_iter().flatten().flatten().map(|entry| entry.path());
    for hierarchy in hierarchies.chain([base.to_owned()]) {
        remove_groups(&hierarchy.join(path.trim_start_matches('/')));
    }
}

fn remove_groups(group: &Path) {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_groups(&entry.path());
        }
    }
    // Most hierarchies don't have it.
    let _ = fs::remove_dir(group);
}
