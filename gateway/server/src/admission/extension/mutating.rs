//! `MutatingAdmissionPolicy`: expressions that change what a request asks for, before webhooks do.

use carob_api::cel::{self, Budget, Scope};
use carob_api::status::{Cause, Details, Status};
use carob_api::{apply, decode, patch};
use serde_json::Value;

use super::matching::{Converted, Facts, Version};
use super::policy::{Binding, Expression, Subject, find_params, list};
use super::review::{self, Rights};
use crate::admission::{Operation, Request};
use crate::objects::{self, text};

/// A policy that changes objects.
pub(super) struct Change {
    subject: Subject,
    mutations: Vec<Mutation>,
    wants_to_know: bool,
}

/// One change, by what its expression gives.
enum Mutation {
    /// A part of the object.
    Apply(Expression),
    /// A list of operations.
    Patch(Expression),
}

/// When policies are asked.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Round {
    First,
    /// After others changed the object.
    Again,
}

impl Change {
    pub fn read(policy: &Value) -> Self {
        let spec = &policy["spec"];
        let mutation = |mutation: &Value| {
            let expression = |field: &str| Expression::read(text(mutation, &format!("/{field}/expression")));
            match text(mutation, "/patchType") {
                "JSONPatch" => Mutation::Patch(expression("jsonPatch")),
                _ => Mutation::Apply(expression("applyConfiguration")),
            }
        };
        Self {
            subject: Subject::read(policy),
            mutations: list(spec, "mutations").iter().map(mutation).collect(),
            wants_to_know: spec["reinvocationPolicy"] == "IfNeeded",
        }
    }
}

/// Asks the policies that are bound to a request like this, in the order of their names. Says whether the object changed.
pub(super) async fn mutate(
    policies: &[Change],
    bindings: &[Binding],
    request: &mut Request<'_>,
    round: Round,
) -> Result<bool, Status> {
    // What is deleted has nothing to change.
    if policies.is_empty()
        || bindings.is_empty()
        || !request.object.is_object()
        || request.operation == Operation::Delete
    {
        return Ok(false);
    }
    let facts = Facts::of(request).await?;
    let (mut changed, mut failures) = (false, Vec::new());
    for policy in policies.iter().filter(|policy| round == Round::First || policy.wants_to_know) {
        let subject = &policy.subject;
        for binding in bindings.iter().filter(|binding| binding.policy == subject.name) {
            let Some(version) = subject.version(binding, request, &facts) else { continue };
            let outcome = match find_params(subject, binding, request).await {
                Ok(all) => change_as(policy, &version, request, &facts, &all).await?,
                Err(why) => Err(format!("failed to configure binding: {why}")),
            };
            match outcome {
                Ok(one) => changed |= one,
                Err(_) if subject.ignores_failures => {}
                Err(why) => failures
                    .push(format!("policy '{}' with binding '{}' denied request: {why}", subject.name, binding.name)),
            }
        }
    }
    if failures.is_empty() { Ok(changed) } else { Err(refusal(request, &failures)) }
}

/// The first failure is the message, all are causes.
fn refusal(request: &Request<'_>, failures: &[String]) -> Status {
    let resource = request.call.resource();
    let cause = |why: &String| Cause { reason: String::new(), message: why.clone(), field: String::new() };
    Status::generic(403, "Invalid", failures[0].clone()).with_details(Details {
        name: request.name.clone(),
        group: resource.group,
        kind: resource.resource,
        causes: failures.iter().map(cause).collect(),
        ..Details::default()
    })
}

/// Makes a policy's changes, once for each of its parameters, in the version of the resource that it names.
async fn change_as(
    policy: &Change,
    version: &Version,
    request: &mut Request<'_>,
    facts: &Facts,
    params: &[Value],
) -> Result<Result<bool, String>, Status> {
    let all = |request: &mut Request<'_>| {
        params.iter().try_fold(false, |so_far, params| Ok(change(policy, request, facts, params)? || so_far))
    };
    let Version::Other(kind) = version else { return Ok(all(request)) };
    let converted = Converted::of(request, kind).await?;
    let mut seen = converted.request(request);
    let outcome = all(&mut seen);
    let object = seen.object;
    if outcome == Ok(true) {
        request.object = converted.back(object, request).await?;
    }
    Ok(outcome)
}

