//! Fetches what API volumes are made of: ConfigMaps, Secrets, the pod's own fields and service account tokens.

use super::SourceError;
use super::payload::{self, DEFAULT_MODE, Payload};
use crate::container::env::Facts;
use crate::context::Context;
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{
    ConfigMap, PodSpec, Secret, ServiceAccount, ServiceAccountTokenProjection, Volume, VolumeProjection,
};
use kube::Api;
use kube::api::PostParams;
use std::time::Duration;

/// A volume's files, and how long the tokens among them are good for.
#[derive(Debug, Default)]
pub(crate) struct Filled {
    pub payload: Payload,
    pub renew_after: Option<Duration>,
}

/// Seconds that a token lives where the spec doesn't say.
const TOKEN_SECONDS: i64 = 3600;

/// The volume's files; `None` for kinds of volumes that don't come from the API.
pub(crate) async fn payload(
    ctx: &Context,
    facts: &Facts<'_>,
    spec: &PodSpec,
    volume: &Volume,
) -> Result<Option<Filled>, SourceError> {
    let mut filled = Filled::default();
    if let Some(source) = &volume.config_map {
        let (optional, mode) = (source.optional == Some(true), source.default_mode.unwrap_or(DEFAULT_MODE));
        let map = config_map(ctx, facts, &source.name).await?;
        required(map.is_some() || optional, "configmap", &source.name)?;
        filled.payload = payload::config_map(map.as_ref(), items(source.items.as_ref()), mode, optional)?;
    } else if let Some(source) = &volume.secret {
        let name = source.secret_name.as_deref().unwrap_or_default();
        let (optional, mode) = (source.optional == Some(true), source.default_mode.unwrap_or(DEFAULT_MODE));
        let secret = secret(ctx, facts, name).await?;
        required(secret.is_some() || optional, "secret", name)?;
        filled.payload = payload::secret(secret.as_ref(), items(source.items.as_ref()), mode, optional)?;
    } else if let Some(source) = &volume.downward_api {
        let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
        filled.payload = payload::downward_api(items(source.items.as_ref()), facts, mode)?;
    } else if let Some(source) = &volume.projected {
        let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
        let parts = source.sources.iter().flatten().map(|part| projection(ctx, facts, spec, part, mode));
        for part in futures::future::join_all(parts).await {
            let part = part?;
            filled.payload.extend(part.payload);
            filled.renew_after = [filled.renew_after, part.renew_after].into_iter().flatten().min();
        }
    } else {
        return Ok(None);
    }
    Ok(Some(filled))
}

async fn projection(
    ctx: &Context,
    facts: &Facts<'_>,
    spec: &PodSpec,
    part: &VolumeProjection,
    mode: i32,
) -> Result<Filled, SourceError> {
    let mut filled = Filled::default();
    if let Some(source) = &part.config_map {
        let optional = source.optional == Some(true);
        let map = config_map(ctx, facts, &source.name).await?;
        required(map.is_some() || optional, "configmap", &source.name)?;
        filled.payload = payload::config_map(map.as_ref(), items(source.items.as_ref()), mode, optional)?;
    } else if let Some(source) = &part.secret {
        let optional = source.optional == Some(true);
        let secret = secret(ctx, facts, &source.name).await?;
        required(secret.is_some() || optional, "secret", &source.name)?;
        filled.payload = payload::secret(secret.as_ref(), items(source.items.as_ref()), mode, optional)?;
    } else if let Some(source) = &part.downward_api {
        filled.payload = payload::downward_api(items(source.items.as_ref()), facts, mode)?;
    } else if let Some(source) = &part.service_account_token {
        let (token, renew_after) = service_account_token(ctx, facts, spec, source).await?;
        let fs_group = spec.security_context.as_ref().and_then(|context| context.fs_group);
        filled.payload = payload::token(&source.path, token, mode, common_user(spec), fs_group);
        filled.renew_after = Some(renew_after);
    } else {
        let kinds = [
            ("clusterTrustBundle", part.cluster_trust_bundle.is_some()),
            ("podCertificate", part.pod_certificate.is_some()),
        ];
        let kind = kinds.iter().find(|(_, set)| *set).map_or("empty", |(kind, _)| *kind);
        return Err(SourceError::Missing(format!("{kind} projections are not carried out by Carob")));
    }
    Ok(filled)
}

/// A ConfigMap of the pod's namespace, whose version is noted.
async fn config_map(ctx: &Context, facts: &Facts<'_>, name: &str) -> Result<Option<ConfigMap>, SourceError> {
    let meta = &facts.pod.metadata;
    let found = ctx.config_map(meta.namespace.as_deref().unwrap_or_default(), name).await;
    let found = found.map_err(SourceError::Missing)?;
    if let (Some(map), Some(uid)) = (&found, &meta.uid) {
        ctx.interests.filled(uid, "ConfigMap", &map.metadata);
    }
    Ok(found)
}

