//! `ValidatingAdmissionPolicy`: expressions that judge a request, and bindings that say where and with which parameters.

use carob_api::cel::{self, Budget, Error, Program, Scope};
use carob_api::selector::LabelSelector;
use carob_api::status::{Cause, Details, Status};
use carob_store::KeyRange;
use serde_json::{Value, json};

use super::matching::{Converted, Facts, Matcher, Version};
use super::review::{self, Rights};
use crate::admission::Request;
use crate::objects::{self, store_failure, text};

/// What policies of both sorts have: what they are about, and what their expressions are given.
pub(super) struct Subject {
    pub name: String,
    matcher: Matcher,
    pub conditions: Conditions,
    variables: Vec<(String, Expression)>,
    pub ignores_failures: bool,
    params: Option<(String, String)>,
}

/// A policy that judges.
pub(super) struct Policy {
    subject: Subject,
    validations: Vec<Validation>,
    annotations: Vec<(String, Expression)>,
}

/// Where a policy holds.
pub(super) struct Binding {
    pub name: String,
    pub policy: String,
    matcher: Option<Matcher>,
    actions: Vec<String>,
    params: Value,
}

/// An expression and its text.
pub(super) struct Expression {
    text: String,
    pub program: Result<Program, String>,
}

struct Validation {
    expression: Expression,
    message: String,
    message_expression: Option<Expression>,
    reason: String,
}

/// Conditions that must hold before anything else is asked.
pub(super) struct Conditions {
    list: Vec<(String, Expression)>,
}

impl Expression {
    pub fn read(text: &str) -> Self {
        Self { text: text.to_owned(), program: Program::compile(text, &review::VARIABLES) }
    }

    pub fn evaluate(&self, scope: &Scope<'_>, budget: &mut Budget) -> Result<cel::Value, String> {
        let program = self.program.as_ref().map_err(|mistake| format!("compilation error: {mistake}"))?;
        program.evaluate(scope, budget).map_err(|error: Error| error.to_string())
    }
}

impl Conditions {
    pub fn read(of: &Value) -> Self {
        let list = of.get("matchConditions").and_then(Value::as_array);
        let read =
            |condition: &Value| (text(condition, "/name").to_owned(), Expression::read(text(condition, "/expression")));
        Self { list: list.into_iter().flatten().map(read).collect() }
    }

    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Whether all hold.
    ///
    /// # Errors
    /// When one fails, and none says no.
    pub fn hold(&self, scope: &Scope<'_>, budget: &mut Budget) -> Result<bool, String> {
        let mut failure = None;
        for (_, condition) in &self.list {
            match condition.evaluate(scope, budget) {
                Ok(cel::Value::Bool(true)) => {}
                Ok(cel::Value::Bool(false)) => return Ok(false),
                Ok(_) => drop(failure.get_or_insert_with(|| "match condition is no boolean".to_owned())),
                Err(error) => drop(failure.get_or_insert(error)),
            }
        }
        failure.map_or(Ok(true), Err)
    }
}

impl Subject {
    pub fn read(policy: &Value) -> Self {
        let spec = &policy["spec"];
        Self {
            name: text(policy, "/metadata/name").to_owned(),
            matcher: Matcher::of_policy(&spec["matchConstraints"]),
            conditions: Conditions::read(spec),
            variables: list(spec, "variables")
                .iter()
                .map(|variable| (text(variable, "/name").to_owned(), Expression::read(text(variable, "/expression"))))
                .collect(),
            ignores_failures: spec["failurePolicy"] == "Ignore",
            params: spec
                .get("paramKind")
                .filter(|kind| kind.is_object())
                .map(|kind| (text(kind, "/apiVersion").to_owned(), text(kind, "/kind").to_owned())),
        }
    }

    /// Whether a request is what the policy is about where it is bound, and as what version of its resource.
    pub fn version(&self, binding: &Binding, request: &Request<'_>, facts: &Facts) -> Option<Version> {
        let fits = || self.matcher.fits_otherwise(request, facts) && binding.fits(request, facts);
        self.matcher.version(request).filter(|_| fits())
    }

    /// The values of the policy's variables. One that fails is missing for those who use it.
    pub fn variables(&self, scope: &Scope<'_>, budget: &mut Budget) -> cel::Value {
        let mut named: Vec<(String, cel::Value)> = Vec::with_capacity(self.variables.len());
        for (name, expression) in &self.variables {
            let so_far = [("variables", cel::object(&named))];
            if let Ok(value) = expression.evaluate(&scope.with_all(&so_far), budget) {
                named.push((name.clone(), value));
            }
        }
        cel::object(&named)
    }
}

/// A list of a spec.
pub(super) fn list<'a>(spec: &'a Value, name: &str) -> &'a [Value] {
    spec[name].as_array().map_or(&[][..], Vec::as_slice)
}

