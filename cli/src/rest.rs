//! A gateway that rests holds little: once a storm is over, also that of the start, it gives back what only that needed.

use std::time::Duration;

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike as _;
use tokio_util::sync::CancellationToken;

use crate::memory;

/// How often it looks whether it rests.
const LOOK: Duration = Duration::from_secs(3);
/// It rests if less of a core is used in between.
const AT_REST: Duration = Duration::from_millis(60);

/// Until the end.
pub async fn run(stop: CancellationToken) {
    let mut before = used();
    while tokio::time::timeout(LOOK, stop.cancelled()).await.is_err() {
        let now = used();
        // What comes round every few seconds brings much of the program back each time.
        if now.saturating_sub(before) < AT_REST {
            let given = tokio::task::spawn_blocking(|| {
                memory::give_back();
                carob_sandbox::give_back();
            });
            if let Err(error) = given.await {
                tracing::warn!(%error, "memory is not given back");
            }
        }
        before = used();
    }
}

/// CPU time of this process.
fn used() -> Duration {
    let Ok(usage) = getrusage(UsageWho::RUSAGE_SELF) else { return Duration::ZERO };
    let microseconds = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    Duration::from_micros(microseconds.unsigned_abs())
}
