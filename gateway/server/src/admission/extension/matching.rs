//! Which requests a webhook or a policy is about.

use carob_api::selector::LabelSelector;
use carob_api::status::Status;
use serde_json::{Value, json};

use crate::admission::Request;
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

/// Rules and selectors, all of which must fit.
pub(super) struct Matcher {
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

    fn fits(&self, request: &Request<'_>) -> bool {
        let kind = &request.call.kind;
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

    /// Whether a rule fits.
    pub fn fits_rules(&self, request: &Request<'_>) -> bool {
        self.rules.iter().any(|rule| rule.fits(request))
    }

    /// Whether no exception and no selector speaks against it.
    pub fn fits_otherwise(&self, request: &Request<'_>, facts: &Facts) -> bool {
        !self.except.iter().any(|rule| rule.fits(request))
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
