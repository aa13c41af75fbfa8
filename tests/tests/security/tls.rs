//! Bytes on a TLS connection to the API exactly as a test wants them, through `openssl s_client`.

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use carob_tests::Carob;

/// Longer than any answer here takes.
const PATIENCE: Duration = Duration::from_secs(15);

/// Who the client says it is.
#[derive(Clone, Copy)]
pub enum As<'a> {
    /// Without a certificate.
    Nobody,
    /// With this certificate and key.
    Certificate(&'a Path, &'a Path),
}

/// An open connection.
pub struct Connection {
    child: Child,
    received: mpsc::Receiver<Vec<u8>>,
    all: Vec<u8>,
}

impl Connection {
    pub fn open(carob: &Carob, who: As<'_>) -> Self {
        let mut command = Command::new("openssl");
        command.args(["s_client", "-quiet", "-connect", &format!("127.0.0.1:{}", carob.port())]);
        if let As::Certificate(certificate, key) = who {
            command.arg("-cert").arg(certificate).arg("-key").arg(key);
        }
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("openssl (package openssl)");
        let mut stdout = child.stdout.take().expect("a pipe");
        let (sender, received) = mpsc::channel();
        std::thread::spawn(move || {
            let mut block = [0; 16384];
            while let Ok(count @ 1..) = stdout.read(&mut block) {
                if sender.send(block[..count].to_vec()).is_err() {
                    return;
                }
            }
        });
        Self { child, received, all: Vec::new() }
    }

    /// Sends these bytes; a server that has hung up needn't take them.
    pub fn send(&mut self, bytes: &[u8]) {
        let stdin = self.child.stdin.as_mut().expect("a pipe");
        let _ = stdin.write_all(bytes).and_then(|()| stdin.flush());
    }

    /// All that was received until there is this text in it; `None` when the server hung up first.
    pub fn until(&mut self, text: &str) -> Option<String> {
        loop {
            let seen = String::from_utf8_lossy(&self.all).into_owned();
            if seen.contains(text) {
                return Some(seen);
            }
            match self.received.recv_timeout(PATIENCE) {
                Ok(bytes) => self.all.extend(bytes),
                Err(mpsc::RecvTimeoutError::Disconnected) => return None,
                Err(mpsc::RecvTimeoutError::Timeout) => panic!("{text:?} was never received, but {seen}"),
            }
        }
    }

    /// All that comes until the server hangs up, or for as long as `quiet` brings nothing more.
    pub fn rest(&mut self, quiet: Duration) -> String {
        while let Ok(bytes) = self.received.recv_timeout(quiet) {
            self.all.extend(bytes);
        }
        String::from_utf8_lossy(&self.all).into_owned()
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends bytes and gives everything that comes until the server hangs up.
pub fn exchange(carob: &Carob, who: As<'_>, bytes: &[u8]) -> String {
    let mut connection = Connection::open(carob, who);
    connection.send(bytes);
    connection.rest(PATIENCE)
}

/// One request with these header lines (each with its line's end) and this body: the answer's status (0 for no HTTP)
/// and everything of it.
pub fn request(carob: &Carob, who: As<'_>, method: &str, path: &str, headers: &str, body: &[u8]) -> (u16, String) {
    let length = body.len();
    let mut bytes = format!(
        "{method} {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\ncontent-length: {length}\r\n{headers}\r\n"
    )
    .into_bytes();
    bytes.extend(body);
    let answer = exchange(carob, who, &bytes);
    (status(&answer), answer)
}

/// The code of an answer; 0 for what is no HTTP.
pub fn status(answer: &str) -> u16 {
    let code = answer.strip_prefix("HTTP/1.1 ").or_else(|| answer.strip_prefix("HTTP/1.0 "));
    code.and_then(|rest| rest.get(..3)).and_then(|code| code.parse().ok()).unwrap_or(0)
}
