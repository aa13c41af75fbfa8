//! Whether somebody may do something. One trait, so that RBAC can take the place of the built-in policy.

use async_trait::async_trait;
use carob_api::status::{GroupResource, Status};

use crate::authn::{AUTHENTICATED, Identity, MASTERS};
use crate::request::{RequestInfo, ResourcePath, Target};

/// What somebody wants to do.
#[derive(Clone, Debug, Default)]
pub(crate) struct Attributes {
    pub verb: String,
    /// Empty for an object's request.
    pub path: String,
    pub group: String,
    pub resource: String,
    pub subresource: String,
    pub namespace: String,
    pub name: String,
}

/// Decides.
#[async_trait]
pub(crate) trait Authorizer: Send + Sync {
    /// Whether `identity` may.
    async fn allows(&self, identity: &Identity, attributes: &Attributes) -> bool;
}

impl Attributes {
    /// What a request wants to do.
    pub fn of(info: &RequestInfo) -> Self {
        match &info.target {
            Target::Path(path) => Self { verb: info.verb.to_owned(), path: path.clone(), ..Self::default() },
            Target::Resource(ResourcePath { group, namespace, resource, name, subresource, .. }) => Self {
                verb: info.verb.to_owned(),
                path: String::new(),
                group: group.clone(),
                resource: resource.clone(),
                subresource: subresource.clone().unwrap_or_default(),
                // A Namespace itself is asked about as if it were in itself.
                namespace: namespace
                    .clone()
                    .or_else(|| name.clone().filter(|_| resource == "namespaces"))
                    .unwrap_or_default(),
                name: name.clone().unwrap_or_default(),
            },
        }
    }

    /// The refusal in Kubernetes' words.
    pub fn refusal(&self, identity: &Identity) -> Status {
        let user = &identity.user;
        if !self.path.is_empty() {
            let text = format!("User {user:?} cannot {} path {:?}", self.verb, self.path);
            return Status::forbidden(&GroupResource::default(), "", text);
        }
        let resource = match self.subresource.as_str() {
            "" => self.resource.clone(),
            subresource => format!("{}/{subresource}", self.resource),
        };
        let place = match self.namespace.as_str() {
            "" => "at the cluster scope".to_owned(),
            namespace => format!("in the namespace {namespace:?}"),
        };
        let text =
            format!("User {user:?} cannot {} resource {resource:?} in API group {:?} {place}", self.verb, self.group);
        Status::forbidden(&GroupResource::new(&self.group, &self.resource), &self.name, text)
    }
}

/// Who may do what until there are roles: administrators everything, a node what a kubelet does, everybody the paths and
/// reviews that Kubernetes' default roles (`system:discovery`, `system:public-info-viewer`, `system:basic-user`) give.
pub(crate) struct BuiltInPolicy;

/// Some verbs on some resources. `*` stands for all.
struct Rule {
    group: &'static str,
    resources: &'static [&'static str],
    verbs: &'static [&'static str],
}

const READ: &[&str] = &["get", "list", "watch"];
const WRITE: &[&str] = &["create", "get", "list", "watch", "update", "patch", "delete"];

/// What a node's worker does.
const NODE: [Rule; 8] = [
    Rule { group: "", resources: &["nodes", "nodes/status"], verbs: WRITE },
    Rule { group: "", resources: &["pods", "pods/status", "pods/eviction"], verbs: WRITE },
    Rule { group: "", resources: &["configmaps", "secrets", "serviceaccounts", "services", "namespaces"], verbs: READ },
    Rule { group: "", resources: &["serviceaccounts/token"], verbs: &["create"] },
    Rule { group: "", resources: &["events"], verbs: &["create", "patch", "update"] },
    Rule { group: "events.k8s.io", resources: &["events"], verbs: &["create", "patch", "update"] },
    Rule { group: "coordination.k8s.io", resources: &["leases"], verbs: WRITE },
    Rule { group: "", resources: &["persistentvolumeclaims", "persistentvolumes"], verbs: READ },
];

/// What everybody who is known may ask about themselves.
const BASIC_USER: [Rule; 2] = [
    Rule {
        group: "authorization.k8s.io",
        resources: &["selfsubjectaccessreviews", "selfsubjectrulesreviews"],
        verbs: &["create"],
    },
    Rule { group: "authentication.k8s.io", resources: &["selfsubjectreviews"], verbs: &["create"] },
];

