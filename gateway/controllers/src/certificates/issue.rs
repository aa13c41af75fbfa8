//! Writing a certificate (RFC 5280) for a request, and signing it.
//!
//! It is put together here rather than by rcgen, whose subjects have one value of each type: a client in two groups has
//! two organizations.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::Timestamp;
use rcgen::{KeyPair, SignatureAlgorithm, SigningKey as _};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::pem::parse_x509_pem;
use x509_parser::prelude::FromDer as _;

use super::asked::Asked;

/// Certificates begin a little in the past, for clients whose clocks are behind.
const BACKDATE: Duration = Duration::from_secs(5 * 60);
/// One that is shorter keeps its whole time, for the backdating would be much of it.
const SHORT: Duration = Duration::from_secs(8 * 60 * 60);
/// Who asks for less gets this nonetheless.
const SHORTEST: Duration = Duration::from_secs(10 * 60);

mod tag {
    pub(super) const BOOLEAN: u8 = 0x01;
    pub(super) const INTEGER: u8 = 0x02;
    pub(super) const BITS: u8 = 0x03;
    pub(super) const BYTES: u8 = 0x04;
    pub(super) const OBJECT: u8 = 0x06;
    pub(super) const UTC_TIME: u8 = 0x17;
    pub(super) const GENERALIZED_TIME: u8 = 0x18;
    pub(super) const SEQUENCE: u8 = 0x30;
    /// `[n]`, with something in it.
    pub(super) const CONTEXT: u8 = 0xa0;
    /// `[n] IMPLICIT`, of a simple type.
    pub(super) const IMPLICIT: u8 = 0x80;
}

/// Usages of the API that are bits of `keyUsage`, and which.
const KEY_USAGES: [(&str, u16); 11] = [
    ("signing", 0),
    ("digital signature", 0),
    ("content commitment", 1),
    ("key encipherment", 2),
    ("data encipherment", 3),
    ("key agreement", 4),
    ("cert sign", 5),
    ("crl sign", 6),
    ("encipher only", 7),
    ("decipher only", 8),
    // The same bit by its older name.
    ("non repudiation", 1),
];

/// Usages that are purposes of `extKeyUsage`, and their identifiers' bytes.
const PURPOSES: [(&str, &[u8]); 13] = [
    ("any", &[0x55, 0x1d, 0x25, 0x00]),
    ("server auth", &[0x2b, 6, 1, 5, 5, 7, 3, 1]),
    ("client auth", &[0x2b, 6, 1, 5, 5, 7, 3, 2]),
    ("code signing", &[0x2b, 6, 1, 5, 5, 7, 3, 3]),
    ("email protection", &[0x2b, 6, 1, 5, 5, 7, 3, 4]),
    ("s/mime", &[0x2b, 6, 1, 5, 5, 7, 3, 4]),
    ("ipsec end system", &[0x2b, 6, 1, 5, 5, 7, 3, 5]),
    ("ipsec tunnel", &[0x2b, 6, 1, 5, 5, 7, 3, 6]),
    ("ipsec user", &[0x2b, 6, 1, 5, 5, 7, 3, 7]),
    ("timestamping", &[0x2b, 6, 1, 5, 5, 7, 3, 8]),
    ("ocsp signing", &[0x2b, 6, 1, 5, 5, 7, 3, 9]),
    ("microsoft sgc", &[0x2b, 6, 1, 4, 1, 0x82, 0x37, 10, 3, 3]),
    ("netscape sgc", &[0x60, 0x86, 0x48, 1, 0x86, 0xf8, 0x42, 4, 1]),
];

const KEY_USAGE: &[u8] = &[0x55, 0x1d, 15];
const ALTERNATIVE_NAMES: &[u8] = &[0x55, 0x1d, 17];
const BASIC_CONSTRAINTS: &[u8] = &[0x55, 0x1d, 19];
const AUTHORITY_KEY: &[u8] = &[0x55, 0x1d, 35];
const EXTENDED_KEY_USAGE: &[u8] = &[0x55, 0x1d, 37];

/// An algorithm for signatures, its identifier's bytes, and whether a null follows it.
type Algorithm = (&'static SignatureAlgorithm, &'static [u8], bool);

