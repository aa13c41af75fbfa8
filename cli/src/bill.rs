//! `carob bill`: what was used and what it costs, asked of a running gateway.

use std::path::PathBuf;

use anyhow::{Context, Result};
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
    let client = client(options.kubeconfig).await?;
    let parameters = ReportParameters {
        namespace: options.namespace,
        pod: options.pod,
        from: options.from,
        to: options.to,
        step: options.step,
        group_by: Some(options.group_by),
    };
    let query = serde_urlencoded::to_string(&parameters)?;
    let request = axum::http::Request::get(format!("{PREFIX}/report?{query}")).body(Vec::new())?;
    let text = client.request_text(request).await.context("the gateway gives no bill")?;
    let report: Report = serde_json::from_str(&text).context("the gateway's answer is no report")?;
    match options.output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&report)?),
        Output::Csv => print_csv(&report)?,
        Output::Table => println!("{}", table(&report)),
    }
    Ok(())
}

async fn client(kubeconfig: Option<PathBuf>) -> Result<kube::Client> {
    let config = match kubeconfig {
        Some(path) => {
            let file = kube::config::Kubeconfig::read_from(&path)
                .with_context(|| format!("cannot read {}", path.display()))?;
            kube::Config::from_custom_kubeconfig(file, &kube::config::KubeConfigOptions::default()).await?
        }
        None => kube::Config::infer().await.context("no kubeconfig: name one with --kubeconfig")?,
    };
    Ok(kube::Client::try_from(config)?)
}

/// A column's name and what it shows of a row.
type Column = (&'static str, fn(&Row) -> String);

/// The columns of a report, for people and for spreadsheets.
const COLUMNS: [Column; 10] = [
    ("START", |row| row.start.to_string()),
    ("END", |row| row.end.to_string()),
    ("NAMESPACE", |row| row.namespace.clone().unwrap_or_default()),
    ("POD", |row| row.pod.clone().unwrap_or_default()),
    ("LABEL", |row| row.label.clone().unwrap_or_default()),
    ("CONTAINERS", |row| row.containers.to_string()),
    ("CPU-SECONDS", |row| {
        format!("{}.{:09}", row.cpu_nanoseconds / 1_000_000_000, row.cpu_nanoseconds % 1_000_000_000)
    }),
    ("GIB-SECONDS", |row| gib_seconds(row.memory_byte_seconds)),
    ("±GIB-SECONDS", |row| gib_seconds(row.memory_byte_seconds_error)),
    ("COST", |row| row.cost.clone()),
];

/// Columns that say nothing in any row of this report are left out of a table.
fn table(report: &Report) -> Table {
    let used: Vec<_> = COLUMNS
        .iter()
        .filter(|(_, cell)| report.rows.is_empty() || report.rows.iter().any(|row| !cell(row).is_empty()))
        .collect();
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_header(
        used.iter()
            .map(|(name, _)| if *name == "COST" { format!("COST {}", report.currency) } else { (*name).to_owned() }),
    );
    for row in &report.rows {
        table.add_row(used.iter().map(|(_, cell)| shown(cell(row))));
    }
    table.add_row(
        used.iter().map(|(name, cell)| if *name == "START" { "TOTAL".to_owned() } else { shown(cell(&report.total)) }),
    );
    for (index, (name, _)) in used.iter().enumerate() {
        if matches!(*name, "CONTAINERS" | "CPU-SECONDS" | "GIB-SECONDS" | "±GIB-SECONDS" | "COST")
            && let Some(column) = table.column_mut(index)
        {
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
    writer.write_record(COLUMNS.iter().map(|(name, _)| name.to_ascii_lowercase()).chain(["currency".to_owned()]))?;
    for row in &report.rows {
        writer.write_record(COLUMNS.iter().map(|(_, cell)| cell(row)).chain([report.currency.clone()]))?;
    }
    writer.flush()?;
    Ok(())
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
