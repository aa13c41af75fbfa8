//! Requests to the kernel's netfilter by netlink: attributes, batches that take effect whole or not at all, and dumps.
//!
//! The numbers are those of linux/netfilter/nfnetlink.h and nf_tables.h. What is sent here comes from few places, so the
//! writer knows only what every message is made of: attributes, nested or not.

use std::io;

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};

use crate::family::Family;

/// `NFNL_MSG_BATCH_BEGIN`, `NFNL_MSG_BATCH_END`
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
/// `NFNL_SUBSYS_NFTABLES`
const NFTABLES: u16 = 10;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLA_NESTED: u16 = 1 << 15;
const HEADER: usize = 20;
/// A batch of ten thousand services takes a few MiB; the kernel wants it in one piece.
const SEND_BUFFER: usize = 64 << 20;

pub(crate) const REQUEST: u16 = 0x1;
pub(crate) const ACKNOWLEDGE: u16 = 0x4;
pub(crate) const DUMP: u16 = 0x300;
pub(crate) const CREATE: u16 = 0x400;
pub(crate) const APPEND: u16 = 0x800;

/// Messages under construction, one behind the other.
#[derive(Default)]
pub(crate) struct Messages {
    bytes: Vec<u8>,
    start: usize,
    count: u32,
    /// The number before the first message's; it grows where a socket is used again.
    base: u32,
}

impl Messages {
    /// Begins a message of a type (subsystem and number) about a family's tables.
    pub(crate) fn begin(&mut self, kind: u16, flags: u16, family: Family) {
        self.begin_with(kind, flags, family.number(), 0);
    }

    /// Begins a message about a batch, which is of no family.
    fn begin_batch(&mut self, kind: u16, subsystem: u16) {
        self.begin_with(kind, 0, 0, subsystem);
    }

    /// `resource` is what the netfilter header calls `res_id`.
    fn begin_with(&mut self, kind: u16, flags: u16, family: u8, resource: u16) {
        self.finish();
        self.start = self.bytes.len();
        self.count += 1;
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&(flags | REQUEST).to_ne_bytes());
        self.bytes.extend_from_slice(&self.base.wrapping_add(self.count).to_ne_bytes());
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&[family, 0]);
        self.bytes.extend_from_slice(&resource.to_be_bytes());
    }

    fn finish(&mut self) {
        if self.count > 0 {
            let length = u32::try_from(self.bytes.len() - self.start).unwrap_or(u32::MAX);
            self.bytes[self.start..self.start + 4].copy_from_slice(&length.to_ne_bytes());
        }
    }

    /// How many bytes the current message has.
    pub(crate) fn message_len(&self) -> usize {
        self.bytes.len() - self.start
    }

    /// Adds an attribute.
    pub(crate) fn bytes(&mut self, attribute: u16, value: &[u8]) -> &mut Self {
        let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&attribute.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        self
    }

    /// Adds a name, with the zero byte at its end that the kernel wants.
    pub(crate) fn name(&mut self, attribute: u16, name: &str) -> &mut Self {
        let mut bytes = name.as_bytes().to_vec();
        bytes.push(0);
        self.bytes(attribute, &bytes)
    }

    /// Adds a number, in network order as everywhere in netfilter.
    pub(crate) fn number(&mut self, attribute: u16, value: u32) -> &mut Self {
        self.bytes(attribute, &value.to_be_bytes())
    }

    /// Adds an attribute made of attributes.
    pub(crate) fn nested(&mut self, attribute: u16, write: impl FnOnce(&mut Self)) -> &mut Self {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 2]);
        self.bytes.extend_from_slice(&(attribute | NLA_NESTED).to_ne_bytes());
        write(self);
        let length = u16::try_from(self.bytes.len() - start).unwrap_or(u16::MAX);
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self
    }
}

/// A change of nftables' rules that takes effect whole or not at all.
pub(crate) struct Transaction {
    messages: Messages,
}

impl Transaction {
    pub(crate) fn begin() -> Self {
        Self::after(0)
    }

    /// Numbers its messages from here on.
    fn after(base: u32) -> Self {
        let mut messages = Messages { base, ..Messages::default() };
        messages.begin_batch(BATCH_BEGIN, NFTABLES);
        Self { messages }
    }

    /// Whether there is nothing to carry out.
    pub(crate) fn is_empty(&self) -> bool {
        self.messages.count <= 1
    }

    /// Begins a message of nftables.
    pub(crate) fn message(&mut self, number: u16, flags: u16, family: Family) -> &mut Messages {
        self.messages.begin((NFTABLES << 8) | number, flags, family);
        &mut self.messages
    }

    /// Has the kernel carry it out, and waits for its word.
    pub(crate) fn commit(self) -> io::Result<()> {
        self.commit_by(&open()?)
    }

