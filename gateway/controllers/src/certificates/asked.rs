//! What a request for a certificate (PKCS #10) asks for, and which signer may give it.

use std::collections::BTreeSet;
use std::net::IpAddr;

use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::oid_registry::{OID_X509_COMMON_NAME, OID_X509_ORGANIZATION_NAME};
use x509_parser::pem::parse_x509_pem;
use x509_parser::prelude::FromDer as _;

use super::{CLIENT, LEGACY, NODE_CLIENT, NODE_SERVING};

/// Every node is in this group.
const NODES: &str = "system:nodes";
/// How users that are nodes begin.
const NODE_PREFIX: &str = "system:node:";
/// What a node's client certificate is for. The second is left out for keys that cannot encipher.
const NODE_CLIENT_USAGES: [&str; 3] = ["client auth", "digital signature", "key encipherment"];
const NODE_SERVING_USAGES: [&str; 3] = ["digital signature", "key encipherment", "server auth"];
const ENCIPHERMENT: &str = "key encipherment";
/// Subjects are signed as they stand. Who reads another name of two than was judged here would take the node for another, so
/// nodes have one. (Kubernetes signs what it read of the subject.)
const NOT_PLAIN: &str = "subject is not exactly one common name and one organization";

/// The contents of a request.
#[derive(Debug, Default)]
pub(super) struct Asked {
    /// The last one, as Go's library has it.
    pub(super) common_name: String,
    pub(super) organizations: Vec<String>,
    pub(super) dns_names: Vec<String>,
    emails: usize,
    pub(super) addresses: Vec<IpAddr>,
    uris: usize,
    /// Whether the subject says one common name, one organization, and nothing else.
    plain: bool,
    /// The subject as it stands in the request, DER.
    pub(super) subject: Vec<u8>,
    /// Its public key, DER.
    pub(super) public_key: Vec<u8>,
    /// The contents of the extension with other names, DER.
    pub(super) names: Option<Vec<u8>>,
}

/// Why a request can't be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("PEM block type must be CERTIFICATE REQUEST")]
    NotPem,
    #[error("not a certificate request")]
    NotRequest,
    #[error("unable to verify certificate request signature")]
    Signature,
}

impl Asked {
    /// Reads a request and checks that who made it has the key.
    pub(super) fn read(pem: &[u8]) -> Result<Self, Error> {
        let (_, block) = parse_x509_pem(pem).map_err(|_| Error::NotPem)?;
        if block.label != "CERTIFICATE REQUEST" {
            return Err(Error::NotPem);
        }
        let (_, request) = X509CertificationRequest::from_der(&block.contents).map_err(|_| Error::NotRequest)?;
        request.verify_signature().map_err(|_| Error::Signature)?;
        let info = &request.certification_request_info;
        let texts = |wanted| {
            let values = info.subject.iter_attributes().filter(move |attribute| *attribute.attr_type() == wanted);
            values.filter_map(|attribute| attribute.as_str().ok()).map(str::to_owned).collect::<Vec<_>>()
        };
        let (mut common_names, organizations) = (texts(OID_X509_COMMON_NAME), texts(OID_X509_ORGANIZATION_NAME));
        let attributes = info.subject.iter_attributes().count();
        let mut asked = Self {
            plain: (common_names.len(), organizations.len(), attributes) == (1, 1, 2),
            common_name: common_names.pop().unwrap_or_default(),
            organizations,
            subject: info.subject.as_raw().to_vec(),
            public_key: info.subject_pki.raw.to_vec(),
            ..Self::default()
        };
        for extension in request.requested_extensions().into_iter().flatten() {
            let ParsedExtension::SubjectAlternativeName(names) = extension else { continue };
            for name in &names.general_names {
                match name {
                    GeneralName::DNSName(name) => asked.dns_names.push((*name).to_owned()),
                    GeneralName::RFC822Name(_) => asked.emails += 1,
                    GeneralName::IPAddress(bytes) => asked.addresses.push(address(bytes).ok_or(Error::NotRequest)?),
                    GeneralName::URI(_) => asked.uris += 1,
                    // Not taken over, as by Go's library.
                    _ => continue,
                }
                asked.names.get_or_insert_default().extend(super::issue::general_name(name));
            }
        }
        Ok(asked)
    }

