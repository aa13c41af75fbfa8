//! Somebody else who uses the same Carob meanwhile, and what the gateway takes of the machine's memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use carob_tests::Carob;

use super::client::Client;

/// How long requests took.
pub struct Latencies(Vec<Duration>);

impl Latencies {
    /// The time within which nine of ten requests were answered.
    pub fn most(&self) -> Duration {
        let mut sorted = self.0.clone();
        sorted.sort();
        sorted.get(sorted.len() * 9 / 10).copied().unwrap_or_default()
    }

    /// How many there were.
    pub fn count(&self) -> usize {
        self.0.len()
    }
}

/// Reads one object again and again while `work` goes on; gives how long each reading took. The work lasts at least as
/// long as twenty readings.
pub async fn beside(client: &Client, work: impl Future<Output = ()>) -> Latencies {
    let over = Arc::new(AtomicBool::new(false));
    let reader = {
        let (client, over) = (client.clone(), Arc::clone(&over));
        tokio::spawn(async move {
            let mut connection = client.connect().await;
            let mut times = Vec::new();
            while !over.load(Ordering::Relaxed) || times.len() < 20 {
                let begin = Instant::now();
                let answer = connection.ask("GET /api/v1/namespaces/default HTTP/1.1", b"").await;
                assert_eq!(answer.status, 200, "{}", answer.body);
                times.push(begin.elapsed());
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            Latencies(times)
        })
    };
    work.await;
    over.store(true, Ordering::Relaxed);
    reader.await.expect("the neighbour was served all the time")
}

/// Bytes of the gateway's memory that are in use.
pub fn memory(carob: &Carob) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", carob.pid())).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a size");
    line.trim().trim_end_matches(" kB").trim().parse::<usize>().expect("a number") << 10
}
