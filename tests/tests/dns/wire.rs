//! Just enough of DNS' wire format (RFC 1035) to ask, and to stand in for the resolver of a machine.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::{Arc, Mutex};
use std::time::Duration;

pub(crate) const A: u16 = 1;
pub(crate) const SOA: u16 = 6;
pub(crate) const PTR: u16 = 12;
pub(crate) const AAAA: u16 = 28;
pub(crate) const SRV: u16 = 33;
pub(crate) const NXDOMAIN: u8 = 3;

fn put_name(bytes: &mut Vec<u8>, name: &str) {
    for label in name.split('.').filter(|label| !label.is_empty()) {
        bytes.push(u8::try_from(label.len()).expect("a label"));
        bytes.extend(label.bytes());
    }
    bytes.push(0);
}

/// The name at a place, and where it ends.
fn name_at(bytes: &[u8], mut at: usize) -> (String, usize) {
    let (mut name, mut end) = (String::new(), None);
    loop {
        let length = usize::from(bytes[at]);
        if length == 0 {
            return (name, end.unwrap_or(at + 1));
        }
        if length >= 0xc0 {
            end = end.or(Some(at + 2));
            at = (length & 0x3f) << 8 | usize::from(bytes[at + 1]);
            continue;
        }
        name.push_str(std::str::from_utf8(&bytes[at + 1..=at + length]).expect("ASCII"));
        name.push('.');
        at += 1 + length;
    }
}

fn number(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn question(name: &str, kind: u16) -> Vec<u8> {
    let mut bytes = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    put_name(&mut bytes, name);
    bytes.extend([kind.to_be_bytes(), 1_u16.to_be_bytes()].concat());
    bytes
}

/// What a server said.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Said {
    pub code: u8,
    pub truncated: bool,
    pub authoritative: bool,
    /// Answers: type and data, as text; sorted.
    pub answers: Vec<(u16, String)>,
    /// Types in the authority section.
    pub authorities: Vec<u16>,
    /// The times to live of the answers.
    pub times: Vec<u32>,
}

impl Said {
    pub(crate) fn data(&self) -> Vec<&str> {
        self.answers.iter().map(|(_, data)| data.as_str()).collect()
    }
}

fn read(bytes: &[u8]) -> Said {
    let (_, mut at) = name_at(bytes, 12);
    at += 4;
    let (mut answers, mut authorities, mut times) = (Vec::new(), Vec::new(), Vec::new());
    let counts = [number(bytes, 6), number(bytes, 8)];
    for (section, count) in counts.into_iter().enumerate() {
        for _ in 0..count {
            let (_, end) = name_at(bytes, at);
            let (kind, length, data) = (number(bytes, end), usize::from(number(bytes, end + 8)), end + 10);
            at = data + length;
            if section == 1 {
                authorities.push(kind);
                continue;
            }
            times.push(u32::from(number(bytes, end + 4)) << 16 | u32::from(number(bytes, end + 6)));
            let text = match kind {
                A => Ipv4Addr::new(bytes[data], bytes[data + 1], bytes[data + 2], bytes[data + 3]).to_string(),
                AAAA => Ipv6Addr::from(<[u8; 16]>::try_from(&bytes[data..at]).expect("16 bytes")).to_string(),
                SRV => format!("{} {}", number(bytes, data + 4), name_at(bytes, data + 6).0),
                _ => name_at(bytes, data).0,
            };
            answers.push((kind, text));
        }
    }
    answers.sort();
    Said {
        code: bytes[3] & 15,
        truncated: bytes[2] & 2 != 0,
        authoritative: bytes[2] & 4 != 0,
        answers,
        authorities,
        times,
    }
}

/// Asks by datagram, as this machine; none if nobody answers.
pub(crate) fn ask(server: SocketAddr, name: &str, kind: u16) -> Option<Said> {
    let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
    socket.set_read_timeout(Some(Duration::from_secs(5))).expect("a time");
    socket.connect(server).expect("a way");
    socket.send(&question(name, kind)).ok()?;
    let mut answer = [0; 4096];
    let length = socket.recv(&mut answer).ok()?;
    Some(read(&answer[..length]))
}

/// Asks over a connection.
pub(crate) fn ask_over_tcp(server: SocketAddr, name: &str, kind: u16) -> Option<Said> {
    let mut stream = TcpStream::connect(server).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    stream.write_all(&framed(&question(name, kind))).ok()?;
    let mut length = [0; 2];
    stream.read_exact(&mut length).ok()?;
    let mut answer = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut answer).ok()?;
    Some(read(&answer))
}

fn framed(message: &[u8]) -> Vec<u8> {
    [&u16::try_from(message.len()).expect("a message").to_be_bytes()[..], message].concat()
}

/// A resolver on loopback, which counts what it is asked. `one.example.test` has one address, `many.example.test` sixty,
/// `silent.example.test` gets no answer, and nothing else exists.
pub(crate) struct Resolver {
    pub address: SocketAddr,
    asked: Arc<Mutex<BTreeMap<String, usize>>>,
}

impl Resolver {
    pub(crate) fn start() -> Self {
        let tcp = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = tcp.local_addr().expect("its address");
        let udp = UdpSocket::bind(address).expect("the same port");
        let asked = Arc::new(Mutex::new(BTreeMap::new()));
        let counts = Arc::clone(&asked);
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok((length, from)) = udp.recv_from(&mut bytes) {
                let name = name_at(&bytes[..length], 12).0;
                *counts.lock().expect("no panic").entry(name).or_insert(0) += 1;
                if let Some(answer) = reply(&bytes[..length], true) {
                    let _ = udp.send_to(&answer, from);
                }
            }
        });
        std::thread::spawn(move || {
            for mut stream in tcp.incoming().map_while(Result::ok) {
                let mut length = [0; 2];
                if stream.read_exact(&mut length).is_err() {
                    continue;
                }
                let mut bytes = vec![0; u16::from_be_bytes(length).into()];
                if stream.read_exact(&mut bytes).is_ok()
                    && let Some(answer) = reply(&bytes, false)
                {
                    let _ = stream.write_all(&framed(&answer));
                }
            }
        });
        Self { address, asked }
    }

    /// How often it was asked for a name.
    pub(crate) fn asked(&self, name: &str) -> usize {
        self.asked.lock().expect("no panic").get(name).copied().unwrap_or(0)
    }
}

fn reply(question: &[u8], datagram: bool) -> Option<Vec<u8>> {
    let (name, end) = name_at(question, 12);
    let addresses: u8 = match name.to_ascii_lowercase().as_str() {
        "silent.example.test." => return None,
        "one.example.test." => 1,
        "many.example.test." => 60,
        _ => 0,
    };
    let wanted = number(question, end) == A;
    let cut = datagram && addresses > 20;
    let count = if wanted && !cut { addresses } else { 0 };
    let mut bytes = question[..end + 4].to_vec();
    (bytes[2], bytes[3]) = (0x80 | u8::from(cut) << 1 | 1, if addresses == 0 { 0x80 | NXDOMAIN } else { 0x80 });
    bytes[4..12].copy_from_slice(&[0, 1, 0, count, 0, u8::from(count == 0 && !cut), 0, 0]);
    for last in 1..=count {
        bytes.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, last]);
    }
    if count == 0 && !cut {
        // Of the root, for a minute.
        bytes.extend([0, 0, 6, 0, 1, 0, 0, 0, 60, 0, 22, 0, 0]);
        bytes.extend([1_u32, 60, 60, 60, 60].iter().flat_map(|number| number.to_be_bytes()));
    }
    Some(bytes)
}
