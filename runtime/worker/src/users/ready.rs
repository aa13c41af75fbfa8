//! What a pod with users of its own begins in: its users, the namespaces that they own, and a link to the network. A few are
//! made ahead of need, because each takes the kernel as long as the rest of a pod's sandbox.

use super::Ranges;
use crate::context::Context;
use crate::errors::chain;
use carob_network::Link;
use carob_sandbox::{Runtime, UserNamespaces, UserRange};
use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// How many wait ready.
const TARGET: usize = 8;
/// How many plain networks wait for the pods that have the machine's users.
const OTHERS: usize = 2;
/// With this many left, the next is made when the pod that took the last one has most likely started.
const FEW: usize = 4;
const LATER: Duration = Duration::from_millis(30);
/// Between two tries when the kernel refuses.
const PAUSE: Duration = Duration::from_secs(1);

/// What a pod's sandbox is made of.
#[derive(Debug)]
pub(crate) struct Home {
    pub range: UserRange,
    pub namespaces: UserNamespaces,
    pub link: Link,
}

/// Those that are ready.
#[derive(Debug, Default)]
pub(crate) struct Homes {
    ready: Mutex<VecDeque<Home>>,
    taken: Notify,
}

impl Homes {
    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<Home>> {
        // A panic of another holder leaves a queue that is still right.
        self.ready.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One that is ready, or made now.
    pub async fn take(&self, ctx: &Context) -> Result<Home, String> {
        let ready = self.lock().pop_front();
        self.taken.notify_one();
        match ready {
            Some(home) => Ok(home),
            None => make(ctx).await,
        }
    }

    fn count(&self) -> usize {
        self.lock().len()
    }
}

/// Keeps some ready, where most pods have users of their own, and otherwise plain networks.
pub(crate) async fn keep(ctx: &Context, shutdown: CancellationToken) {
    if !ctx.own_users {
        ctx.network.fill_pool(TARGET);
        return;
    }
    ctx.network.fill_pool(OTHERS);
    shutdown.run_until_cancelled(keep_homes(ctx)).await;
}

async fn keep_homes(ctx: &Context) {
    loop {
        while ctx.homes.count() < TARGET {
            match make(ctx).await {
                Ok(home) => ctx.homes.lock().push_back(home),
                Err(message) => {
                    tracing::warn!(message, "nothing can be made ready for the next pod");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
        ctx.homes.taken.notified().await;
        if ctx.homes.count() >= FEW {
            tokio::time::sleep(LATER).await;
        }
    }
}

async fn make(ctx: &Context) -> Result<Home, String> {
    let failed = |error: &dyn std::error::Error| format!("failed to make the pod's user namespace: {}", chain(error));
    let (range, namespaces) = ctx.ranges.make(&ctx.runtime).await.map_err(|error| failed(&error))?;
    let net = namespaces.net.try_clone().map_err(|error| failed(&error))?;
    let link = ctx.network.link(net).await;
    let link = link.map_err(|error| format!("failed to set up the pod's network: {}", chain(&error)))?;
    Ok(Home { range, namespaces, link })
}

/// Whether pods can have users of their own here: the kernel makes them, and these directories' file systems can show files
/// as theirs.
pub(crate) async fn possible(runtime: &Runtime, ranges: &Ranges, directories: [&Path; 2]) -> Result<(), String> {
    let (_, made) = ranges.make(runtime).await.map_err(|error| chain(&error))?;
    directories.into_iter().try_for_each(|directory| {
        let shown = carob_sandbox::show_as(directory, &made);
        shown.map_err(|error| format!("{}: {error}", directory.display()))
    })
}
