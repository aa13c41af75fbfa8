//! One start of one container: image, configuration, sandbox.

use super::prepare::{Sandbox, facts};
use crate::container::build::{ContainerPaths, Inputs, build, remove_directory};
use crate::container::signal::StopSignal;
use crate::container::{env, resources};
use crate::context::Context;
use crate::errors::chain;
use crate::events::{About, Severity};
use crate::images;
use crate::metrics::StartLatency;
use crate::observer::{ContainerRequests, Identity, ObservedContainer};
use crate::volumes::MountedVolume;
use carob_image::Image;
use carob_sandbox::{ContainerId, User};
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, ResourceRequirements};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;
use tokio_util::sync::CancellationToken;

/// A container that runs.
#[derive(Debug)]
pub(super) struct StartedContainer {
    pub id: ContainerId,
    /// `image` of the spec that it was started from.
    pub image: Option<String>,
    /// `resources` that its cgroup was given.
    pub resources: Option<ResourceRequirements>,
    pub observed: ObservedContainer,
    pub paths: ContainerPaths,
    pub stop_signal: StopSignal,
    pub user: User,
    /// The image's reference and `imageID`.
    pub resolved: (String, String),
    pub pulled: bool,
}

/// Why a container doesn't run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum StartFailure {
    /// Waiting: the image isn't here.
    Image { image: String, reason: String, message: String },
    /// Waiting: the configuration cannot be carried out.
    Config { message: String },
    /// Waiting: the sandbox could not make the container.
    Create { message: String },
    /// Waiting: users of the pod's own don't do.
    Users { message: String },
    /// Ended at once: the program cannot be started.
    Program { message: String, code: i32 },
    /// The pod is being stopped.
    Cancelled,
}

/// What a start needs.
pub(super) struct Start {
    pub ctx: Arc<Context>,
    pub pod: Arc<Pod>,
    pub container: Container,
    /// The container whose PID namespace it joins, or why that cannot be.
    pub target: Option<Result<ContainerId, String>>,
    pub attempt: u32,
    pub sandbox: Sandbox,
    pub volumes: Arc<HashMap<String, MountedVolume>>,
    pub cancel: CancellationToken,
    pub latency: StartLatency,
}

/// Keys of a container's annotations in the sandbox.
pub(super) const CONTAINER: &str = "container";
pub(super) const ATTEMPT: &str = "attempt";
pub(super) const IMAGE: &str = "image";
/// `image` as the spec named it.
pub(super) const SPEC_IMAGE: &str = "specImage";
pub(super) const IMAGE_ID: &str = "imageId";
pub(crate) const STOP_SIGNAL: &str = "stopSignal";
pub(crate) const IDENTITY: &str = "identity";
pub(super) const USER: &str = "user";

