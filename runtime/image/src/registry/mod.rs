//! The pull half of the OCI distribution protocol, over mirrors, with retries and resumption.
//!
//! Written on reqwest directly: what comes from a registry is untrusted, so every document is read with a bound, and
//! credentials belong to one pull, never to a client that another tenant's pull shares.

mod auth;
mod endpoint;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use reqwest::header::{ACCEPT, CONTENT_TYPE, RANGE};
use reqwest::{Method, Response, StatusCode};
use tokio::sync::mpsc;

use crate::digest::Digest;
use crate::document::{ACCEPTED, Part};
use crate::{Credential, Error, Reference, RegistryConfig};
use auth::Authorization;
use endpoint::Endpoint;

/// Attempts in a row that bring nothing.
const ATTEMPTS: u32 = 4;
/// Attempts altogether, also if each brings a few bytes.
const MAX_ATTEMPTS: u32 = 40;
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// An error text of a registry that is worth showing.
const MAX_ERROR_BODY: u64 = 8 << 10;

/// Connections to registries, shared by all pulls.
#[derive(Debug)]
pub(crate) struct Registries {
    config: Arc<RegistryConfig>,
    clients: Mutex<HashMap<String, reqwest::Client>>,
}

/// One image's conversation with its registry and mirrors.
#[derive(Debug)]
pub(crate) struct Session {
    repository: String,
    credential: Option<Credential>,
    endpoints: Vec<Connection>,
    document_bytes: u64,
}

#[derive(Debug)]
struct Connection {
    endpoint: Endpoint,
    http: reqwest::Client,
    authorization: Mutex<Option<Authorization>>,
}

/// A manifest or index as the registry gave it.
pub(crate) struct Fetched {
    pub digest: Digest,
    pub bytes: Vec<u8>,
    pub content_type: Option<String>,
}

impl Registries {
    pub fn new(config: Arc<RegistryConfig>) -> Self {
        Self { config, clients: Mutex::default() }
    }

    /// Prepares to talk about one repository. Nothing is sent yet.
    pub fn session(&self, reference: &Reference, credential: Option<Credential>) -> Result<Session, Error> {
        let endpoints = endpoint::of(reference, &self.config)
            .into_iter()
            .map(|endpoint| {
                let http = self.client(&endpoint)?;
                Ok(Connection { endpoint, http, authorization: Mutex::default() })
            })
            .collect::<Result<_, Error>>()?;
        Ok(Session {
            repository: reference.repository.clone(),
            credential,
            endpoints,
            document_bytes: self.config.limits.document_bytes,
        })
    }

    fn client(&self, endpoint: &Endpoint) -> Result<reqwest::Client, Error> {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        let key = endpoint.client_key();
        if let Some(client) = clients.get(&key) {
            return Ok(client.clone());
        }
        let client = endpoint.client()?;
        clients.insert(key, client.clone());
        Ok(client)
    }
}

impl Session {
    /// Fetches a manifest by tag or digest, from the first mirror that has it. `size` is what a descriptor promised.
    pub async fn manifest(&self, tag_or_digest: &str, size: Option<u64>) -> Result<Fetched, Error> {
        let path = format!("{}/manifests/{tag_or_digest}", self.repository);
        let (bytes, content_type) = self.document(&path, tag_or_digest, size).await?;
        let digest = Digest::of(&bytes);
        if let Ok(expected) = Digest::parse(tag_or_digest)
            && expected != digest
        {
            let problem = format!("the registry sent {digest} instead");
            return Err(Error::Corrupt { what: tag_or_digest.to_owned(), problem });
        }
        Ok(Fetched { digest, bytes, content_type })
    }

    /// Fetches a small blob, an image configuration.
    pub async fn small_blob(&self, part: &Part) -> Result<Vec<u8>, Error> {
        let what = part.digest.as_str();
        let path = format!("{}/blobs/{what}", self.repository);
        let (bytes, _) = self.document(&path, what, Some(part.size)).await?;
        if Digest::of(&bytes) != part.digest {
            let problem = format!("its digest is {} instead", Digest::of(&bytes));
            return Err(Error::Corrupt { what: what.to_owned(), problem });
        }
        Ok(bytes)
    }