    fn commit_by(mut self, socket: &Socket) -> io::Result<()> {
        // The kernel answers with all errors and with what is asked for: the last message's success is the batch's.
        self.messages.finish();
        let last = self.messages.start;
        let flags = u16::from_ne_bytes([self.messages.bytes[last + 6], self.messages.bytes[last + 7]]) | ACKNOWLEDGE;
        self.messages.bytes[last + 6..last + 8].copy_from_slice(&flags.to_ne_bytes());
        let (first, last) = (self.messages.base, self.messages.base.wrapping_add(self.messages.count));
        self.messages.begin_batch(BATCH_END, NFTABLES);
        self.messages.finish();
        socket.send(&self.messages.bytes, 0)?;
        let mut outcome = Ok(());
        loop {
            let (datagram, _) = socket.recv_from_full()?;
            for message in split(&datagram) {
                if message.kind != NLMSG_ERROR || !message.is_after(first) {
                    continue;
                }
                let error = message.error();
                if error != 0 && outcome.is_ok() {
                    outcome = Err(io::Error::from_raw_os_error(error));
                }
                // What is wrong with the whole batch is said of its beginning, and nothing after it.
                let of_all = error != 0 && message.sequence == first.wrapping_add(1);
                if of_all || !message.is_before(last) {
                    return outcome;
                }
            }
        }
    }
}

/// Sends messages that each ask for an acknowledgement, and counts those that failed otherwise than with `expected`.
pub(crate) fn send_each(mut messages: Messages, expected: i32) -> io::Result<()> {
    if messages.count == 0 {
        return Ok(());
    }
    messages.finish();
    let socket = open()?;
    socket.send(&messages.bytes, 0)?;
    let (mut answered, mut outcome) = (0, Ok(()));
    while answered < messages.count {
        let (datagram, _) = socket.recv_from_full()?;
        for message in split(&datagram).filter(|message| message.kind == NLMSG_ERROR) {
            answered += 1;
            let error = message.error();
            if error != 0 && error != expected && outcome.is_ok() {
                outcome = Err(io::Error::from_raw_os_error(error));
            }
        }
    }
    outcome
}

/// Sends messages that each ask for an acknowledgement; of each, whether what it asks for is there.
pub(crate) fn found(mut messages: Messages) -> io::Result<Vec<bool>> {
    let count = messages.count as usize;
    let mut there = vec![false; count];
    if count == 0 {
        return Ok(there);
    }
    messages.finish();
    let socket = open()?;
    socket.send(&messages.bytes, 0)?;
    let mut answered = 0;
    while answered < count {
        let (datagram, _) = socket.recv_from_full()?;
        for message in split(&datagram).filter(|message| message.kind == NLMSG_ERROR) {
            answered += 1;
            if let Some(slot) = there.get_mut((message.sequence as usize).wrapping_sub(1)) {
                *slot = message.error() == 0;
            }
        }
    }
    Ok(there)
}

/// Asks for all objects of a kind and a family, and calls `each` with the attributes of every one.
pub(crate) fn dump(kind: u16, family: Family, each: impl FnMut(&[u8])) -> io::Result<()> {
    let mut messages = Messages::default();
    messages.begin(kind, DUMP, family);
    ask(&open()?, messages, each)
}

/// Sends a question, and calls `each` with the attributes of every part of the answer. Of what changes meanwhile parts may
/// be missing, or there twice.
fn ask(socket: &Socket, mut messages: Messages, mut each: impl FnMut(&[u8])) -> io::Result<()> {
    messages.finish();
    socket.send(&messages.bytes, 0)?;
    loop {
        let (datagram, _) = socket.recv_from_full()?;
        for message in split(&datagram).filter(|message| message.is_after(messages.base)) {
            match (message.kind, message.error()) {
                (NLMSG_DONE, _) | (NLMSG_ERROR, 0) => return Ok(()),
                (NLMSG_ERROR, error) => return Err(io::Error::from_raw_os_error(error)),
                _ => each(message.attributes),
            }
        }
    }
}

/// A socket that stays: it belongs to the network namespace in which it was opened, whoever uses it.
pub(crate) struct Connection {
    socket: Socket,
    /// The last number that was used.
    last: u32,
}

impl Connection {
    pub(crate) fn open() -> io::Result<Self> {
        Ok(Self { socket: open()?, last: 0 })
    }

    /// A transaction that [`Connection::commit`] carries out.
    pub(crate) fn transaction(&self) -> Transaction {
        Transaction::after(self.last)
    }

    pub(crate) fn commit(&mut self, transaction: Transaction) -> io::Result<()> {
        // With the end of the batch.
        self.last = self.last.wrapping_add(transaction.messages.count + 1);
        transaction.commit_by(&self.socket)
    }

    /// Asks nftables for something; see [`ask`].
    pub(crate) fn ask(
        &mut self,
        (number, flags, family): (u16, u16, Family),
        write: impl FnOnce(&mut Messages),
        each: impl FnMut(&[u8]),
    ) -> io::Result<()> {
        let mut messages = Messages { base: self.last, ..Messages::default() };
        messages.begin((NFTABLES << 8) | number, flags, family);
        write(&mut messages);
        self.last = self.last.wrapping_add(1);
        ask(&self.socket, messages, each)
    }
}

