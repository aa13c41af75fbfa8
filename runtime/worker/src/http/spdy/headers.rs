//! Header blocks: names and values, compressed in one zlib stream per direction that lasts as long as the connection
//! (SPDY Protocol, Draft 3.1, section 2.6.10).

use super::ProtocolError;
use flate2::{Decompress, FlushDecompress};
use std::sync::LazyLock;

/// Bytes of one block when it is unpacked, at most: streams of Kubernetes have a handful of short headers.
const BLOCK_MAX: usize = 16 * 1024;
const COUNT_MAX: u32 = 64;

/// The words that the zlib dictionary begins with, each with its length in front.
const WORDS: [&str; 66] = [
    "options",
    "head",
    "post",
    "put",
    "delete",
    "trace",
    "accept",
    "accept-charset",
    "accept-encoding",
    "accept-language",
    "accept-ranges",
    "age",
    "allow",
    "authorization",
    "cache-control",
    "connection",
    "content-base",
    "content-encoding",
    "content-language",
    "content-length",
    "content-location",
    "content-md5",
    "content-range",
    "content-type",
    "date",
    "etag",
    "expect",
    "expires",
    "from",
    "host",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "last-modified",
    "location",
    "max-forwards",
    "pragma",
    "proxy-authenticate",
    "proxy-authorization",
    "range",
    "referer",
    "retry-after",
    "server",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "user-agent",
    "vary",
    "via",
    "warning",
    "www-authenticate",
    "method",
    "get",
    "status",
    "200 OK",
    "version",
    "HTTP/1.1",
    "url",
    "public",
    "set-cookie",
    "keep-alive",
    "origin",
    "",
];

/// And the text that it ends with.
const TEXT: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505\
    203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden\
    404 Not Found500 Internal Server Error501 Not Implemented503 Service Unavailable\
    Jan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMT\
    chunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,text/javascript,\
    publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0.";

static DICTIONARY: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut bytes = Vec::with_capacity(1423);
    for word in WORDS.iter().filter(|word| !word.is_empty()) {
        push_text(&mut bytes, word);
    }
    bytes.extend(TEXT.as_bytes());
    bytes
});

/// A stream's headers, in the order they came; names in lower case.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Headers(pub Vec<(String, String)>);

impl Headers {
    /// The value of a header, named in lower case.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// Unpacks the blocks of one direction, all of them and in order.
pub(super) struct HeaderDecoder {
    inflate: Decompress,
}

impl HeaderDecoder {
    pub fn new() -> Self {
        Self { inflate: Decompress::new(true) }
    }

    /// Unpacks a block. After an error the connection cannot go on.
    pub fn decode(&mut self, block: &[u8]) -> Result<Headers, ProtocolError> {
        parse(&self.unpack(block)?)
    }

