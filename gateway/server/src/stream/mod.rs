//! Logs, exec, attach and port-forward: requests about a Pod that its node's worker answers.

mod proxy;
mod target;

use axum::response::Response;
use carob_api::status::Status;
use hyper::upgrade::OnUpgrade;

use crate::call::Call;

/// What is streamed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    Log,
    Exec,
    Attach,
    PortForward,
}

impl Stream {
    /// By the subresource.
    pub fn of(subresource: &str) -> Option<Self> {
        match subresource {
            "log" => Some(Self::Log),
            "exec" => Some(Self::Exec),
            "attach" => Some(Self::Attach),
            "portforward" => Some(Self::PortForward),
            _ => None,
        }
    }
}

/// Finds the Pod's node and lets its worker answer.
pub(crate) async fn answer(call: &Call, stream: Stream, upgrade: Option<OnUpgrade>) -> Result<Response, Status> {
    let Some(target) = target::resolve(call, stream).await? else {
        // A log of a Pod that is on no node yet: there is nothing to show, which isn't a mistake.
        return Ok(proxy::no_content());
    };
    match stream {
        Stream::Log => proxy::fetch(call, &target).await,
        _ => proxy::tunnel(call, &target, upgrade).await,
    }
}
