//! `tests/bench/README.md`: the table, where the time goes, what was measured on what. Writing to a string can't fail.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use crate::api::{Creates, Report};
use crate::crowd::Crowd;
use crate::lists::Lists;
use crate::metrics::Histogram;
use crate::objects::{self, Objects};
use crate::processes::{self, Process};
use crate::readers::Shape;
use crate::rounds::{Batch, Figures, Span};
use crate::statistics::{median, percentile};
use crate::table::{self, Cell, Row, Unit};
use crate::watchers::Deliveries;

/// One measured column.
pub struct Column {
    pub name: &'static str,
    pub comprises: &'static str,
    pub version: String,
    /// `None` where the peer could not even be set up.
    pub figures: Option<Figures>,
    /// Why that is.
    pub problem: Option<String>,
}

/// A stage's name to how its histogram grew.
pub type Stages = BTreeMap<String, Histogram>;

/// All there is to tell.
#[derive(Default)]
pub struct Results {
    /// Carob first.
    pub columns: Vec<Column>,
    /// Bytes of the image that was pulled, and how long it took to download and gunzip them.
    pub downloads: Option<(u64, Vec<Duration>)>,
    pub crowd: Option<Crowd>,
    pub creates: Option<Creates>,
    /// The gateway's own view of them.
    pub creates_in_gateway: Option<Histogram>,
    /// For each shape of connections.
    pub deliveries: Vec<Deliveries>,
    pub lists: Option<Lists>,
    pub report: Option<Report>,
    pub objects: Option<Objects>,
    /// During the single starts.
    pub stages_single: Stages,
    /// During all batches.
    pub stages_batches: Stages,
    pub facts: Vec<(&'static str, String)>,
    /// Process id.
    pub gateway: i32,
    /// Pods of a batch.
    pub batch: usize,
    pub problems: Vec<String>,
}

/// The whole page.
pub fn render(results: &Results) -> String {
    let names: Vec<&str> = results.columns.iter().map(|column| column.name).collect();
    let rows = rows(results);
    let mut page = String::from(
        "# Carob beside its peers\n\n\
         Written by `make bench`: one run, in which all took turns. Compare within the table only; another machine, or \
         another moment of this one, gives other numbers. ×N: Carob is N times better (below 1: the peer is).\n\n",
    );
    page.push_str(&table::rows(&names, &rows));
    page.push('\n');
    for row in rows.iter().filter(|row| row.budget_met() == Some(false)) {
        let _ = writeln!(page, "- Budget not met: {}. {}", row.what, explanation(results, row));
    }
    for problem in &results.problems {
        let _ = writeln!(page, "- {problem}");
    }
    page.push_str(
        "\n## Where the time goes\n\nOf Carob's starts, from its own histograms (`/metrics`). Stages overlap, \
                   and `total` is the worker's: from seeing the pod until its Running status is accepted.\n",
    );
    page.push_str(&stages("One at a time", &results.stages_single));
    page.push_str(&stages("In batches: in a row, then eight at a time", &results.stages_batches));
    page.push_str(&control_plane(results));
    page.push_str("\n## Where the memory is\n\n");
    page.push_str(&memory(results));
    page.push_str("\n## What was measured\n\n");
    page.push_str(&subjects(results));
    page.push_str(METHOD);
    page.push_str("\n## The machine\n\n");
    let facts: Vec<Vec<String>> =
        results.facts.iter().map(|(name, value)| vec![(*name).to_owned(), value.clone()]).collect();
    page.push_str(&table::markdown(&["fact".to_owned(), "value".to_owned()], &facts));
    page
}

const METHOD: &str = "\nAll run the same image and command with the same limits (1 CPU, 64 MiB), each with \
    its default capabilities and seccomp profile. Peers are timed from the start of their command-line program to its end, \
    as they are used. A slow peer's batch ends after a while, with fewer pods. Single starts, execs and deletes take turns in rounds; percentiles are by nearest rank. Memory beyond a pod's own \
    processes is the growth in PSS of all helper processes (for Carob: gateway, spawner, log pump; for the others: \
    daemon, shims, monitors) between no pods and a batch of idle ones, divided by the pods. Watch delivery is measured \
    by a client that only looks for a number in each event, on one thread of the same machine: it needs its share of the \
    cores, too. The commit is known by its first sign, which is the write's answer or somebody's event; the figures from the \
    write's sending hold the request, the commit and its fsync as well. Lists are read over TLS to their last byte, not \
    parsed. Nothing fails on slowness.\n";

fn rows(results: &Results) -> Vec<Row> {
    let of = |what: &str, unit: Unit, marks: (Option<f64>, Option<f64>), cell: &dyn Fn(&Figures) -> Cell| Row {
        what: what.to_owned(),
        unit,
        cells: results.columns.iter().map(|column| column.figures.as_ref().map_or(Cell::Missing, cell)).collect(),
        budget: marks.0,
        aim: marks.1,
    };
    let alone = |what: String, unit: Unit, number: Option<f64>, budget: f64| Row {
        what,
        unit,
        cells: vec![number.into()],
        budget: Some(budget),
        aim: None,
    };
    let time = |samples: &[Duration], percent: usize| Cell::from(percentile(samples, percent).map(milliseconds));
    let none = (None, None);
    let mut rows = vec![
        of("start from a warm image, p50", Unit::Milliseconds, (Some(15.0), Some(10.0)), &|it| time(&it.start, 50)),
        of("start from a warm image, p99", Unit::Milliseconds, (Some(40.0), Some(30.0)), &|it| time(&it.start, 99)),
        of(&format!("{} starts in a row", results.batch), Unit::PerSecond, none, &|it| {
            it.in_a_row.as_ref().map(Batch::rate).into()
        }),
        of(&format!("{} starts, 8 at a time", results.batch), Unit::PerSecond, (Some(80.0), Some(100.0)), &|it| {
            it.at_once.as_ref().map(Batch::rate).into()
        }),
        of("exec `true` and its exit code, p50", Unit::Milliseconds, (Some(10.0), None), &|it| time(&it.exec, 50)),
        of("delete until gone, p50", Unit::Milliseconds, none, &|it| time(&it.delete, 50)),
        of("memory per idle pod beyond its own", Unit::Bytes, (Some(mebibytes(0.5)), Some(mebibytes(0.25))), &|it| {
            let Some(span) = &it.loaded else { return Cell::Missing };
            if span.after.is_empty() { Cell::Nothing("no helper") } else { Cell::Number(per_pod(span)) }
        }),
        of("idle, no pods: resident memory, mean", Unit::Bytes, (Some(60e6), None), &|it| {
            at_rest(it, |_| number(it.resident.iter().sum::<u64>()) / number(it.resident.len().max(1) as u64))
        }),
        of("idle, no pods: CPU of one core", Unit::Percent, (Some(1.0), None), &|it| at_rest(it, cpu_percent)),
    ];
    if let Some((bytes, downloads)) = &results.downloads {
        let what = format!("cold pull of an image of {}, p50", Unit::Bytes.show(number(*bytes)));
        let budget = median(downloads).map(|download| 1.3 * milliseconds(download));
        rows.push(of(&what, Unit::Milliseconds, (budget, None), &|it| {
            median(&it.pull).map_or(Cell::Nothing("no client"), |took| Cell::Number(milliseconds(took)))
        }));
    }
    if let Some(it) = &results.crowd {
        rows.extend(of_crowd(it));
    }
    let creates = results.creates.as_ref();
    let rate = creates.map(|creates| number(creates.objects) / creates.took.as_secs_f64());
    let clients = creates.map_or(8, |creates| creates.clients);
    rows.push(alone(format!("durable object creates, {clients} clients"), Unit::PerSecond, rate, 5000.0));
    for it in &results.deliveries {
        let what = format!("commit to the last of {} watchers, {}, p99", it.watchers, connected(it.shape));
        let slowest = percentile(&it.spread, 99).map(milliseconds);
        rows.push(alone(what, Unit::Milliseconds, slowest, 10.0));
    }
    if let Some(lists) = &results.lists
        && let Some(json) = lists.forms.first()
    {
        let what = format!("list of {} pods ({}), p50", lists.pods, json.form);
        rows.push(alone(what, Unit::Milliseconds, median(&json.latencies).map(milliseconds), 100.0));
    }
    let report = results.report.as_ref();
    let what = "a namespace's bill per pod and second, p50".to_owned();
    let took = report.and_then(|it| median(&it.latencies)).map(milliseconds);
    rows.push(alone(what, Unit::Milliseconds, took, 1000.0));
    rows.extend(results.objects.as_ref().map(of_objects).into_iter().flatten());
    rows
}

/// A row of Carob's own.
fn own(what: String, unit: Unit, value: f64, budget: Option<f64>) -> Row {
    Row { what, unit, cells: vec![Cell::Number(value)], budget, aim: None }
}

fn of_crowd(it: &Crowd) -> Vec<Row> {
    let pods = it.loaded.pods;
    let slowest = percentile(&it.answers, 99).map_or(0.0, milliseconds);
    vec![
        own(format!("{pods} pods on one worker, started 8 at a time"), Unit::PerSecond, it.batch.rate(), None),
        own(
            format!("{pods} pods: memory per idle pod beyond its own"),
            Unit::Bytes,
            per_pod(&it.loaded),
            Some(mebibytes(0.5)),
        ),
        own(format!("{pods} pods: CPU of one core, all idle"), Unit::Percent, cpu_percent(&it.at_rest), None),
        own(format!("{pods} pods: a pod read or an object created, p99"), Unit::Milliseconds, slowest, Some(10.0)),
    ]
}

fn of_objects(it: &Objects) -> Vec<Row> {
    let (few, many) = (it.amounts.few, it.amounts.many);
    vec![
        own(format!("a create with {many} objects, times one with {few}"), Unit::Times, it.slowdown(), Some(1.2)),
        own(format!("{many} objects: resident memory"), Unit::Bytes, number(it.full_memory), Some(300e6)),
        own(
            format!("{many} objects: start until ready"),
            Unit::Milliseconds,
            milliseconds(it.full_start),
            Some(3000.0),
        ),
        own("no objects: start until ready".to_owned(), Unit::Milliseconds, milliseconds(it.empty_start), None),
    ]
}

fn explanation(results: &Results, row: &Row) -> String {
    match row.unit {
        Unit::Bytes => "See where the memory is, below.".to_owned(),
        Unit::Percent => {
            results.columns.first().and_then(|carob| carob.figures.as_ref()).map_or_else(String::new, idle_cpu)
        }
        _ if row.cells.len() > 1 => {
            let stages = if row.unit == Unit::PerSecond { &results.stages_batches } else { &results.stages_single };
            costliest(stages)
        }
        _ => "See the control plane, below.".to_owned(),
    }
}

/// The stages that took most, in a sentence.
fn costliest(stages: &Stages) -> String {
    let mut means: Vec<(&str, Duration)> = stages
        .iter()
        .filter(|(name, _)| *name != "total")
        .filter_map(|(name, histogram)| Some((name.as_str(), histogram.mean()?)))
        .collect();
    if means.is_empty() {
        return "Carob told nothing of its stages.".to_owned();
    }
    means.sort_by_key(|(_, mean)| std::cmp::Reverse(*mean));
    let list: Vec<String> = means.iter().take(4).map(|(name, mean)| format!("{name} {}", show(*mean))).collect();
    format!("What takes most, on average: {}.", list.join(", "))
}

fn stages(title: &str, stages: &Stages) -> String {
    if stages.is_empty() {
        return format!("\n{title}: `/metrics` has no stages.\n");
    }
    let mut list: Vec<(&String, &Histogram)> = stages.iter().collect();
    list.sort_by_key(|(_, histogram)| std::cmp::Reverse(histogram.mean()));
    let cell = |duration: Option<Duration>| duration.map_or_else(|| "–".to_owned(), show);
    let body: Vec<Vec<String>> = list
        .into_iter()
        .map(|(name, it)| {
            let count = format!("{:.0}", it.count);
            vec![name.clone(), count, cell(it.mean()), cell(it.percentile(50.0)), cell(it.percentile(99.0))]
        })
        .collect();
    let header = ["stage", "times", "mean", "p50, about", "p99, about"].map(str::to_owned);
    format!("\n{title}:\n\n{}", table::markdown(&header, &body))
}

fn objects_text(it: &Objects) -> String {
    let size = |bytes: u64| Unit::Bytes.show(number(bytes));
    let cost = |cost: objects::Cost| {
        let micros = |time: Duration| time.as_secs_f64() * 1e6;
        format!("every {:.0} µs, for {:.0} µs of a core in the gateway", micros(cost.wall), micros(cost.cpu))
    };
    format!(
        "- Objects: {} clients created one {} with {} there, one {} with {}.\n\
         - A gateway without a worker had {} resident without objects, {} when it had written {}, {} when it was started \
         with them, which are {} in its files. It was ready {} after its first start, {} after the second, {} after one \
         with all objects.\n",
        it.amounts.clients,
        cost(it.at_few),
        it.amounts.few,
        cost(it.at_many),
        it.amounts.many,
        size(it.empty_memory),
        size(it.written_memory),
        it.amounts.many,
        size(it.full_memory),
        size(it.file),
        show(it.first_start),
        show(it.empty_start),
        show(it.full_start),
    )
}

fn control_plane(results: &Results) -> String {
    let mut text = String::from("\nThe control plane:\n\n");
    if let Some((bytes, downloads)) = &results.downloads {
        let _ = writeln!(
            text,
            "- Pull: {} in {} layers of gzip from a registry on this machine; `curl | gzip -d`, one layer after the other, \
             takes {} (p50), and the budget is 1.3 times that.",
            Unit::Bytes.show(number(*bytes)),
            crate::pull::LAYERS,
            optional(median(downloads)),
        );
    }
    if let Some(creates) = &results.creates {
        let (p50, p99) = (percentile(&creates.latencies, 50), percentile(&creates.latencies, 99));
        let _ = write!(
            text,
            "- Creates: {} in {:.1} s; a client waited {} (p50), {} (p99)",
            creates.objects,
            creates.took.as_secs_f64(),
            optional(p50),
            optional(p99),
        );
        if let Some(mean) = results.creates_in_gateway.as_ref().and_then(Histogram::mean) {
            let _ = write!(text, ", of which {} on average inside the gateway, the commit among it", show(mean));
        }
        let micros = |time: Duration| time.as_secs_f64() * 1e6;
        let _ = writeln!(
            text,
            "; one took {:.0} µs of a core in the gateway and {:.0} µs in the client.",
            micros(creates.gateway_cpu),
            micros(creates.client_cpu)
        );
    }
    if let Some(it) = &results.objects {
        text.push_str(&objects_text(it));
    }
    for it in &results.deliveries {
        let _ = writeln!(
            text,
            "- Watch, {} watchers, {}: {} writes. A write took {} (p50) until its answer; the last watcher had its event \
             {} (p50), {} (p99) after the write was sent, and {} (p50), {} (p99) after the first sign of the commit. One \
             event for one watcher took {:.1} µs of a core in the gateway and {:.1} µs in the client. An idle watch \
             takes {} of the gateway's memory.",
            it.watchers,
            connected(it.shape),
            it.write.len(),
            optional(median(&it.write)),
            optional(median(&it.last)),
            optional(percentile(&it.last, 99)),
            optional(median(&it.spread)),
            optional(percentile(&it.spread, 99)),
            it.gateway_cpu.as_secs_f64() * 1e6,
            it.client_cpu.as_secs_f64() * 1e6,
            Unit::Bytes.show(number(it.memory)),
        );
    }
    if let Some(it) = &results.lists {
        let show_bytes = |bytes: u64| Unit::Bytes.show(number(bytes));
        let _ = writeln!(
            text,
            "- Lists of {} pods; the gateway had {} before them, and {} at most until their end:\n",
            it.pods,
            show_bytes(it.memory.0),
            show_bytes(it.memory.1),
        );
        let header = ["form", "size", "p50", "p99", "of a core in the gateway"].map(str::to_owned);
        let body: Vec<Vec<String>> = it
            .forms
            .iter()
            .map(|form| {
                vec![
                    form.form.to_owned(),
                    show_bytes(form.bytes as u64),
                    optional(median(&form.latencies)),
                    optional(percentile(&form.latencies, 99)),
                    show(form.gateway_cpu),
                ]
            })
            .collect();
        text.push_str(&table::markdown(&header, &body));
        text.push('\n');
    }
    if let Some(it) = &results.report {
        let _ = writeln!(
            text,
            "- Bill: {} rows of {} pods, from a ledger of {} readings (all that this run left in it, not a month).",
            it.rows, it.pods, it.readings,
        );
    }
    text
}

fn connected(shape: Shape) -> String {
    match shape {
        Shape::Connections => "a connection each".to_owned(),
        Shape::Streams(share) => format!("{share} HTTP/2 streams to a connection"),
    }
}

fn memory(results: &Results) -> String {
    let Some(figures) = results.columns.first().and_then(|carob| carob.figures.as_ref()) else { return String::new() };
    let role = |process: &Process| if process.pid == results.gateway { "gateway" } else { "beside it" };
    let mut body = Vec::new();
    let mut add = |when: String, processes: &[Process]| {
        for process in processes {
            let show = |bytes: u64| Unit::Bytes.show(number(bytes));
            let name = format!("{} ({})", process.name, role(process));
            body.push(vec![when.clone(), name, show(process.rss), show(process.pss)]);
        }
    };
    if let Some(idle) = &figures.idle {
        add("idle".to_owned(), &idle.after);
    }
    if let Some(loaded) = &figures.loaded {
        add("before the pods".to_owned(), &loaded.before);
        add(format!("with {} pods", loaded.pods), &loaded.after);
    }
    let mut text = table::markdown(&["when", "process", "RSS", "PSS"].map(str::to_owned), &body);
    if let (Some(least), Some(most)) = (figures.resident.iter().min(), figures.resident.iter().max()) {
        let [least, most] = [least, most].map(|bytes| Unit::Bytes.show(number(*bytes)));
        let seconds = figures.resident.len();
        let _ = write!(
            text,
            "\nIdle, all processes together, looked at every second for {seconds} s: RSS between {least} and {most}.\n"
        );
    }
    text
}

fn subjects(results: &Results) -> String {
    let mut text = String::new();
    for column in &results.columns {
        let _ = write!(text, "- **{}**", column.name);
        if !column.version.is_empty() {
            let _ = write!(text, " ({})", column.version);
        }
        if !column.comprises.is_empty() {
            let _ = write!(text, ": {}", column.comprises);
        }
        if let Some(figures) = &column.figures {
            let _ = write!(text, ". {} single starts", figures.start.len());
            let batches = [("in a row", &figures.in_a_row), ("eight at a time", &figures.at_once)];
            for (name, batch) in batches.into_iter().filter_map(|(name, batch)| Some((name, batch.as_ref()?))) {
                let _ = write!(text, ", {} {name} in {:.1} s", batch.pods, batch.took.as_secs_f64());
            }
        }
        let problem = column.problem.as_ref().or(column.figures.as_ref().and_then(|figures| figures.problem.as_ref()));
        match problem {
            Some(problem) => drop(writeln!(text, ". Not measured to the end: {problem}")),
            None => text.push_str(".\n"),
        }
    }
    text
}

fn at_rest(figures: &Figures, value: impl Fn(&Span) -> f64) -> Cell {
    match &figures.idle {
        None => Cell::Missing,
        Some(span) if span.after.is_empty() => Cell::Nothing("no daemon"),
        Some(span) => Cell::Number(value(span)),
    }
}

fn idle_cpu(figures: &Figures) -> String {
    let Some(span) = &figures.idle else { return String::new() };
    let of: Vec<String> =
        span.after.iter().map(|process| format!("{} {}", process.name, show(used(span, process)))).collect();
    format!("In {:.0} s: {}.", span.took.as_secs_f64(), of.join(", "))
}

/// CPU time of a process in the span.
fn used(span: &Span, process: &Process) -> Duration {
    let before = span.before.iter().find(|earlier| earlier.pid == process.pid);
    process.cpu.saturating_sub(before.map_or(Duration::ZERO, |earlier| earlier.cpu))
}

fn cpu_percent(span: &Span) -> f64 {
    let used: Duration = span.after.iter().map(|process| used(span, process)).sum();
    100.0 * used.as_secs_f64() / span.took.as_secs_f64()
}

fn per_pod(span: &Span) -> f64 {
    let pss = |processes: &[Process]| number(processes::total(processes, |process| process.pss));
    (pss(&span.after) - pss(&span.before)).max(0.0) / number(span.pods.max(1) as u64)
}

fn show(duration: Duration) -> String {
    Unit::Milliseconds.show(milliseconds(duration))
}

fn optional(duration: Option<Duration>) -> String {
    duration.map_or_else(|| "–".to_owned(), show)
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

fn mebibytes(count: f64) -> f64 {
    count * f64::from(1 << 20)
}

#[expect(clippy::cast_precision_loss, reason = "shown with three digits")]
fn number(count: u64) -> f64 {
    count as f64
}