fn open() -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    // Without the right to go over the machine's limit, the usual size has to do.
    let _ = nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::SndBufForce, &SEND_BUFFER);
    let _ = nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::RcvBufForce, &(4 << 20));
    Ok(socket)
}

struct Answer<'a> {
    kind: u16,
    sequence: u32,
    body: &'a [u8],
    attributes: &'a [u8],
}

impl Answer<'_> {
    /// Whether it is about what was sent after this number; they begin anew when they are used up.
    fn is_after(&self, number: u32) -> bool {
        (1..=u32::MAX / 2).contains(&self.sequence.wrapping_sub(number))
    }

    fn is_before(&self, number: u32) -> bool {
        (1..=u32::MAX / 2).contains(&number.wrapping_sub(self.sequence))
    }

    /// The error number; 0 is success.
    fn error(&self) -> i32 {
        self.body.first_chunk().map_or(libc::EIO, |bytes| -i32::from_ne_bytes(*bytes))
    }
}

fn split(mut datagram: &[u8]) -> impl Iterator<Item = Answer<'_>> {
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(*datagram.first_chunk()?) as usize;
        let message = datagram.get(..length.max(16))?;
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Answer {
            kind: u16::from_ne_bytes([message[4], message[5]]),
            sequence: u32::from_ne_bytes([message[8], message[9], message[10], message[11]]),
            body: &message[16..],
            attributes: message.get(HEADER..).unwrap_or_default(),
        })
    })
}

/// The attributes in a piece of an answer: number and value.
pub(crate) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(*bytes.first_chunk()?));
        let number = u16::from_ne_bytes([*bytes.get(2)?, *bytes.get(3)?]) & !(NLA_NESTED | 1 << 14);
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((number, value))
    })
}

/// The first attribute of a number.
pub(crate) fn attribute(bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(number, _)| *number == wanted).map(|(_, value)| value)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `NFT_MSG_GETTABLE`
    const GET_TABLE: u16 = 1;

    #[test]
    fn attributes_are_padded_and_found_again() {
        let mut messages = Messages::default();
        messages.begin(1, 0, Family::V4);
        messages.name(1, "ab").nested(2, |inner| {
            inner.number(3, 7);
        });
        messages.finish();
        let body = &messages.bytes[HEADER..];
        assert_eq!(attribute(body, 1), Some(&b"ab\0"[..]));
        assert_eq!(attribute(attribute(body, 2).unwrap(), 3), Some(&[0, 0, 0, 7][..]));
        assert_eq!(messages.bytes.len() % 4, 0);
        assert_eq!(u32::from_ne_bytes(*messages.bytes.first_chunk().unwrap()) as usize, messages.bytes.len());
    }

    #[test]
    fn a_batch_that_is_refused_as_a_whole_is_an_error() {
        // Connection tracking takes no batches; without the right to change it, that is the error.
        const CONNTRACK: u16 = 1;
        let (sender, outcome) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let mut messages = Messages::default();
            messages.begin_batch(BATCH_BEGIN, CONNTRACK);
            messages.begin(CONNTRACK << 8, 0, Family::V4);
            sender.send(Transaction { messages }.commit())
        });
        let outcome = outcome.recv_timeout(std::time::Duration::from_secs(10)).expect("it waits for ever");
        let error = outcome.unwrap_err().raw_os_error();
        assert!(matches!(error, Some(libc::EOPNOTSUPP | libc::EPERM)), "{error:?}");
    }

    #[test]
    fn numbers_begin_anew_when_they_are_used_up() {
        let answer = |sequence| Answer { kind: 0, sequence, body: &[], attributes: &[] };
        assert!(answer(3).is_after(2) && answer(3).is_before(4));
        assert!(!answer(3).is_after(3) && !answer(3).is_before(3) && !answer(3).is_after(4));
        assert!(answer(1).is_after(u32::MAX - 1) && answer(u32::MAX).is_before(1));
        assert!(!answer(u32::MAX).is_after(1) && !answer(1).is_before(u32::MAX));
        let mut connection = Connection::open().unwrap();
        connection.last = u32::MAX - 1;
        let (sender, outcome) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for _ in 0..3 {
                // Of a table that isn't there; who may not ask is told that.
                let name = |messages: &mut Messages| {
                    messages.name(1, "none");
                };
                let asked = connection.ask((GET_TABLE, ACKNOWLEDGE, Family::V4), name, |_| ());
                let _ = sender.send(asked.map_err(|error| error.raw_os_error()));
            }
        });
        for _ in 0..3 {
            let answer = outcome.recv_timeout(std::time::Duration::from_secs(10)).expect("it waits for ever");
            assert!(matches!(answer, Err(Some(libc::ENOENT | libc::EPERM))), "{answer:?}");
        }
    }

    #[test]
    fn cut_off_attributes_are_no_panic() {
        assert_eq!(attributes(&[9, 0, 1, 0, 1]).count(), 0);
        assert_eq!(attributes(&[2, 0, 1, 0, 1]).count(), 0);
        assert_eq!(split(&[200, 0, 0, 0]).count(), 0);
    }
}
