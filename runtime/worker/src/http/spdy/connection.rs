//! One connection: a task that reads frames and hands them to their streams, a task that writes what streams send.

use super::ProtocolError;
use super::frame::{self, CONTROL_MAX, Control, HEAD, Head, status};
use super::headers::{HeaderDecoder, HeaderEncoder, Headers};
use bytes::Bytes;
use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Weak};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::{CancellationToken, DropGuard};

/// Open streams of one connection; a port-forward needs two per connection through it.
const STREAMS_MAX: usize = 256;
/// What is read and sent at once, in bytes.
const PIECE: usize = 16 * 1024;
/// Pieces that wait in one stream until somebody reads them.
const PIECES_MAX: usize = 8;
/// Frames that wait to be written.
const FRAMES_MAX: usize = 16;
/// A reader tells the other side of new room when it has taken this many bytes.
const WINDOW_STEP: u32 = 32 * 1024;

/// A connection that clients open streams on. Dropping it closes it, after what was sent before.
pub(crate) struct Connection {
    accepted: mpsc::Receiver<Stream>,
    gone: CancellationToken,
    writer: tokio::task::JoinHandle<()>,
    frames: mpsc::Sender<Outgoing>,
    _close: DropGuard,
}

/// A stream that the client has opened, and that is answered.
pub(crate) struct Stream {
    pub headers: Headers,
    pub reader: StreamReader,
    pub writer: StreamWriter,
}

/// What the client sends on a stream.
pub(crate) struct StreamReader {
    id: u32,
    pieces: mpsc::Receiver<Bytes>,
    reset: CancellationToken,
    frames: mpsc::Sender<Outgoing>,
    taken: u32,
    _room: Arc<OwnedSemaphorePermit>,
}

/// What this side sends on a stream. Dropping it doesn't end the stream: [`StreamWriter::finish`] does.
pub(crate) struct StreamWriter {
    id: u32,
    reset: CancellationToken,
    frames: mpsc::Sender<Outgoing>,
    _room: Arc<OwnedSemaphorePermit>,
}

enum Outgoing {
    Frame(Vec<u8>),
    Reply(u32),
}

impl Connection {
    /// Serves a client on these bytes.
    pub fn serve<T: AsyncRead + AsyncWrite + Send + 'static>(io: T) -> Self {
        let (read_half, write_half) = tokio::io::split(io);
        let (frames, outgoing) = mpsc::channel(FRAMES_MAX);
        let (streams, accepted) = mpsc::channel(PIECES_MAX);
        let (gone, close) = (CancellationToken::new(), CancellationToken::new());
        let last = Arc::new(AtomicU32::new(0));
        let writer = tokio::spawn(write(write_half, outgoing, close.clone(), last.clone()));
        let reader = Reader {
            streams: HashMap::new(),
            last,
            room: Arc::new(Semaphore::new(STREAMS_MAX)),
            decoder: HeaderDecoder::new(),
            accepted: streams,
            frames: frames.clone(),
        };
        let (ended, stop) = (gone.clone(), close.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = reader.run(read_half) => {}
            }
            ended.cancel();
        });
        Self { accepted, gone, writer, frames, _close: close.drop_guard() }
    }

    /// The next stream that the client opens; `None` when it has gone.
    pub async fn accept(&mut self) -> Option<Stream> {
        self.accepted.recv().await
    }

    /// Cancelled when the client has gone, or broken the protocol.
    pub fn gone(&self) -> CancellationToken {
        self.gone.clone()
    }

    /// Says goodbye and waits until everything that was sent has been written.
    pub async fn close(self) {
        let Self { writer, frames, _close: close, .. } = self;
        drop((close, frames));
        // It has nothing to report: a client that has gone takes nothing.
        let _ended = writer.await;
    }
}

