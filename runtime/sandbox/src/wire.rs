//! Datagrams with file descriptors over a SEQPACKET unix socket. A body that is too long for one goes as a memfd.

use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, UnixAddr, recvmsg, sendmsg};
use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Longest body that travels inside the datagram; larger ones go as a memfd in front of the other descriptors.
const INLINE_MAX: usize = 32 * 1024;
/// The kernel passes at most this many descriptors in one message (SCM_MAX_FD).
const MAX_FDS: usize = 253;

const INLINE: u8 = 0;
const IN_MEMFD: u8 = 1;

/// One received datagram.
#[derive(Debug)]
pub struct Packet {
    /// The body.
    pub body: Vec<u8>,
    /// The descriptors that came with it, close-on-exec.
    pub fds: Vec<OwnedFd>,
}

/// Sends one datagram. `EAGAIN` on a non-blocking socket leaves nothing sent.
pub fn send(socket: BorrowedFd<'_>, body: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut raw: Vec<RawFd> = Vec::with_capacity(fds.len() + 1);
    let memfd;
    let (tag, inline): (u8, &[u8]) = if body.len() > INLINE_MAX {
        let mut file = File::from(memfd_create("carob-message", MFdFlags::MFD_CLOEXEC)?);
        file.write_all(body)?;
        memfd = file;
        raw.push(memfd.as_raw_fd());
        (IN_MEMFD, &[])
    } else {
        (INLINE, body)
    };
    raw.extend(fds.iter().map(AsRawFd::as_raw_fd));
    if raw.len() > MAX_FDS {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "more than 253 descriptors in one message"));
    }
    let tag = [tag];
    let parts = [IoSlice::new(&tag), IoSlice::new(inline)];
    let rights = [ControlMessage::ScmRights(&raw)];
    let control: &[ControlMessage<'_>] = if raw.is_empty() { &[] } else { &rights };
    loop {
        match sendmsg::<UnixAddr>(socket.as_raw_fd(), &parts, control, MsgFlags::MSG_NOSIGNAL, None) {
            Ok(_) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Receives one datagram; `None` when the other side has closed.
#[expect(unsafe_code, reason = "descriptors arrive as numbers")]
pub fn receive(socket: BorrowedFd<'_>) -> io::Result<Option<Packet>> {
    let mut buffer = vec![0u8; INLINE_MAX + 1];
    let mut control = nix::cmsg_space!([RawFd; MAX_FDS]);
    let (length, raw, truncated) = loop {
        let mut parts = [IoSliceMut::new(&mut buffer)];
        match recvmsg::<UnixAddr>(socket.as_raw_fd(), &mut parts, Some(&mut control), MsgFlags::MSG_CMSG_CLOEXEC) {
            Ok(message) => {
                let mut raw: Vec<RawFd> = Vec::new();
                for part in message.cmsgs()? {
                    if let ControlMessageOwned::ScmRights(fds) = part {
                        raw.extend(fds);
                    }
                }
                let truncated = message.flags.intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC);
                break (message.bytes, raw, truncated);
            }
            Err(Errno::EINTR) => {}
            Err(Errno::ECONNRESET) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        }
    };
    // SAFETY: the kernel has just installed these descriptors for us; nobody else knows their numbers.
    let mut fds: Vec<OwnedFd> = raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }).collect();
    if length == 0 {
        return Ok(None);
    }
    if truncated {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "message longer than the protocol allows"));
    }
    let tag = buffer[0];
    buffer.truncate(length);
    buffer.remove(0);
    match tag {
        INLINE => Ok(Some(Packet { body: buffer, fds })),
        IN_MEMFD if !fds.is_empty() => {
            let mut file = File::from(fds.remove(0));
            let mut body = Vec::new();
            file.seek(SeekFrom::Start(0))?;
            file.read_to_end(&mut body)?;
            Ok(Some(Packet { body, fds }))
        }
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "message with an unknown tag")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
    use std::os::fd::AsFd;

    fn pair() -> (OwnedFd, OwnedFd) {
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).expect("socketpair")
    }

    #[test]
    fn a_body_beyond_one_datagram_arrives_whole_with_its_descriptors() {
        let (left, right) = pair();
        let (reader, writer) = nix::unistd::pipe().expect("pipe");
        let body: Vec<u8> = (0..3_000_000u32).map(|n| n.to_le_bytes()[0]).collect();
        send(left.as_fd(), &body, &[writer.as_fd()]).expect("send");
        let packet = receive(right.as_fd()).expect("receive").expect("open");
        assert_eq!(packet.body, body);
        assert_eq!(packet.fds.len(), 1);
        drop(writer);
        File::from(packet.fds.into_iter().next().expect("one")).write_all(b"through").expect("write");
        let mut text = String::new();
        File::from(reader).read_to_string(&mut text).expect("read");
        assert_eq!(text, "through");
    }

    #[test]
    fn the_other_sides_end_is_none_and_not_an_error() {
        let (left, right) = pair();
        drop(left);
        assert!(receive(right.as_fd()).expect("receive").is_none());
    }
}
