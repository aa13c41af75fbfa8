//! Shortages of the node: what is short is told as a condition, no pods are taken that would make it worse, and pods are
//! evicted in Kubernetes' order until it is over. Unused images go first.

mod facts;
mod images;
mod rank;
mod tenants;

pub use tenants::Tenants;

use crate::admission::Refusal;
use crate::container::resources::{QosClass, qos_class};
use crate::context::Context;
use crate::events::{About, Severity};
use crate::pod::{Message, Weight, is_critical};
use crate::settings::{NodeSettings, Signal, Threshold};
use carob_image::Reference;
use facts::Stock;
use k8s_openapi::api::core::v1::PodSpec;
pub(crate) use rank::Shortage;
use rank::{Candidate, Used};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;

/// How often the machine is looked at (the kubelet looks every 10 s, and is told by the kernel of memory).
const EVERY: Duration = Duration::from_secs(5);
/// How long the next eviction waits for the last one's end (the kubelet's).
const CLEANUP: Duration = Duration::from_secs(30);
/// What an evicted pod's containers have to end by themselves (the kubelet's, beyond a hard threshold).
const GRACE: Duration = Duration::from_secs(1);

/// What the node is short of now.
#[derive(Debug)]
pub(crate) struct Pressure(watch::Sender<BTreeSet<Shortage>>);

impl Default for Pressure {
    fn default() -> Self {
        Self(watch::Sender::new(BTreeSet::new()))
    }
}

impl Pressure {
    /// Whether this is short.
    pub fn has(&self, short: Shortage) -> bool {
        self.0.borrow().contains(&short)
    }

    /// Tells of changes.
    pub fn subscribe(&self) -> watch::Receiver<BTreeSet<Shortage>> {
        self.0.subscribe()
    }

    /// Why the node takes no such pod now.
    pub fn refuse(&self, spec: &PodSpec) -> Option<Refusal> {
        refuse(&self.0.borrow(), spec)
    }
}

/// Critical pods are always taken; when memory alone is short, so are those that have asked for some, or tolerate it.
fn refuse(short: &BTreeSet<Shortage>, spec: &PodSpec) -> Option<Refusal> {
    const TAINT: &str = "node.kubernetes.io/memory-pressure";
    if short.is_empty() || is_critical(spec.priority) {
        return None;
    }
    if short.iter().eq([&Shortage::Memory]) {
        let tolerates = spec.tolerations.iter().flatten().any(|toleration| {
            let key = toleration.key.as_deref().unwrap_or("");
            let exists = toleration.operator.as_deref() == Some("Exists");
            let effect = toleration.effect.as_deref().unwrap_or("");
            let value = exists || toleration.value.as_deref().unwrap_or("").is_empty();
            (key == TAINT && value || key.is_empty() && exists) && (effect.is_empty() || effect == "NoSchedule")
        });
        if tolerates || qos_class(spec) != QosClass::BestEffort {
            return None;
        }
    }
    let names: Vec<&str> = short.iter().map(|short| short.condition()).collect();
    Some(Refusal { reason: "Evicted", message: format!("The node had condition: [{}]. ", names.join(" ")) })
}

/// Watches the machine until `shutdown`.
pub(crate) async fn run(ctx: Arc<Context>, shutdown: CancellationToken) {
    ctx.tenants.join(&ctx);
    let mut keeper = Keeper { stopping: shutdown.clone(), ..Keeper::default() };
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = ticks.tick() => keeper.look(&ctx).await,
        }
    }
}

#[derive(Default)]
struct Keeper {
    /// Since when each soft threshold is passed.
    soft: BTreeMap<Signal, Instant>,
    /// When each threshold was last passed.
    last: BTreeMap<Shortage, Instant>,
    /// Who was evicted last, and when.
    evicted: Option<(String, Instant)>,
    ages: images::Ages,
    collected: Option<Instant>,
    stopping: CancellationToken,
}

impl Keeper {
    async fn look(&mut self, ctx: &Context) {
        let now = Instant::now();
        let stocks = read(ctx).await;
        let passed = self.passed(&ctx.settings, &stocks, now);
        self.tell(ctx, &passed, now);
        if self.collected.is_none_or(|at| now.duration_since(at) >= ctx.settings.image_gc_period) {
            self.collected = Some(now);
            let stock = stocks.get(&Signal::ImagefsAvailable).copied();
            self.collect(ctx, stock, images::Reason::Time).await;
        }
        if let Some((uid, at)) = &self.evicted
            && ctx.pods.has_running(uid)
            && now.duration_since(*at) < CLEANUP
        {
            return;
        }
        if let Some((signal, _)) = passed.first_key_value() {
            self.relieve(ctx, *signal).await;
        }
    }

