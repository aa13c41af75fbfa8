//! Which requests a webhook or a policy is about.

use carob_api::kind::{Kind, KindRef};
use carob_api::selector::LabelSelector;
use carob_api::status::Status;
use serde_json::{Value, json};

use crate::admission::Request;
use crate::call::Call;
use crate::conversion;
use crate::objects::{self, store_failure};

/// What must be known of a request beyond itself.
pub(super) struct Facts {
    /// The namespace of the request's object; none for what lives in none.
    pub namespace: Option<Value>,
}

impl Facts {
    pub async fn of(request: &Request<'_>) -> Result<Self, Status> {
        let Some(namespace) = request.call.namespace.as_deref() else { return Ok(Self { namespace: None }) };
        let key = objects::core_key("namespaces", None, namespace);
        let entry = request.call.server.store.get(&key).await.map_err(|error| store_failure(&error))?;
        let namespace = match entry {
            Some(entry) => Some((*request.call.server.decoded.get(&entry)?).clone()),
            None => None,
        };
        Ok(Self { namespace })
    }
}

/// As what version of its resource a request is looked at.
#[derive(Clone, Debug)]
pub(super) enum Version {
    /// The one that it was sent for.
    Sent,
    /// One that rules name, of the same objects.
    Other(KindRef),
}

/// A request as one for another version of its resource.
pub(super) struct Converted {
    call: Call,
    object: Value,
    old: Option<Value>,
}

impl Converted {
    pub async fn of(request: &Request<'_>, kind: &KindRef) -> Result<Self, Status> {
        let call = request.call;
        let (mut object, mut old) = (request.object.clone(), request.old.cloned());
        // Other parts than these are of the same kind in all versions.
        if matches!(request.subresource, "" | "status") {
            object = conversion::as_version(call, object, kind).await?;
            if let Some(known) = old.take() {
                old = Some(conversion::as_version(call, known, kind).await?);
            }
        }
        Ok(Self { call: call.of_kind(kind), object, old })
    }

    /// What is asked about.
    pub fn request<'a>(&'a self, of: &Request<'a>) -> Request<'a> {
        Request {
            call: &self.call,
            operation: of.operation,
            subresource: of.subresource,
            name: of.name.clone(),
            object: self.object.clone(),
            old: self.old.as_ref(),
            dry_run: of.dry_run,
            sent_for: Some(&of.call.kind),
            options: of.options.clone(),
        }
    }

    /// Hands on what was said about it.
    pub fn hand_on(&self, to: &Request<'_>) {
        self.call.take_warnings().into_iter().for_each(|warning| to.call.warn(warning));
    }

    /// The object, as it is by now, in the version that was sent.
    pub async fn back(&self, object: Value, to: &Request<'_>) -> Result<Value, Status> {
        if matches!(to.subresource, "" | "status") {
            conversion::from_version(to.call, object, &self.call.kind).await
        } else {
            Ok(object)
        }
    }
}

/// Rules and selectors, all of which must fit.
pub(super) struct Matcher {
    /// Whether rules are also about other versions of the resources that they name.
    equivalent: bool,
    rules: Vec<Rule>,
    except: Vec<Rule>,
    namespaces: Option<LabelSelector>,
    objects: Option<LabelSelector>,
}

/// One rule: what is done with which resources.
struct Rule {
    operations: Vec<String>,
    groups: Vec<String>,
    versions: Vec<String>,
    resources: Vec<String>,
    names: Vec<String>,
    scope: String,
}

impl Rule {
    fn read(rule: &Value) -> Self {
        let texts = |name: &str| -> Vec<String> {
            let list = rule.get(name).and_then(Value::as_array);
            list.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
        };
        Self {
            operations: texts("operations"),
            groups: texts("apiGroups"),
            versions: texts("apiVersions"),
            resources: texts("resources"),
            names: texts("resourceNames"),
            scope: rule.get("scope").and_then(Value::as_str).unwrap_or("*").to_owned(),
        }
    }