impl StreamReader {
    /// The next bytes; `None` at their end, an error when the client has given the stream up.
    pub async fn read(&mut self) -> io::Result<Option<Bytes>> {
        let piece = tokio::select! {
            biased;
            piece = self.pieces.recv() => piece,
            () = self.reset.cancelled() => return Err(io::ErrorKind::ConnectionReset.into()),
        };
        if let Some(piece) = &piece {
            self.taken += u32::try_from(piece.len()).unwrap_or(0);
            if self.taken >= WINDOW_STEP {
                // Who doesn't read our frames hears of no room; nobody waits for that.
                for stream in [self.id, 0] {
                    let _full = self.frames.try_send(Outgoing::Frame(frame::window_update(stream, self.taken)));
                }
                self.taken = 0;
            }
        } else if self.reset.is_cancelled() {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        Ok(piece)
    }
}

impl StreamWriter {
    async fn say(&self, frame: Vec<u8>) -> bool {
        !self.reset.is_cancelled() && self.frames.send(Outgoing::Frame(frame)).await.is_ok()
    }

    /// Sends bytes; false when the client doesn't want them any more.
    pub async fn send(&self, bytes: &[u8]) -> bool {
        for piece in bytes.chunks(PIECE) {
            if !self.say(frame::data(self.id, piece, false)).await {
                return false;
            }
        }
        true
    }

    /// Ends this direction.
    pub async fn finish(&self) {
        self.say(frame::data(self.id, &[], true)).await;
    }

    /// Ends both directions.
    pub async fn cancel(&self) {
        self.say(frame::rst_stream(self.id, status::CANCEL)).await;
        self.reset.cancel();
    }
}

async fn write<W: AsyncWrite + Unpin>(
    mut io: W,
    mut outgoing: mpsc::Receiver<Outgoing>,
    close: CancellationToken,
    last: Arc<AtomicU32>,
) {
    let mut encoder = HeaderEncoder::default();
    loop {
        let next = tokio::select! {
            biased;
            next = outgoing.recv() => next,
            () = close.cancelled() => outgoing.try_recv().ok(),
        };
        let frame = match next {
            Some(Outgoing::Frame(frame)) => frame,
            Some(Outgoing::Reply(stream)) => frame::syn_reply(stream, &encoder.encode(&Headers::default())),
            None => break,
        };
        if io.write_all(&frame).await.is_err() || (outgoing.is_empty() && io.flush().await.is_err()) {
            return;
        }
    }
    // The other side may have gone first.
    let _gone = io.write_all(&frame::go_away(last.load(Ordering::Relaxed), status::OK)).await;
    let _gone = io.shutdown().await;
}

/// A stream as the reading task knows it.
struct Known {
    /// `None` when the client has ended its direction.
    pieces: Option<mpsc::Sender<Bytes>>,
    reset: CancellationToken,
    /// Whether this side still holds it.
    held: Weak<OwnedSemaphorePermit>,
}

struct Reader {
    streams: HashMap<u32, Known>,
    last: Arc<AtomicU32>,
    room: Arc<Semaphore>,
    decoder: HeaderDecoder,
    accepted: mpsc::Sender<Stream>,
    frames: mpsc::Sender<Outgoing>,
}

impl Reader {
    async fn run<R: AsyncRead + Unpin>(mut self, mut io: R) {
        let result = loop {
            match self.one(&mut io).await {
                Ok(true) => {}
                Ok(false) => break None,
                Err(error) => break Some(error),
            }
        };
        if let Some(ProtocolError(error)) = result {
            tracing::debug!(error, "a SPDY connection ends");
            let last = self.last.load(Ordering::Relaxed);
            self.say(frame::go_away(last, status::PROTOCOL_ERROR)).await;
        }
        for known in self.streams.values() {
            known.reset.cancel();
        }
    }

    async fn say(&self, frame: Vec<u8>) {
        // The writer has ended when the connection has.
        let _ended = self.frames.send(Outgoing::Frame(frame)).await;
    }

    /// Reads one frame; false at the end of the connection.
    async fn one<R: AsyncRead + Unpin>(&mut self, io: &mut R) -> Result<bool, ProtocolError> {
        let mut head = [0; HEAD];
        if io.read_exact(&mut head).await.is_err() {
            return Ok(false);
        }
        match Head::parse(head)? {
            Head::Data { stream, fin, length } => self.data(io, stream, fin, length).await,
            Head::Control { kind, flags, length } => {
                debug_assert!(length <= CONTROL_MAX);
                let mut content = vec![0; length];
                if io.read_exact(&mut content).await.is_err() {
                    return Ok(false);
                }
                self.control(frame::parse(kind, flags, &content)?).await
            }
        }
    }

