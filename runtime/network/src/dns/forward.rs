//! Questions about names that aren't the cluster's: asked of the machine's resolvers, and remembered.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use hickory_proto::op::{Edns, Message, Query, ResponseCode};
use hickory_proto::rr::RecordType;
use hickory_proto::rr::{Name, RData};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

use super::callers::Callers;
use super::{DATAGRAM_BYTES, Resolvers};

/// How long one resolver may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often all are asked.
const ROUNDS: usize = 2;
/// How many questions of one caller may be under way; more are refused, so that a resolver that is silent costs bounded
/// memory, and who asks for what isn't answered leaves places to others.
const AT_ONCE: usize = 128;
/// How many answers are remembered, and for how long at most.
const REMEMBERED: usize = 10_000;
/// Longer answers aren't remembered: who asks for many must not fill the memory with them.
const REMEMBERED_BYTES: usize = 4096;
const LONGEST: Duration = Duration::from_secs(300);
/// For how long it is remembered that there is nothing, where the answer doesn't say.
const NOTHING: Duration = Duration::from_secs(5);

struct Kept {
    answer: Message,
    since: Instant,
    until: Instant,
}

/// Asks the machine's resolvers.
pub(super) struct Forwarder {
    resolvers: Resolvers,
    under_way: Callers,
    kept: Mutex<HashMap<(Name, RecordType), Kept>>,
}

impl Forwarder {
    pub(super) fn new(resolvers: Resolvers) -> Self {
        Self { resolvers, under_way: Callers::new(AT_ONCE), kept: Mutex::default() }
    }

    /// The answer; none if no resolver gives one.
    pub(super) async fn ask(&self, caller: IpAddr, query: &Query) -> Option<Message> {
        let key = (query.name().to_lowercase(), query.query_type());
        if let Some(answer) = self.remembered(&key) {
            return Some(answer);
        }
        let _turn = self.under_way.admit(caller)?;
        let resolvers = (self.resolvers)();
        for resolver in resolvers.iter().cycle().take(resolvers.len() * ROUNDS) {
            if let Ok(Ok(answer)) = tokio::time::timeout(PATIENCE, exchange(*resolver, query)).await {
                self.remember(key, &answer);
                return Some(answer);
            }
        }
        None
    }

    fn remembered(&self, key: &(Name, RecordType)) -> Option<Message> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = kept.get(key)?;
        let now = Instant::now();
        if entry.until <= now {
            return None;
        }
        let age = u32::try_from((now - entry.since).as_secs()).unwrap_or(u32::MAX);
        let mut answer = entry.answer.clone();
        for record in answer.answers.iter_mut().chain(&mut answer.authorities).chain(&mut answer.additionals) {
            record.ttl = record.ttl.saturating_sub(age);
        }
        Some(answer)
    }

    fn remember(&self, key: (Name, RecordType), answer: &Message) {
        let Some(time) = time_to_keep(answer) else { return };
        if !answer.to_vec().is_ok_and(|bytes| bytes.len() <= REMEMBERED_BYTES) {
            return;
        }
        let now = Instant::now();
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= REMEMBERED {
            kept.retain(|_, entry| entry.until > now);
            if kept.len() >= REMEMBERED {
                kept.clear();
            }
        }
        kept.insert(key, Kept { answer: answer.clone(), since: now, until: now + time });
    }
}

/// The shortest time of the records; for nothing, what the authority says of it (RFC 2308).
fn time_to_keep(answer: &Message) -> Option<Duration> {
    if !matches!(answer.metadata.response_code, ResponseCode::NoError | ResponseCode::NXDomain) {
        return None;
    }
    let positive = answer.answers.iter().map(|record| record.ttl).min();
    let nothing = || {
        answer.authorities.iter().find_map(|record| match &record.data {
            RData::SOA(soa) => Some(soa.minimum.min(record.ttl)),
            _ => None,
        })
    };
    let seconds = positive.or_else(nothing).map_or(NOTHING, |seconds| Duration::from_secs(seconds.into()));
    Some(seconds.min(LONGEST))
}

async fn exchange(to: SocketAddr, query: &Query) -> io::Result<Message> {
    let mut question = Message::query();
    question.metadata.recursion_desired = true;
    question.add_query(query.clone());
    let mut edns = Edns::new();
    edns.set_max_payload(DATAGRAM_BYTES);
    question.set_edns(edns);
    let bytes = question.to_vec().map_err(io::Error::other)?;
    // A port of its own for each question: who would slip in an answer has to guess it.
    let from: SocketAddr = if to.is_ipv4() { ([0; 4], 0).into() } else { ([0_u16; 8], 0).into() };
    let socket = UdpSocket::bind(from).await?;
    socket.connect(to).await?;
    socket.send(&bytes).await?;
    let mut buffer = vec![0; 4096];
    let answer = loop {
        let length = socket.recv(&mut buffer).await?;
        match Message::from_vec(&buffer[..length]) {
            Ok(answer) if answer.metadata.id == question.metadata.id && answer.queries == question.queries => {
                break answer;
            }
            _ => {}
        }
    };
    if !answer.metadata.truncation {
        return Ok(answer);
    }
    let mut stream = TcpStream::connect(to).await?;
    let length = u16::try_from(bytes.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes()[..], &bytes].concat()).await?;
    let mut buffer = vec![0; stream.read_u16().await?.into()];
    stream.read_exact(&mut buffer).await?;
    Message::from_vec(&buffer).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn who_asks_for_what_is_not_answered_leaves_places_to_others() {
        let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let at = silent.local_addr().unwrap();
        let asked = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&asked);
        let resolvers: Resolvers = Arc::new(move || {
            count.fetch_add(1, Ordering::Relaxed);
            vec![at]
        });
        let forwarder = Arc::new(Forwarder::new(resolvers));
        let ask = |caller: u8, name: usize| {
            let forwarder = Arc::clone(&forwarder);
            let name = Name::from_ascii(format!("n{name}.example.")).unwrap();
            tokio::spawn(
                async move { forwarder.ask([10, 0, 0, caller].into(), &Query::query(name, RecordType::A)).await },
            )
        };
        let first: Vec<_> = (0..AT_ONCE).map(|name| ask(1, name)).collect();
        assert!(ask(1, AT_ONCE).await.unwrap().is_none());
        assert_eq!(asked.load(Ordering::Relaxed), AT_ONCE, "no resolver is asked one more");
        let other = ask(2, AT_ONCE);
        while asked.load(Ordering::Relaxed) == AT_ONCE {
            tokio::task::yield_now().await;
        }
        other.abort();
        first.iter().for_each(tokio::task::JoinHandle::abort);
    }
}
