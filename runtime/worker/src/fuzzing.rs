//! What the fuzz targets (`tests/fuzz`) reach of this crate, and what nobody else should use.

use crate::http::spdy::Connection;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Feeds bytes to the server's side of SPDY, reads the streams that come of it, and gives the number of bytes that it
/// answered.
pub fn spdy(bytes: &[u8]) -> usize {
    /// Bytes that are on their way in either direction.
    const PIPE: usize = 64 << 10;
    /// So long a connection may stand still: a test for hangs, not for speed.
    const PATIENCE: Duration = Duration::from_secs(20);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let (near, far) = tokio::io::duplex(PIPE);
        let mut connection = Connection::serve(near);
        let (mut from, mut to) = tokio::io::split(far);
        let feed = async {
            // The other side may hang up early.
            let _ = to.write_all(bytes).await;
            let _ = to.shutdown().await;
        };
        let streams = async {
            let mut readers = tokio::task::JoinSet::new();
            while let Some(mut stream) = connection.accept().await {
                readers.spawn(async move { while let Ok(Some(_)) = stream.reader.read().await {} });
            }
            connection.close().await;
            readers.abort_all();
        };
        let answers = async {
            let mut answered = Vec::new();
            let _ = from.read_to_end(&mut answered).await;
            answered.len()
        };
        let all = async { tokio::join!(feed, streams, answers).2 };
        tokio::time::timeout(PATIENCE, all).await.expect("the connection ends with its client")
    })
}