/// Starts the container. Cancelling is heeded until the sandbox is asked: from then on the answer is awaited, so that no
/// container runs that nobody knows.
pub(super) async fn start(start: Start) -> Result<StartedContainer, StartFailure> {
    let Start { ctx, pod, container, target, attempt, sandbox, volumes, cancel, latency } = &start;
    let meta = &pod.metadata;
    let (namespace, name) = (meta.namespace.as_deref().unwrap_or_default(), meta.name.as_deref().unwrap_or_default());
    let uid = meta.uid.as_deref().unwrap_or_default();
    let about = || About::container(pod, &container.name);

    let begin = Instant::now();
    let ready = tokio::select! {
        biased;
        () = cancel.cancelled() => return Err(StartFailure::Cancelled),
        ready = images::ensure(ctx, pod, container) => ready,
    };
    let ready = ready.map_err(|failure| not_there(container, failure))?;
    latency.stage(&ctx.metrics, if ready.pulled.is_some() { "image pull" } else { "image" }, begin);

    let begin = Instant::now();
    let image = &ready.image;
    let config_error = |message: String| {
        ctx.events.record(about(), Severity::Warning, "Failed", format!("Error: {message}"));
        StartFailure::Config { message }
    };
    let image_volumes = image_volumes(ctx, pod, container).await?;
    let target = target.clone().transpose().map_err(config_error)?;
    let needs = pod.spec.as_ref().map(|spec| env::needs(spec, container)).unwrap_or_default();
    let objects = ctx.objects(namespace, &needs).await.map_err(config_error)?;
    let id = ContainerId::random().map_err(|error| StartFailure::Create { message: chain(&error) })?;
    let paths = ContainerPaths::new(ctx, namespace, name, uid, &container.name, *attempt);
    let resolved = (image.reference.clone(), image.repo_digest());
    let own_signal = container.lifecycle.as_ref().and_then(|lifecycle| lifecycle.stop_signal.as_deref());
    let stop_signal = StopSignal::read(own_signal.or(image.config.stop_signal.as_deref()));
    let identity = Identity {
        pod_uid: uid.to_owned(),
        namespace: namespace.to_owned(),
        pod: name.to_owned(),
        container: container.name.clone(),
        attempt: *attempt,
        labels: meta.labels.clone().unwrap_or_default(),
        node: ctx.node.clone(),
        requests: pod.spec.as_ref().map(|spec| observed_requests(spec, container)).unwrap_or_default(),
    };
    let annotations = [
        (IDENTITY, serde_json::to_string(&identity).unwrap_or_default()),
        (CONTAINER, container.name.clone()),
        (ATTEMPT, attempt.to_string()),
        (IMAGE, resolved.0.clone()),
        (SPEC_IMAGE, container.image.clone().unwrap_or_default()),
        (IMAGE_ID, resolved.1.clone()),
        (STOP_SIGNAL, stop_signal.name.clone()),
    ];
    let mut config = build(
        &ctx.cluster,
        ctx.dirs.seccomp(),
        Inputs {
            id: id.clone(),
            facts: facts(ctx, pod, sandbox.address),
            container,
            pid_of: target,
            image,
            image_volumes: &image_volumes,
            objects: &objects,
            volumes,
            files: &sandbox.files,
            hostname: &sandbox.hostname,
            annotations: annotations.map(|(key, value)| (key.to_owned(), value)).into(),
        },
        &paths,
    )
    .map_err(|error| config_error(error.0))?;
    let user = config.user.clone();
    config.annotations.insert(USER.to_owned(), serde_json::to_string(&user).unwrap_or_default());
    latency.stage(&ctx.metrics, "container config", begin);
    if cancel.is_cancelled() {
        return Err(StartFailure::Cancelled);
    }

    let begin = Instant::now();
    // The image's layers are kept from here on by a file as well as by `image`; writing it takes as long as a start.
    let images: Vec<&Image> = std::iter::once(image).chain(image_volumes.values()).collect();
    let (held, started) = tokio::join!(ctx.images.hold_all(id.as_str(), &images), ctx.runtime.start_container(config));
    if let Err(error) = held {
        tracing::warn!(%id, error = error.describe(), "a running container's image could not be held");
    }
    let started = match started {
        Ok(started) => started,
        Err(error) => {
            if let Err(error) = ctx.images.release(id.as_str()).await {
                tracing::warn!(error = error.describe(), "an image could not be released");
            }
            return Err(match error {
                carob_sandbox::Error::Start { message, exit_code } => {
                    ctx.events.record(about(), Severity::Normal, "Created", CREATED.to_owned());
                    ctx.events.record(about(), Severity::Warning, "Failed", format!("Error: {message}"));
                    // The next try is another attempt, with a directory of its own.
                    remove_directory(&paths.directory);
                    paths.remove_old_logs(*attempt);
                    StartFailure::Program { message, code: exit_code }
                }
                carob_sandbox::Error::Users(message) => {
                    // Made for users that the next try may not have.
                    remove_directory(&paths.directory);
                    StartFailure::Users { message }
                }
                other => {
                    let message = chain(&other);
                    ctx.events.record(about(), Severity::Warning, "Failed", format!("Error: {message}"));
                    StartFailure::Create { message }
                }
            });
        }
    };
    latency.stage(&ctx.metrics, "container start", begin);
    for (stage, took) in &started.stages {
        latency.took(&ctx.metrics, &format!("sandbox: {stage}"), begin, *took);
    }
    ctx.events.record(about(), Severity::Normal, "Created", CREATED.to_owned());
    ctx.events.record(about(), Severity::Normal, "Started", "Container started".to_owned());
    for warning in started.warnings {
        if warning.starts_with("oom_score_adj") {
            // The same for every pod of this machine; `carob check` says so once.
            tracing::debug!(container = container.name, warning, "degraded");
            continue;
        }
        ctx.events.record(about(), Severity::Warning, "Degraded", warning);
    }
    let observed = identity.observed(id.as_str(), started.started_at, started.cgroup);
    let (image, pulled) = (container.image.clone(), ready.pulled.is_some());
    let resources = container.resources.clone();
    Ok(StartedContainer { id, image, resources, observed, paths, stop_signal, user, resolved, pulled })
}

/// The images that the container's volumes show, by the volume's name.
async fn image_volumes(
    ctx: &Context,
    pod: &Pod,
    container: &Container,
) -> Result<HashMap<String, Image>, StartFailure> {
    let mut found = HashMap::new();
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    for volume in volumes {
        let Some(source) = &volume.image else { continue };
        if !container.volume_mounts.iter().flatten().any(|mount| mount.name == volume.name) {
            continue;
        }
        let shown = Container {
            name: container.name.clone(),
            image: source.reference.clone(),
            image_pull_policy: source.pull_policy.clone(),
            ..Container::default()
        };
        let ready = images::ensure(ctx, pod, &shown).await.map_err(|failure| not_there(&shown, failure))?;
        found.insert(volume.name.clone(), ready.image);
    }
    Ok(found)
}

/// Why the image isn't there: the container's own, or that of a volume of it, which `wanting` has in its place.
fn not_there(wanting: &Container, failure: images::ImageFailure) -> StartFailure {
    let image = wanting.image.clone().unwrap_or_default();
    StartFailure::Image { image, reason: failure.reason, message: failure.message }
}

/// What the event `Created` says.
const CREATED: &str = "Container created";

/// What billing calls requests.
pub(super) fn observed_requests(spec: &PodSpec, container: &Container) -> ContainerRequests {
    let requests = resources::held_requests(spec, container);
    ContainerRequests {
        cpu_millis: requests.cpu_millis.max(0).unsigned_abs(),
        memory_bytes: requests.memory_bytes.max(0).unsigned_abs(),
    }
}