    fn unpack(&mut self, mut packed: &[u8]) -> Result<Vec<u8>, ProtocolError> {
        let broken = ProtocolError("a header block that cannot be unpacked");
        let mut plain = Vec::with_capacity(1024);
        loop {
            if plain.len() == plain.capacity() {
                if plain.len() >= BLOCK_MAX {
                    return Err(ProtocolError("a header block that is too long"));
                }
                plain.reserve_exact(plain.len());
            }
            let (read, written) = (self.inflate.total_in(), plain.len());
            let result = self.inflate.decompress_vec(packed, &mut plain, FlushDecompress::Sync);
            let read = usize::try_from(self.inflate.total_in() - read).map_err(|_| broken)?;
            packed = packed.get(read..).ok_or(broken)?;
            match result {
                Ok(flate2::Status::StreamEnd) => return Err(broken),
                Ok(_) => {}
                Err(error) if error.needs_dictionary().is_some() => {
                    self.inflate.set_dictionary(&DICTIONARY).map_err(|_| broken)?;
                    continue;
                }
                Err(_) => return Err(broken),
            }
            let full = plain.len() == plain.capacity();
            if packed.is_empty() && !full {
                return Ok(plain);
            }
            if read == 0 && plain.len() == written && !full {
                return Err(broken);
            }
        }
    }
}

/// Packs blocks into stored pieces, each followed by an empty one, which is where readers take what they have: this side
/// sends next to no headers, so nothing is compressed.
#[derive(Default)]
pub(super) struct HeaderEncoder {
    begun: bool,
}

impl HeaderEncoder {
    pub fn encode(&mut self, headers: &Headers) -> Vec<u8> {
        let mut plain = Vec::new();
        plain.extend(length(headers.0.len()).to_be_bytes());
        for (name, value) in &headers.0 {
            push_text(&mut plain, name);
            push_text(&mut plain, value);
        }
        let mut packed = Vec::with_capacity(plain.len() + 16);
        if !std::mem::replace(&mut self.begun, true) {
            // A zlib stream with a window of 32 KiB and no dictionary.
            packed.extend([0x78, 0x01]);
        }
        for piece in plain.chunks(usize::from(u16::MAX)).chain([&[][..]]) {
            let size = u16::try_from(piece.len()).unwrap_or(u16::MAX);
            packed.push(0);
            packed.extend(size.to_le_bytes());
            packed.extend((!size).to_le_bytes());
            packed.extend(piece);
        }
        packed
    }
}

fn length(value: usize) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

fn push_text(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend(length(text.len()).to_be_bytes());
    bytes.extend(text.as_bytes());
}

fn parse(mut plain: &[u8]) -> Result<Headers, ProtocolError> {
    const SHORT: ProtocolError = ProtocolError("a header block that ends too early");
    fn number(plain: &mut &[u8]) -> Result<u32, ProtocolError> {
        let (bytes, rest) = plain.split_first_chunk::<4>().ok_or(SHORT)?;
        *plain = rest;
        Ok(u32::from_be_bytes(*bytes))
    }
    fn text(plain: &mut &[u8]) -> Result<String, ProtocolError> {
        let size = usize::try_from(number(plain)?).map_err(|_| SHORT)?;
        let (bytes, rest) = plain.split_at_checked(size).ok_or(SHORT)?;
        *plain = rest;
        String::from_utf8(bytes.to_vec()).map_err(|_| ProtocolError("a header that is no text"))
    }
    let count = number(&mut plain)?;
    if count > COUNT_MAX {
        return Err(ProtocolError("too many headers"));
    }
    let mut headers = Headers::default();
    for _ in 0..count {
        let (name, value) = (text(&mut plain)?, text(&mut plain)?);
        headers.0.push((name.to_ascii_lowercase(), value));
    }
    if plain.is_empty() { Ok(headers) } else { Err(ProtocolError("bytes after a header block")) }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use flate2::{Compress, Compression, FlushCompress};

    /// What clients do: one stream, begun with the dictionary.
    pub(crate) struct ClientEncoder(Compress);

    impl ClientEncoder {
        pub fn new() -> Self {
            let mut deflate = Compress::new(Compression::best(), true);
            deflate.set_dictionary(&DICTIONARY).unwrap();
            Self(deflate)
        }

        pub fn encode(&mut self, headers: &[(&str, &str)]) -> Vec<u8> {
            let mut plain = length(headers.len()).to_be_bytes().to_vec();
            for (name, value) in headers {
                push_text(&mut plain, name);
                push_text(&mut plain, value);
            }
            self.pack(&plain)
        }

        pub fn pack(&mut self, plain: &[u8]) -> Vec<u8> {
            let mut packed = Vec::with_capacity(plain.len() + 1024);
            self.0.compress_vec(plain, &mut packed, FlushCompress::Sync).unwrap();
            packed
        }
    }

    #[test]
    fn the_dictionary_is_the_protocols() {
        assert_eq!(DICTIONARY.len(), 1423);
        let mut inflate = Decompress::new(true);
        let packed = ClientEncoder::new().encode(&[]);
        let asked = inflate.decompress(&packed, &mut [0; 64], FlushDecompress::Sync).unwrap_err().needs_dictionary();
        // As the specification's own streams begin: 78 bb e3 c6 a7 c2.
        assert_eq!(asked, Some(0xe3c6_a7c2));
    }

    #[test]
    fn blocks_of_one_stream_are_unpacked_one_after_the_other() {
        let (mut client, mut decoder) = (ClientEncoder::new(), HeaderDecoder::new());
        for port in ["80", "81", "80"] {
            let block = client.encode(&[("streamType", "data"), ("port", port), ("requestID", "0")]);
            let headers = decoder.decode(&block).unwrap();
            assert_eq!((headers.get("streamtype"), headers.get("port")), (Some("data"), Some(port)));
        }
    }

    #[test]
    fn our_own_blocks_are_a_zlib_stream_that_is_readable_piece_by_piece() {
        let (mut encoder, mut decoder) = (HeaderEncoder::default(), HeaderDecoder::new());
        let long = "x".repeat(9000);
        for headers in [Headers::default(), Headers(vec![("a".into(), long)]), Headers::default()] {
            assert_eq!(decoder.decode(&encoder.encode(&headers)).unwrap(), headers);
        }
    }

    #[test]
    fn a_block_that_swells_or_lies_is_refused() {
        let plain = |bytes: &[u8]| HeaderDecoder::new().decode(&ClientEncoder::new().pack(bytes));
        assert!(plain(&vec![0; BLOCK_MAX * 4]).is_err());
        assert!(plain(&[0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff]).is_err());
        assert!(plain(&[0xff; 4]).is_err());
        assert!(plain(&[0, 0, 0, 0, 9]).is_err());
        assert!(plain(&[0, 0]).is_err());
        assert!(plain(&[0, 0, 0, 1, 0, 0, 0, 1, 0xff, 0, 0, 0, 0]).is_err());
        assert!(HeaderDecoder::new().decode(b"not zlib at all").is_err());
        assert!(HeaderDecoder::new().decode(b"").is_err());
    }
}
