//! What is decided about a request beyond the rules of its kind: what an object is given, and whether it is let in.
//!
//! A plugin is a row of one of two tables. Those that change objects run first, in the order of their table and before
//! the object is validated; those that only judge run last, on the object as it would be stored.

mod amounts;
mod certificates;
mod default_class;
mod expansion;
pub(crate) mod extension;
mod limit_range;
mod namespace;
pub(crate) mod node_restriction;
mod node_taint;
pub(crate) mod pod_security;
mod priority;
pub(crate) mod quota;
mod request;
mod runtime_class;
mod service_account;
mod tolerations;
mod topology;

use carob_api::status::Status;
use futures::future::BoxFuture;

use crate::authz::escalation;
pub(crate) use namespace::Place;
pub(crate) use request::{Operation, Request};

/// Something that has a say in requests.
struct Plugin<F> {
    /// As Kubernetes calls it.
    name: &'static str,
    /// When it is asked.
    operations: &'static [Operation],
    /// About what it is asked.
    resources: Resources,
    run: F,
}

/// What a plugin is about.
enum Resources {
    /// Group, plural and subresource (empty for the object itself).
    Only(&'static [(&'static str, &'static str, &'static str)]),
}

/// Changes the request's object, or refuses it.
type Mutate = for<'r> fn(&'r mut Request<'_>) -> BoxFuture<'r, Result<(), Status>>;
/// Refuses the request, or doesn't.
type Validate = for<'r> fn(&'r Request<'_>) -> BoxFuture<'r, Result<(), Status>>;

const ROLES: Resources = Resources::Only(&[
    (escalation::GROUP, "clusterrolebindings", ""),
    (escalation::GROUP, "clusterroles", ""),
    (escalation::GROUP, "rolebindings", ""),
    (escalation::GROUP, "roles", ""),
]);
const PODS: Resources = Resources::Only(&[("", "pods", "")]);
const REQUESTS: Resources = Resources::Only(&[("certificates.k8s.io", "certificatesigningrequests", "")]);

/// What nodes change. (What else there is, they may not: the authorizer sees to that.)
const OF_NODES: Resources = Resources::Only(&[
    ("", "nodes", ""),
    ("", "nodes", "status"),
    ("", "persistentvolumeclaims", ""),
    ("", "persistentvolumeclaims", "status"),
    ("", "pods", ""),
    ("", "pods", "binding"),
    ("", "pods", "ephemeralcontainers"),
    ("", "pods", "eviction"),
    ("", "pods", "resize"),
    ("", "pods", "status"),
    ("", "serviceaccounts", "token"),
    ("certificates.k8s.io", "certificatesigningrequests", ""),
    ("coordination.k8s.io", "leases", ""),
    ("resource.k8s.io", "resourceslices", ""),
    ("storage.k8s.io", "csinodes", ""),
]);
/// Pods, what makes Pods, and where Pods are.
const SECURED: Resources = Resources::Only(&[
    ("", "namespaces", ""),
    ("", "pods", ""),
    ("", "pods", "ephemeralcontainers"),
    ("", "podtemplates", ""),
    ("", "replicationcontrollers", ""),
    ("apps", "daemonsets", ""),
    ("apps", "deployments", ""),
    ("apps", "replicasets", ""),
    ("apps", "statefulsets", ""),
    ("batch", "cronjobs", ""),
    ("batch", "jobs", ""),
]);

/// In Kubernetes' order.
static MUTATING: &[Plugin<Mutate>] = &[
    Plugin {
        name: "LimitRanger",
        operations: &[Operation::Create],
        resources: PODS,
        run: |request| Box::pin(limit_range::complete(request)),
    },
    Plugin {
        name: "ServiceAccount",
        operations: &[Operation::Create],
        resources: PODS,
        run: |request| Box::pin(service_account::admit(request.call, &mut request.object)),
    },
    Plugin {
        name: "NodeRestriction",
        operations: &[Operation::Create, Operation::Update, Operation::Delete],
        resources: OF_NODES,
        run: |request| Box::pin(node_restriction::admit(request)),
    },
    Plugin {
        name: "TaintNodesByCondition",
        operations: &[Operation::Create],
        resources: Resources::Only(&[("", "nodes", "")]),
        run: |request| {
            node_taint::admit(&mut request.object);
            Box::pin(std::future::ready(Ok(())))
        },
    },
    Plugin {
        name: "Priority",
        operations: &[Operation::Create],
        resources: PODS,
        run: |request| Box::pin(priority::admit(request.call, &mut request.object)),
    },
    Plugin {
        name: "Priority",
        operations: &[Operation::Update],
        resources: PODS,
        run: |request| {
            priority::keep(&mut request.object, request.old);
            Box::pin(std::future::ready(Ok(())))
        },
    },
    Plugin {
        name: "DefaultTolerationSeconds",
        operations: &[Operation::Create, Operation::Update],
        resources: PODS,
        run: |request| {
            if request.object.pointer("/metadata/deletionTimestamp").is_none() {
                tolerations::admit(&mut request.object);
            }
            Box::pin(std::future::ready(Ok(())))
        },
    },
    Plugin {
        name: "RuntimeClass",
        operations: &[Operation::Create],
        resources: PODS,
        run: |request| Box::pin(runtime_class::admit(request.call, &mut request.object)),
    },
    // No plugin of Kubernetes', whose storage of requests does it.
    Plugin {
        name: "CertificateRequester",
        operations: &[Operation::Create],
        resources: REQUESTS,
        run: |request| {
            certificates::name_requester(&request.call.identity, &mut request.object);
            Box::pin(std::future::ready(Ok(())))
        },
    },
    Plugin {
        name: "DefaultIngressClass",
        operations: &[Operation::Create],
        resources: Resources::Only(&[("networking.k8s.io", "ingresses", "")]),
        run: |request| Box::pin(default_class::OF_INGRESSES.admit(request.call, &mut request.object)),
    },
    Plugin {
        name: "DefaultStorageClass",
        operations: &[Operation::Create],
        resources: Resources::Only(&[("", "persistentvolumeclaims", "")]),
        run: |request| Box::pin(default_class::OF_CLAIMS.admit(request.call, &mut request.object)),
    },
    Plugin {
        name: "PodTopologyLabels",
        operations: &[Operation::Create],
        resources: Resources::Only(&[("", "pods", ""), ("", "pods", "binding")]),
        run: |request| Box::pin(topology::admit(request)),
    },
    // No plugin of Kubernetes', whose storage of roles does it at this point.
    Plugin {
        name: "RoleEscalation",
        operations: &[Operation::Create, Operation::Update],
        resources: ROLES,
        run: |request| Box::pin(escalation::check(request.call, &request.object, request.old)),
    },
];

