//! What both ends of a connection between a gateway and a worker elsewhere need of TLS.

use std::sync::Arc;

use anyhow::{Context, Result, bail};
use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// The cryptography that all of Carob uses.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// The certificates of a file, of which there is one at least.
pub fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>> {
    let all = CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<Vec<_>, _>>();
    let all = all.context("the authority's certificate is no PEM")?;
    if all.is_empty() {
        bail!("there is no certificate of an authority");
    }
    Ok(all)
}

/// The cluster's authority alone.
pub fn roots(ca_pem: &str) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(ca_pem)? {
        roots.add(certificate)?;
    }
    Ok(roots)
}

/// A certificate with its key.
pub fn pair(certificate: &str, key: &str) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
    let chain = CertificateDer::pem_slice_iter(certificate.as_bytes()).collect::<Result<Vec<_>, _>>();
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).context("a private key is no PEM")?;
    Ok((chain.context("a certificate is no PEM")?, key))
}

/// The common name of the certificate that the other side showed; none of one with several.
pub fn common_name(chain: Option<&[CertificateDer<'_>]>) -> Option<String> {
    carob_gateway::certified_name(chain?.first()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};

    #[test]
    fn who_shows_a_certificate_with_two_names_is_nobody() {
        let shown = |names: &[&str]| {
            let mut params = CertificateParams::default();
            params.distinguished_name = DistinguishedName::new();
            // rcgen keeps one value of each type; the second is the common name's again.
            for (kind, name) in [DnType::CommonName, DnType::CustomDnType(vec![2, 5, 4, 3])].into_iter().zip(names) {
                params.distinguished_name.push(kind, *name);
            }
            let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
            common_name(Some(&[certificate.der().clone()]))
        };
        let (gateway, node) = (carob_gateway::WORKER_CLIENT, "system:node:x");
        assert_eq!(shown(&[gateway]).as_deref(), Some(gateway));
        for names in [[gateway, node], [node, gateway]] {
            assert_eq!(shown(&names), None);
        }
        assert_eq!(shown(&[]), None);
        assert_eq!(common_name(None), None);
    }
}
