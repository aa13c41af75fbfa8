//! A registry of a few lines that can misbehave in all the ways that matter.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use crate::archive::{Built, digest};

/// How one path misbehaves.
#[derive(Clone, Debug)]
pub enum Fault {
    /// The connection breaks after so many bytes of each answer, this many times.
    Cut { after: usize, times: usize },
    /// The body is another than it should be.
    Body(Vec<u8>),
    /// A status instead of an answer, this many times.
    Status(u16, usize),
    /// Nothing more comes after so many bytes, until the registry is told to go on.
    Stall(usize),
    /// The body never ends, and no length is given.
    Endless,
}

#[derive(Default)]
struct State {
    content: HashMap<String, (String, Vec<u8>)>,
    faults: HashMap<String, Fault>,
    /// Method-less log: path and Range header.
    requests: Vec<(String, Option<String>)>,
    login: Option<Login>,
    ranges: bool,
}

/// What a client has to show.
#[derive(Clone)]
pub enum Login {
    /// The value of the Authorization header.
    Basic(&'static str),
    /// A token that `/token` gives to who shows this Basic value, or posts this refresh token.
    Bearer { basic: &'static str, refresh: &'static str },
}

pub struct Registry {
    pub address: String,
    state: Arc<Mutex<State>>,
    go_on: Arc<Notify>,
    task: JoinHandle<()>,
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Registry {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let state = Arc::new(Mutex::new(State { ranges: true, ..State::default() }));
        let go_on = Arc::new(Notify::new());
        let (shared, notify, own) = (Arc::clone(&state), Arc::clone(&go_on), address.clone());
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (state, notify, own) = (Arc::clone(&shared), Arc::clone(&notify), own.clone());
                // A client that goes away ends its connection with an error.
                tokio::spawn(async move { _ = serve(stream, &state, &notify, &own).await });
            }
        });
        Self { address, state, go_on, task }
    }

    /// Serves an image as `repository:tag`.
    pub fn add(&self, repository: &str, tag: &str, built: &Built) {
        let manifest = ("application/vnd.oci.image.manifest.v1+json".to_owned(), built.manifest.clone());
        self.put(&format!("/v2/{repository}/manifests/{tag}"), manifest.clone());
        self.put(&format!("/v2/{repository}/manifests/{}", digest(&built.manifest)), manifest);
        for blob in &built.blobs {
            let path = format!("/v2/{repository}/blobs/{}", digest(blob));
            self.put(&path, ("application/octet-stream".to_owned(), blob.clone()));
        }
    }

    pub fn put(&self, path: &str, content: (String, Vec<u8>)) {
        self.state.lock().unwrap().content.insert(path.to_owned(), content);
    }

    pub fn fault(&self, path: &str, fault: Fault) {
        self.state.lock().unwrap().faults.insert(path.to_owned(), fault);
    }

    pub fn require(&self, login: Login) {
        self.state.lock().unwrap().login = Some(login);
    }

    pub fn without_ranges(&self) {
        self.state.lock().unwrap().ranges = false;
    }

    pub fn go_on(&self) {
        self.go_on.notify_waiters();
    }

    /// The Range headers of all requests whose path contains this.
    pub fn requests(&self, part: &str) -> Vec<Option<String>> {
        let state = self.state.lock().unwrap();
        state.requests.iter().filter(|(path, _)| path.contains(part)).map(|(_, range)| range.clone()).collect()
    }

    pub async fn requested(&self, part: &str) {
        while self.requests(part).is_empty() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    pub fn image(&self, rest: &str) -> String {
        format!("{}/{rest}", self.address)
    }

    pub fn blob_path(repository: &str, blob: &[u8]) -> String {
        format!("/v2/{repository}/blobs/{}", digest(blob))
    }
}

