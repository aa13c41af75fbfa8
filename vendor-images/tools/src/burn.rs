//! Users of processor time, memory and disk that say what they used.

use std::fs::File;
use std::hint::black_box;
use std::io::{self, Write};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;

/// Keeps `cores` threads busy for `wall` time or until the process used `limit` of processor time.
pub fn cpu(wall: Duration, limit: Option<Duration>, cores: usize) -> io::Result<()> {
    let start = Instant::now();
    thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(|| {
                while start.elapsed() < wall && limit.is_none_or(|limit| used() < limit) {
                    let mut sum = 1_u64;
                    for i in 0..100_000_u64 {
                        sum = black_box(sum.wrapping_mul(i | 1).rotate_left(7));
                    }
                }
            });
        }
    });
    report(start)
}

/// Touches every page of `bytes` and keeps them for `hold`.
pub fn memory(bytes: u64, hold: Duration) -> io::Result<()> {
    let start = Instant::now();
    let size = usize::try_from(bytes).map_err(io::Error::other)?;
    let mut block = Vec::<u8>::new();
    block.try_reserve_exact(size).map_err(io::Error::other)?;
    // Not zeros, which the allocator could give without touching the pages.
    block.resize(size, 1);
    println!("holding {} bytes", black_box(&block).len());
    io::stdout().flush()?;
    thread::sleep(hold);
    drop(block);
    report(start)
}

/// Writes `bytes` of a pattern that doesn't compress to nothing.
pub fn disk(bytes: u64, path: &Path) -> io::Result<()> {
    let start = Instant::now();
    let mut block = vec![0_u8; 1 << 20];
    let mut seed = 0x9e37_79b9_u32;
    for byte in &mut block {
        seed ^= seed << 13;
        seed ^= seed >> 17;
        seed ^= seed << 5;
        *byte = seed.to_le_bytes()[0];
    }
    let mut file = File::create(path)?;
    let mut left = bytes;
    while left > 0 {
        let part = usize::try_from(left).map_or(block.len(), |left| left.min(block.len()));
        file.write_all(&block[..part])?;
        left -= part as u64;
    }
    file.sync_all()?;
    report(start)
}

fn used() -> Duration {
    getrusage(UsageWho::RUSAGE_SELF).map_or(Duration::ZERO, |usage| {
        let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
        Duration::from_micros(micros.unsigned_abs())
    })
}

fn report(start: Instant) -> io::Result<()> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    println!(
        "{{\"user_us\":{},\"system_us\":{},\"max_rss_kib\":{},\"wall_us\":{}}}",
        usage.user_time().num_microseconds(),
        usage.system_time().num_microseconds(),
        usage.max_rss(),
        start.elapsed().as_micros()
    );
    Ok(())
}