    /// The node that the subject names, if it names one.
    pub(super) fn node(&self) -> Option<&str> {
        self.common_name.strip_prefix(NODE_PREFIX)
    }

    /// Why this signer doesn't sign such a request, in Kubernetes' words.
    pub(super) fn problem(&self, signer: &str, usages: &BTreeSet<&str>) -> Option<String> {
        match signer {
            NODE_CLIENT => self.node_client_problem(usages),
            NODE_SERVING => self.node_serving_problem(usages),
            CLIENT => client_problem(usages),
            LEGACY => None,
            other => Some(format!("unrecognized signerName: {other:?}")),
        }
    }

    fn node_client_problem(&self, usages: &BTreeSet<&str>) -> Option<String> {
        let refusals = [
            (self.organizations != [NODES], "subject organization is not system:nodes"),
            (!self.dns_names.is_empty(), "DNS subjectAltNames are not allowed"),
            (self.emails > 0, "Email subjectAltNames are not allowed"),
            (!self.addresses.is_empty(), "IP subjectAltNames are not allowed"),
            (self.uris > 0, "URI subjectAltNames are not allowed"),
            (!self.common_name.starts_with(NODE_PREFIX), "subject common name does not begin with system:node:"),
        ];
        first(&refusals).or_else(|| usages_problem(usages, &NODE_CLIENT_USAGES)).or_else(|| first(&[self.not_plain()]))
    }

    fn not_plain(&self) -> (bool, &'static str) {
        (!self.plain, NOT_PLAIN)
    }

    fn node_serving_problem(&self, usages: &BTreeSet<&str>) -> Option<String> {
        let refusals = [
            (self.organizations != [NODES], "subject organization is not system:nodes"),
            (self.dns_names.is_empty() && self.addresses.is_empty(), "DNS or IP subjectAltName is required"),
            (self.emails > 0, "Email subjectAltNames are not allowed"),
            (self.uris > 0, "URI subjectAltNames are not allowed"),
        ];
        let name = [
            (!self.common_name.starts_with(NODE_PREFIX), "subject common name does not begin with system:node:"),
            self.not_plain(),
        ];
        first(&refusals).or_else(|| usages_problem(usages, &NODE_SERVING_USAGES)).or_else(|| first(&name))
    }
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}

fn first(refusals: &[(bool, &str)]) -> Option<String> {
    refusals.iter().find(|(refused, _)| *refused).map(|(_, why)| (*why).to_owned())
}

fn usages_problem(usages: &BTreeSet<&str>, wanted: &[&str; 3]) -> Option<String> {
    let all: BTreeSet<&str> = wanted.iter().copied().collect();
    let without = all.iter().copied().filter(|usage| *usage != ENCIPHERMENT).collect();
    let right = *usages == all || *usages == without;
    (!right).then(|| format!("usages did not match [{}]", wanted.join(" ")))
}

fn client_problem(usages: &BTreeSet<&str>) -> Option<String> {
    if let Some(other) = usages.iter().find(|usage| !NODE_CLIENT_USAGES.contains(usage)) {
        return Some(format!("invalid usage for client certificate: {other}"));
    }
    let auth = "client auth";
    (!usages.contains(auth)).then(|| format!("missing required usage for client certificate: {auth}"))
}

#[cfg(test)]
pub(super) mod tests {
    use rcgen::{CertificateParams, DnType, KeyPair};

    use super::*;

    /// A request for this subject and these names.
    pub(in super::super) fn request(common_name: &str, organization: &str, names: &[&str]) -> String {
        let subject = [(DnType::CommonName, common_name), (DnType::OrganizationName, organization)];
        request_of(subject, names)
    }