impl Policy {
    pub fn read(policy: &Value) -> Self {
        let spec = &policy["spec"];
        Self {
            subject: Subject::read(policy),
            validations: list(spec, "validations")
                .iter()
                .map(|validation| Validation {
                    expression: Expression::read(text(validation, "/expression")),
                    message: text(validation, "/message").to_owned(),
                    message_expression: Some(text(validation, "/messageExpression"))
                        .filter(|text| !text.is_empty())
                        .map(Expression::read),
                    reason: text(validation, "/reason").to_owned(),
                })
                .collect(),
            annotations: list(spec, "auditAnnotations")
                .iter()
                .map(|note| (text(note, "/key").to_owned(), Expression::read(text(note, "/valueExpression"))))
                .collect(),
        }
    }
}

impl Binding {
    pub fn read(binding: &Value) -> Self {
        let spec = &binding["spec"];
        let actions = spec["validationActions"].as_array().into_iter().flatten();
        Self {
            name: text(binding, "/metadata/name").to_owned(),
            policy: text(spec, "/policyName").to_owned(),
            matcher: spec.get("matchResources").filter(|resources| resources.is_object()).map(Matcher::of_policy),
            actions: actions.filter_map(Value::as_str).map(str::to_owned).collect(),
            params: spec.get("paramRef").cloned().unwrap_or_default(),
        }
    }

    fn fits(&self, request: &Request<'_>, facts: &Facts) -> bool {
        self.matcher.as_ref().is_none_or(|matcher| {
            (!matcher.has_rules() || matcher.version(request).is_some()) && matcher.fits_otherwise(request, facts)
        })
    }

    fn does(&self, action: &str) -> bool {
        self.actions.iter().any(|known| known == action)
    }
}

/// What a policy says: what is wrong, and why in one word.
struct Denial {
    message: String,
    reason: String,
}

/// Asks the policies that are bound to a request like this.
pub(super) async fn validate(
    policies: &[Policy],
    bindings: &[Binding],
    request: &Request<'_>,
    facts: &Facts,
) -> Result<(), Status> {
    let concerned: Vec<(&Policy, &Binding, Version)> = bindings
        .iter()
        .filter_map(|binding| {
            let policy = policies.iter().find(|policy| policy.subject.name == binding.policy)?;
            Some((policy, binding, policy.subject.version(binding, request, facts)?))
        })
        .collect();
    if concerned.is_empty() {
        return Ok(());
    }
    let as_sent = review::variables(request, facts);
    let mut refusal = None;
    for (policy, binding, version) in concerned {
        let converted = match &version {
            Version::Sent => None,
            Version::Other(kind) => Some(Converted::of(request, kind).await?),
        };
        let seen = converted.as_ref().map(|converted| converted.request(request));
        let as_seen = seen.as_ref().map(|seen| review::variables(seen, facts));
        let variables = as_seen.as_ref().unwrap_or(&as_sent);
        let mut denials = Vec::new();
        match find_params(&policy.subject, binding, request).await {
            Ok(all) => {
                for params in all {
                    denials.extend(judge(policy, request, variables, &params));
                }
            }
            Err(why) if !policy.subject.ignores_failures => {
                denials.push(Denial { message: why, reason: String::new() });
            }
            Err(_) => {}
        }
        for denial in denials {
            refusal = refusal.or_else(|| enforce(policy, binding, request, &denial));
        }
    }
    refusal.map_or(Ok(()), Err)
}

/// Carries out what the binding says of a denial.
fn enforce(policy: &Policy, binding: &Binding, request: &Request<'_>, denial: &Denial) -> Option<Status> {
    let call = request.call;
    let (policy, name) = (&policy.subject.name, &binding.name);
    if binding.does("Warn") {
        call.warn(format!(
            "Validation failed for ValidatingAdmissionPolicy '{policy}' with binding '{name}': {}",
            denial.message
        ));
    }
    if binding.does("Audit") {
        call.annotate("validation.policy.admission.k8s.io/validation_failure", || {
            json!([{ "message": denial.message, "policy": policy, "binding": name, "validationActions": binding.actions }])
                .to_string()
        });
    }
    if !binding.does("Deny") {
        return None;
    }
    let told = format!("ValidatingAdmissionPolicy '{policy}' with binding '{name}' denied request: {}", denial.message);
    let resource = call.resource();
    let (code, reason) = match denial.reason.as_str() {
        "Unauthorized" => (401, "Unauthorized"),
        "Forbidden" => (403, "Forbidden"),
        "RequestEntityTooLarge" => (413, "RequestEntityTooLarge"),
        _ => (422, "Invalid"),
    };
    let quoted = if request.name.is_empty() { String::new() } else { format!(" {:?}", request.name) };
    let message = format!("{resource}{quoted} is forbidden: {told}");
    Some(Status::generic(code, reason, message).with_details(Details {
        name: request.name.clone(),
        group: resource.group,
        kind: resource.resource,
        causes: vec![Cause { reason: String::new(), message: told, field: String::new() }],
        ..Details::default()
    }))
}

