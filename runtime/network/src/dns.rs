//! The cluster's DNS: names of Services and pods as the Kubernetes DNS specification 1.1 has them, everything else from
//! the machine's resolvers.
//!
//! It listens on the worker's own address among the pods; the `kube-dns` Service leads there. What it knows by itself is
//! answered at once; what it has to ask for is a task of its own, so no question waits for another's.

mod callers;
mod forward;
mod names;

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio_util::sync::CancellationToken;

pub use names::{NamedEndpoint, NamedPort, ServiceNames};

use callers::Callers;
use forward::Forwarder;
use names::{Answer, Names};

/// The port of DNS.
const PORT: u16 = 53;
/// The largest answer by datagram: more than this is likely to be cut up on its way.
const DATAGRAM_BYTES: u16 = 1232;
/// How long a connection may be silent.
const IDLE: Duration = Duration::from_secs(20);
/// How many connections one caller may have.
const CONNECTIONS: usize = 32;
/// How many names may lead to one another.
const ALIASES: usize = 8;

/// Where the machine's resolvers are, asked each time that they are needed.
pub type Resolvers = Arc<dyn Fn() -> Vec<SocketAddr> + Send + Sync>;

/// The sockets that questions come in by.
pub struct DnsSockets {
    udp: std::net::UdpSocket,
    tcp: std::net::TcpListener,
}

impl DnsSockets {
    /// Listens on DNS's own port, or on any other where somebody has that one on all of this machine's addresses.
    pub fn bind(address: Ipv4Addr) -> io::Result<Self> {
        Self::bind_to(address, PORT).or_else(|_| Self::bind_to(address, 0))
    }

    fn bind_to(address: Ipv4Addr, port: u16) -> io::Result<Self> {
        let tcp = std::net::TcpListener::bind((address, port))?;
        let udp = std::net::UdpSocket::bind(tcp.local_addr()?)?;
        tcp.set_nonblocking(true)?;
        udp.set_nonblocking(true)?;
        Ok(Self { udp, tcp })
    }

    /// Where they listen.
    pub fn address(&self) -> io::Result<SocketAddrV4> {
        match self.tcp.local_addr()? {
            SocketAddr::V4(address) => Ok(address),
            SocketAddr::V6(_) => Err(io::ErrorKind::AddrNotAvailable.into()),
        }
    }
}

/// The server. Clones share what it knows.
#[derive(Clone)]
pub struct Dns {
    shared: Arc<Shared>,
}

struct Shared {
    names: RwLock<Names>,
    forwarder: Forwarder,
}

/// What a datagram leads to.
pub(crate) enum Read {
    /// It is no question.
    Nothing,
    /// A datagram that can be sent at once.
    Answer(Vec<u8>),
    /// Somebody else has to be asked; so many bytes may be answered.
    Ask(Message, usize),
}

impl Dns {
    /// A server of the names below `domain` (`cluster.local`); it knows none yet.
    pub fn new(domain: &str, resolvers: Resolvers) -> Self {
        let shared = Shared { names: RwLock::new(Names::new(domain)), forwarder: Forwarder::new(resolvers) };
        Self { shared: Arc::new(shared) }
    }

    /// A Service's names from now on; none takes them away.
    pub fn set(&self, namespace: &str, service: &str, names: Option<ServiceNames>) {
        self.shared.names.write().unwrap_or_else(PoisonError::into_inner).set(namespace, service, names);
    }

    /// All names are there: from now on what isn't known does not exist. Before, a client is told to ask again.
    pub fn complete(&self) {
        self.shared.names.write().unwrap_or_else(PoisonError::into_inner).complete = true;
    }