    async fn document(&self, path: &str, what: &str, size: Option<u64>) -> Result<(Vec<u8>, Option<String>), Error> {
        if let Some(size) = size.filter(|size| *size > self.document_bytes) {
            let problem = format!("{size} bytes, and {} are allowed", self.document_bytes);
            return Err(Error::TooLarge { what: what.to_owned(), problem });
        }
        let mut last = None;
        for (number, connection) in self.endpoints.iter().enumerate() {
            let mut pauses = Pauses::default();
            // Only the registry itself is waited for: a mirror that is down is passed by.
            let patient = number + 1 == self.endpoints.len();
            loop {
                let outcome = async {
                    let response = self.get(connection, path, what, 0).await?;
                    let header = response.headers().get(CONTENT_TYPE);
                    let kind = header.and_then(|kind| kind.to_str().ok());
                    let kind = kind.map(|kind| kind.split(';').next().unwrap_or_default().trim().to_owned());
                    let bytes = bounded(response, what, self.document_bytes, &connection.endpoint).await?;
                    match size.filter(|size| *size != bytes.len() as u64) {
                        Some(size) => {
                            let problem = format!("it has {} bytes instead of {size}", bytes.len());
                            Err(Error::Corrupt { what: what.to_owned(), problem })
                        }
                        None => Ok((bytes, kind)),
                    }
                };
                match outcome.await {
                    Ok(found) => return Ok(found),
                    Err(error) if patient && is_passing(&error) && pauses.wait(false).await => {}
                    Err(error) => {
                        tracing::debug!(host = connection.endpoint.host(), error = error.describe(), "no document");
                        last = Some(error);
                        break;
                    }
                }
            }
        }
        Err(last.unwrap_or(Error::Cancelled))
    }

    /// Streams a blob into `sink`, taking up again where a connection broke. Ends when all has arrived, when nothing
    /// helps any more, or when nobody reads the sink.
    pub async fn blob(&self, part: &Part, sink: &mpsc::Sender<Result<Bytes, Error>>, arrived: impl Fn(u64)) {
        let mut offset = 0;
        let mut last = None;
        for (number, connection) in self.endpoints.iter().enumerate() {
            let mut pauses = Pauses::default();
            loop {
                let before = offset;
                match self.part(connection, part, &mut offset, sink, &arrived).await {
                    Ok(()) => return,
                    Err(error)
                        if (offset > 0 || number + 1 == self.endpoints.len())
                            && is_passing(&error)
                            && pauses.wait(offset > before).await => {}
                    Err(error) => {
                        tracing::debug!(host = connection.endpoint.host(), error = error.describe(), "no blob");
                        last = Some(error);
                        break;
                    }
                }
            }
        }
        // A failure to send means that the reader has ended with an error of its own.
        let _ = sink.send(Err(last.unwrap_or(Error::Cancelled))).await;
    }

    async fn part(
        &self,
        connection: &Connection,
        part: &Part,
        offset: &mut u64,
        sink: &mpsc::Sender<Result<Bytes, Error>>,
        arrived: &impl Fn(u64),
    ) -> Result<(), Error> {
        let what = part.digest.as_str();
        let path = format!("{}/blobs/{what}", self.repository);
        let response = self.get(connection, &path, what, *offset).await?;
        // A registry that doesn't know ranges begins anew; what we have is skipped.
        let mut skip = if response.status() == StatusCode::PARTIAL_CONTENT { 0 } else { *offset };
        let mut stream = chunks(response);
        while let Some(chunk) = stream.next().await {
            let mut chunk = chunk.map_err(|error| connection.endpoint.failure(&error))?;
            if skip > 0 {
                let cut = usize::try_from(skip).map_or(chunk.len(), |skip| skip.min(chunk.len()));
                skip -= cut as u64;
                chunk = chunk.slice(cut..);
            }
            *offset += chunk.len() as u64;
            if *offset > part.size {
                let problem = format!("more than its {} bytes arrived", part.size);
                return Err(Error::TooLarge { what: what.to_owned(), problem });
            }
            if sink.send(Ok(chunk)).await.is_err() {
                return Ok(());
            }
            arrived(*offset);
        }
        if *offset < part.size {
            let problem = format!("the connection ended after {offset} of {} bytes", part.size);
            return Err(Error::Unavailable { host: connection.endpoint.host().to_owned(), problem });
        }
        Ok(())
    }

