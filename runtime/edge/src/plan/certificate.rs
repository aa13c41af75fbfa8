//! Certificates from Secrets. One that was read once is not read again until its Secret changes.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use k8s_openapi::api::core::v1::Secret;
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::route::Certificate;
use crate::route::host::Pattern;
use crate::state::Key;

/// What a Secret of a version came to.
type Read = (String, Result<Certificate, String>);

/// What was read before.
#[derive(Default)]
pub struct Certificates {
    read: Mutex<HashMap<Key, Read>>,
    fallback: OnceLock<Option<Certificate>>,
}

impl Certificates {
    /// The certificate of a Secret, for the names that are in it.
    pub fn of(&self, secret: &Secret) -> Result<Certificate, String> {
        let key = Key::of(secret);
        let version = secret.metadata.resource_version.clone().unwrap_or_default();
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((known, certificate)) = read.get(&key)
            && *known == version
            && !version.is_empty()
        {
            return certificate.clone();
        }
        let certificate = parse(secret);
        read.insert(key, (version, certificate.clone()));
        certificate
    }

    /// Forgets what is no Secret's any more.
    pub fn keep(&self, wanted: impl Fn(&Key) -> bool) {
        self.read.lock().unwrap_or_else(PoisonError::into_inner).retain(|key, _| wanted(key));
    }

    /// What is shown where no certificate is for a name: one that nobody trusts.
    pub fn fallback(&self) -> Option<Certificate> {
        self.fallback.get_or_init(|| self_signed().inspect_err(|error| tracing::warn!(error)).ok()).clone()
    }
}

fn parse(secret: &Secret) -> Result<Certificate, String> {
    let field = |name: &str| {
        let value = secret.data.as_ref().and_then(|data| data.get(name)).filter(|value| !value.0.is_empty());
        value.map(|value| value.0.as_slice()).ok_or_else(|| format!("it has no {name}"))
    };
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(field("tls.crt")?).collect();
    let chain = chain.ok().filter(|chain| !chain.is_empty()).ok_or("its tls.crt holds no certificate in PEM")?;
    let key =
        PrivateKeyDer::from_pem_slice(field("tls.key")?).map_err(|_| "its tls.key holds no private key in PEM")?;
    certificate(chain, key)
}

fn certificate(chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> Result<Certificate, String> {
    let names = names(&chain[0]);
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    let key = CertifiedKey::from_der(chain, key, &provider).map_err(|error| error.to_string())?;
    Ok(Certificate { key: Arc::new(key), names })
}

/// The host names that a certificate is for.
fn names(certificate: &CertificateDer<'_>) -> Vec<Pattern> {
    let Ok((_, certificate)) = X509Certificate::from_der(certificate) else { return Vec::new() };
    let Ok(Some(names)) = certificate.subject_alternative_name() else { return Vec::new() };
    let dns = names.value.general_names.iter().filter_map(|name| match name {
        GeneralName::DNSName(name) => Some(Pattern::of_ingress(Some(name))),
        _ => None,
    });
    dns.collect()
}

fn self_signed() -> Result<Certificate, String> {
    let made =
        rcgen::generate_simple_self_signed(["ingress.carob.local".to_owned()]).map_err(|error| error.to_string())?;
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der())?;
    let mut certificate = certificate(vec![made.cert.der().clone()], key)?;
    certificate.names.clear();
    Ok(certificate)
}