    /// Whether a request fits, were it for this version of its resource.
    fn fits(&self, request: &Request<'_>, kind: &Kind) -> bool {
        let any = |list: &[String], value: &str| list.iter().any(|one| one == "*" || one == value);
        let namespaced = request.call.namespace.is_some();
        let in_scope = match self.scope.as_str() {
            "Namespaced" => namespaced,
            "Cluster" => !namespaced,
            _ => true,
        };
        in_scope
            && any(&self.operations, request.operation.name())
            && any(&self.groups, kind.group)
            && any(&self.versions, kind.version)
            && (self.names.is_empty() || self.names.contains(&request.name))
            && self.resources.iter().any(|pattern| {
                let (resource, part) = pattern.split_once('/').unwrap_or((pattern, ""));
                let everything = pattern == "*/*";
                let resource_fits = resource == "*" || resource == kind.plural;
                everything || (resource_fits && (part == request.subresource || (part == "*" && pattern.contains('/'))))
            })
    }
}

impl Matcher {
    /// Of a webhook: `rules`, `namespaceSelector`, `objectSelector`.
    pub fn of_webhook(webhook: &Value) -> Self {
        Self::read(webhook, "rules")
    }

    /// Of a policy or a binding: `resourceRules`, `excludeResourceRules` and the selectors.
    pub fn of_policy(resources: &Value) -> Self {
        Self::read(resources, "resourceRules")
    }

    fn read(from: &Value, rules: &str) -> Self {
        let list = |name: &str| -> Vec<Rule> {
            from.get(name).and_then(Value::as_array).into_iter().flatten().map(Rule::read).collect()
        };
        let selector = |name: &str| {
            let selector = from.get(name).filter(|selector| selector.is_object())?;
            LabelSelector::from_object(selector).ok().filter(|selector| !selector.is_everything())
        };
        Self {
            equivalent: from.get("matchPolicy").is_none_or(|policy| policy != "Exact"),
            rules: list(rules),
            except: list("excludeResourceRules"),
            namespaces: selector("namespaceSelector"),
            objects: selector("objectSelector"),
        }
    }

    /// Whether there are no rules, by which a binding fits whatever its policy fits.
    pub fn has_rules(&self) -> bool {
        !self.rules.is_empty()
    }

    /// The version in which a rule fits: the one that was sent, if it does, or another.
    pub fn version(&self, request: &Request<'_>) -> Option<Version> {
        self.fitting(&self.rules, request)
    }

    fn fitting(&self, rules: &[Rule], request: &Request<'_>) -> Option<Version> {
        let sent = &request.call.kind;
        let fits = |kind: &Kind| rules.iter().any(|rule| rule.fits(request, kind));
        if rules.is_empty() {
            return None;
        }
        if fits(sent) {
            return Some(Version::Sent);
        }
        if !self.equivalent {
            return None;
        }
        let registry = request.call.server.registry();
        // Versions of one resource are kept in one place.
        let place = objects::prefix(sent, None);
        let other = |kind: &&KindRef| {
            (kind.version != sent.version || kind.group != sent.group)
                && objects::prefix(kind, None) == place
                && fits(kind)
        };
        registry.iter().find(other).map(|kind| Version::Other(kind.clone()))
    }

    /// Whether no exception and no selector speaks against it.
    pub fn fits_otherwise(&self, request: &Request<'_>, facts: &Facts) -> bool {
        self.fitting(&self.except, request).is_none()
            && self.namespaces.as_ref().is_none_or(|selector| fits_namespace(selector, request, facts))
            && self.objects.as_ref().is_none_or(|selector| {
                let fits = |object: &Value| selector.matches(object.pointer("/metadata/labels"));
                (request.object.is_object() && fits(&request.object)) || request.old.is_some_and(fits)
            })
    }
}

/// A Namespace is selected by its own labels; what lives in no namespace always is.
fn fits_namespace(selector: &LabelSelector, request: &Request<'_>, facts: &Facts) -> bool {
    let kind = &request.call.kind;
    if (kind.group, kind.plural) == ("", "namespaces") {
        let object = if request.object.is_object() && request.subresource.is_empty() {
            Some(&request.object)
        } else {
            request.old
        };
        return object.is_none_or(|object| selector.matches(object.pointer("/metadata/labels")));
    }
    match &facts.namespace {
        Some(namespace) => selector.matches(namespace.pointer("/metadata/labels")),
        None => request.call.namespace.is_none() || selector.matches(Some(&json!({}))),
    }
}
