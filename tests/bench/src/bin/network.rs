//! Figures of the pods' network alone, without a gateway: how long a pod's namespace takes, what goes between two pods,
//! directly and through a Service, beside a plain bridge with veth links, how long a change among many Services takes to be in
//! force, what a connection through a Service costs with few and with many of them, and how many questions the cluster's DNS
//! answers.
//!
//! Run as root on a quiet machine: `cargo run --release -p carob-bench --bin network`. The budgets: 2 ms for a namespace from the
//! pool, 5 % less than the bridge, 50 ms for a change, the same time with ten Services as with ten thousand, 20,000 answers
//! per second and core.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use carob_network::{
    Backend, Dns, DnsSockets, Frontend, Ipv4Net, NamedPort, Network, NetworkConfig, Protocol, ServiceNames, Side,
};
use nix::sched::{CloneFlags, setns};
use nix::sys::resource::{UsageWho, getrusage};
use tokio_util::sync::CancellationToken;

const SERVICES: u32 = 10_000;
const FIRST: u32 = u32::from_be_bytes([10, 126, 0, 1]);

fn main() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let instance = format!("be{:06x}", std::process::id());
    let measured = runtime.block_on(async {
        let network = start(&instance).await?;
        namespaces(&network).await?;
        between_pods(&network).await?;
        services(&network).await
    });
    runtime.block_on(Network::teardown(&instance))?;
    measured?;
    answers()
}

fn frontend(number: u32) -> Frontend {
    Frontend { side: Side::Inside, address: IpAddr::V4((FIRST + number).into()), protocol: Protocol::Tcp, port: 80 }
}

async fn start(instance: &str) -> Result<Network> {
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
    Network::start(config).await.context("run this as root")
}

/// How long a pod waits for its namespace and address.
async fn namespaces(network: &Network) -> Result<()> {
    network.fill_pool(8);
    let mut took = Vec::new();
    for number in 0..100 {
        // Pods don't come one at the heels of the other.
        tokio::time::sleep(Duration::from_millis(20)).await;
        let begin = Instant::now();
        let pod = network.attach(&format!("pod-{number}")).await?;
        took.push(begin.elapsed());
        drop(pod);
        network.release(&format!("pod-{number}")).await;
    }
    let (p50, p99) = percentiles(took);
    println!("a namespace and address from the pool: p50 {p50:.3} ms, p99 {p99:.3} ms (budget 2)");
    Ok(())
}

/// One end of a pair, and where the other listens.
struct Pair {
    name: &'static str,
    client: OwnedFd,
    server: SocketAddr,
}

/// Rounds, in which all take turns.
const ROUNDS: usize = 7;

/// Throughput and latency of one connection: by a bridge, between pods, and through a Service.
async fn between_pods(network: &Network) -> Result<()> {
    let bridge = Bridge::make()?;
    let (a, b) = (network.attach("client").await?, network.attach("server").await?);
    let in_pod = serve(&b.netns, b.address)?;
    let service = SocketAddr::from((Ipv4Addr::from(FIRST), 80));
    let backend = Backend::Endpoints { endpoints: vec![in_pod], affinity: None, clients: None };
    network.replace_services([(frontend(0), backend)].into()).await?;
    let pairs = [
        Pair {
            name: "a bridge with veth links",
            client: bridge.client.try_clone()?,
            server: serve(&bridge.server, Bridge::SERVER)?,
        },
        Pair { name: "pod to pod", client: a.netns.try_clone()?, server: in_pod },
        Pair { name: "pod to pod through a Service", client: a.netns, server: service },
    ];
    let mut figures: Vec<(Vec<f64>, Vec<f64>)> = vec![Default::default(); pairs.len()];
    for _ in 0..ROUNDS {
        for (pair, (throughput, latency)) in pairs.iter().zip(&mut figures) {
            throughput.push(inside(&pair.client, || stream(pair.server))?);
            latency.push(inside(&pair.client, || ping(pair.server))?);
        }
    }
    for (pair, (throughput, latency)) in pairs.iter().zip(figures) {
        println!(
            "{}: {:.2} Gbit/s, a byte there and back {:.1} µs (medians of {ROUNDS})",
            pair.name,
            median(throughput),
            median(latency)
        );
    }
    network.release("client").await;
    network.release("server").await;
    Ok(())
}

fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}

/// Runs something in a network namespace.
fn inside<T: Send>(netns: &OwnedFd, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let entered = scope.spawn(|| {
            setns(netns, CloneFlags::CLONE_NEWNET)?;
            work()
        });
        entered.join().map_err(|_| anyhow::anyhow!("a thread panicked"))?
    })
}

