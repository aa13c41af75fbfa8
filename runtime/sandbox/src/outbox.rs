//! Datagrams that wait for room in a non-blocking socket, so that nobody hangs on a reader that doesn't read.

use crate::wire;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// What a reader that doesn't read may leave waiting before it is given up.
const WAITING_MAX: usize = 10_000;

/// The datagrams, in order, with the descriptors that travel with them.
#[derive(Debug, Default)]
pub struct Outbox {
    waiting: VecDeque<(Vec<u8>, Vec<OwnedFd>)>,
}

impl Outbox {
    /// Whether to poll for room to write.
    pub fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Sends a datagram, or keeps it until there is room; false when the reader is lost.
    pub fn send(&mut self, socket: BorrowedFd<'_>, body: Vec<u8>, fds: Vec<OwnedFd>) -> bool {
        self.waiting.push_back((body, fds));
        self.flush(socket)
    }

    /// Sends what waits as far as there is room; false when the reader is lost.
    pub fn flush(&mut self, socket: BorrowedFd<'_>) -> bool {
        while let Some((body, fds)) = self.waiting.front() {
            let borrowed: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
            match wire::send(socket, body, &borrowed) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
    use std::fs::File;

    #[test]
    fn what_finds_no_room_waits_and_arrives_in_order_with_its_descriptors() {
        const COUNT: u32 = 2000;
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).expect("socketpair");
        let mut outbox = Outbox::default();
        for number in 0..COUNT {
            let null = File::open("/dev/null").expect("device").into();
            let fds = if number + 1 == COUNT { vec![null] } else { Vec::new() };
            assert!(outbox.send(ours.as_fd(), number.to_le_bytes().to_vec(), fds));
        }
        assert!(outbox.has_waiting(), "more than the socket has room for");
        for number in 0..COUNT {
            assert!(outbox.flush(ours.as_fd()));
            let packet = wire::receive(theirs.as_fd()).expect("receive").expect("open");
            assert_eq!(packet.body, number.to_le_bytes());
            assert_eq!(packet.fds.len(), usize::from(number + 1 == COUNT));
        }
        assert!(!outbox.has_waiting());
        drop(theirs);
        assert!(!outbox.send(ours.as_fd(), vec![0], Vec::new()), "a reader that has gone is noticed");
    }
}