    fn request_of<'a>(subject: impl IntoIterator<Item = (DnType, &'a str)>, names: &[&str]) -> String {
        let names = names.iter().map(ToString::to_string).collect::<Vec<_>>();
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        for (kind, text) in subject {
            params.distinguished_name.push(kind, text);
        }
        params.serialize_request(&KeyPair::generate().unwrap()).unwrap().pem().unwrap()
    }

    fn problem(pem: &str, signer: &str, usages: &[&str]) -> Option<String> {
        Asked::read(pem.as_bytes()).unwrap().problem(signer, &usages.iter().copied().collect())
    }

    #[test]
    fn a_node_gets_what_a_node_needs_and_nothing_else() {
        let node = request("system:node:n1", NODES, &[]);
        assert_eq!(problem(&node, NODE_CLIENT, &NODE_CLIENT_USAGES), None);
        assert_eq!(problem(&node, NODE_CLIENT, &["client auth", "digital signature"]), None);
        let wrong = Some("usages did not match [client auth digital signature key encipherment]".to_owned());
        assert_eq!(problem(&node, NODE_CLIENT, &["client auth"]), wrong);
        let named = request("system:node:n1", NODES, &["n1.example"]);
        assert_eq!(problem(&named, NODE_CLIENT, &NODE_CLIENT_USAGES).unwrap(), "DNS subjectAltNames are not allowed");
        assert_eq!(problem(&named, NODE_SERVING, &NODE_SERVING_USAGES), None);
        assert_eq!(problem(&node, NODE_SERVING, &NODE_SERVING_USAGES).unwrap(), "DNS or IP subjectAltName is required");
        let other = request("ann", NODES, &["10.0.0.1"]);
        let name = "subject common name does not begin with system:node:";
        assert_eq!(problem(&other, NODE_SERVING, &NODE_SERVING_USAGES).unwrap(), name);
    }

    #[test]
    fn a_node_has_one_name() {
        // rcgen keeps one value of each type; this is the common name's again.
        let again = || DnType::CustomDnType(vec![2, 5, 4, 3]);
        let (name, group) = (|| DnType::CommonName, || DnType::OrganizationName);
        let node = "system:node:n1";
        for subject in [
            vec![(name(), "kube-apiserver-kubelet-client"), (group(), NODES), (again(), node)],
            vec![(name(), node), (group(), NODES), (again(), node)],
            vec![(name(), node), (group(), NODES), (DnType::OrganizationalUnitName, "x")],
        ] {
            for (signer, names, usages) in
                [(NODE_CLIENT, &[][..], &NODE_CLIENT_USAGES), (NODE_SERVING, &["n1.example"][..], &NODE_SERVING_USAGES)]
            {
                let asked = request_of(subject.clone(), names);
                assert_eq!(problem(&asked, signer, usages).as_deref(), Some(NOT_PLAIN), "{subject:?}");
            }
        }
    }

    #[test]
    fn a_client_certificate_is_for_clients() {
        let client = request("ann", "team", &[]);
        assert_eq!(problem(&client, CLIENT, &["client auth"]), None);
        let server = problem(&client, CLIENT, &["client auth", "server auth"]).unwrap();
        assert_eq!(server, "invalid usage for client certificate: server auth");
        let none = problem(&client, CLIENT, &["digital signature"]).unwrap();
        assert_eq!(none, "missing required usage for client certificate: client auth");
    }

    #[test]
    fn a_request_that_its_key_did_not_sign_is_refused() {
        let good = request("ann", "team", &[]);
        let (_, block) = parse_x509_pem(good.as_bytes()).unwrap();
        let mut bytes = block.contents;
        let at = bytes.windows(3).position(|three| three == b"ann").unwrap();
        bytes[at..at + 3].copy_from_slice(b"eve");
        let forged = super::super::issue::pem("CERTIFICATE REQUEST", &bytes);
        assert!(matches!(Asked::read(forged.as_bytes()), Err(Error::Signature)));
        assert!(matches!(Asked::read(b"nothing"), Err(Error::NotPem)));
    }
}