    /// Removes images that no worker's pods use.
    async fn collect(&mut self, ctx: &Context, stock: Option<Stock>, reason: images::Reason) {
        let used = ctx.tenants.used().await;
        // Pods that have ended with their workers don't say what they use.
        if let (Some(used), false) = (used, self.stopping.is_cancelled()) {
            images::collect(ctx, &mut self.ages, &used, stock, reason).await;
        }
    }

    /// The thresholds that count now, with what they are.
    fn passed(
        &mut self,
        settings: &NodeSettings,
        stocks: &BTreeMap<Signal, Stock>,
        now: Instant,
    ) -> BTreeMap<Signal, Threshold> {
        let below = |signal: &Signal, threshold: &Threshold| {
            stocks.get(signal).is_some_and(|stock| stock.available < threshold.of(stock.capacity))
        };
        let mut passed = BTreeMap::new();
        for (signal, threshold) in &settings.eviction_soft {
            if !below(signal, threshold) {
                self.soft.remove(signal);
                continue;
            }
            let since = *self.soft.entry(*signal).or_insert(now);
            let grace = settings.eviction_soft_grace_period.get(signal).copied().unwrap_or_default();
            if now.duration_since(since) >= grace {
                passed.insert(*signal, *threshold);
            }
        }
        passed.extend(settings.eviction_hard.iter().filter(|(signal, threshold)| below(signal, threshold)));
        passed
    }

    /// Conditions come at once, and go when it has been over for a while.
    fn tell(&mut self, ctx: &Context, passed: &BTreeMap<Signal, Threshold>, now: Instant) {
        self.last.extend(passed.keys().map(|signal| (Shortage::of(*signal), now)));
        let lasting = ctx.settings.eviction_pressure_transition_period;
        self.last.retain(|_, at| now.duration_since(*at) <= lasting);
        let short: BTreeSet<Shortage> = self.last.keys().copied().collect();
        ctx.pressure.0.send_if_modified(|known| {
            let changed = *known != short;
            *known = short;
            changed
        });
    }

    /// Frees something: on disks first what nobody uses, then a pod's share. One pod at a time.
    async fn relieve(&mut self, ctx: &Context, signal: Signal) {
        let short = Shortage::of(signal);
        let text = format!("Attempting to reclaim {}", short.resource(signal));
        ctx.events.record(About::node(&ctx.node), Severity::Warning, "EvictionThresholdMet", text);
        if short == Shortage::Disk {
            self.collect(ctx, None, images::Reason::Pressure).await;
        }
        let stocks = read(ctx).await;
        let still = self.passed(&ctx.settings, &stocks, Instant::now());
        let (Some(threshold), Some(stock)) = (still.get(&signal), stocks.get(&signal)) else { return };
        let mut candidates = Vec::new();
        for weight in weights(ctx).await.into_iter().filter(|weight| !weight.ending) {
            candidates.push(measure(ctx, short, weight).await);
        }
        rank::order(short, &mut candidates);
        let Some(first) = candidates.first() else { return };
        let message = rank::message(signal, *threshold, *stock, first);
        ctx.pods.send(&first.uid, Message::Evict { message, grace: GRACE });
        self.evicted = Some((first.uid.clone(), Instant::now()));
    }
}

async fn read(ctx: &Context) -> BTreeMap<Signal, Stock> {
    let (pods, images) = (ctx.dirs.pods().to_owned(), ctx.dirs.images().to_owned());
    tokio::task::spawn_blocking(move || facts::read(&pods, &images)).await.unwrap_or_default()
}

/// What all pods of the node say of themselves.
async fn weights(ctx: &Context) -> Vec<Weight> {
    let mut answers = Vec::new();
    for uid in ctx.pods.uids() {
        let (sender, answer) = oneshot::channel();
        ctx.pods.send(&uid, Message::Weigh(sender));
        answers.push(answer);
    }
    let mut weights = Vec::new();
    for answer in answers {
        // An actor that has just ended says nothing.
        weights.extend(answer.await.ok());
    }
    weights
}

