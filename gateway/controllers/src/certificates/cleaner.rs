//! Old requests go: what was issued, denied or failed an hour ago, what nobody decided in a day, and whose certificate
//! has ended. One by which somebody was let in as a node that isn't there yet stays: nobody else gets the name meanwhile.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use kube::api::{Api, DeleteParams, Preconditions};
use x509_parser::certificate::X509Certificate;
use x509_parser::pem::parse_x509_pem;
use x509_parser::prelude::FromDer as _;

use super::asked::Asked;
use super::{certificate, conditions, joins};
use crate::cluster::Cluster;
use crate::controller::{self, Controller, Setup};
use crate::informer::Key;
use crate::queue::{Again, Queue};
use crate::replica_set::tolerate_gone;

/// How long a request is kept after it was decided, in seconds.
const DECIDED: i64 = 60 * 60;
/// How long one is kept that nobody decides.
const PENDING: i64 = 24 * 60 * 60;

pub(crate) struct Cleaner {
    cluster: Cluster,
}

impl Controller for Cleaner {
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
        let Some(end) = end(&request) else { return Ok(None) };
        let left = end - Timestamp::now().as_second();
        if left >= 0 {
            return Ok(Some(Duration::from_secs(u64::try_from(left + 1).unwrap_or(1))));
        }
        if is_expected(&request, |node| self.cluster.nodes.get(&Key::new("", node)).is_some()) {
            return Ok(Some(Duration::from_secs(DECIDED.unsigned_abs())));
        }
        let only_this = Preconditions { uid: request.metadata.uid.clone(), resource_version: None };
        let params = DeleteParams { preconditions: Some(only_this), ..DeleteParams::default() };
        let api: Api<CertificateSigningRequest> = Api::all(self.cluster.client.clone());
        tolerate_gone(api.delete(&key.name, &params).await.map(|_| ())).map(|()| None)
    }
}

/// Whether somebody holds its certificate as a node that isn't there yet.
fn is_expected(request: &CertificateSigningRequest, is_there: impl Fn(&str) -> bool) -> bool {
    let holds = certificate(request).and_then(expiry).is_some_and(|end| end > Timestamp::now().as_second());
    let asked = Asked::read(&request.spec.request.0);
    holds && joins(request) && asked.is_ok_and(|asked| asked.node().is_some_and(|node| !is_there(node)))
}

/// The last second of a request, since 1970; none for one that is approved and waits for its signer.
fn end(request: &CertificateSigningRequest) -> Option<i64> {
    let all = conditions(request);
    if all.is_empty() {
        return request.metadata.creation_timestamp.as_ref().map(|time| time.0.as_second() + PENDING);
    }
    let issued = certificate(request);
    let decided = all.iter().filter(|condition| match condition.type_.as_str() {
        "Denied" | "Failed" => true,
        "Approved" => issued.is_some(),
        _ => false,
    });
    let decided = decided.filter_map(|condition| Some(condition.last_update_time.as_ref()?.0.as_second() + DECIDED));
    let approved = all.iter().any(|condition| condition.type_ == "Approved");
    decided.chain(issued.filter(|_| approved).and_then(expiry)).min()
}

/// When the first certificate of a PEM text ends.
pub(super) fn expiry(pem: &[u8]) -> Option<i64> {
    let (_, block) = parse_x509_pem(pem).ok()?;
    let (_, certificate) = X509Certificate::from_der(&block.contents).ok()?;
    Some(certificate.validity().not_after.timestamp())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::asked::tests::request;
    use super::super::issue::tests::authority;
    use super::*;

    // A literal object reads better as an argument by value.
    #[allow(clippy::needless_pass_by_value)]
    fn hours(status: Value) -> Option<i64> {
        let request = json!({"metadata": {"creationTimestamp": "1970-01-01T00:00:00Z"},
            "spec": {"request": "", "signerName": "a.b/c"}, "status": status});
        end(&serde_json::from_value(request).unwrap()).map(|second| second / 3600)
    }

    #[test]
    fn a_request_goes_an_hour_after_it_was_decided_or_a_day_after_it_was_made() {
        let decided = |kind: &str| json!({"type": kind, "status": "True", "lastUpdateTime": "1970-01-01T05:00:00Z"});
        assert_eq!(hours(json!({})), Some(24));
        assert_eq!(hours(json!({"conditions": [decided("Denied")]})), Some(6));
        assert_eq!(hours(json!({"conditions": [decided("Approved"), decided("Failed")]})), Some(6));
        assert_eq!(hours(json!({"conditions": [decided("Approved")]})), None);
        let certificate = k8s_openapi::ByteString(authority().0.into_bytes());
        let issued = json!({"conditions": [decided("Approved")], "certificate": certificate});
        assert_eq!(hours(issued), Some(6));
    }

    #[test]
    fn who_was_let_in_is_waited_for() {
        let pem = k8s_openapi::ByteString(request("system:node:n1", "system:nodes", &[]).into_bytes());
        let certificate = k8s_openapi::ByteString(authority().0.into_bytes());
        let issued = |group: &str, certificate: Value| -> CertificateSigningRequest {
            let spec = json!({"request": pem, "signerName": super::super::NODE_CLIENT, "groups": [group]});
            serde_json::from_value(json!({"metadata": {}, "spec": spec, "status": {"certificate": certificate}}))
                .unwrap()
        };
        let joined = issued("system:bootstrappers", json!(certificate));
        assert!(is_expected(&joined, |node| node == "n2"));
        assert!(!is_expected(&joined, |node| node == "n1"), "it is there");
        assert!(!is_expected(&issued("system:nodes", json!(certificate)), |_| false), "a node's own");
        assert!(!is_expected(&issued("system:bootstrappers", Value::Null), |_| false), "nobody was let in");
    }

    #[test]
    fn a_certificate_that_has_ended_ends_its_request() {
        assert!(expiry(authority().0.as_bytes()).is_some_and(|end| end > 2_000_000_000));
        assert_eq!(expiry(b"?"), None);
    }
}
