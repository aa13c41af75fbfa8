//! A WebSocket's bytes on their way, the worker's messages one write each.
//!
//! A write becomes TLS records of its own. Clients that wait for their socket to become readable (the Python client does)
//! don't see a message that came in the same record as the one before: TLS has read it already, and the socket is silent.

use std::io;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// What of a long message is under way.
const BLOCK: usize = 32 << 10;

/// Connects both until both have ended, or one has failed.
pub(super) async fn relay<C, W>(client: C, worker: W) -> io::Result<()>
where
    C: AsyncRead + AsyncWrite,
    W: AsyncRead + AsyncWrite,
{
    let (mut from_client, mut to_client) = tokio::io::split(client);
    let (mut from_worker, mut to_worker) = tokio::io::split(worker);
    let there = async {
        tokio::io::copy(&mut from_client, &mut to_worker).await?;
        to_worker.shutdown().await
    };
    let back = async {
        one_by_one(&mut from_worker, &mut to_client).await?;
        to_client.shutdown().await
    };
    tokio::try_join!(there, back).map(drop)
}

async fn one_by_one(from: &mut (impl AsyncRead + Unpin), to: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
    let mut buffer = BytesMut::with_capacity(BLOCK);
    let mut messages = Messages::default();
    while from.read_buf(&mut buffer).await? > 0 {
        while let Some(length) = messages.next(&buffer) {
            to.write_all(&buffer[..length]).await?;
            to.flush().await?;
            buffer.advance(length);
        }
        buffer.reserve(BLOCK);
    }
    to.write_all(&buffer).await
}

/// Where one message ends and the next begins (RFC 6455, section 5.2).
#[derive(Default)]
struct Messages {
    /// Bytes that are still to come of the one under way.
    rest: u64,
}

impl Messages {
    /// How many of these bytes are to be written at once; none while a message's length isn't known.
    fn next(&mut self, bytes: &[u8]) -> Option<usize> {
        if self.rest == 0 {
            self.rest = length(bytes)?;
        }
        let now = usize::try_from(self.rest).map_or(bytes.len(), |rest| rest.min(bytes.len()));
        // A short message waits until it is whole; a long one needn't.
        if now == 0 || ((now as u64) < self.rest && now < BLOCK && self.rest <= BLOCK as u64) {
            return None;
        }
        self.rest -= now as u64;
        Some(now)
    }
}

/// The length of the message that begins here, its head included.
fn length(bytes: &[u8]) -> Option<u64> {
    let second = *bytes.get(1)?;
    let mask = if second & 0x80 == 0 { 0 } else { 4 };
    let (head, body) = match second & 0x7f {
        126 => (4, u64::from(u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?))),
        127 => (10, u64::from_be_bytes(bytes.get(2..10)?.try_into().ok()?)),
        short => (2, u64::from(short)),
    };
    Some(body.saturating_add(head + mask))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(length: usize) -> Vec<u8> {
        let mut bytes = vec![0x82];
        match (u8::try_from(length), u16::try_from(length)) {
            (Ok(short @ ..126), _) => bytes.push(short),
            (_, Ok(medium)) => {
                bytes.push(126);
                bytes.extend(medium.to_be_bytes());
            }
            _ => {
                bytes.push(127);
                bytes.extend((length as u64).to_be_bytes());
            }
        }
        bytes.resize(bytes.len() + length, b'x');
        bytes
    }

    #[test]
    fn each_message_is_written_alone_however_the_bytes_come() {
        let sizes = [0, 1, 125, 126, 40_000, 70_000, 3];
        let all: Vec<u8> = sizes.iter().flat_map(|size| message(*size)).collect();
        let ends: Vec<usize> = sizes
            .iter()
            .scan(0, |end, size| {
                *end += message(*size).len();
                Some(*end)
            })
            .collect();
        for piece in [1, 7, 1000, all.len()] {
            let (mut buffer, mut messages, mut written) = (Vec::new(), Messages::default(), 0);
            for part in all.chunks(piece) {
                buffer.extend_from_slice(part);
                while let Some(length) = messages.next(&buffer) {
                    let crossed = ends.iter().any(|end| written < *end && *end < written + length);
                    assert!(!crossed, "a write of {length} at {written} has parts of two messages");
                    written += length;
                    buffer.drain(..length);
                }
            }
            assert_eq!(written, all.len(), "in pieces of {piece}");
        }
    }

    #[tokio::test]
    async fn both_ways_end_for_themselves() {
        let (client, far_client) = tokio::io::duplex(64);
        let (worker, far_worker) = tokio::io::duplex(64);
        let relaying = tokio::spawn(relay(far_client, far_worker));
        let (mut client, mut worker) = (client, worker);
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        let mut question = Vec::new();
        worker.read_to_end(&mut question).await.unwrap();
        assert_eq!(question, b"question");
        worker.write_all(&message(5)).await.unwrap();
        worker.shutdown().await.unwrap();
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.unwrap();
        assert_eq!(answer, message(5));
        relaying.await.unwrap().unwrap();
    }
}
