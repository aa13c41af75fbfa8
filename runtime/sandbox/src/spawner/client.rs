//! The gateway's connection. One gateway acts at a time: the newest.

use crate::protocol::{self, Request, Tell};
use crate::wire;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// What a gateway that doesn't read may leave waiting here before it is given up.
const WAITING_MAX: usize = 10_000;

/// A connected gateway.
#[derive(Debug)]
pub struct Client {
    socket: OwnedFd,
    /// Has said which protocol it speaks, and it is ours.
    greeted: bool,
    waiting: VecDeque<(Vec<u8>, Vec<OwnedFd>)>,
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
        Self { socket, greeted: false, waiting: VecDeque::new() }
    }

    /// For poll.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Whether to poll for room to write.
    pub fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
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
                eprintln!("a request that cannot be read: {error}");
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
                eprintln!("a message that cannot be encoded: {error}");
                return true;
            }
        };
        self.waiting.push_back((body, fds));
        self.flush()
    }

    /// Sends what waits as far as there is room; false when the connection is lost.
    pub fn flush(&mut self) -> bool {
        while let Some((body, fds)) = self.waiting.front() {
            let borrowed: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
            match wire::send(self.socket.as_fd(), body, &borrowed) {
                Ok(()) => {
                    self.waiting.pop_front();
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return self.waiting.len() <= WAITING_MAX;
                }
                Err(_) => return false,
            }
        }
        true
    }
}