    /// One GET, authorised: a first refusal says how to ask for leave.
    async fn get(&self, connection: &Connection, path: &str, what: &str, offset: u64) -> Result<Response, Error> {
        let endpoint = &connection.endpoint;
        let send = |authorization: Option<Authorization>| {
            let mut request = connection.http.request(Method::GET, endpoint.url(path));
            for kind in ACCEPTED.iter().filter(|_| path.contains("/manifests/")) {
                request = request.header(ACCEPT, *kind);
            }
            if offset > 0 {
                request = request.header(RANGE, format!("bytes={offset}-"));
            }
            if let Some(authorization) = authorization {
                request = authorization.apply(request);
            }
            async { request.send().await.map_err(|error| endpoint.failure(&error)) }
        };
        let known = connection.authorization.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut response = send(known).await?;
        if response.status() == StatusCode::UNAUTHORIZED {
            let credential = self.credential.as_ref().filter(|_| endpoint.takes_credentials());
            let leave = auth::ask(&connection.http, endpoint, response.headers(), &self.repository, credential).await?;
            if let Some(leave) = leave {
                *connection.authorization.lock().unwrap_or_else(PoisonError::into_inner) = Some(leave.clone());
                response = send(Some(leave)).await?;
            }
        }
        let status = response.status();
        if status == StatusCode::OK || (status == StatusCode::PARTIAL_CONTENT && offset > 0) {
            return Ok(response);
        }
        let text = bounded(response, what, MAX_ERROR_BODY, endpoint).await.unwrap_or_default();
        Err(self.refusal(endpoint, status, what, &registry_message(&text)))
    }

    fn refusal(&self, endpoint: &Endpoint, status: StatusCode, what: &str, message: &str) -> Error {
        let host = endpoint.host().to_owned();
        let problem = if message.is_empty() { status.to_string() } else { format!("{status}: {message}") };
        match status {
            StatusCode::NOT_FOUND => Error::NotFound { what: format!("{host}/{}", self.name_of(what)) },
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                Error::Unauthorized { repository: format!("{host}/{}", self.repository), problem }
            }
            StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT => Error::Unavailable { host, problem },
            status if status.is_server_error() => Error::Unavailable { host, problem },
            _ => Error::Protocol { host, problem },
        }
    }

    fn name_of(&self, what: &str) -> String {
        let separator = if what.contains(':') { '@' } else { ':' };
        format!("{}{separator}{what}", self.repository)
    }
}

/// Waits between attempts, longer each time.
#[derive(Default)]
struct Pauses {
    fruitless: u32,
    all: u32,
}

impl Pauses {
    /// False when there have been enough attempts.
    async fn wait(&mut self, progress: bool) -> bool {
        self.fruitless = if progress { 1 } else { self.fruitless + 1 };
        self.all += 1;
        if self.fruitless >= ATTEMPTS || self.all >= MAX_ATTEMPTS {
            return false;
        }
        tokio::time::sleep((FIRST_PAUSE * 2_u32.pow(self.fruitless - 1)).min(LONGEST_PAUSE)).await;
        true
    }
}

fn is_passing(error: &Error) -> bool {
    matches!(error, Error::Unavailable { .. })
}

fn chunks(response: Response) -> impl Stream<Item = reqwest::Result<Bytes>> + Unpin {
    Box::pin(response.bytes_stream())
}

async fn bounded(response: Response, what: &str, most: u64, endpoint: &Endpoint) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    let mut stream = chunks(response);
    while let Some(chunk) = stream.next().await {
        bytes.extend_from_slice(&chunk.map_err(|error| endpoint.failure(&error))?);
        if bytes.len() as u64 > most {
            let problem = format!("more than {most} bytes arrived");
            return Err(Error::TooLarge { what: what.to_owned(), problem });
        }
    }
    Ok(bytes)
}

/// The messages in a registry's error document, made fit for one line.
fn registry_message(body: &[u8]) -> String {
    let document: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    let messages = document["errors"].as_array().into_iter().flatten().filter_map(|error| error["message"].as_str());
    let text = messages.collect::<Vec<_>>().join(", ");
    text.chars().filter(|letter| !letter.is_control()).take(200).collect()
}
