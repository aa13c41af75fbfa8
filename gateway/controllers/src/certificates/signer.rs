//! Approved requests are signed with the cluster's authority, if their signer is one of Kubernetes' own and would sign them.

use std::collections::BTreeSet;
use std::sync::Arc;

use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use kube::api::{Api, PostParams};

use super::asked::Asked;
use super::issue::Authority;
use super::{CLIENT, LEGACY, NODE_CLIENT, NODE_SERVING, add_condition, certificate, has};
use crate::cluster::Cluster;
use crate::controller::{self, Controller, Setup};
use crate::informer::Key;
use crate::queue::{Again, Queue};
use crate::replica_set::tolerate_gone;

/// Whose requests are signed here.
const SIGNERS: [&str; 4] = [CLIENT, NODE_CLIENT, NODE_SERVING, LEGACY];

pub(crate) struct Signer {
    cluster: Cluster,
    /// None if nobody gave its key.
    authority: Option<Authority>,
}

impl Controller for Signer {
    type Item = Key;
    const NAME: &'static str = "certificate-controller";

    fn new(setup: &Setup<'_>) -> Self {
        let read = |pair: &(String, String)| {
            Authority::read(&pair.0, &pair.1, setup.options.signing_duration)
                .inspect_err(|error| tracing::error!(%error, "requests for certificates will not be signed"))
                .ok()
        };
        Self { cluster: setup.cluster.clone(), authority: setup.options.authority.as_ref().and_then(read) }
    }

    fn listen(self: &Arc<Self>, _: &Setup<'_>, queue: &Queue<Key>) {
        if self.authority.is_some() {
            controller::each(&self.cluster.signing_requests, queue);
        }
    }

    async fn reconcile(&self, key: Key) -> Result<Again, kube::Error> {
        let (Some(request), Some(authority)) = (self.cluster.signing_requests.get(&key), &self.authority) else {
            return Ok(None);
        };
        if certificate(&request).is_none()
            && has(&request, "Approved")
            && !has(&request, "Denied")
            && !has(&request, "Failed")
            && SIGNERS.contains(&request.spec.signer_name.as_str())
            && let Some(wanted) = answer(&request, authority)
        {
            let api: Api<CertificateSigningRequest> = Api::all(self.cluster.client.clone());
            tolerate_gone(api.replace_status(&key.name, &PostParams::default(), &wanted).await.map(|_| ()))?;
        }
        Ok(None)
    }
}

/// The request with its certificate, or with why it gets none. None at all for one that no one could sign.
fn answer(request: &CertificateSigningRequest, authority: &Authority) -> Option<CertificateSigningRequest> {
    let mut wanted = request.clone();
    let spec = &request.spec;
    let usages: BTreeSet<&str> = spec.usages.iter().flatten().map(String::as_str).collect();
    let outcome = Asked::read(&spec.request.0).map(|asked| (asked.problem(&spec.signer_name, &usages), asked));
    match outcome {
        Ok((Some(problem), _)) => add_condition(&mut wanted, "Failed", "SignerValidationFailure", problem),
        Ok((None, asked)) => match authority.issue(&asked, &usages, spec.expiration_seconds) {
            Ok(pem) => {
                wanted.status.get_or_insert_default().certificate = Some(ByteString(pem.into_bytes()));
            }
            Err(error) => {
                tracing::error!(request = ?request.metadata.name, %error, "cannot sign a certificate");
                return None;
            }
        },
        Err(error) => {
            tracing::info!(request = ?request.metadata.name, %error, "a request for a certificate can't be signed");
            return None;
        }
    }
    Some(wanted)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::asked::tests::request;
    use super::super::issue::tests::authority;
    use super::*;

    #[test]
    fn a_request_is_answered_by_a_certificate_or_by_why_not() {
        let (certificate, key) = authority();
        let authority = Authority::read(&certificate, &key, crate::SIGNING_DURATION).unwrap();
        let asked = |signer: &str, usages: &[&str]| -> CertificateSigningRequest {
            let pem = ByteString(request("ann", "team", &[]).into_bytes());
            serde_json::from_value(json!({"metadata": {"name": "a"},
                "spec": {"request": pem, "signerName": signer, "usages": usages}}))
            .unwrap()
        };
        let good = answer(&asked(CLIENT, &["client auth"]), &authority).unwrap().status.unwrap();
        assert!(good.certificate.unwrap().0.starts_with(b"-----BEGIN CERTIFICATE-----\n"));
        let bad = answer(&asked(NODE_CLIENT, &["client auth"]), &authority).unwrap();
        assert!(super::certificate(&bad).is_none() && has(&bad, "Failed"));
        let condition = bad.status.unwrap().conditions.unwrap().remove(0);
        assert_eq!(condition.reason.as_deref(), Some("SignerValidationFailure"));
        assert_eq!(condition.message.as_deref(), Some("subject organization is not system:nodes"));
    }
}