    async fn data<R: AsyncRead + Unpin>(
        &mut self,
        io: &mut R,
        stream: u32,
        fin: bool,
        mut length: usize,
    ) -> Result<bool, ProtocolError> {
        if stream == 0 || stream.is_multiple_of(2) || stream > self.last.load(Ordering::Relaxed) {
            return Err(ProtocolError("data of a stream that was never opened"));
        }
        let sender = self.streams.get(&stream).and_then(|known| known.pieces.clone());
        if sender.is_none() {
            // Ended by both sides, or refused: what was under way is let through to nobody.
            self.say(frame::rst_stream(stream, status::INVALID_STREAM)).await;
        }
        while length > 0 {
            let mut piece = vec![0; length.min(PIECE)];
            if io.read_exact(&mut piece).await.is_err() {
                return Ok(false);
            }
            length -= piece.len();
            if let Some(sender) = &sender {
                // Nobody reads it any more: the client learns that from the stream's other direction.
                let _unread = sender.send(piece.into()).await;
            }
        }
        if fin {
            self.end(stream);
        }
        Ok(true)
    }

    /// The client ends its direction.
    fn end(&mut self, stream: u32) {
        if let Some(known) = self.streams.get_mut(&stream) {
            known.pieces = None;
        }
    }

    async fn control(&mut self, control: Control<'_>) -> Result<bool, ProtocolError> {
        match control {
            Control::SynStream { stream, fin, block } => {
                let headers = self.decoder.decode(block)?;
                self.open(stream, fin, headers).await?;
            }
            Control::Headers { stream, fin, block } => {
                self.decoder.decode(block)?;
                if fin {
                    self.end(stream);
                }
            }
            Control::RstStream { stream } => {
                if let Some(known) = self.streams.remove(&stream) {
                    known.reset.cancel();
                }
            }
            // Odd ones are the client's; the others would be answers to ours, which we don't send.
            Control::Ping { id } if id % 2 == 1 => self.say(frame::ping(id)).await,
            // It opens no more streams, and closes when those that are open have ended.
            Control::Ping { .. } | Control::GoAway | Control::Other => {}
        }
        Ok(true)
    }