/// In Kubernetes' order.
static VALIDATING: &[Plugin<Validate>] = &[
    Plugin {
        name: "LimitRanger",
        operations: &[Operation::Create],
        resources: Resources::Only(&[("", "persistentvolumeclaims", ""), ("", "pods", "")]),
        run: |request| Box::pin(limit_range::check(request)),
    },
    Plugin {
        name: "LimitRanger",
        operations: &[Operation::Update],
        resources: Resources::Only(&[("", "persistentvolumeclaims", ""), ("", "pods", "resize")]),
        run: |request| {
            Box::pin(async {
                let anew = request.call.kind.plural == "pods" || limit_range::asks_anew(request);
                if anew { limit_range::check(request).await } else { Ok(()) }
            })
        },
    },
    Plugin {
        name: "PodSecurity",
        operations: &[Operation::Create, Operation::Update],
        resources: SECURED,
        run: |request| Box::pin(pod_security::admit(request)),
    },
    Plugin {
        name: "Priority",
        operations: &[Operation::Create, Operation::Update],
        resources: Resources::Only(&[("scheduling.k8s.io", "priorityclasses", "")]),
        run: |request| Box::pin(priority::one_default(request)),
    },
    Plugin {
        name: "PersistentVolumeClaimResize",
        operations: &[Operation::Update],
        resources: Resources::Only(&[("", "persistentvolumeclaims", "")]),
        run: |request| Box::pin(expansion::admit(request)),
    },
    Plugin {
        name: "CertificateApproval",
        operations: &[Operation::Update],
        resources: Resources::Only(&[("certificates.k8s.io", "certificatesigningrequests", "approval")]),
        run: |request| Box::pin(std::future::ready(certificates::may_approve(request))),
    },
    Plugin {
        name: "CertificateSigning",
        operations: &[Operation::Update],
        resources: Resources::Only(&[("certificates.k8s.io", "certificatesigningrequests", "status")]),
        run: |request| Box::pin(std::future::ready(certificates::may_sign(request))),
    },
    Plugin {
        name: "CertificateSubjectRestriction",
        operations: &[Operation::Create],
        resources: REQUESTS,
        run: |request| Box::pin(std::future::ready(certificates::restrict_subject(request))),
    },
];

impl<F> Plugin<F> {
    fn concerns(&self, request: &Request<'_>) -> bool {
        let Resources::Only(rows) = self.resources;
        let kind = &request.call.kind;
        self.operations.contains(&request.operation)
            && rows.iter().any(|row| *row == (kind.group, kind.plural, request.subresource))
    }
}

/// Completes the request's object, or refuses the request.
pub(crate) async fn mutate(request: &mut Request<'_>) -> Result<(), Status> {
    mutate_by_plugins(request).await?;
    // What webhooks change is completed again, and those of them that want to know are asked again.
    if Box::pin(extension::mutate(request)).await.inspect_err(|status| refused("MutatingAdmissionWebhook", status))? {
        mutate_by_plugins(request).await?;
        Box::pin(extension::mutate_again(request)).await?;
    }
    Ok(())
}

async fn mutate_by_plugins(request: &mut Request<'_>) -> Result<(), Status> {
    for plugin in MUTATING.iter().filter(|plugin| plugin.concerns(request)).collect::<Vec<_>>() {
        (plugin.run)(request).await.inspect_err(|status| refused(plugin.name, status))?;
    }
    Ok(())
}

/// Refuses the request, or lets it through.
pub(crate) async fn validate(request: &Request<'_>) -> Result<(), Status> {
    for plugin in VALIDATING.iter().filter(|plugin| plugin.concerns(request)) {
        (plugin.run)(request).await.inspect_err(|status| refused(plugin.name, status))?;
    }
    let asked = Box::pin(extension::validate(request)).await;
    asked.inspect_err(|status| refused("ValidatingAdmissionPolicy or webhook", status))
}

/// Both, for requests whose object nothing else looks at: deletes, connects, bindings, …
pub(crate) async fn review(request: &mut Request<'_>) -> Result<(), Status> {
    mutate(request).await?;
    validate(request).await
}

fn refused(plugin: &str, status: &Status) {
    tracing::debug!(plugin, %status, "admission refused a request");
}
