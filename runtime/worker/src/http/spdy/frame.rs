//! Frames: eight bytes that say what follows and how long it is (SPDY Protocol, Draft 3.1, section 2.2).

use super::ProtocolError;

/// Last frame of a direction.
pub(super) const FLAG_FIN: u8 = 1;
/// Bytes of a frame's head.
pub(super) const HEAD: usize = 8;
/// The longest control frame that is read. Data frames may be longer: they are read in pieces.
pub(super) const CONTROL_MAX: usize = 16 * 1024;
const VERSION: u16 = 3;

/// Status codes of `RST_STREAM` and `GOAWAY` that are used here.
pub(super) mod status {
    /// Of a stream: frames for one that there isn't.
    pub const INVALID_STREAM: u32 = 2;
    /// Of a stream: too many of them.
    pub const REFUSED_STREAM: u32 = 3;
    /// Of a stream: no longer wanted.
    pub const CANCEL: u32 = 5;
    /// Of a connection: all is well.
    pub const OK: u32 = 0;
    /// Of a connection: the other side errs.
    pub const PROTOCOL_ERROR: u32 = 1;
}

/// A frame's head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Head {
    Data { stream: u32, fin: bool, length: usize },
    Control { kind: u16, flags: u8, length: usize },
}

/// A control frame's content; header blocks are still packed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Control<'a> {
    SynStream {
        stream: u32,
        fin: bool,
        block: &'a [u8],
    },
    /// Its block has to be unpacked for the sake of those that follow.
    Headers {
        stream: u32,
        fin: bool,
        block: &'a [u8],
    },
    RstStream {
        stream: u32,
    },
    Ping {
        id: u32,
    },
    GoAway,
    /// Settings, window updates, and what isn't known: nothing follows from them.
    Other,
}

impl Head {
    pub fn parse(bytes: [u8; HEAD]) -> Result<Self, ProtocolError> {
        let first = u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        let length = u32::from_be_bytes([0, bytes[5], bytes[6], bytes[7]]);
        let length = usize::try_from(length).map_err(|_| ProtocolError("a frame that is too long"))?;
        let flags = bytes[4];
        if first >> 31 == 0 {
            return Ok(Self::Data { stream: first, fin: flags & FLAG_FIN != 0, length });
        }
        let (version, kind) = ((first >> 16) & 0x7fff, first & 0xffff);
        if version != u32::from(VERSION) {
            return Err(ProtocolError("a frame of another version"));
        }
        if length > CONTROL_MAX {
            return Err(ProtocolError("a control frame that is too long"));
        }
        let kind = u16::try_from(kind).map_err(|_| ProtocolError("a frame of an impossible type"))?;
        Ok(Self::Control { kind, flags, length })
    }
}

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const HEADERS: u16 = 8;
const WINDOW_UPDATE: u16 = 9;

/// Reads a control frame's content.
pub(super) fn parse(kind: u16, flags: u8, content: &[u8]) -> Result<Control<'_>, ProtocolError> {
    let word = |at: usize| {
        let bytes = content.get(at..).and_then(|rest| rest.first_chunk::<4>());
        bytes.map(|bytes| u32::from_be_bytes(*bytes)).ok_or(ProtocolError("a control frame that ends too early"))
    };
    let stream = || word(0).map(|id| id & 0x7fff_ffff);
    let fin = flags & FLAG_FIN != 0;
    let block = |at: usize| content.get(at..).ok_or(ProtocolError("a control frame that ends too early"));
    Ok(match kind {
        // Beside the stream: one that it belongs to, a priority, a slot.
        SYN_STREAM => Control::SynStream { stream: stream()?, fin, block: block(10)? },
        SYN_REPLY | HEADERS => Control::Headers { stream: stream()?, fin, block: block(4)? },
        RST_STREAM => Control::RstStream { stream: stream()? },
        PING => Control::Ping { id: word(0)? },
        GOAWAY => Control::GoAway,
        _ => Control::Other,
    })
}