fn images_of(weights: &[Weight]) -> HashSet<String> {
    let names = weights.iter().flat_map(|weight| &weight.images);
    // As they are stored, and as they are (ids).
    names
        .flat_map(|name| Reference::parse(name).ok().map(|parsed| parsed.to_string()).into_iter().chain([name.clone()]))
        .collect()
}

/// What a pod takes of what is short.
async fn measure(ctx: &Context, short: Shortage, weight: Weight) -> Candidate {
    let Weight { uid, priority, critical, containers, volumes, .. } = weight;
    let mut readings = HashMap::new();
    for part in &containers {
        if let (Some(id), true) = (&part.running, short != Shortage::Disk)
            && let Ok(usage) = ctx.runtime.usage(id).await
        {
            readings.insert(part.name.clone(), usage);
        }
    }
    let work = move || {
        let of = |paths: &[PathBuf]| paths.iter().map(|path| crate::pod::used(path)).sum::<u64>();
        let amount = |name: &str, places: &[PathBuf]| match short {
            Shortage::Memory => readings.get(name).map_or(0, |usage| usage.memory_bytes),
            Shortage::Processes => readings.get(name).map_or(0, |usage| usage.pids),
            Shortage::Disk => of(places),
        };
        let used = containers.iter().map(|part| Used {
            name: part.name.clone(),
            amount: amount(&part.name, &part.places),
            request: match short {
                Shortage::Memory => part.memory_request,
                Shortage::Disk => part.storage_request,
                Shortage::Processes => 0,
            },
        });
        let shared = if short == Shortage::Disk { of(&volumes) } else { 0 };
        Candidate { uid, priority, critical, shared, containers: used.collect() }
    };
    tokio::task::spawn_blocking(work).await.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn spec(value: serde_json::Value) -> PodSpec {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn under_pressure_only_pods_are_taken_that_dont_add_to_it_or_matter_most() {
        let memory: BTreeSet<_> = [Shortage::Memory].into();
        let both: BTreeSet<_> = [Shortage::Memory, Shortage::Disk].into();
        let plain = spec(json!({"containers": [{"name": "c"}]}));
        let asking = spec(json!({"containers": [{"name": "c", "resources": {"requests": {"memory": "1Mi"}}}]}));
        let critical = spec(json!({"containers": [{"name": "c"}], "priority": 2_000_000_000}));
        let tolerating = spec(json!({"containers": [{"name": "c"}],
            "tolerations": [{"key": "node.kubernetes.io/memory-pressure", "operator": "Exists"}]}));
        let message = |short: &BTreeSet<Shortage>, spec: &PodSpec| refuse(short, spec).map(|refusal| refusal.message);
        assert_eq!(message(&BTreeSet::new(), &plain), None);
        assert_eq!(message(&memory, &plain).unwrap(), "The node had condition: [MemoryPressure]. ");
        for taken in [&asking, &critical, &tolerating] {
            assert_eq!(message(&memory, taken), None);
        }
        assert_eq!(message(&both, &asking).unwrap(), "The node had condition: [MemoryPressure DiskPressure]. ");
        assert_eq!(message(&both, &critical), None);
    }

    #[test]
    fn a_soft_threshold_counts_after_its_time_and_a_hard_one_at_once() {
        let settings: NodeSettings = serde_json::from_value(json!({
            "evictionHard": {"nodefs.available": "10%"},
            "evictionSoft": {"memory.available": "50"}, "evictionSoftGracePeriod": {"memory.available": "1m"}}))
        .unwrap();
        let stock = |available| Stock { available, capacity: 100 };
        let stocks = |memory, disk| {
            BTreeMap::from([(Signal::MemoryAvailable, stock(memory)), (Signal::NodefsAvailable, stock(disk))])
        };
        let mut keeper = Keeper::default();
        let begin = Instant::now();
        let mut passed = |seconds, memory, disk| -> Vec<Signal> {
            let now = begin + Duration::from_secs(seconds);
            keeper.passed(&settings, &stocks(memory, disk), now).into_keys().collect()
        };
        assert_eq!(passed(0, 49, 9), [Signal::NodefsAvailable]);
        assert_eq!(passed(59, 49, 10), []);
        assert_eq!(passed(60, 49, 10), [Signal::MemoryAvailable]);
        assert_eq!(passed(61, 50, 10), []);
        assert_eq!(passed(62, 49, 10), [], "its time begins anew");
    }
}