/// How authorities sign.
fn algorithms() -> [Algorithm; 4] {
    [
        (&rcgen::PKCS_ECDSA_P256_SHA256, &[0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2], false),
        (&rcgen::PKCS_ECDSA_P384_SHA384, &[0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 3], false),
        (&rcgen::PKCS_ED25519, &[0x2b, 0x65, 0x70], false),
        (&rcgen::PKCS_RSA_SHA256, &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 11], true),
    ]
}

/// Signs certificates.
pub(super) struct Authority {
    key: KeyPair,
    /// `AlgorithmIdentifier`
    algorithm: Vec<u8>,
    /// Its name, DER.
    name: Vec<u8>,
    /// What identifies its key.
    key_id: Option<Vec<u8>>,
    /// When its own certificate ends.
    end: i64,
    /// What it gives where nothing or more is asked for.
    longest: Duration,
}

/// Why nothing can be signed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("the authority's certificate can't be read")]
    Certificate,
    #[error("the authority's key can't be used")]
    Key,
    #[error("the authority could not sign")]
    Sign(#[source] rcgen::Error),
    #[error("no random number was to be had")]
    Random,
}

impl Authority {
    /// Of a certificate and its key, PEM. What it issues ends after `longest`.
    pub(super) fn read(certificate: &str, key: &str, longest: Duration) -> Result<Self, Error> {
        let (_, block) = parse_x509_pem(certificate.as_bytes()).map_err(|_| Error::Certificate)?;
        let (_, certificate) = X509Certificate::from_der(&block.contents).map_err(|_| Error::Certificate)?;
        let key = KeyPair::from_pem(key).map_err(|_| Error::Key)?;
        let known = algorithms();
        let (_, object, null) = known.iter().find(|(algorithm, ..)| *algorithm == key.algorithm()).ok_or(Error::Key)?;
        let null: &[u8] = if *null { &[5, 0] } else { &[] };
        let algorithm = element(tag::SEQUENCE, &[&element(tag::OBJECT, &[object]), null]);
        let key_id = certificate.extensions().iter().find_map(|extension| match extension.parsed_extension() {
            ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
            _ => None,
        });
        let (name, end) = (certificate.subject().as_raw().to_vec(), certificate.validity().not_after.timestamp());
        Ok(Self { key, algorithm, name, key_id, end, longest })
    }

    /// A certificate, PEM.
    pub(super) fn issue(&self, asked: &Asked, usages: &BTreeSet<&str>, seconds: Option<i32>) -> Result<String, Error> {
        let (begin, end) = self.lifetime(Timestamp::now().as_second(), seconds);
        let names = asked.names.as_ref().map(|names| {
            let nameless = asked.subject == [tag::SEQUENCE, 0];
            extension(ALTERNATIVE_NAMES, nameless, &element(tag::SEQUENCE, &[names]))
        });
        let authority_key = self.key_id.as_ref().map(|id| {
            let id = element(tag::IMPLICIT, &[id]);
            extension(AUTHORITY_KEY, false, &element(tag::SEQUENCE, &[&id]))
        });
        let extensions = [
            key_usage(usages),
            purposes(usages),
            Some(extension(BASIC_CONSTRAINTS, true, &element(tag::SEQUENCE, &[]))),
            authority_key,
            names,
        ];
        let extensions: Vec<u8> = extensions.into_iter().flatten().flatten().collect();
        let version = element(tag::CONTEXT, &[&element(tag::INTEGER, &[&[2]])]);
        let body = element(
            tag::SEQUENCE,
            &[
                &version,
                &element(tag::INTEGER, &[&serial()?]),
                &self.algorithm,
                &self.name,
                &element(tag::SEQUENCE, &[&time(begin), &time(end)]),
                &asked.subject,
                &asked.public_key,
                &element(tag::CONTEXT | 3, &[&element(tag::SEQUENCE, &[&extensions])]),
            ],
        );
        let signature = self.key.sign(&body).map_err(Error::Sign)?;
        let signature = element(tag::BITS, &[&[0], &signature]);
        Ok(pem("CERTIFICATE", &element(tag::SEQUENCE, &[&body, &self.algorithm, &signature])))
    }

