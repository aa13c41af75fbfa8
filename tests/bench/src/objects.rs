//! Many objects: whether writing slows down as they grow, what they take of memory, and how soon a gateway that holds
//! them serves. A gateway of its own, without a worker, since this is about objects alone.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use http::Method;
use kube::Config;
use kube::config::{KubeConfigOptions, Kubeconfig};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::runtime::Handle;
use tokio::task::JoinSet;

use crate::api::config_map;
use crate::peer::PATIENCE;
use crate::processes;
use crate::statistics::median;
use crate::wire::Wire;

/// Where the objects are.
const NAMESPACE: &str = "default";
/// Steps whose median stands for an amount of objects.
const SAMPLES: usize = 5;
/// How long a gateway rests before its memory is read.
const SETTLE: Duration = Duration::from_secs(5);

/// How many objects, and who makes them.
#[derive(Clone, Copy, Debug)]
pub struct Amounts {
    /// At a time.
    pub clients: usize,
    /// With so many writes are fast.
    pub few: usize,
    /// With so many they are to be as fast.
    pub many: usize,
    /// Objects between two looks at the clock.
    pub step: usize,
}

impl Amounts {
    /// As the page says.
    pub const FULL: Self = Self { clients: 8, few: 1000, many: 100_000, step: 1000 };
    /// Shows that it works.
    pub const QUICK: Self = Self { clients: 8, few: 200, many: 2000, step: 100 };
}

/// What a create takes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cost {
    /// Of the clock, with all clients at work: one over the rate.
    pub wall: Duration,
    /// Of the gateway's CPU.
    pub cpu: Duration,
}

/// What was found.
pub struct Objects {
    /// What was to be done.
    pub amounts: Amounts,
    /// With few objects there.
    pub at_few: Cost,
    /// With many.
    pub at_many: Cost,
    /// From `carob up` in an empty directory until it is ready.
    pub first_start: Duration,
    /// The same with what the first start left.
    pub empty_start: Duration,
    /// With many objects.
    pub full_start: Duration,
    /// Resident bytes of a gateway with what belongs to every cluster.
    pub empty_memory: u64,
    /// Of one that has just written many objects.
    pub written_memory: u64,
    /// Of one that found them at its start.
    pub full_memory: u64,
    /// Of the store.
    pub file: u64,
}

impl Objects {
    /// How many times longer a create takes with many objects.
    pub fn slowdown(&self) -> f64 {
        self.at_many.wall.as_secs_f64() / self.at_few.wall.as_secs_f64()
    }
}

/// Measures [`Objects`]; all that it makes is in `home`.
pub fn measure(runtime: &Handle, binary: &Path, home: &Path, amounts: Amounts) -> Result<Objects> {
    let first = Gateway::start(runtime, binary, home)?;
    let first_start = first.ready_after;
    first.stop()?;
    let gateway = Gateway::start(runtime, binary, home)?;
    let empty_start = gateway.ready_after;
    rest(runtime);
    let empty_memory = gateway.memory()?;
    let costs = gateway.fill(runtime, amounts)?;
    rest(runtime);
    let written_memory = gateway.memory()?;
    gateway.stop()?;
    let file = size(&home.join("data"))?;
    let gateway = Gateway::start(runtime, binary, home)?;
    let full_start = gateway.ready_after;
    rest(runtime);
    let full_memory = gateway.memory()?;
    gateway.stop()?;
    let skipped = amounts.few / amounts.step;
    let at_few = typical(costs.get(skipped..skipped + SAMPLES).context("too few steps")?);
    let at_many = typical(&costs[costs.len() - SAMPLES..]);
    Ok(Objects {
        amounts,
        at_few,
        at_many,
        first_start,
        empty_start,
        full_start,
        empty_memory,
        written_memory,
        full_memory,
        file,
    })
}

fn rest(runtime: &Handle) {
    runtime.block_on(async { tokio::time::sleep(SETTLE).await });
}

fn typical(costs: &[Cost]) -> Cost {
    let of = |part: fn(&Cost) -> Duration| median(&costs.iter().map(part).collect::<Vec<_>>()).unwrap_or_default();
    Cost { wall: of(|cost| cost.wall), cpu: of(|cost| cost.cpu) }
}

