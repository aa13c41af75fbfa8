//! Admission webhooks: servers that are asked about a request, and may change its object or refuse it.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use carob_api::cel::{self, Budget, Scope};
use carob_api::status::{Cause, Details, Status};
use carob_api::{decode, patch};
use serde_json::{Value, json};

use super::matching::{Converted, Facts, Matcher, Version};
use super::policy::Conditions;
use super::review::{self, Rights};
use crate::admission::Request;
use crate::callout::Callout;
use crate::objects::text;
use crate::random;

/// How long a webhook is waited for that doesn't say so.
const PATIENCE: i64 = 10;

/// One webhook of a configuration.
pub(super) struct Webhook {
    name: String,
    matcher: Matcher,
    conditions: Conditions,
    client: Callout,
    patience: Duration,
    ignores_failures: bool,
    has_side_effects: bool,
    wants_to_know: bool,
}

impl Webhook {
    pub fn of_configuration(configuration: &Value) -> Vec<Self> {
        let hooks = configuration["webhooks"].as_array().map_or(&[][..], Vec::as_slice);
        hooks.iter().map(Self::read).collect()
    }

    fn read(hook: &Value) -> Self {
        let seconds = hook["timeoutSeconds"].as_i64().unwrap_or(PATIENCE);
        Self {
            name: text(hook, "/name").to_owned(),
            matcher: Matcher::of_webhook(hook),
            conditions: Conditions::read(hook),
            client: Callout::read(&hook["clientConfig"]),
            patience: Duration::from_secs(u64::try_from(seconds).unwrap_or(1).clamp(1, 30)),
            ignores_failures: hook["failurePolicy"] == "Ignore",
            has_side_effects: !matches!(text(hook, "/sideEffects"), "None" | "NoneOnDryRun"),
            wants_to_know: hook["reinvocationPolicy"] == "IfNeeded",
        }
    }

    /// As what version of its resource the webhook wants to see a request, if at all.
    fn version(&self, request: &Request<'_>, facts: &Facts) -> Option<Version> {
        self.matcher.version(request).filter(|_| self.matcher.fits_otherwise(request, facts))
    }

    /// Whether the conditions hold for a request that fits.
    fn is_concerned(&self, request: &Request<'_>, facts: &Facts) -> Result<bool, Status> {
        if self.conditions.is_empty() {
            return Ok(true);
        }
        let variables = review::variables(request, facts);
        let rights = Rights(request);
        let root = Scope::root().with_access(&rights);
        let mut budget = Budget::new(cel::PER_OBJECT);
        match self.conditions.hold(&root.with_all(&variables), &mut budget) {
            Ok(holds) => Ok(holds),
            Err(_) if self.ignores_failures => Ok(false),
            Err(why) => Err(Status::forbidden(&request.call.resource(), &request.name, why)),
        }
    }

    /// Asks. None if it could not be asked and that doesn't matter.
    async fn ask(&self, request: &Request<'_>) -> Result<Option<Value>, Status> {
        if request.dry_run && self.has_side_effects {
            let why = format!("admission webhook {:?} does not support dry run", self.name);
            return Err(Status::bad_request(why));
        }
        match self.call(request).await {
            Ok(answer) => {
                self.note(request, &answer);
                if answer["allowed"] == true { Ok(Some(answer)) } else { Err(self.denied(&answer)) }
            }
            Err(why) if self.ignores_failures => {
                tracing::warn!(webhook = self.name, why, "a webhook failed, which its configuration ignores");
                let round = "failed-open.validating.webhook.admission.k8s.io/round_0_index_0";
                request.call.annotate(round, || self.name.clone());
                Ok(None)
            }
            Err(why) => {
                let told = format!("failed calling webhook {:?}: {why}", self.name);
                let cause = Cause { reason: String::new(), message: told.clone(), field: String::new() };
                Err(Status::internal(told).with_details(Details { causes: vec![cause], ..Details::default() }))
            }
        }
    }

    fn note(&self, request: &Request<'_>, answer: &Value) {
        for warning in answer["warnings"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            request.call.warn(warning);
        }
        for (key, note) in answer["auditAnnotations"].as_object().into_iter().flatten() {
            request.call.annotate(&format!("{}/{key}", self.name), || note.as_str().unwrap_or_default().to_owned());
        }
    }

    fn denied(&self, answer: &Value) -> Status {
        let by = format!("admission webhook {:?} denied the request", self.name);
        let (message, reason) = (text(answer, "/status/message"), text(answer, "/status/reason"));
        let told = match (message, reason) {
            ("", "") => format!("{by} without explanation"),
            ("", reason) => format!("{by}: {reason}"),
            (message, _) => format!("{by}: {message}"),
        };
        let code = answer.pointer("/status/code").and_then(Value::as_u64).and_then(|code| u16::try_from(code).ok());
        Status::generic(code.filter(|code| *code >= 400).unwrap_or(400), reason, told)
    }