    /// When a certificate that is issued now begins and ends, in seconds.
    fn lifetime(&self, now: i64, asked: Option<i32>) -> (i64, i64) {
        let asked = asked.map(|seconds| Duration::from_secs(u64::try_from(seconds).unwrap_or(0)));
        let length = asked.map_or(self.longest, |asked| asked.max(SHORTEST).min(self.longest));
        let seconds = |length: Duration| i64::try_from(length.as_secs()).unwrap_or(i64::MAX);
        let begin = now - seconds(BACKDATE);
        let end = if length < SHORT { now } else { begin } + seconds(length);
        (begin, end.min(self.end))
    }
}

fn key_usage(usages: &BTreeSet<&str>) -> Option<Vec<u8>> {
    let bits = KEY_USAGES.iter().filter(|(name, _)| usages.contains(name));
    // The first bit is the highest.
    let set = bits.fold(0_u16, |set, (_, bit)| set | 0x8000 >> bit);
    if set == 0 {
        return None;
    }
    let [first, second] = set.to_be_bytes();
    let unused = u8::try_from(set.trailing_zeros() % 8).unwrap_or(0);
    let bytes: &[u8] = if second == 0 { &[unused, first] } else { &[unused, first, second] };
    Some(extension(KEY_USAGE, true, &element(tag::BITS, &[bytes])))
}

fn purposes(usages: &BTreeSet<&str>) -> Option<Vec<u8>> {
    let mut ids: Vec<&[u8]> = Vec::new();
    for (_, id) in PURPOSES.iter().filter(|(name, _)| usages.contains(name)) {
        if !ids.contains(id) {
            ids.push(id);
        }
    }
    let ids: Vec<u8> = ids.iter().flat_map(|id| element(tag::OBJECT, &[id])).collect();
    (!ids.is_empty()).then(|| extension(EXTENDED_KEY_USAGE, false, &element(tag::SEQUENCE, &[&ids])))
}

fn extension(id: &[u8], critical: bool, value: &[u8]) -> Vec<u8> {
    let critical = if critical { element(tag::BOOLEAN, &[&[0xff]]) } else { Vec::new() };
    element(tag::SEQUENCE, &[&element(tag::OBJECT, &[id]), &critical, &element(tag::BYTES, &[value])])
}

/// One of those names that certificates take over.
pub(super) fn general_name(name: &GeneralName<'_>) -> Vec<u8> {
    let (number, bytes) = match name {
        GeneralName::RFC822Name(text) => (1, text.as_bytes()),
        GeneralName::DNSName(text) => (2, text.as_bytes()),
        GeneralName::URI(text) => (6, text.as_bytes()),
        GeneralName::IPAddress(bytes) => (7, *bytes),
        _ => return Vec::new(),
    };
    element(tag::IMPLICIT | number, &[bytes])
}

/// Positive, and nobody guesses it.
fn serial() -> Result<[u8; 16], Error> {
    let mut bytes = [0; 16];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| Error::Random)?;
    bytes[0] = bytes[0] & 0x7f | 0x40;
    Ok(bytes)
}

/// Years from 2050 on have four digits.
fn time(second: i64) -> Vec<u8> {
    let when = Timestamp::from_second(second).unwrap_or(Timestamp::MAX);
    let (kind, format) = if second < 2_524_608_000 {
        (tag::UTC_TIME, "%y%m%d%H%M%SZ")
    } else {
        (tag::GENERALIZED_TIME, "%Y%m%d%H%M%SZ")
    };
    element(kind, &[when.strftime(format).to_string().as_bytes()])
}

/// Tag, length, and these contents one after the other.
fn element(tag: u8, contents: &[&[u8]]) -> Vec<u8> {
    let length: usize = contents.iter().map(|part| part.len()).sum();
    let mut bytes = vec![tag];
    if let Ok(short @ 0..0x80) = u8::try_from(length) {
        bytes.push(short);
    } else {
        let digits = length.to_be_bytes();
        let digits: Vec<u8> = digits.into_iter().skip_while(|digit| *digit == 0).collect();
        bytes.push(0x80 | u8::try_from(digits.len()).unwrap_or(8));
        bytes.extend(digits);
    }
    contents.iter().for_each(|part| bytes.extend_from_slice(part));
    bytes
}

