//! The L7 proxy beside nginx: requests per second of processor time, which is what one core does.
//!
//! `cargo run --release -p carob-bench --bin edge`, on a quiet machine. Both pass the same requests to the same endpoint, with
//! one thread and connections that are kept open on both sides; they take turns. The budget of issue 5: as many as nginx.
//! Endpoint and clients share the machine with them, so what counts is the processor time that the proxy itself took.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Connections of clients.
const CLIENTS: usize = 64;
const ROUNDS: usize = 5;
/// How long a proxy is measured in each round.
const SPAN: Duration = Duration::from_secs(3);
/// The bodies of answers, in bytes.
const SIZES: [usize; 2] = [128, 16 << 10];

fn main() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let endpoint = endpoint()?;
    let carob = runtime.block_on(carob_edge::Fixed::start(([127, 0, 0, 1], 0).into(), vec![endpoint], 1))?;
    let folder = tempfile::tempdir()?;
    let nginx = Nginx::start(folder.path(), endpoint).inspect_err(|error| eprintln!("no nginx: {error:#}")).ok();
    let own = std::process::id();
    for size in SIZES {
        let mut figures: [Vec<Figure>; 2] = Default::default();
        for _ in 0..ROUNDS {
            figures[0].push(measure(&runtime, carob.address(), size, &|| threads_time(own, "edge-"))?);
            if let Some(nginx) = &nginx {
                figures[1].push(measure(&runtime, nginx.address, size, &|| nginx.time())?);
            }
        }
        println!("answers of {size} bytes, {CLIENTS} connections:");
        let carob_rate = median(&figures[0]);
        for (name, figures) in [("carob", &figures[0]), ("nginx", &figures[1])] {
            if figures.is_empty() {
                continue;
            }
            let rate = median(figures);
            let wall = figures.iter().map(|figure| figure.per_second).sum::<f64>() / to_f64(figures.len());
            println!("  {name}: {rate:>8.0} requests per second of processor time, {wall:>8.0}/s on this machine");
            if name == "nginx" {
                println!("  carob does {:.2} times what nginx does", carob_rate / rate);
            }
        }
    }
    Ok(())
}

/// One measurement.
struct Figure {
    per_processor_second: f64,
    per_second: f64,
}

fn median(figures: &[Figure]) -> f64 {
    let mut rates: Vec<f64> = figures.iter().map(|figure| figure.per_processor_second).collect();
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}

#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
fn to_f64(count: usize) -> f64 {
    count as f64
}

fn measure(
    runtime: &tokio::runtime::Runtime,
    address: SocketAddr,
    size: usize,
    used: &dyn Fn() -> Result<Duration>,
) -> Result<Figure> {
    let (stop, count) = (std::sync::Arc::new(AtomicBool::new(false)), std::sync::Arc::new(AtomicU64::new(0)));
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| runtime.spawn(client(address, size, std::sync::Arc::clone(&stop), std::sync::Arc::clone(&count))))
        .collect();
    // Connections are made, caches are warm.
    pause(SPAN / 6);
    let (begin, before, counted) = (Instant::now(), used()?, count.load(Ordering::Relaxed));
    pause(SPAN);
    let (time, wall) = (used()?.saturating_sub(before), begin.elapsed());
    let requests = to_f64(usize::try_from(count.load(Ordering::Relaxed) - counted)?);
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        runtime.block_on(client)??;
    }
    Ok(Figure { per_processor_second: requests / time.as_secs_f64(), per_second: requests / wall.as_secs_f64() })
}

#[expect(clippy::disallowed_methods, reason = "a span of time is what is waited for")]
fn pause(span: Duration) {
    std::thread::sleep(span);
}

/// Asks again and again on one connection.
async fn client(
    address: SocketAddr,
    size: usize,
    stop: std::sync::Arc<AtomicBool>,
    count: std::sync::Arc<AtomicU64>,
) -> Result<()> {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut stream = tokio::net::TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let request = format!(
        "GET /{size} HTTP/1.1\r\nHost: bench.test\r\nUser-Agent: bench\r\nAccept: */*\r\nAccept-Encoding: gzip\r\n\r\n"
    );
    let mut buffer = vec![0; 32 << 10];
    while !stop.load(Ordering::Relaxed) {
        stream.write_all(request.as_bytes()).await?;
        let (mut filled, mut whole) = (0, usize::MAX);
        while filled < whole {
            let read = stream.read(&mut buffer[filled..]).await?;
            if read == 0 {
                bail!("the proxy closed a connection");
            }
            filled += read;
            if whole == usize::MAX
                && let Some(head) = buffer[..filled].windows(4).position(|end| end == b"\r\n\r\n")
            {
                if !buffer.starts_with(b"HTTP/1.1 200") {
                    bail!("{}", String::from_utf8_lossy(&buffer[..head]));
                }
                whole = head + 4 + size;
            }
        }
        count.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

/// Answers `GET /SIZE` with so many bytes; a thread for each connection.
fn endpoint() -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || serve(stream));
        }
    });
    Ok(address)
}