/// Sends back what comes byte by byte, and swallows what comes in large pieces.
fn serve(netns: &OwnedFd, address: Ipv4Addr) -> Result<SocketAddr> {
    let listener = inside(netns, || Ok(TcpListener::bind((address, 0))?))?;
    let at = listener.local_addr()?;
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || -> std::io::Result<()> {
                let (mut stream, mut buffer) = (stream, vec![0; 256 << 10]);
                stream.set_nodelay(true)?;
                loop {
                    match stream.read(&mut buffer)? {
                        0 => return Ok(()),
                        1 => stream.write_all(&buffer[..1])?,
                        _ => {}
                    }
                }
            });
        }
    });
    Ok(at)
}

/// Gbit per second of one connection.
fn stream(to: SocketAddr) -> Result<f64> {
    const SPAN: Duration = Duration::from_secs(1);
    let (mut stream, piece) = (TcpStream::connect_timeout(&to, Duration::from_secs(5))?, vec![0; 128 << 10]);
    let (begin, mut sent) = (Instant::now(), 0.0);
    while begin.elapsed() < SPAN {
        stream.write_all(&piece)?;
        sent += 8.0 * f64::from(128 << 10);
    }
    Ok(sent / begin.elapsed().as_secs_f64() / 1e9)
}

/// Microseconds for a byte there and back.
fn ping(to: SocketAddr) -> Result<f64> {
    const TIMES: u32 = 5_000;
    let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(5))?;
    stream.set_nodelay(true)?;
    let begin = Instant::now();
    for _ in 0..TIMES {
        stream.write_all(b"x")?;
        stream.read_exact(&mut [0])?;
    }
    Ok(begin.elapsed().as_secs_f64() * 1e6 / f64::from(TIMES))
}

/// What Carob's network is measured by: two namespaces on a bridge, in a namespace of their own without any rules.
struct Bridge {
    client: OwnedFd,
    server: OwnedFd,
    names: Vec<String>,
}

impl Bridge {
    const SERVER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 12);

    fn make() -> Result<Self> {
        let name = |part: &str| format!("carob-bench-{}-{part}", std::process::id());
        let [middle, client, server] = ["bridge", "client", "server"].map(name);
        let bridge = Self::inside_of(&[&middle, &client, &server])?;
        ip(&["-n", &middle, "link", "add", "b0", "type", "bridge"])?;
        ip(&["-n", &middle, "link", "set", "b0", "up"])?;
        for (pod, address) in [(&client, "192.0.2.11/24"), (&server, "192.0.2.12/24")] {
            let port = if *pod == client { "v1" } else { "v2" };
            ip(&["-n", &middle, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", pod])?;
            ip(&["-n", &middle, "link", "set", port, "master", "b0", "up"])?;
            ip(&["-n", pod, "address", "add", address, "dev", "eth0"])?;
            ip(&["-n", pod, "link", "set", "eth0", "up"])?;
        }
        Ok(bridge)
    }

    fn inside_of(names: &[&str; 3]) -> Result<Self> {
        for name in names {
            ip(&["netns", "add", name])?;
        }
        let open = |name: &str| std::fs::File::open(format!("/run/netns/{name}")).map(OwnedFd::from);
        let names_owned = names.iter().map(ToString::to_string).collect();
        Ok(Self { client: open(names[1])?, server: open(names[2])?, names: names_owned })
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        for name in &self.names {
            if let Err(error) = ip(&["netns", "delete", name]) {
                eprintln!("{error:#}");
            }
        }
    }
}

fn ip(arguments: &[&str]) -> Result<()> {
    let status = Command::new("ip").args(arguments).status().context("ip of iproute2")?;
    anyhow::ensure!(status.success(), "ip {} failed", arguments.join(" "));
    Ok(())
}

async fn services(network: &Network) -> Result<()> {
    let listener = TcpListener::bind((network.gateway_address(), 0))?;
    let SocketAddr::V4(here) = listener.local_addr()? else { anyhow::bail!("an address of IPv6") };
    std::thread::spawn(move || listener.incoming().for_each(drop));
    let backend = |endpoints: Vec<SocketAddr>| Backend::Endpoints { endpoints, affinity: None, clients: None };
    let all = |count: u32| -> HashMap<_, _> {
        (0..count).map(|number| (frontend(number), backend(vec![here.into()]))).collect()
    };
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
        let endpoints = if number % 2 == 0 { vec![here.into(), other.into()] } else { vec![here.into()] };
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