/// Paths that everybody may read; a `*` at the end stands for anything.
const PUBLIC_PATHS: [&str; 5] = ["/healthz", "/livez", "/readyz", "/version", "/version/"];
/// Paths that everybody who is known may read.
const DISCOVERY_PATHS: [&str; 6] = ["/api", "/api/*", "/apis", "/apis/*", "/openapi", "/openapi/*"];

#[async_trait]
impl Authorizer for BuiltInPolicy {
    async fn allows(&self, identity: &Identity, wanted: &Attributes) -> bool {
        if identity.is_in(MASTERS) {
            return true;
        }
        let known = identity.is_in(AUTHENTICATED);
        if !wanted.path.is_empty() {
            return wanted.verb == "get"
                && (matches_path(&PUBLIC_PATHS, &wanted.path)
                    || known && matches_path(&DISCOVERY_PATHS, &wanted.path));
        }
        known && (matches_rule(&BASIC_USER, wanted) || identity.is_in("system:nodes") && matches_rule(&NODE, wanted))
    }
}

fn matches_path(patterns: &[&str], path: &str) -> bool {
    patterns.iter().any(|pattern| match pattern.strip_suffix('*') {
        Some(prefix) => path.starts_with(prefix),
        None => path == *pattern,
    })
}

fn matches_rule(rules: &[Rule], wanted: &Attributes) -> bool {
    let resource = match wanted.subresource.as_str() {
        "" => wanted.resource.clone(),
        subresource => format!("{}/{subresource}", wanted.resource),
    };
    rules.iter().any(|rule| {
        rule.group == wanted.group
            && rule.resources.contains(&resource.as_str())
            && rule.verbs.contains(&wanted.verb.as_str())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wants(verb: &str, group: &str, resource: &str) -> Attributes {
        let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
        Attributes {
            verb: verb.into(),
            group: group.into(),
            resource: resource.into(),
            subresource: subresource.into(),
            namespace: "default".into(),
            ..Attributes::default()
        }
    }

    #[tokio::test]
    async fn administrators_may_do_everything_and_nobody_nothing() {
        let admin = Identity::authenticated("a", [MASTERS.to_owned()]);
        assert!(BuiltInPolicy.allows(&admin, &wants("delete", "", "secrets")).await);
        assert!(!BuiltInPolicy.allows(&Identity::anonymous(), &wants("get", "", "pods")).await);
        let path = |path: &str| Attributes { verb: "get".into(), path: path.into(), ..Attributes::default() };
        assert!(BuiltInPolicy.allows(&Identity::anonymous(), &path("/version")).await);
        assert!(!BuiltInPolicy.allows(&Identity::anonymous(), &path("/api")).await);
        assert!(!BuiltInPolicy.allows(&Identity::anonymous(), &path("/metrics")).await);
    }

    #[tokio::test]
    async fn a_service_account_may_look_around_and_nothing_more() {
        let account = Identity::authenticated("system:serviceaccount:a:b", ["system:serviceaccounts".to_owned()]);
        let api = Attributes { verb: "get".into(), path: "/apis/apps/v1".into(), ..Attributes::default() };
        assert!(BuiltInPolicy.allows(&account, &api).await);
        assert!(BuiltInPolicy.allows(&account, &wants("create", "authentication.k8s.io", "selfsubjectreviews")).await);
        assert!(!BuiltInPolicy.allows(&account, &wants("list", "", "pods")).await);
    }

    #[tokio::test]
    async fn a_node_reports_on_pods_but_makes_no_deployments() {
        let node = Identity::authenticated("system:node:n", ["system:nodes".to_owned()]);
        assert!(BuiltInPolicy.allows(&node, &wants("patch", "", "pods/status")).await);
        assert!(!BuiltInPolicy.allows(&node, &wants("create", "apps", "deployments")).await);
        assert!(!BuiltInPolicy.allows(&node, &wants("delete", "", "secrets")).await);
    }

    #[test]
    fn a_refusal_names_user_verb_resource_group_and_place() {
        let status = Attributes { name: "d".into(), ..wants("get", "apps", "deployments/scale") }
            .refusal(&Identity::anonymous());
        assert_eq!(
            status.message(),
            "deployments.apps \"d\" is forbidden: User \"system:anonymous\" cannot get resource \
             \"deployments/scale\" in API group \"apps\" in the namespace \"default\""
        );
    }
}