    async fn open(&mut self, id: u32, fin: bool, headers: Headers) -> Result<(), ProtocolError> {
        if id.is_multiple_of(2) || id <= self.last.load(Ordering::Relaxed) {
            return Err(ProtocolError("a stream whose number isn't the next"));
        }
        self.last.store(id, Ordering::Relaxed);
        self.streams.retain(|_, known| known.held.strong_count() > 0);
        let Ok(room) = self.room.clone().try_acquire_owned() else {
            self.say(frame::rst_stream(id, status::REFUSED_STREAM)).await;
            return Ok(());
        };
        let (room, reset) = (Arc::new(room), CancellationToken::new());
        let (sender, pieces) = mpsc::channel(PIECES_MAX);
        let frames = self.frames.clone();
        let reader =
            StreamReader { id, pieces, reset: reset.clone(), frames: frames.clone(), taken: 0, _room: room.clone() };
        let held = Arc::downgrade(&room);
        let writer = StreamWriter { id, reset: reset.clone(), frames, _room: room };
        let _ended = self.frames.send(Outgoing::Reply(id)).await;
        self.streams.insert(id, Known { pieces: (!fin).then_some(sender), reset, held });
        // Nobody accepts any more: the connection is being closed.
        let _closing = self.accepted.send(Stream { headers, reader, writer }).await;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::frame::tests::syn_stream;
    use super::super::headers::tests::ClientEncoder;
    use super::*;
    use std::time::Duration;
    use tokio::io::DuplexStream;

    struct Client {
        io: DuplexStream,
        encoder: ClientEncoder,
    }

    fn connect() -> (Client, Connection) {
        let (io, server) = tokio::io::duplex(64 * 1024);
        (Client { io, encoder: ClientEncoder::new() }, Connection::serve(server))
    }

    impl Client {
        async fn send(&mut self, frame: &[u8]) {
            self.io.write_all(frame).await.unwrap();
        }

        async fn open(&mut self, id: u32, headers: &[(&str, &str)]) {
            let block = self.encoder.encode(headers);
            self.send(&syn_stream(id, &block)).await;
        }

        /// The next frame: its first word, flags, and content.
        async fn next(&mut self) -> Option<(u32, u8, Vec<u8>)> {
            let mut head = [0; HEAD];
            self.io.read_exact(&mut head).await.ok()?;
            let mut content = vec![0; usize::from(head[7]) | usize::from(head[6]) << 8 | usize::from(head[5]) << 16];
            self.io.read_exact(&mut content).await.ok()?;
            Some((u32::from_be_bytes([head[0], head[1], head[2], head[3]]), head[4], content))
        }
    }

    const SYN_REPLY: u32 = 0x8003_0002;
    const RST_STREAM: u32 = 0x8003_0003;
    const PING: u32 = 0x8003_0006;
    const GOAWAY: u32 = 0x8003_0007;
    const WINDOW_UPDATE: u32 = 0x8003_0009;

    #[tokio::test]
    async fn streams_are_answered_and_carry_bytes_both_ways_until_each_side_ends_its_own() {
        let (mut client, mut connection) = connect();
        client.open(1, &[("streamType", "data")]).await;
        let mut stream = connection.accept().await.unwrap();
        assert_eq!(stream.headers.get("streamtype"), Some("data"));
        assert_eq!(client.next().await.unwrap().0, SYN_REPLY);
        client.send(&frame::data(1, b"to", false)).await;
        client.send(&frame::data(1, b"", true)).await;
        assert_eq!(stream.reader.read().await.unwrap().unwrap(), "to");
        assert!(stream.reader.read().await.unwrap().is_none());
        assert!(stream.writer.send(b"fro").await);
        stream.writer.finish().await;
        assert_eq!(client.next().await.unwrap(), (1, 0, b"fro".to_vec()));
        assert_eq!(client.next().await.unwrap(), (1, 1, vec![]));
        client.send(&frame::ping(5)).await;
        assert_eq!(client.next().await.unwrap(), (PING, 0, vec![0, 0, 0, 5]));
        tokio::join!(connection.close(), async {
            assert_eq!(client.next().await.unwrap(), (GOAWAY, 0, vec![0, 0, 0, 1, 0, 0, 0, 0]));
            assert!(client.next().await.is_none());
        });
    }

    #[tokio::test]
    async fn a_long_frame_is_read_in_pieces_and_room_is_told_of() {
        let (mut client, mut connection) = connect();
        client.open(1, &[]).await;
        let mut stream = connection.accept().await.unwrap();
        let long = vec![7; 1_000_000];
        let sender = tokio::spawn(async move {
            client.send(&frame::data(1, &long, true)).await;
            client
        });
        let mut total = 0;
        while let Some(piece) = stream.reader.read().await.unwrap() {
            assert!(piece.len() <= PIECE);
            total += piece.len();
        }
        assert_eq!(total, 1_000_000);
        let mut client = sender.await.unwrap();
        assert_eq!(client.next().await.unwrap().0, SYN_REPLY);
        assert_eq!(client.next().await.unwrap().0, WINDOW_UPDATE);
    }

    #[tokio::test]
    async fn a_stream_that_nobody_reads_holds_a_bounded_amount() {
        let (mut client, mut connection) = connect();
        client.open(1, &[]).await;
        let _unread = connection.accept().await.unwrap();
        let mut sent = 0;
        let block = vec![0; PIECE];
        while tokio::time::timeout(Duration::from_millis(200), client.send(&frame::data(1, &block, false)))
            .await
            .is_ok()
        {
            sent += block.len();
            assert!(sent < 1_000_000);
        }
    }

    #[tokio::test]
    async fn a_reset_ends_both_directions() {
        let (mut client, mut connection) = connect();
        client.open(1, &[]).await;
        let mut stream = connection.accept().await.unwrap();
        client.send(&frame::data(1, b"", true)).await;
        client.send(&frame::rst_stream(1, status::CANCEL)).await;
        while stream.reader.read().await.is_ok() {}
        assert!(!stream.writer.send(b"x").await);
        // Data that crossed it is answered, and the connection goes on.
        client.send(&frame::data(1, b"late", false)).await;
        assert_eq!(client.next().await.unwrap().0, SYN_REPLY);
        assert_eq!(client.next().await.unwrap().0, RST_STREAM);
        client.open(3, &[]).await;
        connection.accept().await.unwrap();
    }

    #[tokio::test]
    async fn more_streams_than_there_is_room_for_are_refused_until_some_end() {
        let (mut client, mut connection) = connect();
        let mut held = Vec::new();
        let last = u32::try_from(STREAMS_MAX).unwrap() * 2 + 1;
        for id in (1..last).step_by(2) {
            client.open(id, &[]).await;
            held.push(connection.accept().await.unwrap());
            assert_eq!(client.next().await.unwrap().0, SYN_REPLY);
        }
        client.open(last, &[("port", "1")]).await;
        assert_eq!(client.next().await.unwrap().0, RST_STREAM);
        held.pop();
        client.open(last + 2, &[("port", "2")]).await;
        assert_eq!(
            connection.accept().await.unwrap().headers.get("port"),
            Some("2"),
            "the refused one was unpacked too"
        );
    }

    #[tokio::test]
    async fn what_breaks_the_protocol_ends_the_connection_with_a_word() {
        let broken: [&[u8]; 7] = [
            &[0x80, 2, 0, 1, 0, 0, 0, 0],
            &[0x80, 3, 0, 1, 0, 0xff, 0xff, 0xff],
            &[0x80, 3, 0, 1, 0, 0, 0, 4, 0, 0, 0, 1],
            &syn_stream(1, b"not packed"),
            &frame::data(9, b"x", false),
            &frame::data(2, b"x", false),
            &[0x80, 3, 0, 3, 0, 0, 0, 0],
        ];
        for bytes in broken {
            let (mut client, connection) = connect();
            client.send(bytes).await;
            let (kind, _, content) = client.next().await.unwrap();
            assert_eq!((kind, content[7]), (GOAWAY, 1), "{bytes:?}");
            connection.gone().cancelled().await;
        }
        let (mut client, mut connection) = connect();
        client.open(3, &[]).await;
        connection.accept().await.unwrap();
        client.open(1, &[]).await;
        connection.gone().cancelled().await;
    }

    /// Bytes that no client would send, from a fixed seed: it neither hangs nor panics, and it ends.
    #[tokio::test]
    async fn noise_ends_a_connection_and_nothing_else() {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        for round in 0..400 {
            let (mut client, mut connection) = connect();
            let mut bytes = Vec::new();
            client.open(1, &[("streamType", "error")]).await;
            for _ in 0..random() % 12 {
                // Heads that are nearly right get further than pure noise.
                let kind = (random() % 11).to_be_bytes()[7];
                let length = (random() % 40).to_be_bytes()[7];
                if round % 2 == 0 {
                    bytes.extend([0x80, 3, 0, kind, random().to_be_bytes()[0], 0, 0, length]);
                } else {
                    bytes.extend([0, 0, 0, kind, random().to_be_bytes()[0], 0, 0, length]);
                }
                bytes.extend((0..length).map(|_| random().to_be_bytes()[3]));
            }
            let (mut reader, mut writer) = tokio::io::split(client.io);
            let everything = async {
                // It may have ended before all of it is written.
                let _ended = writer.write_all(&bytes).await;
                let _ended = writer.shutdown().await;
                let mut answer = Vec::new();
                tokio::spawn(async move { reader.read_to_end(&mut answer).await });
                while let Some(mut stream) = connection.accept().await {
                    while let Ok(Some(_)) = stream.reader.read().await {}
                }
                connection.gone().cancelled().await;
            };
            tokio::time::timeout(Duration::from_secs(10), everything).await.expect("it ends");
        }
    }
}