fn judge(
    policy: &Policy,
    request: &Request<'_>,
    variables: &[(&'static str, cel::Value)],
    params: &Value,
) -> Vec<Denial> {
    let mut budget = Budget::new(cel::PER_OBJECT);
    let rights = Rights(request);
    let root = Scope::root().with_access(&rights);
    let with_request = root.with_all(variables);
    let params = [("params", cel::from_json(params))];
    let outer = with_request.with_all(&params);
    let failed = |why: String| Denial { message: why, reason: String::new() };
    let subject = &policy.subject;
    match subject.conditions.hold(&outer, &mut budget) {
        Ok(true) => {}
        Ok(false) => return Vec::new(),
        Err(_) if subject.ignores_failures => return Vec::new(),
        Err(why) => return vec![failed(why)],
    }
    let composed = [("variables", subject.variables(&outer, &mut budget))];
    let scope = outer.with_all(&composed);
    let mut denials = Vec::new();
    for validation in &policy.validations {
        match validation.expression.evaluate(&scope, &mut budget) {
            Ok(cel::Value::Bool(true)) => {}
            Ok(_) => denials
                .push(Denial { message: validation.told(&scope, &mut budget), reason: validation.reason.clone() }),
            Err(_) if subject.ignores_failures => {}
            Err(why) => denials
                .push(failed(format!("expression '{}' resulted in error: {why}", validation.expression.text.trim()))),
        }
    }
    for (key, expression) in &policy.annotations {
        if let Ok(cel::Value::String(note)) = expression.evaluate(&scope, &mut budget)
            && !note.trim().is_empty()
        {
            request.call.annotate(&format!("{}/{key}", subject.name), || note.trim().to_owned());
        }
    }
    denials
}

impl Validation {
    fn told(&self, scope: &Scope<'_>, budget: &mut Budget) -> String {
        let made = self.message_expression.as_ref().and_then(|expression| match expression.evaluate(scope, budget) {
            Ok(cel::Value::String(text)) => Some(text.trim().to_owned()),
            _ => None,
        });
        let fits = |text: &String| !text.is_empty() && !text.contains('\n');
        made.filter(fits).unwrap_or_else(|| match self.message.trim() {
            "" => format!("failed expression: {}", self.expression.text.trim()),
            message => message.to_owned(),
        })
    }
}

/// The objects that a policy is given, one evaluation for each; a null where it takes none.
pub(super) async fn find_params(
    policy: &Subject,
    binding: &Binding,
    request: &Request<'_>,
) -> Result<Vec<Value>, String> {
    let Some((api_version, kind)) = &policy.params else { return Ok(vec![Value::Null]) };
    if !binding.params.is_object() {
        return Ok(vec![Value::Null]);
    }
    let server = &request.call.server;
    let (group, version) = api_version.rsplit_once('/').unwrap_or(("", api_version));
    let row = server.registry().by_gvk(group, version, kind).cloned();
    let row =
        row.ok_or_else(|| format!("failed to find resource referenced by paramKind: '{api_version}, Kind={kind}'"))?;
    let namespaced = row.scope == carob_api::kind::Scope::Namespaced;
    let given = text(&binding.params, "/namespace");
    let namespace = match (namespaced, given) {
        (false, _) => None,
        (true, "") => Some(
            request
                .call
                .namespace
                .clone()
                .ok_or("cannot use namespaced paramRef in policy binding that matches cluster-scoped resources")?,
        ),
        (true, given) => Some(given.to_owned()),
    };
    let name = text(&binding.params, "/name");
    let read = |bytes: &bytes::Bytes| -> Result<Value, String> {
        let mut object = objects::decode(bytes).map_err(|status| status.message().to_owned())?;
        row.from_stored(&mut object);
        Ok(object)
    };
    let failed = |error| store_failure(&error).message().to_owned();
    let mut found = Vec::new();
    if name.is_empty() {
        let selector = binding.params.get("selector").cloned().unwrap_or_else(|| json!({}));
        let selector = LabelSelector::from_object(&selector)?;
        let range = KeyRange::prefix(objects::prefix(&row, namespace.as_deref()));
        for entry in server.store.range(&range, None, None).await.map_err(failed)?.entries {
            let object = read(&entry.value)?;
            if selector.matches(object.pointer("/metadata/labels")) {
                found.push(object);
            }
        }
    } else {
        let key = objects::key(&row, namespace.as_deref(), name);
        if let Some(entry) = server.store.get(&key).await.map_err(failed)? {
            found.push(read(&entry.value)?);
        }
    }
    if found.is_empty() && text(&binding.params, "/parameterNotFoundAction") != "Allow" {
        return Err("no params found for policy binding with `Deny` parameterNotFoundAction".to_owned());
    }
    Ok(found)
}
