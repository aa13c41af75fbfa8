//! `carob bill`: what was used and what it costs, asked of a running gateway.

use std::path::PathBuf;

use anyhow::{Context, Result, anyhow};
use carob_billing::Traffic;
use carob_billing::http::{PREFIX, ReportParameters};
use carob_billing::report::{Report, Row};
use clap::ValueEnum;
use comfy_table::{CellAlignment, Table, presets};
use jiff::Timestamp;

#[derive(clap::Args)]
pub struct Options {
    /// The gateway to ask [default: $KUBECONFIG, or ~/.kube/config]
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Only this namespace.
    #[arg(short, long)]
    namespace: Option<String>,
    /// Only pods of this name.
    #[arg(long)]
    pod: Option<String>,
    /// From here on (RFC 3339).
    #[arg(long, value_name = "TIME")]
    from: Option<Timestamp>,
    /// Up to here (RFC 3339).
    #[arg(long, value_name = "TIME")]
    to: Option<Timestamp>,
    /// One row per step: 1s, 1m, 1h.
    #[arg(long, value_name = "DURATION")]
    step: Option<String>,
    /// namespace, pod or label:KEY
    #[arg(long, default_value = "pod", value_name = "WHAT")]
    group_by: String,
    /// How to print it.
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

#[derive(Clone, Copy, ValueEnum)]
enum Output {
    Table,
    Json,
    Csv,
}

pub async fn run(options: Options) -> Result<()> {
    let (client, address) = client(options.kubeconfig).await?;
    let group_by = options.group_by;
    let parameters = ReportParameters {
        namespace: options.namespace,
        pod: options.pod,
        from: options.from,
        to: options.to,
        step: options.step,
        group_by: Some(group_by.clone()),
    };
    let query = serde_urlencoded::to_string(&parameters)?;
    let request = axum::http::Request::get(format!("{PREFIX}/report?{query}")).body(Vec::new())?;
    let text = client.request_text(request).await.map_err(|error| refusal(error, &address))?;
    let report: Report = serde_json::from_str(&text).context("the gateway's answer is no report")?;
    match options.output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&report)?),
        Output::Csv => print_csv(&report)?,
        Output::Table => println!("{}", table(&report, &group_by)),
    }
    Ok(())
}

/// What the gateway said, or that it said nothing.
fn refusal(error: kube::Error, address: &str) -> anyhow::Error {
    match error {
        kube::Error::Api(status) => anyhow!("{}", status.message),
        error => anyhow::Error::from(error).context(format!("no answer from the gateway at {address}; is it running?")),
    }
}

/// A client, and where it looks for the gateway.
async fn client(kubeconfig: Option<PathBuf>) -> Result<(kube::Client, String)> {
    let config = match kubeconfig {
        Some(path) => {
            let file = kube::config::Kubeconfig::read_from(&path)
                .with_context(|| format!("cannot read {}", path.display()))?;
            kube::Config::from_custom_kubeconfig(file, &kube::config::KubeConfigOptions::default()).await?
        }
        None => kube::Config::infer().await.context("no kubeconfig: name one with --kubeconfig")?,
    };
    let address = config.cluster_url.to_string();
    Ok((kube::Client::try_from(config)?, address))
}

/// A column of a bill, for people and for spreadsheets.
struct Column {
    name: &'static str,
    /// In the header of CSV.
    csv: &'static str,
    cell: fn(&Row) -> String,
    number: bool,
    /// A table has it only if this holds for a report.
    shown: fn(&Report, &str) -> bool,
}

const COLUMN: Column = Column { name: "", csv: "", cell: |_| String::new(), number: false, shown: |_, _| true };

