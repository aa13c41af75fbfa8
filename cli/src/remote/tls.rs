//! What both ends of a connection between a gateway and a worker elsewhere need of TLS.

use std::sync::Arc;

use anyhow::{Context, Result, bail};
use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::prelude::{FromDer, X509Certificate};

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

/// The common name of the certificate that the other side showed.
pub fn common_name(chain: Option<&[CertificateDer<'_>]>) -> Option<String> {
    let (_, certificate) = X509Certificate::from_der(chain?.first()?).ok()?;
    certificate.subject().iter_common_name().next()?.as_str().ok().map(str::to_owned)
}
