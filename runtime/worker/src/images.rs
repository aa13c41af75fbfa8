//! Brings a container's image here as its pull policy says, with the pod's credentials and the kubelet's events.

use crate::context::Context;
use crate::events::{About, Severity};
use carob_image::{Credential, Image, docker_config_json};
use k8s_openapi::api::core::v1::{Container, Pod};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio_util::task::AbortOnDropHandle;

/// Why an image isn't here: `reason` and `message` of the waiting container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ImageFailure {
    pub reason: String,
    pub message: String,
}

/// An image, and how long pulling it took where it was pulled.
pub(crate) struct Ready {
    pub image: Image,
    pub pulled: Option<Duration>,
}

/// `imagePullPolicy`, with the API's default for what it left out.
fn policy(container: &Container) -> &str {
    match container.image_pull_policy.as_deref() {
        Some(policy) if !policy.is_empty() => policy,
        _ => {
            let image = container.image.as_deref().unwrap_or_default();
            let last = image.rsplit('/').next().unwrap_or_default();
            let latest = !image.contains('@') && last.split_once(':').is_none_or(|(_, tag)| tag == "latest");
            if latest { "Always" } else { "IfNotPresent" }
        }
    }
}

/// The image of a container, pulled if need be.
pub(crate) async fn ensure(ctx: &Context, pod: &Pod, container: &Container) -> Result<Ready, ImageFailure> {
    let name = container.image.as_deref().unwrap_or_default();
    let about = || About::container(pod, &container.name);
    let policy = policy(container);
    if policy != "Always" {
        match ctx.images.get(name).await {
            Ok(Some(image)) if image.is_for(&[]) || image.is_for(&credentials(ctx, pod).await) => {
                let text =
                    format!("Container image \"{name}\" already present on machine and can be accessed by the pod");
                ctx.events.record(about(), Severity::Normal, "Pulled", text);
                return Ok(Ready { image, pulled: None });
            }
            // Who could not have pulled it isn't told that it is here.
            Ok(_) => {}
            Err(error) if error.reason() == "InvalidImageName" => return Err(refused(ctx, about(), &error, name)),
            Err(error) => tracing::warn!(image = name, error = error.describe(), "the image store could not be read"),
        }
    }
    if policy == "Never" {
        let message = format!("Container image \"{name}\" is not present with pull policy of Never");
        ctx.events.record(about(), Severity::Warning, "ErrImageNeverPull", message.clone());
        ctx.events.record(about(), Severity::Warning, "Failed", "Error: ErrImageNeverPull".to_owned());
        return Err(ImageFailure { reason: "ErrImageNeverPull".to_owned(), message });
    }
    pull(ctx, pod, container, name).await
}

async fn pull(ctx: &Context, pod: &Pod, container: &Container, name: &str) -> Result<Ready, ImageFailure> {
    let about = || About::container(pod, &container.name);
    ctx.events.record(about(), Severity::Normal, "Pulling", format!("Pulling image \"{name}\""));
    let started = Instant::now();
    let mut credentials = credentials(ctx, pod).await;
    credentials.extend(ctx.credential_providers.credentials(name).await);
    match fetch(ctx, name, credentials).await {
        Ok(image) => {
            let took = started.elapsed();
            let shown = go_duration(took);
            let text = format!(
                "Successfully pulled image \"{name}\" in {shown} ({shown} including waiting). Image size: {} bytes.",
                image.size
            );
            ctx.events.record(about(), Severity::Normal, "Pulled", text);
            Ok(Ready { image, pulled: Some(took) })
        }
        Err(error) => Err(refused(ctx, about(), &error, name)),
    }
}

/// Registries are looked for in the machine's network, wherever this worker is.
async fn fetch(ctx: &Context, name: &str, credentials: Vec<Credential>) -> Result<Image, carob_image::Error> {
    if Handle::current().id() == ctx.machine_network.id() {
        return ctx.images.pull(name, &credentials, &()).await;
    }
    let (images, reference) = (ctx.images.clone(), name.to_owned());
    let pull = ctx.machine_network.spawn(async move { images.pull(&reference, &credentials, &()).await });
    match AbortOnDropHandle::new(pull).await {
        Ok(outcome) => outcome,
        Err(panic) => std::panic::resume_unwind(panic.try_into_panic().unwrap_or_else(|_| Box::new("cancelled"))),
    }
}

fn refused(ctx: &Context, about: About, error: &carob_image::Error, name: &str) -> ImageFailure {
    let reason = error.reason();
    if reason == "InvalidImageName" {
        ctx.events.record(about.clone(), Severity::Warning, "InspectFailed", error.describe());
    } else {
        ctx.events.record(about.clone(), Severity::Warning, "Failed", error.event(name));
    }
    ctx.events.record(about, Severity::Warning, "Failed", format!("Error: {reason}"));
    ImageFailure { reason: reason.to_owned(), message: error.describe() }
}

/// The pod's pull secrets; those that are missing or malformed are passed over with an event, as the kubelet does.
async fn credentials(ctx: &Context, pod: &Pod) -> Vec<Credential> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let mut all = Vec::new();
    for reference in pod.spec.iter().flat_map(|spec| spec.image_pull_secrets.iter().flatten()) {
        let Ok(Some(secret)) = ctx.secret(namespace, &reference.name).await else {
            let text = format!(
                "Unable to retrieve some image pull secrets ({}); attempting to pull the image may not succeed.",
                reference.name
            );
            ctx.events.record(About::pod(pod), Severity::Warning, "FailedToRetrieveImagePullSecret", text);
            continue;
        };
        let data = secret.data.unwrap_or_default();
        let Some(json) = data.get(".dockerconfigjson").or_else(|| data.get(".dockercfg")) else { continue };
        match docker_config_json(&json.0) {
            Ok(credentials) => all.extend(credentials),
            Err(error) => {
                tracing::debug!(secret = reference.name, error = error.describe(), "a pull secret is passed over");
            }
        }
    }
    all
}

/// A duration as Go prints it, to the millisecond: `1.234s`, `56ms`, `2m3.4s`.
fn go_duration(duration: Duration) -> String {
    let millis = duration.as_millis();
    if millis < 1000 {
        return format!("{millis}ms");
    }
    let (minutes, rest) = (millis / 60_000, millis % 60_000);
    let mut seconds = format!("{}.{:03}", rest / 1000, rest % 1000);
    seconds.truncate(seconds.trim_end_matches('0').trim_end_matches('.').len());
    if minutes > 0 { format!("{minutes}m{seconds}s") } else { format!("{seconds}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policy_defaults_by_tag() {
        let container = |image: &str| Container { image: Some(image.into()), ..Container::default() };
        for (image, expected) in [
            ("nginx", "Always"),
            ("nginx:latest", "Always"),
            ("localhost:5000/nginx", "Always"),
            ("nginx:1.25", "IfNotPresent"),
            ("nginx@sha256:00", "IfNotPresent"),
        ] {
            assert_eq!(policy(&container(image)), expected, "{image}");
        }
    }

    #[test]
    fn durations_look_like_gos() {
        for (millis, expected) in [(56, "56ms"), (1234, "1.234s"), (2000, "2s"), (123_400, "2m3.4s")] {
            assert_eq!(go_duration(Duration::from_millis(millis)), expected);
        }
    }
}
