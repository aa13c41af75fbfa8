//! A small HTTP/1.1 server that says what it was asked, and a client for one GET.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use crate::lookup;
use crate::units::{parse_bytes, parse_duration};

/// A request's headers may take this much.
const MAX_HEAD: u64 = 64 << 10;
/// So much of a request's body is echoed.
const MAX_BODY: u64 = 1 << 20;

/// When `/healthz` answers 200.
#[derive(Clone, Copy)]
pub struct Health {
    pub ready_after: Duration,
    pub unhealthy_after: Option<Duration>,
}

struct Request {
    method: String,
    path: String,
    query: BTreeMap<String, String>,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

pub fn serve(port: u16, health: &Health) -> io::Result<()> {
    let listener = crate::everywhere(port, TcpListener::bind)?;
    println!("listening on {port}");
    let start = Instant::now();
    for stream in listener.incoming() {
        let stream = stream?;
        let health = *health;
        thread::spawn(move || connection(&stream, start, health));
    }
    Ok(())
}

fn connection(stream: &TcpStream, start: Instant, health: Health) -> io::Result<()> {
    let mut peer = stream.peer_addr()?;
    peer.set_ip(peer.ip().to_canonical());
    let mut reader = BufReader::new(stream);
    while let Some(request) = read_request(&mut reader)? {
        println!("{} {} {peer}", request.method, request.path);
        let close = header(&request.headers, "connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
        let (status, body) = answer(&request, &peer.to_string(), start, health);
        let mut out = format!(
            "HTTP/1.1 {status} {}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\n\r\n",
            if status < 400 { "OK" } else { "Error" },
            body.len()
        )
        .into_bytes();
        if request.method != "HEAD" {
            out.extend_from_slice(body.as_bytes());
        }
        (&mut &*stream).write_all(&out)?;
        if close {
            break;
        }
    }
    Ok(())
}

fn read_request(reader: &mut BufReader<&TcpStream>) -> io::Result<Option<Request>> {
    let mut head = reader.by_ref().take(MAX_HEAD);
    let mut line = String::new();
    if head.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace();
    let method = words.next().unwrap_or_default().to_owned();
    let target = words.next().unwrap_or("/").to_owned();
    let headers = read_headers(&mut head)?;
    let length = header(&headers, "content-length").and_then(|value| value.parse().ok()).unwrap_or(0_u64);
    let mut body = Vec::new();
    reader.by_ref().take(length.min(MAX_BODY)).read_to_end(&mut body)?;
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let query = query
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    Ok(Some(Request { method, path: path.to_owned(), query, headers, body }))
}

fn read_headers(reader: &mut impl BufRead) -> io::Result<Vec<(String, String)>> {
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let line = line.trim_end();
        if line.is_empty() {
            return Ok(headers);
        }
        if let Some((name, value)) = line.split_once(':') {
            headers.push((name.trim().to_owned(), value.trim().to_owned()));
        }
    }
}

fn header<'a>(headers: &'a [(String, String)], name: &str) -> Option<&'a str> {
    headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
}

fn answer(request: &Request, peer: &str, start: Instant, health: Health) -> (u16, String) {
    if let Some(Ok(delay)) = request.query.get("delay").map(|text| parse_duration(text)) {
        thread::sleep(delay);
    }
    let status = request.query.get("status").and_then(|text| text.parse().ok()).unwrap_or(200);
    if let Some(Ok(bytes)) = request.query.get("bytes").map(|text| parse_bytes(text)) {
        return (status, "x".repeat(usize::try_from(bytes).unwrap_or(0)));
    }
    let hostname = nix::unistd::gethostname().unwrap_or_default().to_string_lossy().into_owned();
    match request.path.as_str() {
        "/healthz" => {
            let age = start.elapsed();
            let well = age >= health.ready_after && health.unhealthy_after.is_none_or(|end| age < end);
            if well { (status, "ok\n".to_owned()) } else { (503, "not well\n".to_owned()) }
        }
        "/hostname" => (status, hostname + "\n"),
        "/env" => {
            let env: BTreeMap<_, _> = std::env::vars_os().collect();
            (
                status,
                env.iter().fold(String::new(), |text, (k, v)| text + &format!("{}={}\n", k.display(), v.display())),
            )
        }
        "/exit" => std::process::exit(request.query.get("code").and_then(|text| text.parse().ok()).unwrap_or(0)),
        _ => {
            let mut text =
                format!("hostname: {hostname}\npeer: {peer}\nrequest: {} {}\n", request.method, request.path);
            for (name, value) in &request.query {
                // Writing to a String cannot fail.
                let _ = writeln!(text, "query: {name}={value}");
            }
            for (name, value) in &request.headers {
                let _ = writeln!(text, "header: {name}: {value}");
            }
            if !request.body.is_empty() {
                let _ = writeln!(text, "body: {}", String::from_utf8_lossy(&request.body));
            }
            (status, text)
        }
    }
}

/// Fetches `http://host[:port]/path` and prints the body.
pub fn get(url: &str, timeout: Duration) -> io::Result<()> {
    let rest = url.strip_prefix("http://").ok_or_else(|| io::Error::other("only http:// URLs"))?;
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    // The colons of an IPv6 address are in brackets.
    let (host, port) = match authority.rsplit_once(':').filter(|(_, port)| !port.ends_with(']')) {
        Some((host, port)) => (host, port.parse().map_err(io::Error::other)?),
        None => (authority, 80),
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let address = *lookup::lookup(host)?.first().ok_or_else(|| io::Error::other("no address"))?;
    let stream = TcpStream::connect_timeout(&(address, port).into(), timeout)?;
    stream.set_read_timeout(Some(timeout))?;
    write!(&stream, "GET /{path} HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\n\r\n")?;
    let mut reader = BufReader::new(&stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let status: u16 = line.split_whitespace().nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
    let headers = read_headers(&mut reader)?;
    let length = header(&headers, "content-length").and_then(|value| value.parse().ok()).unwrap_or(u64::MAX);
    io::copy(&mut reader.take(length), &mut io::stdout())?;
    if (200..300).contains(&status) { Ok(()) } else { Err(io::Error::other(format!("status {status}"))) }
}
