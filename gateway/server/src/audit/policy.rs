//! Which requests are written down, and how much of them: a Policy of `audit.k8s.io/v1`.

use serde::Deserialize;

use crate::authn::Identity;
use crate::authz::Attributes;

/// How much of a request is written down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub(crate) enum Level {
    /// Nothing.
    #[default]
    None,
    /// Who did what.
    Metadata,
    /// And what was sent.
    Request,
    /// And what was answered.
    RequestResponse,
}

impl Level {
    /// As events name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "None",
            Self::Metadata => "Metadata",
            Self::Request => "Request",
            Self::RequestResponse => "RequestResponse",
        }
    }
}

/// A point in the life of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub(crate) enum Stage {
    /// Its head is read.
    RequestReceived,
    /// The head of a long answer is sent.
    ResponseStarted,
    /// The answer is sent.
    ResponseComplete,
    /// It could not be answered.
    Panic,
}

impl Stage {
    /// As events name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::RequestReceived => "RequestReceived",
            Self::ResponseStarted => "ResponseStarted",
            Self::ResponseComplete => "ResponseComplete",
            Self::Panic => "Panic",
        }
    }
}

/// The rules, of which the first that fits decides.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(super) struct Policy {
    api_version: String,
    kind: String,
    metadata: serde_json::Value,
    rules: Vec<Rule>,
    omit_stages: Vec<Stage>,
    omit_managed_fields: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct Rule {
    level: Level,
    users: Vec<String>,
    user_groups: Vec<String>,
    verbs: Vec<String>,
    resources: Vec<Resources>,
    namespaces: Vec<String>,
    #[serde(rename = "nonResourceURLs")]
    paths: Vec<String>,
    omit_stages: Vec<Stage>,
    omit_managed_fields: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
#[expect(clippy::struct_field_names, reason = "these are Kubernetes' names")]
struct Resources {
    group: String,
    resources: Vec<String>,
    resource_names: Vec<String>,
}

/// What is to be written down of one request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    pub level: Level,
    pub omit_stages: Vec<Stage>,
    pub omit_managed_fields: bool,
}

impl Policy {
    /// Reads a policy, or says what is wrong with it.
    pub fn read(policy: &serde_json::Value) -> Result<Self, String> {
        let policy: Self = serde_json::from_value(policy.clone()).map_err(|error| error.to_string())?;
        if policy.api_version != "audit.k8s.io/v1" || policy.kind != "Policy" {
            return Err("must be a Policy of audit.k8s.io/v1".to_owned());
        }
        if policy.rules.is_empty() {
            return Err("rules: at least one is required".to_owned());
        }
        Ok(policy)
    }

    /// What is to be written down of this request.
    pub fn plan(&self, who: &Identity, what: &Attributes) -> Plan {
        let Some(rule) = self.rules.iter().find(|rule| rule.fits(who, what)) else { return Plan::default() };
        Plan {
            level: rule.level,
            omit_stages: rule.omit_stages.iter().chain(&self.omit_stages).copied().collect(),
            omit_managed_fields: rule.omit_managed_fields.unwrap_or(self.omit_managed_fields),
        }
    }
}

impl Rule {
    fn fits(&self, who: &Identity, what: &Attributes) -> bool {
        let listed = |list: &[String], one: &str| list.is_empty() || list.iter().any(|entry| entry == one);
        let in_group = self.user_groups.is_empty() || self.user_groups.iter().any(|group| who.is_in(group));
        if !listed(&self.users, &who.user) || !in_group || !listed(&self.verbs, &what.verb) {
            return false;
        }
        if what.path.is_empty() {
            // A rule about paths alone is not about objects.
            let about = !self.resources.is_empty() || !self.namespaces.is_empty() || self.paths.is_empty();
            let kind = self.resources.is_empty() || self.resources.iter().any(|resources| resources.fit(what));
            return about && listed(&self.namespaces, &what.namespace) && kind;
        }
        if !self.resources.is_empty() || !self.namespaces.is_empty() {
            return false;
        }
        self.paths.is_empty()
            || self.paths.iter().any(|pattern| match pattern.strip_suffix('*') {
                Some(prefix) => what.path.starts_with(prefix),
                None => *pattern == what.path,
            })
    }
}

impl Resources {
    fn fit(&self, what: &Attributes) -> bool {
        if self.group != what.group {
            return false;
        }
        if self.resources.is_empty() {
            return true;
        }
        let named = self.resource_names.is_empty() || self.resource_names.contains(&what.name);
        named
            && self.resources.iter().any(|pattern| match pattern.split_once('/') {
                None => pattern == "*" || what.subresource.is_empty() && *pattern == what.resource,
                Some((resource, part)) => {
                    !what.subresource.is_empty()
                        && (resource == "*" || resource == what.resource)
                        && (part == "*" || part == what.subresource)
                }
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn policy(rules: &serde_json::Value) -> Policy {
        Policy::read(&json!({"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "rules": rules,
            "omitStages": ["RequestReceived"]}))
        .expect("a policy")
    }

    fn level(policy: &Policy, verb: &str, resource: &str, namespace: &str) -> Level {
        let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
        let what = Attributes {
            verb: verb.into(),
            resource: resource.into(),
            subresource: subresource.into(),
            namespace: namespace.into(),
            ..Attributes::default()
        };
        policy.plan(&Identity::authenticated("alice", ["dev".to_owned()]), &what).level
    }

    #[test]
    fn the_first_rule_that_fits_decides() {
        let policy = policy(&json!([
            {"level": "None", "users": ["bob"]},
            {"level": "Metadata", "resources": [{"group": "", "resources": ["secrets", "pods/*"]}]},
            {"level": "None", "verbs": ["get", "list", "watch"]},
            {"level": "RequestResponse", "namespaces": ["prod"], "omitStages": ["ResponseStarted"]},
            {"level": "Request", "userGroups": ["dev"]},
        ]));
        assert_eq!(level(&policy, "get", "secrets", "prod"), Level::Metadata);
        assert_eq!(level(&policy, "get", "pods", "prod"), Level::None);
        assert_eq!(level(&policy, "get", "pods/log", "prod"), Level::Metadata);
        assert_eq!(level(&policy, "create", "pods", "prod"), Level::RequestResponse);
        assert_eq!(level(&policy, "create", "pods", "dev"), Level::Request);
        let what = Attributes { verb: "create".into(), namespace: "prod".into(), ..Attributes::default() };
        let plan = policy.plan(&Identity::anonymous(), &what);
        assert_eq!(plan.omit_stages, [Stage::ResponseStarted, Stage::RequestReceived]);
        assert!(Policy::read(&json!({"apiVersion": "audit.k8s.io/v1", "kind": "Policy"})).is_err());
    }
}