    /// The `response` of an answer, or why there is none.
    async fn call(&self, request: &Request<'_>) -> Result<Value, String> {
        let uid = random::uuid();
        let mut asked = review::describe(request);
        asked["uid"] = uid.as_str().into();
        asked["object"] = request.object.clone();
        asked["oldObject"] = request.old.cloned().unwrap_or_default();
        let body = json!({ "kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "request": asked });
        let mut answer = self.client.ask(&request.call.server, &body, self.patience).await?;
        if answer["kind"] != "AdmissionReview" {
            return Err(format!(
                "received invalid webhook response: expected webhook response of admission.k8s.io/v1, Kind=AdmissionReview, got {}",
                answer["kind"]
            ));
        }
        let response = answer["response"].take();
        if !response.is_object() {
            return Err("webhook response was absent".to_owned());
        }
        if response["uid"] != uid {
            return Err(format!(
                "received invalid webhook response: expected response.uid={uid:?}, got {}",
                response["uid"]
            ));
        }
        Ok(response)
    }
}

/// Asks the mutating webhooks, one after the other. Says whether the object changed.
pub(super) async fn mutate(hooks: &[Webhook], request: &mut Request<'_>) -> Result<bool, Status> {
    let facts = Facts::of(request).await?;
    let mut changed = false;
    for hook in hooks {
        changed |= mutate_by(hook, request, &facts).await?;
    }
    Ok(changed)
}

/// Asks those again that want to know what others changed.
pub(super) async fn mutate_again(hooks: &[Webhook], request: &mut Request<'_>) -> Result<(), Status> {
    let facts = Facts::of(request).await?;
    for hook in hooks.iter().filter(|hook| hook.wants_to_know) {
        mutate_by(hook, request, &facts).await?;
    }
    Ok(())
}

async fn mutate_by(hook: &Webhook, request: &mut Request<'_>, facts: &Facts) -> Result<bool, Status> {
    let kind = match hook.version(request, facts) {
        None => return Ok(false),
        Some(Version::Sent) => return mutate_seen(hook, request, facts).await,
        Some(Version::Other(kind)) => kind,
    };
    let converted = Converted::of(request, &kind).await?;
    let mut seen = converted.request(request);
    let outcome = mutate_seen(hook, &mut seen, facts).await;
    converted.hand_on(request);
    let changed = outcome?;
    let object = seen.object;
    if changed {
        request.object = converted.back(object, request).await?;
    }
    Ok(changed)
}

async fn mutate_seen(hook: &Webhook, request: &mut Request<'_>, facts: &Facts) -> Result<bool, Status> {
    if !hook.is_concerned(request, facts)? {
        return Ok(false);
    }
    let Some(answer) = hook.ask(request).await? else { return Ok(false) };
    let Some(encoded) = answer["patch"].as_str().filter(|patch| !patch.is_empty()) else { return Ok(false) };
    let failed = |why: String| Status::internal(format!("failed calling webhook {:?}: {why}", hook.name));
    if text(&answer, "/patchType") != "JSONPatch" {
        return Err(failed(format!("unsupported patch type {:?}", text(&answer, "/patchType"))));
    }
    let bytes = STANDARD.decode(encoded).map_err(|error| failed(error.to_string()))?;
    if !request.object.is_object() {
        return Err(failed(
            "admission webhook attempted to modify the object, which is not supported for this operation".to_owned(),
        ));
    }
    let mut new = patch::json_patch(&request.object, &bytes).map_err(|status| failed(status.message().to_owned()))?;
    if new == request.object {
        return Ok(false);
    }
    if request.subresource.is_empty() || request.subresource == "status" {
        let kind = &request.call.kind;
        new = decode::check(kind, new, decode::FieldValidation::Ignore)?.value;
        kind.default(&mut new);
    }
    request.object = new;
    Ok(true)
}

/// Asks the validating webhooks, all at once. The first in their order that refuses is heard.
pub(super) async fn validate(hooks: &[Webhook], request: &Request<'_>, facts: &Facts) -> Result<(), Status> {
    let asked = hooks.iter().map(|hook| validate_by(hook, request, facts));
    for answer in futures::future::join_all(asked).await {
        answer?;
    }
    Ok(())
}

async fn validate_by(hook: &Webhook, request: &Request<'_>, facts: &Facts) -> Result<(), Status> {
    let kind = match hook.version(request, facts) {
        None => return Ok(()),
        Some(Version::Sent) => return validate_seen(hook, request, facts).await,
        Some(Version::Other(kind)) => kind,
    };
    let converted = Converted::of(request, &kind).await?;
    let outcome = validate_seen(hook, &converted.request(request), facts).await;
    converted.hand_on(request);
    outcome
}

async fn validate_seen(hook: &Webhook, request: &Request<'_>, facts: &Facts) -> Result<(), Status> {
    if hook.is_concerned(request, facts)? { hook.ask(request).await.map(|_| ()) } else { Ok(()) }
}
