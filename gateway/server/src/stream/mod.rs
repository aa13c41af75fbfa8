//! Logs, exec, attach and port-forward: requests about a Pod that its node's worker answers.

mod messages;
mod proxy;
mod socket;
mod target;

pub(crate) use socket::Socket;

use axum::response::Response;
use carob_api::status::Status;
use hyper::upgrade::OnUpgrade;
use serde_json::{Value, json};

use crate::call::Call;
use crate::query::Query;
use crate::{admission, authz};

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

impl Stream {
    fn name(self) -> &'static str {
        match self {
            Self::Log => "log",
            Self::Exec => "exec",
            Self::Attach => "attach",
            Self::PortForward => "portforward",
        }
    }

    /// What the client asks for, as an object.
    fn options(self, query: &Query) -> Value {
        let flag = |name: &str| query.is_set(name);
        match self {
            Self::Log => Value::Null,
            Self::Exec | Self::Attach => {
                let kind = if self == Self::Exec { "PodExecOptions" } else { "PodAttachOptions" };
                let mut options = json!({ "kind": kind, "apiVersion": "v1" });
                for name in ["stdin", "stdout", "stderr", "tty"].into_iter().filter(|name| flag(name)) {
                    options[name] = true.into();
                }
                if let Some(container) = query.text("container") {
                    options["container"] = container.into();
                }
                if self == Self::Exec {
                    options["command"] = query.all("command").into();
                }
                options
            }
            Self::PortForward => json!({ "kind": "PodPortForwardOptions", "apiVersion": "v1" }),
        }
    }
}

/// Finds the Pod's node and lets its worker answer.
pub(crate) async fn answer(call: &Call, stream: Stream, upgrade: Option<OnUpgrade>) -> Result<Response, Status> {
    if stream != Stream::Log {
        authz::confirm_create(call, stream.name()).await?;
    }
    let Some(target) = target::resolve(call, stream).await? else {
        // A log of a Pod that is on no node yet: there is nothing to show, which isn't a mistake.
        return Ok(proxy::no_content());
    };
    if stream != Stream::Log {
        let options = stream.options(&call.query);
        admission::review(&mut admission::Request::connect(call, stream.name(), options)).await?;
    }
    match stream {
        Stream::Log => {
            let socket = Socket::for_log(&call.headers, upgrade)?;
            let answer = proxy::fetch(call, &target).await?;
            Ok(match socket {
                Some(socket) => socket.send(answer, call.server.stopping.clone()),
                None => answer,
            })
        }
        _ => proxy::tunnel(call, &target, upgrade).await,
    }
}