/// A block of text, lines of 64 characters.
pub(super) fn pem(label: &str, bytes: &[u8]) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(bytes);
    let mut lines = String::new();
    for line in text.as_bytes().chunks(64) {
        lines.extend(line.iter().map(|byte| char::from(*byte)));
        lines.push('\n');
    }
    format!("-----BEGIN {label}-----\n{lines}-----END {label}-----\n")
}

#[cfg(test)]
pub(super) mod tests {
    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa};

    use super::super::asked::tests::request;
    use super::*;

    /// An authority's certificate and key.
    pub(in super::super) fn authority() -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "ca");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
    }

    #[test]
    fn a_certificate_says_what_was_asked_and_its_authority_vouches_for_it() {
        let (certificate, key) = authority();
        let authority = Authority::read(&certificate, &key, crate::SIGNING_DURATION).unwrap();
        let asked = Asked::read(request("system:node:n1", "system:nodes", &["n1", "10.0.0.1"]).as_bytes()).unwrap();
        let usages = BTreeSet::from(["digital signature", "decipher only", "server auth"]);
        let issued = authority.issue(&asked, &usages, Some(3600)).unwrap();
        let (_, ca) = parse_x509_pem(certificate.as_bytes()).unwrap();
        let (_, ca) = X509Certificate::from_der(&ca.contents).unwrap();
        let (_, block) = parse_x509_pem(issued.as_bytes()).unwrap();
        let (rest, issued) = X509Certificate::from_der(&block.contents).unwrap();
        assert!(rest.is_empty());
        issued.verify_signature(Some(ca.public_key())).expect("signed by the authority");
        assert_eq!(issued.issuer().as_raw(), ca.subject().as_raw());
        assert_eq!(issued.subject().iter_common_name().next().unwrap().as_str(), Ok("system:node:n1"));
        let names = issued.subject_alternative_name().unwrap().unwrap();
        assert_eq!(names.value.general_names, [GeneralName::DNSName("n1"), GeneralName::IPAddress(&[10, 0, 0, 1])]);
        let usage = issued.key_usage().unwrap().unwrap();
        assert!(usage.critical && usage.value.digital_signature() && usage.value.decipher_only());
        assert!(!usage.value.key_encipherment());
        let purposes = issued.extended_key_usage().unwrap().unwrap().value;
        assert!(purposes.server_auth && !purposes.client_auth);
        assert!(!issued.is_ca());
        let length = issued.validity().not_after.timestamp() - issued.validity().not_before.timestamp();
        assert_eq!(length, 3600 + 300);
    }

    #[test]
    fn nobody_gets_more_time_than_a_year_or_the_authority_has() {
        let (certificate, key) = authority();
        let mut authority = Authority::read(&certificate, &key, crate::SIGNING_DURATION).unwrap();
        authority.end = i64::MAX;
        let now = 1_800_000_000;
        let ends = |authority: &Authority, asked| authority.lifetime(now, asked).1 - now;
        assert_eq!(ends(&authority, None), 365 * 24 * 3600 - 300);
        assert_eq!(ends(&authority, Some(i32::MAX)), 365 * 24 * 3600 - 300);
        assert_eq!(ends(&authority, Some(600)), 600);
        assert_eq!(ends(&authority, Some(9 * 3600)), 9 * 3600 - 300);
        authority.end = now + 60;
        assert_eq!(ends(&authority, None), 60);
        authority.longest = Duration::from_secs(30);
        assert_eq!(ends(&authority, None), 30);
        assert_eq!(ends(&authority, Some(600)), 30);
    }

    #[test]
    fn long_contents_have_long_lengths_and_late_times_long_years() {
        assert_eq!(element(4, &[&[0; 127]])[..2], [4, 127]);
        assert_eq!(element(4, &[&[0; 128]])[..3], [4, 0x81, 128]);
        assert_eq!(element(4, &[&[0; 300]])[..4], [4, 0x82, 1, 44]);
        assert_eq!(time(0)[2..], *b"700101000000Z");
        assert_eq!(time(2_524_608_000)[2..], *b"20500101000000Z");
    }
}
