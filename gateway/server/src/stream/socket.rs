//! Logs and watches as messages of a WebSocket, which is all that some clients (in browsers) can read as it comes.

use axum::body::{Body, BodyDataStream};
use axum::response::Response;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use carob_api::status::Status;
use futures::{SinkExt as _, StreamExt as _};
use http::header::{
    CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::{HeaderMap, HeaderValue, StatusCode};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Message, Role};
use tokio_util::sync::CancellationToken;

use crate::proxy::forward::wants_upgrade;

/// What a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    /// Bytes as they come, after an empty message that says that the stream is there.
    Bytes,
    /// The same in base64, as texts.
    Base64,
    /// A text per line.
    Lines,
    /// A message for all that was sent at once.
    Parts,
}

/// Protocols of logs; a client that names none gets the first one's framing.
const OF_LOGS: [(&str, Framing); 2] = [("binary.k8s.io", Framing::Bytes), ("base64.binary.k8s.io", Framing::Base64)];

/// A client's wish to have a stream as messages.
#[derive(Debug)]
pub(crate) struct Socket {
    upgrade: OnUpgrade,
    accept: HeaderValue,
    protocol: Option<HeaderValue>,
    framing: Framing,
}

impl Socket {
    /// The wish, where there is one, of somebody who wants a log.
    pub fn for_log(headers: &HeaderMap, upgrade: Option<OnUpgrade>) -> Result<Option<Self>, Status> {
        Self::wanted(headers, upgrade, |offered| {
            if offered.is_empty() {
                return Ok((None, Framing::Bytes));
            }
            let known = OF_LOGS.iter().find(|(name, _)| offered.contains(name));
            let known = known.ok_or_else(|| {
                let names = OF_LOGS.map(|(name, _)| name);
                Status::bad_request(format!(
                    "unable to upgrade: unable to negotiate protocol: client supports {offered:?}, server accepts {names:?}"
                ))
            })?;
            Ok((Some(known.0.to_owned()), known.1))
        })
    }

    /// The same of somebody who watches. Any protocol's name will do, as kube-apiserver has it.
    pub fn for_watch(headers: &HeaderMap, upgrade: Option<OnUpgrade>, lines: bool) -> Result<Option<Self>, Status> {
        let framing = if lines { Framing::Lines } else { Framing::Parts };
        Self::wanted(headers, upgrade, |offered| Ok((offered.first().map(|name| (*name).to_owned()), framing)))
    }

    fn wanted(
        headers: &HeaderMap,
        upgrade: Option<OnUpgrade>,
        agree: impl FnOnce(&[&str]) -> Result<(Option<String>, Framing), Status>,
    ) -> Result<Option<Self>, Status> {
        let websocket = headers.get(UPGRADE).is_some_and(|name| name.as_bytes().eq_ignore_ascii_case(b"websocket"));
        let Some(upgrade) = upgrade.filter(|_| websocket && wants_upgrade(headers)) else { return Ok(None) };
        let key = headers.get(SEC_WEBSOCKET_KEY);
        let key = key.filter(|_| headers.get(SEC_WEBSOCKET_VERSION).is_some_and(|version| version == "13"));
        let key =
            key.ok_or_else(|| Status::bad_request("unable to upgrade: WebSocket version 13 and a key are needed"))?;
        let (protocol, framing) = agree(&offered(headers))?;
        let header =
            |text: String| HeaderValue::from_str(&text).map_err(|error| Status::bad_request(error.to_string()));
        let accept = header(derive_accept_key(key.as_bytes()))?;
        Ok(Some(Self { upgrade, accept, protocol: protocol.map(header).transpose()?, framing }))
    }

    /// Sends the answer's body as messages, until it ends or the client is gone.
    pub fn send(self, answer: Response, stopping: CancellationToken) -> Response {
        if !answer.status().is_success() {
            return answer;
        }
        let Self { upgrade, accept, protocol, framing } = self;
        tokio::spawn(async move {
            match upgrade.await {
                Ok(upgraded) => relay(upgraded, answer.into_body(), framing, stopping).await,
                Err(error) => tracing::debug!(%error, "a stream ended before it began"),
            }
        });
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
        if let Some(protocol) = protocol {
            headers.insert(SEC_WEBSOCKET_PROTOCOL, protocol);
        }
        response
    }
}

/// The subprotocols that a client names, in its order.
pub(super) fn offered(headers: &HeaderMap) -> Vec<&str> {
    let values = headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim).collect()
}

async fn relay(upgraded: Upgraded, body: Body, framing: Framing, stopping: CancellationToken) {
    let socket = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, None).await;
    let (mut sink, mut received) = socket.split();
    // Clients have nothing to say; their end is heard of by reading.
    let gone = async { while let Some(Ok(_)) = received.next().await {} };
    let told = async {
        let mut messages = Messages { body: body.into_data_stream(), framing, rest: Vec::new() };
        if let Some(first) = framing.first() {
            sink.send(first).await?;
        }
        while let Some(batch) = messages.next().await {
            for message in batch {
                sink.feed(message).await?;
            }
            sink.flush().await?;
        }
        sink.send(Message::Close(None)).await
    };
    tokio::select! {
        () = stopping.cancelled() => {}
        () = gone => {}
        told = told => {
            if let Err(error) = told {
                tracing::debug!(%error, "a stream broke");
            }
        }
    }
}

impl Framing {
    fn first(self) -> Option<Message> {
        match self {
            Self::Bytes => Some(Message::Binary(Bytes::new())),
            Self::Base64 => Some(Message::text("")),
            Self::Lines | Self::Parts => None,
        }
    }
}

/// A body's messages.
struct Messages {
    body: BodyDataStream,
    framing: Framing,
    /// A line that hasn't ended yet.
    rest: Vec<u8>,
}

impl Messages {
    async fn next(&mut self) -> Option<Vec<Message>> {
        let bytes = self.body.next().await?.ok()?;
        Some(match self.framing {
            Framing::Bytes | Framing::Parts => vec![Message::Binary(bytes)],
            Framing::Base64 => vec![Message::text(BASE64_STANDARD.encode(&bytes))],
            Framing::Lines => self.lines(&bytes),
        })
    }

    fn lines(&mut self, bytes: &[u8]) -> Vec<Message> {
        let mut messages = Vec::new();
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.rest.extend_from_slice(part);
            if part.ends_with(b"\n") {
                messages.push(Message::text(String::from_utf8_lossy(&std::mem::take(&mut self.rest)).into_owned()));
            }
        }
        messages
    }
}
