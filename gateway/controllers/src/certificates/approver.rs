//! Nodes' own certificates are approved without anybody's doing, if whoever asks may have one: the first one of a node by
//! the right to create `certificatesigningrequests/nodeclient`, its renewal by that to `selfnodeclient`, what it shows to
//! who asks it for logs by that to `selfnodeserver`, for the addresses that its Node object has.
//!
//! Who joins by a token can't take the name of a node that is there, or that somebody else was let in with, or that means
//! something else: such a request is denied. What others would take for somebody else's isn't signed for a node, whatever its
//! Node object says: only its name, and addresses that no other node has and the cluster has not.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, PostParams};
use tokio::sync::Mutex;

use super::asked::Asked;
use super::cleaner::expiry;
use super::{NODE_CLIENT, NODE_SERVING, add_condition, certificate, has, joins};
use crate::Reserved;
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

/// The longest wait before a node that may not have a certificate is looked at again: rights may come later.
const LAST_LOOK: Duration = Duration::from_secs(1000);

fn is_of_node(request: &CertificateSigningRequest, asked: &Asked) -> bool {
    is_for(NODE_CLIENT, request, asked)
}

fn is_for(signer: &str, request: &CertificateSigningRequest, asked: &Asked) -> bool {
    let usages: BTreeSet<&str> = request.spec.usages.iter().flatten().map(String::as_str).collect();
    request.spec.signer_name == signer && asked.problem(signer, &usages).is_none()
}

/// The addresses that a node says it has.
fn addresses(node: &Node) -> impl Iterator<Item = IpAddr> {
    let all = node.status.iter().flat_map(|status| status.addresses.iter().flatten());
    all.filter_map(|address| address.address.parse::<IpAddr>().ok()).map(|address| address.to_canonical())
}

/// Who has been let in lately, by the node's name: the requests' names.
type LetIn = HashMap<String, String>;

pub(crate) struct Approver {
    cluster: Cluster,
    reserved: Reserved,
    /// One request of who joins is judged at a time: the next one is to know of it.
    let_in: Mutex<LetIn>,
}

impl Controller for Approver {
    type Item = Key;
    const NAME: &'static str = "certificate-controller";

    fn new(setup: &Setup<'_>) -> Self {
        Self { cluster: setup.cluster.clone(), reserved: Arc::clone(&setup.options.reserved), let_in: Mutex::default() }
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
        let mut let_in = if joins(&request) { Some(self.let_in.lock().await) } else { None };
        if let Some(let_in) = &let_in
            && let Some((reason, why)) = self.denial(&request, &asked, let_in)
        {
            return self.judge(&request, "Denied", reason, why).await;
        }
        if request.spec.signer_name == NODE_SERVING && !self.is_its_own(&asked) {
            // Its addresses may come later; a person may still approve it before.
            return Ok(is_for(NODE_SERVING, &request, &asked).then(|| next_look(&request)));
        }
        let mut recognized = false;
        for recognizer in RECOGNIZERS.iter().filter(|recognizer| (recognizer.recognizes)(&request, &asked)) {
            recognized = true;
            if self.may(&request, recognizer.subresource).await? {
                if let (Some(let_in), Some(node)) = (&mut let_in, asked.node()) {
                    let_in.retain(|_, name| self.cluster.signing_requests.get(&Key::new("", name.as_str())).is_some());
                    let_in.insert(node.to_owned(), key.name.clone());
                }
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

    /// Whether a node that asks for a certificate for names and addresses has them, and nobody else.
    fn is_its_own(&self, asked: &Asked) -> bool {
        let (Some(node), Some(name)) = (self.node(asked), asked.node()) else { return false };
        let of_others = self.cluster.nodes.list(|other| other.metadata.name.as_deref() != Some(name));
        let taken: HashSet<IpAddr> = of_others.iter().flat_map(|other| addresses(other)).collect();
        let foreign = |what: &str| (self.reserved)(what).is_some();
        asked.dns_names.iter().all(|wanted| wanted == name && !foreign(wanted))
            && asked.addresses.iter().map(IpAddr::to_canonical).all(|wanted| {
                addresses(&node).any(|has| has == wanted) && !taken.contains(&wanted) && !foreign(&wanted.to_string())
            })
    }

    /// Why who joins is turned down, in a word and in a sentence: a token lets new nodes in, and makes nobody a node that is
    /// there already, or for which somebody holds a certificate.
    fn denial(
        &self,
        request: &CertificateSigningRequest,
        asked: &Asked,
        let_in: &LetIn,
    ) -> Option<(&'static str, String)> {
        let name = asked.node()?;
        if let Some(what) = (self.reserved)(name) {
            return Some(("NodeNameReserved", format!("no node can be called {name:?}: that is {what}")));
        }
        if self.node(asked).is_some() {
            let why = format!("there is a node {name:?} already: choose another name, or delete that node first");
            return Some(("NodeExists", why));
        }
        let own = request.metadata.name.as_deref().unwrap_or_default();
        let holds = |other: &CertificateSigningRequest| {
            let (is_other, other_name) = (other.metadata.name.as_deref() != Some(own), other.metadata.name.as_ref());
            let lets_in = has(other, "Approved") || let_in.get(name) == other_name;
            is_other
                && other.spec.signer_name == NODE_CLIENT
                && lets_in
                && !has(other, "Denied")
                && !has(other, "Failed")
        };
        let now = Timestamp::now().as_second();
        let still = |other: &CertificateSigningRequest| certificate(other).is_none_or(|pem| expiry(pem) > Some(now));
        let is_of_it = |other: &CertificateSigningRequest| {
            Asked::read(&other.spec.request.0).is_ok_and(|other| other.node() == Some(name))
        };
        let others = self.cluster.signing_requests.list(|other| holds(other) && still(other) && is_of_it(other));
        let other = others.first()?.metadata.name.clone().unwrap_or_default();
        let why = format!(
            "somebody was let in as node {name:?} by the request {other:?} and holds its certificate: choose another name, \
             or delete that request first"
        );
        Some(("NodeJoins", why))
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
