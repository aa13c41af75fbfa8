//! A client that shows everything: one connection, requests as they are on the wire.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

/// What was answered.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Answer {
    pub fn header(&self, name: &str) -> &str {
        let found = self.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
        found.map_or("", |(_, value)| value.as_str())
    }
}

/// An open connection.
pub struct Client<S>(pub BufReader<S>);

pub fn connect(address: &str, port: u16) -> Option<Client<TcpStream>> {
    let stream = TcpStream::connect_timeout(&format!("{address}:{port}").parse().ok()?, Duration::from_secs(5)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(30))).ok()?;
    Some(Client(BufReader::new(stream)))
}

impl<S: Read + Write> Client<S> {
    /// Sends a request as it is, and reads the answer.
    pub fn send(&mut self, request: &str) -> Option<Answer> {
        self.0.get_mut().write_all(request.as_bytes()).ok()?;
        let mut line = String::new();
        self.0.read_line(&mut line).ok()?;
        let status = line.split(' ').nth(1)?.parse().ok()?;
        let mut headers = Vec::new();
        loop {
            let mut line = String::new();
            self.0.read_line(&mut line).ok()?;
            let Some((name, value)) = line.trim_end().split_once(':') else { break };
            headers.push((name.to_owned(), value.trim().to_owned()));
        }
        let mut answer = Answer { status, headers, body: String::new() };
        let length = answer.header("content-length").parse().unwrap_or(0);
        let mut body = vec![0; length];
        self.0.read_exact(&mut body).ok()?;
        answer.body = String::from_utf8_lossy(&body).into_owned();
        Some(answer)
    }

    /// A GET with these further headers (`a: b\r\n`).
    pub fn get(&mut self, host: &str, path: &str, headers: &str) -> Option<Answer> {
        self.send(&format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n{headers}\r\n"))
    }
}

/// One GET on a connection of its own.
pub fn get(address: &str, port: u16, host: &str, path: &str) -> Option<Answer> {
    connect(address, port)?.get(host, path, "")
}

/// A GET over TLS: the certificate (DER) that the server has for this name, and the answer's status and text.
pub fn get_secure(address: &str, port: u16, host: &str, path: &str) -> Option<(Vec<u8>, u16, String)> {
    // Which certificate it is, is looked at afterwards.
    let output = Command::new("curl")
        .args(["--silent", "--insecure", "--max-time", "30", "--resolve", &format!("{host}:{port}:{address}")])
        .args(["--write-out", "\n%{http_code}\n%{certs}", &format!("https://{host}:{port}{path}")])
        .output()
        .expect("curl");
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    let (answer, certificate) = shown.split_once("-----BEGIN CERTIFICATE-----")?;
    let (certificate, _) = certificate.split_once("-----END CERTIFICATE-----")?;
    let certificate = BASE64_STANDARD.decode(certificate.split_whitespace().collect::<String>()).ok()?;
    let status = answer.lines().rev().find_map(|line| line.parse().ok())?;
    Some((certificate, status, answer.to_owned()))
}