const COLUMNS: &[Column] = &[
    Column { name: "START", csv: "start", cell: |row| row.start.to_string(), ..COLUMN },
    Column { name: "END", csv: "end", cell: |row| row.end.to_string(), ..COLUMN },
    Column {
        name: "NAMESPACE",
        csv: "namespace",
        cell: |row| row.namespace.clone().unwrap_or_default(),
        shown: |_, group_by| !by_label(group_by),
        ..COLUMN
    },
    Column {
        name: "POD",
        csv: "pod",
        cell: |row| row.pod.clone().unwrap_or_default(),
        shown: |_, group_by| group_by == "pod",
        ..COLUMN
    },
    Column {
        name: "LABEL",
        csv: "label",
        cell: |row| row.label.clone().unwrap_or_default(),
        shown: |_, group_by| by_label(group_by),
        ..COLUMN
    },
    Column { name: "CONTAINERS", csv: "containers", cell: |row| row.containers.to_string(), number: true, ..COLUMN },
    Column {
        name: "CPU-SECONDS",
        csv: "cpu-seconds",
        cell: |row| seconds(row.cpu_nanoseconds),
        number: true,
        ..COLUMN
    },
    Column {
        name: "GIB-SECONDS",
        csv: "gib-seconds",
        cell: |row| gib_seconds(row.memory_byte_seconds),
        number: true,
        ..COLUMN
    },
    Column {
        name: "±GIB-SECONDS",
        csv: "gib-seconds-error",
        cell: |row| gib_seconds(row.memory_byte_seconds_error),
        number: true,
        ..COLUMN
    },
    Column {
        name: "BILLED-CPU",
        csv: "billed-cpu-seconds",
        cell: |row| seconds(row.billed_cpu_nanoseconds),
        number: true,
        shown: |report, _| bills_more(report),
    },
    Column {
        name: "BILLED-GIB",
        csv: "billed-gib-seconds",
        cell: |row| gib_seconds(row.billed_memory_byte_seconds),
        number: true,
        shown: |report, _| bills_more(report),
    },
    Column {
        name: "INTERNET-IN",
        csv: "internet-received-bytes",
        cell: |row| bytes(row, |traffic| traffic.internet_received_bytes),
        number: true,
        shown: |report, _| has_traffic(report),
    },
    Column {
        name: "INTERNET-OUT",
        csv: "internet-sent-bytes",
        cell: |row| bytes(row, |traffic| traffic.internet_sent_bytes),
        number: true,
        shown: |report, _| has_traffic(report),
    },
    Column {
        name: "CLUSTER-IN",
        csv: "cluster-received-bytes",
        cell: |row| bytes(row, |traffic| traffic.cluster_received_bytes),
        number: true,
        shown: |report, _| has_traffic(report),
    },
    Column {
        name: "CLUSTER-OUT",
        csv: "cluster-sent-bytes",
        cell: |row| bytes(row, |traffic| traffic.cluster_sent_bytes),
        number: true,
        shown: |report, _| has_traffic(report),
    },
    Column { name: "COST", csv: "cost", cell: |row| row.cost.clone(), number: true, ..COLUMN },
];

/// Of pods without the label.
const NONE: &str = "<none>";
/// What was received and sent by pods on the host's network.
const UNKNOWN: &str = "-";

fn by_label(group_by: &str) -> bool {
    group_by.starts_with("label:")
}

/// Whether requests are billed somewhere instead of usage.
fn bills_more(report: &Report) -> bool {
    let total = &report.total;
    total.billed_cpu_nanoseconds != total.cpu_nanoseconds
        || total.billed_memory_byte_seconds != total.memory_byte_seconds
}

/// Whether anything was received or sent, as far as is known.
fn has_traffic(report: &Report) -> bool {
    report.total.traffic.is_some_and(|traffic| traffic != Traffic::default())
}

/// Bytes of pods with networks of their own; nothing is known of others.
fn bytes(row: &Row, of: fn(&Traffic) -> u64) -> String {
    row.traffic.as_ref().map_or_else(String::new, |traffic| of(traffic).to_string())
}

fn table(report: &Report, group_by: &str) -> Table {
    let used: Vec<_> = COLUMNS.iter().filter(|column| (column.shown)(report, group_by)).collect();
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_header(used.iter().map(|column| match column.name {
        "COST" => format!("COST {}", report.currency),
        name => name.to_owned(),
    }));
    for row in &report.rows {
        table.add_row(used.iter().map(|column| match (column.name, (column.cell)(row)) {
            ("LABEL", value) if value.is_empty() => NONE.to_owned(),
            (_, value) if value.is_empty() => UNKNOWN.to_owned(),
            (_, cell) => shown(cell),
        }));
    }
    // Nothing has no begin and no end.
    let empty = report.rows.is_empty();
    table.add_row(used.iter().map(|column| match column.name {
        "START" => "TOTAL".to_owned(),
        "END" if empty => String::new(),
        _ => shown((column.cell)(&report.total)),
    }));
    for (index, _) in used.iter().enumerate().filter(|(_, column)| column.number) {
        if let Some(column) = table.column_mut(index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

/// A moment is shown to the millisecond; the rest as it is.
fn shown(cell: String) -> String {
    match cell.parse::<Timestamp>() {
        Ok(moment) => format!("{moment:.3}"),
        Err(_) => cell,
    }
}

fn print_csv(report: &Report) -> Result<()> {
    let mut writer = csv::Writer::from_writer(std::io::stdout().lock());
    writer.write_record(COLUMNS.iter().map(|column| column.csv).chain(["currency"]))?;
    for row in &report.rows {
        writer.write_record(COLUMNS.iter().map(|column| (column.cell)(row)).chain([report.currency.clone()]))?;
    }
    writer.flush()?;
    Ok(())
}

/// With nine decimals, as the kernel counts.
fn seconds(nanoseconds: u64) -> String {
    format!("{}.{:09}", nanoseconds / 1_000_000_000, nanoseconds % 1_000_000_000)
}

/// With six decimals: about a KiB-second.
fn gib_seconds(byte_seconds: u128) -> String {
    let micro = (byte_seconds * 1_000_000) >> 30;
    format!("{}.{:06}", micro / 1_000_000, micro % 1_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gib_second_is_two_to_the_thirty_byte_seconds() {
        assert_eq!(gib_seconds(1 << 30), "1.000000");
        assert_eq!(gib_seconds(3 << 29), "1.500000");
    }
}
