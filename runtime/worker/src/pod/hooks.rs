//! Lifecycle hooks: postStart after a container's start, preStop before its end.

use super::probe::{self, Outcome};
use super::stop::grace;
use crate::context::Context;
use carob_sandbox::ContainerId;
use k8s_openapi::api::core::v1::{Container, LifecycleHandler};
use std::net::IpAddr;
use std::time::Duration;

/// Runs a hook to its end. The error is one line for the event.
pub(super) async fn run(
    ctx: &Context,
    hook: &LifecycleHandler,
    container: &Container,
    id: &ContainerId,
    pod_ip: Option<IpAddr>,
) -> Result<(), String> {
    // The grace period bounds a preStop, and nothing a postStart, as in Kubernetes.
    let timeout = Duration::from_secs(24 * 3600);
    let outcome = if let Some(exec) = &hook.exec {
        probe::command(ctx, id, exec.command.as_deref().unwrap_or_default(), timeout).await
    } else if let Some(action) = &hook.http_get {
        probe::http_get(action, container, pod_ip, Duration::from_secs(60)).await
    } else if let Some(sleep) = &hook.sleep {
        tokio::time::sleep(grace(sleep.seconds)).await;
        Outcome::Success
    } else {
        Outcome::Unknown("invalid handler: no action is set".to_owned())
    };
    match outcome {
        Outcome::Success | Outcome::Warning(_) => Ok(()),
        Outcome::Failure(message) | Outcome::Unknown(message) => Err(message),
    }
}