fn serve(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let answers: Vec<(String, Vec<u8>)> = SIZES
        .iter()
        .map(|size| {
            let head = format!("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {size}\r\n\r\n");
            (format!("GET /{size} "), [head.into_bytes(), vec![b'x'; *size]].concat())
        })
        .collect();
    let (mut buffer, mut filled) = (vec![0; 4096], 0);
    loop {
        let read = stream.read(&mut buffer[filled..])?;
        if read == 0 {
            return Ok(());
        }
        filled += read;
        if buffer[..filled].ends_with(b"\r\n\r\n") {
            let answer = answers.iter().find(|(start, _)| buffer.starts_with(start.as_bytes()));
            let Some((_, answer)) = answer else { return Ok(()) };
            stream.write_all(answer)?;
            filled = 0;
        }
    }
}

/// An nginx with one worker, of its own.
struct Nginx {
    master: Child,
    address: SocketAddr,
}

impl Nginx {
    fn start(folder: &Path, endpoint: SocketAddr) -> Result<Self> {
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let here = folder.display();
        let text = format!(
            "daemon off; worker_processes 1; pid {here}/pid; error_log stderr error;
             events {{ worker_connections 4096; }}
             http {{
               access_log off;
               client_body_temp_path {here}/b; proxy_temp_path {here}/p; fastcgi_temp_path {here}/f;
               uwsgi_temp_path {here}/u; scgi_temp_path {here}/s;
               keepalive_requests 100000000;
               upstream bench {{ server {endpoint}; keepalive 256; keepalive_requests 100000000; }}
               server {{
                 listen {address};
                 location / {{
                   proxy_pass http://bench;
                   proxy_http_version 1.1;
                   proxy_set_header Connection \"\";
                   proxy_set_header Host $host;
                   proxy_set_header X-Forwarded-For $remote_addr;
                   proxy_set_header X-Forwarded-Host $host;
                   proxy_set_header X-Forwarded-Proto $scheme;
                   proxy_set_header X-Forwarded-Port $server_port;
                   proxy_set_header X-Real-IP $remote_addr;
                 }}
               }}
             }}"
        );
        let path = folder.join("nginx.conf");
        fs::write(&path, text)?;
        let mut command = Command::new("nginx");
        command.args(["-e", "stderr", "-p"]).arg(folder).arg("-c").arg(&path).stdin(Stdio::null());
        let master = command.spawn().context("nginx can't be started")?;
        let nginx = Self { master, address };
        for _ in 0..100 {
            if TcpStream::connect(address).is_ok() {
                return Ok(nginx);
            }
            pause(Duration::from_millis(50));
        }
        bail!("nginx doesn't listen")
    }

    /// What its worker has used.
    fn time(&self) -> Result<Duration> {
        let master = self.master.id();
        let children = fs::read_to_string(format!("/proc/{master}/task/{master}/children"))?;
        let mut sum = Duration::ZERO;
        for child in children.split_whitespace() {
            sum += threads_time(child.parse()?, "nginx")?;
        }
        Ok(sum)
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let pid = nix::unistd::Pid::from_raw(self.master.id().cast_signed());
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        let _ = self.master.wait();
    }
}

/// The processor time of a process' threads whose names begin so.
fn threads_time(process: u32, name: &str) -> Result<Duration> {
    let mut sum = Duration::ZERO;
    for task in fs::read_dir(format!("/proc/{process}/task"))? {
        let task = task?.path();
        if fs::read_to_string(task.join("comm"))?.starts_with(name) {
            let nanoseconds = fs::read_to_string(task.join("schedstat"))?;
            let ran: u64 = nanoseconds.split(' ').next().context("an empty schedstat")?.parse()?;
            sum += Duration::from_nanos(ran);
        }
    }
    Ok(sum)
}