async fn serve(stream: TcpStream, state: &Mutex<State>, go_on: &Notify, own: &str) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await? == 0 {
            return Ok(());
        }
        let path = line.split_whitespace().nth(1).unwrap_or("/").to_owned();
        let mut headers = HashMap::new();
        loop {
            let mut line = String::new();
            stream.read_line(&mut line).await?;
            match line.trim_end().split_once(": ") {
                Some((name, value)) => _ = headers.insert(name.to_ascii_lowercase(), value.to_owned()),
                None => break,
            }
        }
        let length = headers.get("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
        let mut posted = vec![0; length];
        tokio::io::AsyncReadExt::read_exact(&mut stream, &mut posted).await?;
        let answer = answer(state, own, &path, &headers, &String::from_utf8_lossy(&posted));
        let head = format!(
            "HTTP/1.1 {} X\r\nContent-Type: {}\r\n{}{}\r\n",
            answer.status,
            answer.kind,
            if answer.endless { String::new() } else { format!("Content-Length: {}\r\n", answer.body.len()) },
            answer.header
        );
        stream.write_all(head.as_bytes()).await?;
        if answer.endless {
            loop {
                stream.write_all(&[b' '; 4096]).await?;
            }
        }
        let most = answer.cut.unwrap_or(answer.body.len()).min(answer.body.len());
        stream.write_all(&answer.body[..most]).await?;
        stream.flush().await?;
        if answer.stall {
            go_on.notified().await;
            stream.write_all(&answer.body[most..]).await?;
        } else if answer.cut.is_some() {
            return Ok(());
        }
        stream.flush().await?;
    }
}

#[derive(Default)]
struct Answer {
    status: u16,
    kind: String,
    header: String,
    body: Vec<u8>,
    cut: Option<usize>,
    stall: bool,
    endless: bool,
}

fn answer(state: &Mutex<State>, own: &str, path: &str, headers: &HashMap<String, String>, posted: &str) -> Answer {
    let mut state = state.lock().unwrap();
    let range = headers.get("range").cloned();
    state.requests.push((path.to_owned(), range.clone()));
    let shown = headers.get("authorization").map(String::as_str);
    let refused = |header: &str| Answer {
        status: 401,
        kind: "application/json".to_owned(),
        header: format!("WWW-Authenticate: {header}\r\n"),
        body: br#"{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}"#.to_vec(),
        ..Answer::default()
    };
    match state.login.clone() {
        Some(Login::Bearer { basic, refresh }) if path.starts_with("/token") => {
            let known = shown == Some(basic) || posted.contains(&format!("refresh_token={refresh}&"));
            let scoped = path.contains("scope=repository%3A") || posted.contains("scope=repository%3A");
            if !known || !scoped {
                return refused("Basic realm=\"token\"");
            }
            let body = br#"{"token":"let-me-in"}"#.to_vec();
            return Answer { status: 200, kind: "application/json".to_owned(), body, ..Answer::default() };
        }
        Some(Login::Bearer { .. }) if shown != Some("Bearer let-me-in") => {
            return refused(&format!("Bearer realm=\"http://{own}/token\",service=\"test\""));
        }
        Some(Login::Basic(value)) if shown != Some(value) => return refused("Basic realm=\"test\""),
        _ => {}
    }
    let Some((kind, mut body)) = state.content.get(path).cloned() else {
        let body = br#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#.to_vec();
        return Answer { status: 404, kind: "application/json".to_owned(), body, ..Answer::default() };
    };
    let mut answer = Answer { status: 200, kind, ..Answer::default() };
    match state.faults.get_mut(path) {
        Some(Fault::Cut { after, times }) if *times > 0 => {
            *times -= 1;
            answer.cut = Some(*after);
        }
        Some(Fault::Status(status, times)) if *times > 0 => {
            *times -= 1;
            answer.status = *status;
            body = b"{}".to_vec();
        }
        Some(Fault::Body(other)) => body.clone_from(other),
        Some(Fault::Stall(after)) => {
            answer.cut = Some(*after);
            answer.stall = true;
        }
        Some(Fault::Endless) => answer.endless = true,
        _ => {}
    }
    let from = range
        .filter(|_| state.ranges)
        .and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
    if let Some(from) = from {
        answer.status = 206;
        body.drain(..from.min(body.len()));
    }
    answer.body = body;
    answer
}