fn control(kind: u16, flags: u8, content: &[&[u8]]) -> Vec<u8> {
    let length: usize = content.iter().map(|part| part.len()).sum();
    let mut frame = Vec::with_capacity(HEAD + length);
    frame.extend((0x8000 | VERSION).to_be_bytes());
    frame.extend(kind.to_be_bytes());
    push_length(&mut frame, flags, length);
    for part in content {
        frame.extend(*part);
    }
    frame
}

fn push_length(frame: &mut Vec<u8>, flags: u8, length: usize) {
    let length = u32::try_from(length).unwrap_or(u32::MAX).min(0x00ff_ffff).to_be_bytes();
    frame.extend([flags, length[1], length[2], length[3]]);
}

pub(super) fn syn_reply(stream: u32, block: &[u8]) -> Vec<u8> {
    control(SYN_REPLY, 0, &[&stream.to_be_bytes(), block])
}

pub(super) fn rst_stream(stream: u32, status: u32) -> Vec<u8> {
    control(RST_STREAM, 0, &[&stream.to_be_bytes(), &status.to_be_bytes()])
}

pub(super) fn ping(id: u32) -> Vec<u8> {
    control(PING, 0, &[&id.to_be_bytes()])
}

pub(super) fn go_away(last_stream: u32, status: u32) -> Vec<u8> {
    control(GOAWAY, 0, &[&last_stream.to_be_bytes(), &status.to_be_bytes()])
}

pub(super) fn window_update(stream: u32, bytes: u32) -> Vec<u8> {
    control(WINDOW_UPDATE, 0, &[&stream.to_be_bytes(), &bytes.to_be_bytes()])
}

/// At most 16 MiB of data.
pub(super) fn data(stream: u32, bytes: &[u8], fin: bool) -> Vec<u8> {
    let mut frame = Vec::with_capacity(HEAD + bytes.len());
    frame.extend((stream & 0x7fff_ffff).to_be_bytes());
    push_length(&mut frame, if fin { FLAG_FIN } else { 0 }, bytes.len());
    frame.extend(bytes);
    frame
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) fn syn_stream(stream: u32, block: &[u8]) -> Vec<u8> {
        control(SYN_STREAM, 0, &[&stream.to_be_bytes(), &[0; 6], block])
    }

    #[test]
    fn what_is_written_is_read_back() {
        let head = |frame: &[u8]| Head::parse(*frame.first_chunk().unwrap()).unwrap();
        let frame = data(7, b"abc", true);
        assert_eq!(head(&frame), Head::Data { stream: 7, fin: true, length: 3 });
        for (frame, expected) in [
            (syn_stream(3, b"x"), Control::SynStream { stream: 3, fin: false, block: b"x" }),
            (syn_reply(3, b"x"), Control::Headers { stream: 3, fin: false, block: b"x" }),
            (rst_stream(5, 1), Control::RstStream { stream: 5 }),
            (ping(9), Control::Ping { id: 9 }),
            (go_away(1, 0), Control::GoAway),
            (window_update(1, 5), Control::Other),
        ] {
            let Head::Control { kind, flags, length } = head(&frame) else { panic!("a control frame") };
            assert_eq!(length, frame.len() - HEAD);
            assert_eq!(parse(kind, flags, &frame[HEAD..]).unwrap(), expected);
        }
    }

    #[test]
    fn impossible_frames_are_errors() {
        assert!(Head::parse([0x80, 2, 0, 1, 0, 0, 0, 0]).is_err(), "version 2");
        assert!(Head::parse([0x80, 3, 0, 1, 0, 0xff, 0xff, 0xff]).is_err(), "16 MiB of headers");
        for kind in [SYN_STREAM, SYN_REPLY, RST_STREAM, PING, HEADERS] {
            assert!(parse(kind, 0, &[0; 3]).is_err(), "{kind}");
        }
    }
}
