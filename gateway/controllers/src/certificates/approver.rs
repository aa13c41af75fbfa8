//! Nodes' own certificates are approved without anybody's doing, if whoever asks may have one: the first one of a node by
//! the right to create `certificatesigningrequests/nodeclient`, its renewal by that to `selfnodeclient`, what it shows to
//! who asks it for logs by that to `selfnodeserver`, for the addresses that its Node object has.
//!
//! Who joins by a token can't take the name of a node that is there: such a request is denied.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, PostParams};

use super::asked::Asked;
use super::{NODE_CLIENT, NODE_SERVING, add_condition, certificate, has};
use crate::cluster::Cluster;
use crate::controller::{self, Controller, Setup};
use crate::informer::Key;
use crate::queue::{Again, Queue};
use crate::replica_set::tolerate_gone;

/// How a node's request is recognized, by what right it is approved, and what is then said.
struct Recognizer {
    recognizes: fn(&CertificateSigningRequest, &Asked) -> bool,
    subresource: &'static str,
    message: &'static str,
}

const RECOGNIZERS: [Recognizer; 3] = [
    Recognizer {
        recognizes: |request, asked| {
            is_of_node(request, asked) && request.spec.username.as_ref() == Some(&asked.common_name)
        },
        subresource: "selfnodeclient",
        message: "Auto approving self kubelet client certificate after SubjectAccessReview.",
    },
    Recognizer {
        recognizes: is_of_node,
        subresource: "nodeclient",
        message: "Auto approving kubelet client certificate after SubjectAccessReview.",
    },
    Recognizer {
        recognizes: |request, asked| {
            is_for(NODE_SERVING, request, asked) && request.spec.username.as_ref() == Some(&asked.common_name)
        },
        subresource: "selfnodeserver",
        message: "Auto approving self kubelet serving certificate for the node's addresses.",
    },
];

/// Who joins by a token is in this group.
const BOOTSTRAPPERS: &str = "system:bootstrappers";

/// The longest wait before a node that may not have a certificate is looked at again: rights may come later.
const LAST_LOOK: Duration = Duration::from_secs(1000);

fn is_of_node(request: &CertificateSigningRequest, asked: &Asked) -> bool {
    is_for(NODE_CLIENT, request, asked)
}

fn is_for(signer: &str, request: &CertificateSigningRequest, asked: &Asked) -> bool {
    let usages: BTreeSet<&str> = request.spec.usages.iter().flatten().map(String::as_str).collect();
    request.spec.signer_name == signer && asked.problem(signer, &usages).is_none()
}

/// Whether a node has all the names and addresses that are asked for.
fn has_all(node: &Node, asked: &Asked) -> bool {
    let known = |wanted: &str| {
        let addresses = node.status.iter().flat_map(|status| status.addresses.iter().flatten());
        addresses.into_iter().any(|address| address.address == wanted)
    };
    asked.dns_names.iter().all(|name| known(name)) && asked.addresses.iter().all(|ip| known(&ip.to_string()))
}

pub(crate) struct Approver {
    cluster: Cluster,
}

impl Controller for Approver {
    type Item = Key;
    const NAME: &'static str = "certificate-controller";

    fn new(setup: &Setup<'_>) -> Self {
        Self { cluster: setup.cluster.clone() }
    }

    fn listen(self: &Arc<Self>, _: &Setup<'_>, queue: &Queue<Key>) {
        controller::each(&self.cluster.signing_requests, queue);
    }

    async fn reconcile(&self, key: Key) -> Result<Again, kube::Error> {
        let Some(request) = self.cluster.signing_requests.get(&key) else { return Ok(None) };
        if certificate(&request).is_some() || has(&request, "Approved") || has(&request, "Denied") {
            return Ok(None);
        }
        // What can't be read isn't a node's; a person may still judge it.
        let Ok(asked) = Asked::read(&request.spec.request.0) else { return Ok(None) };
        if let Some(why) = self.denial(&request, &asked) {
            return self.judge(&request, "Denied", "NodeExists", why).await;
        }
        if request.spec.signer_name == NODE_SERVING && !self.node(&asked).is_some_and(|node| has_all(&node, &asked)) {
            // Its addresses may come later; a person may still approve it before.
            return Ok(is_for(NODE_SERVING, &request, &asked).then(|| next_look(&request)));
        }
        let mut recognized = false;
        for recognizer in RECOGNIZERS.iter().filter(|recognizer| (recognizer.recognizes)(&request, &asked)) {
            recognized = true;
            if self.may(&request, recognizer.subresource).await? {
                return self.judge(&request, "Approved", "AutoApproved", recognizer.message.to_owned()).await;
            }
        }
        Ok(recognized.then(|| next_look(&request)))
    }
}

/// When to ask again for the rights of who may not have a certificate: ever more rarely.
fn next_look(request: &CertificateSigningRequest) -> Duration {
    let created = request.metadata.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second());
    let age = u64::try_from(Timestamp::now().as_second() - created).unwrap_or(0);
    Duration::from_secs(age).clamp(Duration::from_secs(1), LAST_LOOK)
}

impl Approver {
    fn node(&self, asked: &Asked) -> Option<Arc<Node>> {
        self.cluster.nodes.get(&Key::new("", asked.node()?))
    }

    /// Why a request is turned down: a token lets new nodes in, and makes nobody a node that is there already.
    fn denial(&self, request: &CertificateSigningRequest, asked: &Asked) -> Option<String> {
        let joins = request.spec.groups.iter().flatten().any(|group| group == BOOTSTRAPPERS);
        let name = asked.node().filter(|_| joins && request.spec.signer_name == NODE_CLIENT)?;
        self.node(asked)?;
        Some(format!("there is a node {name:?} already: choose another name, or delete that node first"))
    }

    /// Writes what becomes of a request.
    async fn judge(
        &self,
        request: &CertificateSigningRequest,
        condition: &str,
        reason: &str,
        message: String,
    ) -> Result<Again, kube::Error> {
        let mut judged = request.clone();
        add_condition(&mut judged, condition, reason, message);
        let name = request.metadata.name.as_deref().unwrap_or_default();
        let api: Api<CertificateSigningRequest> = Api::all(self.cluster.client.clone());
        let written = api.replace_subresource("approval", name, &PostParams::default(), &judged).await;
        tolerate_gone(written.map(|_| ())).map(|()| None)
    }

    /// Whether who asks has the right to this kind of certificate.
    async fn may(&self, request: &CertificateSigningRequest, subresource: &str) -> Result<bool, kube::Error> {
        let spec = &request.spec;
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: spec.username.clone(),
                uid: spec.uid.clone(),
                groups: spec.groups.clone(),
                extra: spec.extra.clone(),
                resource_attributes: Some(ResourceAttributes {
                    group: Some("certificates.k8s.io".to_owned()),
                    resource: Some("certificatesigningrequests".to_owned()),
                    verb: Some("create".to_owned()),
                    version: Some("*".to_owned()),
                    subresource: Some(subresource.to_owned()),
                    ..ResourceAttributes::default()
                }),
                ..SubjectAccessReviewSpec::default()
            },
            ..SubjectAccessReview::default()
        };
        let api: Api<SubjectAccessReview> = Api::all(self.cluster.client.clone());
        let answer = api.create(&PostParams::default(), &review).await?;
        Ok(answer.status.is_some_and(|status| status.allowed))
    }
}
