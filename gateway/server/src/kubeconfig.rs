//! The administrator's kubeconfig: one cluster, one user, one context named `carob`, everything embedded.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::pki::Pki;

/// The file's text for a server reached at `server` (`https://127.0.0.1:6443`).
pub(crate) fn admin(pki: &Pki, server: &str) -> String {
    let encode = |pem: &str| STANDARD.encode(pem);
    format!(
        "apiVersion: v1\n\
         kind: Config\n\
         clusters:\n\
         - name: carob\n  \
           cluster:\n    \
             server: {server}\n    \
             certificate-authority-data: {ca}\n\
         users:\n\
         - name: admin\n  \
           user:\n    \
             client-certificate-data: {certificate}\n    \
             client-key-data: {key}\n\
         contexts:\n\
         - name: carob\n  \
           context:\n    \
             cluster: carob\n    \
             user: admin\n\
         current-context: carob\n\
         preferences: {{}}\n",
        ca = encode(&pki.ca_certificate),
        certificate = encode(&pki.admin.certificate),
        key = encode(&pki.admin.key),
    )
}