    /// Answers until `shutdown`. Must be called inside a tokio runtime.
    pub async fn serve(self, sockets: DnsSockets, shutdown: CancellationToken) -> io::Result<()> {
        let udp = Arc::new(UdpSocket::from_std(sockets.udp)?);
        let tcp = TcpListener::from_std(sockets.tcp)?;
        let mut datagram = vec![0; 4096];
        let callers = Callers::new(CONNECTIONS);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                received = udp.recv_from(&mut datagram) => {
                    // An error here is about an earlier answer, whose asker is gone.
                    let Ok((length, peer)) = received else { continue };
                    self.datagram(&udp, &datagram[..length], peer);
                }
                accepted = tcp.accept() => match accepted {
                    Ok((stream, peer)) => {
                        // Who has too many is closed at once, and asks again.
                        if let Some(place) = callers.admit(peer.ip()) {
                            let connection = self.clone().connection(stream, peer.ip());
                            tokio::spawn(async move {
                                connection.await;
                                drop(place);
                            });
                        }
                    }
                    // Out of descriptors, most likely.
                    Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
                },
            }
        }
    }

    fn datagram(&self, socket: &Arc<UdpSocket>, bytes: &[u8], peer: SocketAddr) {
        match self.read(bytes) {
            Read::Nothing => {}
            // A full buffer loses it, as the network might.
            Read::Answer(answer) => drop(socket.try_send_to(&answer, peer)),
            Read::Ask(question, most) => {
                let (dns, socket) = (self.clone(), Arc::clone(socket));
                tokio::spawn(async move {
                    if let Some(answer) = packed(&dns.answer(peer.ip(), question).await, most) {
                        drop(socket.try_send_to(&answer, peer));
                    }
                });
            }
        }
    }

    /// What a datagram leads to.
    pub(crate) fn read(&self, bytes: &[u8]) -> Read {
        let Ok(question) = Message::from_vec(bytes) else { return Read::Nothing };
        // Whoever answers an answer may be answered, for ever.
        if question.metadata.message_type != MessageType::Query {
            return Read::Nothing;
        }
        let most = usize::from(question.max_payload().min(DATAGRAM_BYTES));
        match self.at_once(&question) {
            Some(answer) => packed(&answer, most).map_or(Read::Nothing, Read::Answer),
            None => Read::Ask(question, most),
        }
    }

    async fn connection(self, mut stream: TcpStream, caller: IpAddr) {
        let exchange = async |stream: &mut TcpStream| -> io::Result<()> {
            let length = stream.read_u16().await?;
            let mut bytes = vec![0; length.into()];
            stream.read_exact(&mut bytes).await?;
            let question = Message::from_vec(&bytes).map_err(io::Error::other)?;
            let answer = self.answer(caller, question).await.to_vec().map_err(io::Error::other)?;
            let length = u16::try_from(answer.len()).map_err(io::Error::other)?;
            stream.write_all(&[&length.to_be_bytes()[..], &answer].concat()).await
        };
        while let Ok(Ok(())) = tokio::time::timeout(IDLE, exchange(&mut stream)).await {}
    }

    /// The answer, if nobody has to be asked for it.
    fn at_once(&self, question: &Message) -> Option<Message> {
        let query = match question.queries.as_slice() {
            [query] if question.metadata.message_type == MessageType::Query => query,
            _ => return Some(reply(question, ResponseCode::FormErr)),
        };
        if question.metadata.op_code != OpCode::Query {
            return Some(reply(question, ResponseCode::NotImp));
        }
        let names = self.shared.names.read().unwrap_or_else(PoisonError::into_inner);
        match names.answer(query.name(), query.query_type()) {
            Answer::Records { answers, additionals } => {
                let mut message = reply(question, ResponseCode::NoError);
                message.metadata.authoritative = true;
                if answers.is_empty() {
                    message.add_authority(names.authority());
                }
                message.answers = answers;
                message.additionals = additionals;
                Some(message)
            }
            Answer::Unknown => {
                let mut message = reply(question, ResponseCode::NXDomain);
                message.metadata.authoritative = true;
                message.add_authority(names.authority());
                Some(message)
            }
            Answer::NotYet => Some(reply(question, ResponseCode::ServFail)),
            Answer::Alias(_) | Answer::Elsewhere => None,
        }
    }

    async fn answer(&self, caller: IpAddr, question: Message) -> Message {
        if let Some(answer) = self.at_once(&question) {
            return answer;
        }
        let Some(query) = question.queries.first().cloned() else { return reply(&question, ResponseCode::FormErr) };
        let (mut message, mut name) = (reply(&question, ResponseCode::NoError), query.name().clone());
        for _ in 0..ALIASES {
            let known =
                self.shared.names.read().unwrap_or_else(PoisonError::into_inner).answer(&name, query.query_type());
            match known {
                Answer::Alias(target) => {
                    message.add_answer(Record::from_rdata(name, names::TTL, RData::CNAME(cname(&target))));
                    if query.query_type() == RecordType::CNAME {
                        return message;
                    }
                    name = target;
                }
                Answer::Records { answers, .. } => {
                    message.answers.extend(answers);
                    return message;
                }
                Answer::Unknown => {
                    message.metadata.response_code = ResponseCode::NXDomain;
                    return message;
                }
                Answer::NotYet => return reply(&question, ResponseCode::ServFail),
                Answer::Elsewhere => {
                    let query = Query::query(name, query.query_type());
                    let Some(found) = self.shared.forwarder.ask(caller, &query).await else {
                        return reply(&question, ResponseCode::ServFail);
                    };
                    message.metadata.response_code = found.metadata.response_code;
                    message.answers.extend(found.answers);
                    message.authorities = found.authorities;
                    message.additionals = found.additionals;
                    return message;
                }
            }
        }
        reply(&question, ResponseCode::ServFail)
    }
}

/// A message of at most so many bytes: the whole, or as much of it as says that there is more.
fn packed(answer: &Message, most: usize) -> Option<Vec<u8>> {
    let bytes = answer.to_vec().ok()?;
    if bytes.len() <= most { Some(bytes) } else { answer.truncate().to_vec().ok() }
}

fn cname(target: &Name) -> hickory_proto::rr::rdata::CNAME {
    hickory_proto::rr::rdata::CNAME(target.clone())
}

/// An answer without records.
fn reply(question: &Message, code: ResponseCode) -> Message {
    let mut message = Message::response(question.metadata.id, question.metadata.op_code);
    message.metadata.recursion_desired = question.metadata.recursion_desired;
    message.metadata.recursion_available = true;
    message.metadata.response_code = code;
    message.queries.clone_from(&question.queries);
    if question.edns.is_some() {
        let mut edns = Edns::new();
        edns.set_max_payload(DATAGRAM_BYTES);
        message.set_edns(edns);
    }
    message
}