/// Bytes of the store's files.
fn size(data_dir: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(data_dir)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with("store.") {
            bytes += entry.metadata()?.len();
        }
    }
    Ok(bytes)
}

/// `carob up --workers 0`, killed when dropped.
struct Gateway {
    process: Child,
    config: Config,
    /// From its start.
    ready_after: Duration,
}

impl Gateway {
    fn start(runtime: &Handle, binary: &Path, home: &Path) -> Result<Self> {
        let data_dir = home.join("data");
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let kubeconfig = data_dir.join("admin.kubeconfig");
        // It is written anew; that of an earlier start leads to another port.
        match fs::remove_file(&kubeconfig) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        let log = fs::File::create(home.join("log"))?;
        let begin = Instant::now();
        let process = Command::new(binary)
            .args(["up", "--workers", "0", "--listen", &address.to_string(), "--data-dir"])
            .arg(&data_dir)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot run {}", binary.display()))?;
        let mut guard = Guard(Some(process));
        let config = runtime.block_on(async {
            loop {
                match ready(&kubeconfig).await {
                    Ok(config) => return Ok(config),
                    Err(error) if begin.elapsed() > PATIENCE => return Err(error.context("carob up is not ready")),
                    Err(_) => tokio::time::sleep(Duration::from_millis(2)).await,
                }
                if let Some(status) = guard.0.as_mut().and_then(|process| process.try_wait().ok()?) {
                    let log = fs::read_to_string(home.join("log")).unwrap_or_default();
                    bail!("carob up ended with {status}: {}", log.lines().next_back().unwrap_or_default());
                }
            }
        })?;
        let ready_after = begin.elapsed();
        let process = guard.0.take().context("it was just started")?;
        Ok(Self { process, config, ready_after })
    }

    /// Ends it as `systemctl stop` would.
    fn stop(mut self) -> Result<()> {
        kill(Pid::from_raw(self.process.id().cast_signed()), Signal::SIGTERM)?;
        let status = self.process.wait()?;
        if !status.success() {
            bail!("carob up ended with {status}");
        }
        Ok(())
    }

    fn memory(&self) -> Result<u64> {
        Ok(processes::of(self.process.id().cast_signed())?.rss)
    }

    /// Creates objects until there are many, with a look at the clocks after each step.
    fn fill(&self, runtime: &Handle, amounts: Amounts) -> Result<Vec<Cost>> {
        runtime.block_on(async {
            let mut wires = Vec::new();
            for _ in 0..amounts.clients {
                wires.push(Wire::connect(&self.config).await?);
            }
            let mut costs = Vec::new();
            for step in 0..amounts.many / amounts.step {
                let next = Arc::new(AtomicUsize::new(step * amounts.step));
                let end = (step + 1) * amounts.step;
                let cpu = processes::of(self.process.id().cast_signed())?.cpu;
                let begin = Instant::now();
                let mut tasks = JoinSet::new();
                for mut wire in wires.drain(..) {
                    let next = Arc::clone(&next);
                    tasks.spawn(async move {
                        loop {
                            let number = next.fetch_add(1, Ordering::Relaxed);
                            if number >= end {
                                return anyhow::Ok(wire);
                            }
                            let path = format!("/api/v1/namespaces/{NAMESPACE}/configmaps");
                            wire.send(Method::POST, &path, config_map(&format!("object-{number}"), "0")?).await?;
                        }
                    });
                }
                while let Some(wire) = tasks.join_next().await {
                    wires.push(wire??);
                }
                let count = u32::try_from(amounts.step)?;
                let cpu = processes::of(self.process.id().cast_signed())?.cpu.saturating_sub(cpu);
                costs.push(Cost { wall: begin.elapsed() / count, cpu: cpu / count });
            }
            Ok(costs)
        })
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        // Where it has been stopped, there is nothing to kill.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A process that isn't a gateway yet.
struct Guard(Option<Child>);

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(process) = &mut self.0 {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

async fn ready(kubeconfig: &PathBuf) -> Result<Config> {
    let kubeconfig = Kubeconfig::read_from(kubeconfig)?;
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    Wire::connect(&config).await?.send(Method::GET, "/readyz", Vec::new()).await?;
    Ok(config)
}
