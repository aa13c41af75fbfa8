//! Requests that kubectl wouldn't send, through `kubectl proxy`.

use std::io::{Read, Write};
use std::net::TcpStream;

use serde_json::Value;

use crate::Carob;
use crate::terminal::Running;

/// A running `kubectl proxy`.
pub struct Proxy {
    address: String,
    _process: Running,
}

/// What the API answered.
#[derive(Debug)]
pub struct Answer {
    /// HTTP's status code.
    pub status: u16,
    /// The headers as they came, one a line.
    pub headers: String,
    /// The body.
    pub body: String,
}

impl Proxy {
    /// Starts one on a port that the kernel chooses.
    pub fn start(carob: &Carob) -> Self {
        let process = Running::start(carob.kubectl_command().args(["proxy", "--port=0"]));
        process.expect("\n");
        let printed = process.output();
        let address = printed.trim().rsplit(' ').next().expect("an address").to_owned();
        Self { address, _process: process }
    }

    /// A connection, to speak on it.
    pub fn connect(&self) -> TcpStream {
        TcpStream::connect(&self.address).expect("the proxy answers")
    }

    /// Sends a request with these headers.
    pub fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let mut stream = self.connect();
        // 1.0, so that the answer comes whole and unchunked.
        let mut head = format!("{method} {path} HTTP/1.0\r\nhost: localhost\r\ncontent-length: {}\r\n", body.len());
        for (name, value) in headers {
            head += name;
            head += ": ";
            head += value;
            head += "\r\n";
        }
        head.push_str("\r\n");
        stream.write_all(head.as_bytes()).expect("the request is sent");
        // Who refuses a large body needn't read it.
        let _ = stream.write_all(body);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        let answer = String::from_utf8_lossy(&answer);
        let (headers, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no HTTP: {answer:?}"));
        let status = headers.split_whitespace().nth(1).and_then(|code| code.parse().ok()).expect("a status line");
        Answer { status, headers: headers.to_owned(), body: body.to_owned() }
    }

    /// POSTs JSON.
    pub fn post(&self, path: &str, body: &str) -> Answer {
        self.send("POST", path, &[("content-type", "application/json")], body.as_bytes())
    }
}

impl Answer {
    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    /// The texts of all Warning headers.
    pub fn warnings(&self) -> Vec<String> {
        self.headers
            .lines()
            .filter_map(|line| line.split_once(": "))
            .filter(|(name, _)| name.eq_ignore_ascii_case("warning"))
            .map(|(_, value)| {
                let text = value.strip_prefix("299 - \"").and_then(|text| text.strip_suffix('"'));
                text.unwrap_or_else(|| panic!("not a warning of RFC 7234: {value}")).replace("\\\"", "\"")
            })
            .collect()
    }
}