/// The same for a Secret.
async fn secret(ctx: &Context, facts: &Facts<'_>, name: &str) -> Result<Option<Secret>, SourceError> {
    let meta = &facts.pod.metadata;
    let found = ctx.secret(meta.namespace.as_deref().unwrap_or_default(), name).await;
    let found = found.map_err(SourceError::Missing)?;
    if let (Some(secret), Some(uid)) = (&found, &meta.uid) {
        ctx.interests.filled(uid, "Secret", &secret.metadata);
    }
    Ok(found)
}

fn items<T>(list: Option<&Vec<T>>) -> &[T] {
    list.map(Vec::as_slice).unwrap_or_default()
}

fn required(there: bool, kind: &str, name: &str) -> Result<(), SourceError> {
    if there { Ok(()) } else { Err(SourceError::Missing(format!("{kind} \"{name}\" not found"))) }
}

/// The user that every container runs as, where the spec says the same number for all.
fn common_user(spec: &PodSpec) -> Option<u32> {
    let pod = spec.security_context.as_ref().and_then(|context| context.run_as_user);
    let all = spec.init_containers.iter().flatten().chain(&spec.containers);
    let mut users = all.map(|container| container.security_context.as_ref().and_then(|c| c.run_as_user).or(pod));
    let first = users.next()??;
    if users.all(|user| user == Some(first)) { u32::try_from(first).ok() } else { None }
}

/// A token bound to the pod, and the time after which it should be replaced: four fifths of its life, a day at most.
async fn service_account_token(
    ctx: &Context,
    facts: &Facts<'_>,
    spec: &PodSpec,
    source: &ServiceAccountTokenProjection,
) -> Result<(String, Duration), SourceError> {
    let meta = &facts.pod.metadata;
    let namespace = meta.namespace.as_deref().unwrap_or_default();
    let account = spec.service_account_name.as_deref().filter(|name| !name.is_empty()).unwrap_or("default");
    let seconds = source.expiration_seconds.unwrap_or(TOKEN_SECONDS);
    let request = TokenRequest {
        spec: TokenRequestSpec {
            audiences: source.audience.iter().filter(|audience| !audience.is_empty()).cloned().collect(),
            bound_object_ref: Some(BoundObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Pod".to_owned()),
                name: meta.name.clone(),
                uid: meta.uid.clone(),
            }),
            expiration_seconds: Some(seconds),
        },
        ..TokenRequest::default()
    };
    let accounts: Api<ServiceAccount> = Api::namespaced(ctx.client.clone(), namespace);
    let answer = accounts.create_token_request(account, &PostParams::default(), &request).await;
    let answer = answer
        .map_err(|error| SourceError::Missing(format!("failed to fetch token: {}", crate::objects::message(&error))))?;
    let status = answer.status.ok_or_else(|| SourceError::Missing("failed to fetch token: empty status".to_owned()))?;
    let left = status.expiration_timestamp.0.duration_since(jiff::Timestamp::now());
    Ok((status.token, renewal(left)))
}

/// When to replace a token that lives this long.
fn renewal(left: jiff::SignedDuration) -> Duration {
    let seconds = (left.as_secs().max(60) * 4 / 5).min(24 * 3600);
    Duration::from_secs(seconds.unsigned_abs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn tokens_are_replaced_after_four_fifths_of_their_life_and_every_day() {
        let after = |seconds| renewal(jiff::SignedDuration::from_secs(seconds)).as_secs();
        assert_eq!((after(600), after(3600)), (480, 2880));
        assert_eq!(after(365 * 24 * 3600), 24 * 3600);
        assert_eq!((after(-5), after(0)), (48, 48), "one that is over already isn't asked for without end");
    }

    #[test]
    fn a_common_user_is_one_that_every_container_has() {
        let user = |value| common_user(&serde_json::from_value(value).unwrap());
        let with = |uid: i64| json!({"name": "c", "securityContext": {"runAsUser": uid}});
        assert_eq!(user(json!({"containers": [with(5), with(5)]})), Some(5));
        assert_eq!(user(json!({"containers": [with(5), with(6)]})), None);
        assert_eq!(user(json!({"containers": [with(5), {"name": "d"}]})), None);
        assert_eq!(user(json!({"securityContext": {"runAsUser": 5}, "containers": [{"name": "d"}]})), Some(5));
    }
}
