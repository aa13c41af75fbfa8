//! The gateway's connection. One gateway acts at a time: the newest.

use crate::outbox::Outbox;
use crate::protocol::{self, Request, Tell};
use crate::wire;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// A connected gateway.
#[derive(Debug)]
pub struct Client {
    socket: OwnedFd,
    /// Has said which protocol it speaks, and it is ours.
    greeted: bool,
    outbox: Outbox,
}

/// What a client has sent.
#[derive(Debug)]
pub enum Incoming {
    /// A request with its descriptors.
    Request(Box<Request>, Vec<OwnedFd>),
    /// Its greeting; it may now be told things.
    Greeted,
    /// It has gone, or speaks another protocol.
    Gone,
}

impl Client {
    /// A connection that was just accepted.
    pub fn new(socket: OwnedFd) -> Self {
        Self { socket, greeted: false, outbox: Outbox::default() }
    }

    /// For poll.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Whether to poll for room to write.
    pub fn has_waiting(&self) -> bool {
        self.outbox.has_waiting()
    }

    /// Takes one message; `None` when there is none after all.
    pub fn receive(&mut self) -> Option<Incoming> {
        let packet = match wire::receive(self.socket.as_fd()) {
            Ok(Some(packet)) => packet,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
            Ok(None) | Err(_) => return Some(Incoming::Gone),
        };
        if !self.greeted {
            let Some((version, _)) = protocol::parse_greeting(&packet.body) else { return Some(Incoming::Gone) };
            if wire::send(self.socket.as_fd(), &protocol::greeting(protocol::VERSION), &[]).is_err() {
                return Some(Incoming::Gone);
            }
            if version != protocol::VERSION {
                return Some(Incoming::Gone);
            }
            self.greeted = true;
            return Some(Incoming::Greeted);
        }
        match protocol::decode(&packet.body) {
            Ok(request) => Some(Incoming::Request(Box::new(request), packet.fds)),
            Err(error) => {
                say!("a request that cannot be read: {error}");
                Some(Incoming::Gone)
            }
        }
    }

    /// Tells it something; false when it is lost.
    pub fn tell(&mut self, message: &Tell, fds: Vec<OwnedFd>) -> bool {
        if !self.greeted {
            return true;
        }
        let body = match protocol::encode(message) {
            Ok(body) => body,
            Err(error) => {
                say!("a message that cannot be encoded: {error}");
                return true;
            }
        };
        self.outbox.send(self.socket.as_fd(), body, fds)
    }

    /// Sends what waits as far as there is room; false when the connection is lost.
    pub fn flush(&mut self) -> bool {
        self.outbox.flush(self.socket.as_fd())
    }
}