/// Makes a policy's changes, one after the other, each on what the one before it left. Says whether there were any.
fn change(policy: &Change, request: &mut Request<'_>, facts: &Facts, params: &Value) -> Result<bool, String> {
    let mut changed = false;
    for (index, mutation) in policy.mutations.iter().enumerate() {
        let Some(new) = evaluate(policy, mutation, request, facts, params, index == 0)? else { return Ok(changed) };
        if new != request.object {
            request.object = new;
            changed = true;
        }
    }
    Ok(changed)
}

/// The object after one change; none if the policy's conditions, which come first, don't hold.
fn evaluate(
    policy: &Change,
    mutation: &Mutation,
    request: &Request<'_>,
    facts: &Facts,
    params: &Value,
    first: bool,
) -> Result<Option<Value>, String> {
    let variables = review::variables(request, facts);
    let rights = Rights(request);
    let mut budget = Budget::new(cel::PER_OBJECT);
    let root = Scope::root().with_access(&rights);
    let with_request = root.with_all(&variables);
    let params = [("params", cel::from_json(params))];
    let outer = with_request.with_all(&params);
    if first && !policy.subject.conditions.hold(&outer, &mut budget)? {
        return Ok(None);
    }
    let composed = [("variables", policy.subject.variables(&outer, &mut budget))];
    let scope = outer.with_all(&composed);
    let (Mutation::Apply(expression) | Mutation::Patch(expression)) = mutation;
    let value = cel::to_json(&expression.evaluate(&scope, &mut budget)?);
    if let Some(wrong) = expression.program.as_ref().ok().and_then(|program| program.misplaced().first()) {
        return Err(format!("type mismatch: {wrong}"));
    }
    let new = match mutation {
        Mutation::Apply(_) => applied(request, value)?,
        Mutation::Patch(_) => patched(request, value)?,
    };
    checked(request, new).map(Some)
}

fn applied(request: &Request<'_>, mut config: Value) -> Result<Value, String> {
    let kind = &request.call.kind;
    if !config.is_object() {
        return Err("invalid return type: ApplyConfiguration must evaluate to Object".to_owned());
    }
    config["apiVersion"] = objects::api_version(kind).into();
    config["kind"] = kind.kind.into();
    apply::overlay(kind, &request.object, &config).map_err(|why| format!("error applying patch: {why}"))
}

fn patched(request: &Request<'_>, mut operations: Value) -> Result<Value, String> {
    let Some(list) = operations.as_array_mut() else {
        return Err("type mismatch: JSONPatchType.expression should evaluate to array".to_owned());
    };
    for operation in list.iter_mut() {
        let is_patch = operation.as_object_mut().and_then(|fields| fields.shift_remove(STRUCT)).is_some();
        if !is_patch {
            return Err("type mismatch: JSONPatchType.expression should evaluate to array of JSONPatch".to_owned());
        }
    }
    let tests = list.iter().any(|operation| operation["op"] == "test");
    match patch::json_patch(&request.object, operations.to_string().as_bytes()) {
        Ok(new) => Ok(new),
        // A test that fails means that there is nothing to do.
        Err(status) if tests && status.code() == 422 => Ok(request.object.clone()),
        Err(status) => Err(format!("JSON Patch: {}", status.message())),
    }
}

/// What marks an operation among the values of expressions.
const STRUCT: &str = "@struct";

/// The new object in its one form, with defaults; a mistake in it is the policy's.
fn checked(request: &Request<'_>, new: Value) -> Result<Value, String> {
    if !matches!(request.subresource, "" | "status") || new == request.object {
        return Ok(new);
    }
    let kind = &request.call.kind;
    let decoded = decode::check(kind, new, decode::FieldValidation::Ignore);
    let mut new = decoded.map_err(|status| status.message().to_owned())?.value;
    kind.default(&mut new);
    Ok(new)
}
