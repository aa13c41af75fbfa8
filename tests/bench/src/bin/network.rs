//! Figures of the pods' network alone, without a gateway: how long a change among many Services takes to be in force, what
//! a connection through a Service costs with few and with many of them, and how many questions the cluster's DNS answers.
//!
//! Run as root on a quiet machine: `cargo run --release -p carob-bench --bin network`. The budgets are those of issue 5: 50 ms
//! for a change, the same time with ten Services as with ten thousand, 20,000 answers per second and core.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use carob_network::{
    Backend, Dns, DnsSockets, Frontend, Ipv4Net, NamedPort, Network, NetworkConfig, Protocol, ServiceNames, Side,
};
use nix::sys::resource::{UsageWho, getrusage};
use tokio_util::sync::CancellationToken;

const SERVICES: u32 = 10_000;
const FIRST: u32 = u32::from_be_bytes([10, 126, 0, 1]);

fn main() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let instance = format!("be{:06x}", std::process::id());
    let measured = runtime.block_on(services(&instance));
    runtime.block_on(Network::teardown(&instance))?;
    measured?;
    answers()
}

fn frontend(number: u32) -> Frontend {
    Frontend { side: Side::Inside, address: Some((FIRST + number).into()), protocol: Protocol::Tcp, port: 80 }
}

async fn services(instance: &str) -> Result<()> {
    let pod_cidr = carob_network::free_cidr(
        instance,
        (0..200).map(|third| Ipv4Net::new_assert(Ipv4Addr::new(10, 250, third, 0), 24)),
    )?;
    let service_cidr = Some(Ipv4Net::new_assert(Ipv4Addr::new(10, 126, 0, 0), 16));
    let config = NetworkConfig {
        instance: instance.to_owned(),
        pod_cidr,
        cluster_cidr: pod_cidr,
        annexed: false,
        service_cidr,
        cluster_cidr6: None,
        service_cidr6: None,
        open_metadata: false,
    };
    let network = Network::start(config).await.context("run this as root")?;
    let listener = TcpListener::bind((network.gateway_address(), 0))?;
    let SocketAddr::V4(here) = listener.local_addr()? else { anyhow::bail!("an address of IPv6") };
    std::thread::spawn(move || listener.incoming().for_each(drop));
    let backend = |endpoints: Vec<SocketAddrV4>| Backend::Endpoints { endpoints, affinity: None, clients: None };
    let all =
        |count: u32| -> HashMap<_, _> { (0..count).map(|number| (frontend(number), backend(vec![here; 1]))).collect() };
    for count in [10, SERVICES] {
        let begin = Instant::now();
        network.replace_services(all(count)).await?;
        println!("{count} Services written at once: {:.1} ms", milliseconds(begin.elapsed()));
        let connects = sample(500, || connect(SocketAddrV4::new((FIRST + count - 1).into(), 80)))?;
        println!("  a connection through the last of them, p50 {:.3} ms, p99 {:.3} ms", connects.0, connects.1);
        let direct = sample(500, || connect(here))?;
        println!("  a connection without a Service,        p50 {:.3} ms, p99 {:.3} ms", direct.0, direct.1);
    }
    let mut took = Vec::new();
    for number in 0..200 {
        let other = SocketAddrV4::new(Ipv4Addr::new(10, 250, 250, 1), here.port());
        let endpoints = if number % 2 == 0 { vec![here, other] } else { vec![here] };
        let begin = Instant::now();
        network.change_services(vec![(frontend(number / 2), Some(backend(endpoints)))]).await?;
        took.push(begin.elapsed());
    }
    let (p50, p99) = percentiles(took);
    println!("one endpoint more or less among {SERVICES} Services: p50 {p50:.2} ms, p99 {p99:.2} ms (budget 50)");
    Ok(())
}

fn connect(to: SocketAddrV4) -> Result<()> {
    TcpStream::connect_timeout(&to.into(), Duration::from_secs(5)).map(drop).with_context(|| format!("{to}"))
}

fn sample(times: usize, work: impl Fn() -> Result<()>) -> Result<(f64, f64)> {
    let mut took = Vec::with_capacity(times);
    for _ in 0..times {
        let begin = Instant::now();
        work()?;
        took.push(begin.elapsed());
    }
    Ok(percentiles(took))
}

fn percentiles(mut took: Vec<Duration>) -> (f64, f64) {
    took.sort_unstable();
    (milliseconds(took[took.len() / 2]), milliseconds(took[took.len() * 99 / 100]))
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// A question for the address of a Service.
fn question(number: u32) -> Vec<u8> {
    let mut bytes = vec![0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in [format!("service-{number}").as_str(), "default", "svc", "cluster", "local"] {
        bytes.push(u8::try_from(label.len()).unwrap_or(0));
        bytes.extend(label.bytes());
    }
    bytes.extend([0, 0, 1, 0, 1]);
    bytes
}

/// One client that always has some questions under way; the server's thread counts its own processor time.
fn answers() -> Result<()> {
    const UNDER_WAY: usize = 64;
    let dns = Dns::new("cluster.local", Arc::new(Vec::new));
    for number in 0..SERVICES {
        let ports = vec![NamedPort { name: "http".into(), protocol: Protocol::Tcp, port: 80 }];
        let names = ServiceNames::Address { addresses: vec![Ipv4Addr::from(FIRST + number).into()], ports };
        dns.set("default", &format!("service-{number}"), Some(names));
    }
    dns.complete();
    let sockets = DnsSockets::bind(Ipv4Addr::LOCALHOST)?;
    let server = sockets.address()?;
    let stop = CancellationToken::new();
    let stopped = stop.clone();
    let serving = std::thread::spawn(move || -> Result<Duration> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(dns.serve(sockets, stopped))?;
        let used = getrusage(UsageWho::RUSAGE_THREAD)?;
        let micros = |time: nix::sys::time::TimeVal| {
            Duration::from_micros(u64::try_from(time.tv_sec() * 1_000_000 + time.tv_usec()).unwrap_or(0))
        };
        Ok(micros(used.user_time()) + micros(used.system_time()))
    });
    let client = UdpSocket::bind("127.0.0.1:0")?;
    client.connect(server)?;
    client.set_read_timeout(Some(Duration::from_millis(200)))?;
    let questions: Vec<Vec<u8>> = (0..SERVICES).map(question).collect();
    let (begin, mut sent, mut answered, mut buffer) = (Instant::now(), 0_usize, 0_usize, [0; 512]);
    while begin.elapsed() < Duration::from_secs(5) {
        while sent < answered + UNDER_WAY {
            client.send(&questions[sent % questions.len()])?;
            sent += 1;
        }
        match client.recv(&mut buffer) {
            Ok(_) => answered += 1,
            // What was lost on the way is written off.
            Err(_) => answered = sent,
        }
    }
    let whole = begin.elapsed();
    stop.cancel();
    let used = serving.join().map_err(|_| anyhow::anyhow!("the server panicked"))??;
    #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
    let count = answered as f64;
    println!(
        "DNS: {:.0} answers/s to one client, {:.0} per second of processor time (budget 20000)",
        count / whole.as_secs_f64(),
        count / used.as_secs_f64()
    );
    Ok(())
}
