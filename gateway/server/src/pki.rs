//! The cluster's keys and certificates: made at the first start, kept under one directory, reissued when they must be.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

/// The files of the cluster's authority.
const CA: &str = "ca";

/// Names under which pods and people on the machine reach the server.
const SERVER_NAMES: [&str; 8] = [
    "localhost",
    "127.0.0.1",
    "::1",
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    "kubernetes.default.svc.cluster.local",
    "carob",
];

/// In seconds.
const DAY: u64 = 24 * 60 * 60;
const CA_LIFETIME: Duration = Duration::from_secs(3650 * DAY);
const LEAF_LIFETIME: Duration = Duration::from_secs(365 * DAY);
/// Certificates begin a little in the past, for clients whose clocks are behind.
const CLOCK_SKEW: Duration = Duration::from_secs(5 * 60);

/// Why the keys could not be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read or written.
    #[error("cannot access {}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A stored key or certificate is not what it should be.
    #[error("{} is damaged; remove it to have it made anew", path.display())]
    Damaged {
        /// Which.
        path: PathBuf,
    },
    /// The authority is gone, and there are objects that trust it.
    #[error(
        "{} lacks ca.crt or ca.key, which this cluster's workers, pods and kubeconfigs know it by: put them back from a backup",
        dir.display()
    )]
    Lost {
        /// Where they should be.
        dir: PathBuf,
    },
    /// A certificate could not be made.
    #[error("cannot issue a certificate for {subject}")]
    Issue {
        /// For whom.
        subject: String,
        /// Why.
        #[source]
        source: rcgen::Error,
    },
}

/// A certificate and its key, PEM.
#[derive(Clone)]
pub struct Pair {
    /// The certificate.
    pub certificate: String,
    /// Its private key, PKCS #8.
    pub key: String,
}

/// All that the server identifies itself and others with.
pub struct Pki {
    /// The cluster's authority, for kubeconfigs and `ca.crt` in pods.
    pub ca_certificate: String,
    /// Its key, PEM, PKCS #8.
    pub ca_key: String,
    /// What the server shows.
    pub server: Pair,
    /// The administrator's client certificate (`system:masters`).
    pub admin: Pair,
    /// Signs tokens of service accounts; PEM, PKCS #8, ECDSA P-256.
    pub token_key: String,
    /// Verifies them; PEM.
    pub token_public_key: String,
    /// The authority of those who may say on whose behalf they ask, PEM. Extension API servers trust it.
    pub front_proxy_ca: String,
    /// What the server shows to extension API servers.
    pub front_proxy: Pair,
    /// What the server shows to workers on other machines.
    pub worker_client: Pair,
}

/// The common name of the client certificate under which workers know the server, as in every Kubernetes.
pub const WORKER_CLIENT: &str = "kube-apiserver-kubelet-client";

/// The common name of the client certificate under which extension API servers know the server.
pub const FRONT_PROXY: &str = "front-proxy-client";

/// All that the server's certificate is for: what it always is, and these.
pub(crate) fn server_names(extra: &[String]) -> Vec<String> {
    let mut names: Vec<String> = SERVER_NAMES.iter().map(ToString::to_string).chain(extra.iter().cloned()).collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// Who signs.
struct Authority {
    pair: Pair,
    issuer: Issuer<'static, KeyPair>,
    der: CertificateDer<'static>,
}

impl Authority {
    /// Reads it, or makes it.
    fn open(dir: &Path, file: &str, common_name: &str) -> Result<Self, Error> {
        let pair = match read_pair(dir, file)? {
            Some(pair) => pair,
            None => write_pair(dir, file, new_ca(common_name)?)?,
        };
        let damaged = |end: &str| Error::Damaged { path: dir.join(format!("{file}.{end}")) };
        let key = KeyPair::from_pem(&pair.key).map_err(|_| damaged("key"))?;
        let issuer = Issuer::from_ca_cert_pem(&pair.certificate, key).map_err(|_| damaged("crt"))?;
        let der = CertificateDer::from_pem_slice(pair.certificate.as_bytes()).map_err(|_| damaged("crt"))?;
        Ok(Self { pair, issuer, der })
    }
}

/// Whom a certificate is for.
struct Subject<'a> {
    common_name: &'a str,
    organizations: &'a [&'a str],
    names: &'a [String],
    usage: ExtendedKeyUsagePurpose,
    /// When it is to be good.
    now: Timestamp,
}

impl Pki {
    /// Reads the keys under `dir`, and makes what is missing, has lived for half of its life, or lacks one of `extra_names`
    /// (host names or addresses).
    pub fn open(dir: &Path, extra_names: &[String]) -> Result<Self, Error> {
        Self::as_of(dir, extra_names, Timestamp::now())
    }

    /// The same for a cluster that has objects already: its authority isn't made anew.
    pub fn of_cluster(dir: &Path, extra_names: &[String]) -> Result<Self, Error> {
        match read_pair(dir, CA)? {
            Some(_) => Self::open(dir, extra_names),
            None => Err(Error::Lost { dir: dir.to_owned() }),
        }
    }

    fn as_of(dir: &Path, extra_names: &[String], now: Timestamp) -> Result<Self, Error> {
        fs::create_dir_all(dir).map_err(|source| Error::File { path: dir.to_owned(), source })?;
        let ca = Authority::open(dir, CA, "carob-ca")?;
        let proxies = Authority::open(dir, "front-proxy-ca", "front-proxy-ca")?;

        let names = server_names(extra_names);
        let server = leaf(
            dir,
            "server",
            &ca,
            &Subject {
                common_name: "kube-apiserver",
                organizations: &[],
                names: &names,
                usage: ExtendedKeyUsagePurpose::ServerAuth,
                now,
            },
        )?;
        let admin = leaf(
            dir,
            "admin",
            &ca,
            &Subject {
                common_name: "kubernetes-admin",
                organizations: &["system:masters"],
                names: &[],
                usage: ExtendedKeyUsagePurpose::ClientAuth,
                now,
            },
        )?;
        let front_proxy = leaf(
            dir,
            FRONT_PROXY,
            &proxies,
            &Subject {
                common_name: FRONT_PROXY,
                organizations: &[],
                names: &[],
                usage: ExtendedKeyUsagePurpose::ClientAuth,
                now,
            },
        )?;
        let worker_client = leaf(
            dir,
            WORKER_CLIENT,
            &ca,
            &Subject {
                common_name: WORKER_CLIENT,
                organizations: &[],
                names: &[],
                usage: ExtendedKeyUsagePurpose::ClientAuth,
                now,
            },
        )?;
        let (token_key, token_public_key) = token_keys(dir)?;
        Ok(Self {
            ca_certificate: ca.pair.certificate,
            ca_key: ca.pair.key,
            server,
            admin,
            token_key,
            token_public_key,
            front_proxy_ca: proxies.pair.certificate,
            front_proxy,
            worker_client,
        })
    }
}

impl Pki {
    /// The certificates that end in the cluster's life.
    pub fn leaves(&self) -> impl Iterator<Item = &str> {
        [&self.server, &self.admin, &self.front_proxy, &self.worker_client]
            .map(|pair| pair.certificate.as_str())
            .into_iter()
    }
}

fn new_ca(common_name: &str) -> Result<Pair, Error> {
    let failed = |source| Error::Issue { subject: common_name.to_owned(), source };
    let key = KeyPair::generate().map_err(failed)?;
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    set_lifetime(&mut params, CA_LIFETIME);
    let certificate = params.self_signed(&key).map_err(failed)?;
    Ok(Pair { certificate: certificate.pem(), key: key.serialize_pem() })
}

fn leaf(dir: &Path, file: &str, authority: &Authority, subject: &Subject<'_>) -> Result<Pair, Error> {
    if let Some(pair) = read_pair(dir, file)?
        && still_good(&pair, &authority.der, subject)
    {
        return Ok(pair);
    }
    let failed = |source| Error::Issue { subject: subject.common_name.to_owned(), source };
    let key = KeyPair::generate().map_err(failed)?;
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, subject.common_name);
    for organization in subject.organizations {
        params.distinguished_name.push(DnType::OrganizationName, *organization);
    }
    for name in subject.names {
        params.subject_alt_names.push(match name.parse::<IpAddr>() {
            Ok(address) => SanType::IpAddress(address),
            Err(_) => SanType::DnsName(name.as_str().try_into().map_err(failed)?),
        });
    }
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![subject.usage.clone()];
    params.use_authority_key_identifier_extension = true;
    set_lifetime(&mut params, LEAF_LIFETIME);
    let certificate = params.signed_by(&key, &authority.issuer).map_err(failed)?;
    write_pair(dir, file, Pair { certificate: certificate.pem(), key: key.serialize_pem() })
}

fn set_lifetime(params: &mut CertificateParams, lifetime: Duration) {
    let now = std::time::SystemTime::now();
    params.not_before = (now - CLOCK_SKEW).into();
    params.not_after = (now + lifetime).into();
}

/// Whether a stored leaf was issued by this CA, is in the first half of its life and has all the names.
fn still_good(pair: &Pair, ca: &CertificateDer<'_>, subject: &Subject<'_>) -> bool {
    let Ok(der) = CertificateDer::from_pem_slice(pair.certificate.as_bytes()) else { return false };
    let Ok((_, certificate)) = X509Certificate::from_der(&der) else { return false };
    let Ok((_, issuer)) = X509Certificate::from_der(ca) else { return false };
    if certificate.verify_signature(Some(issuer.public_key())).is_err() || KeyPair::from_pem(&pair.key).is_err() {
        return false;
    }
    let life = certificate.validity();
    let (from, to) = (life.not_before.timestamp(), life.not_after.timestamp());
    if subject.now.as_second() > from + (to - from) / 2 {
        return false;
    }
    let present: Vec<String> = match certificate.subject_alternative_name() {
        Ok(Some(extension)) => extension.value.general_names.iter().filter_map(name_text).collect(),
        _ => Vec::new(),
    };
    subject.names.iter().all(|name| present.contains(name))
}

fn name_text(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => match bytes.len() {
            4 => <[u8; 4]>::try_from(*bytes).ok().map(|b| IpAddr::from(b).to_string()),
            16 => <[u8; 16]>::try_from(*bytes).ok().map(|b| IpAddr::from(b).to_string()),
            _ => None,
        },
        _ => None,
    }
}

fn token_keys(dir: &Path) -> Result<(String, String), Error> {
    let path = dir.join("sa.key");
    let key = if let Some(pem) = read(&path)? {
        KeyPair::from_pem(&pem).map_err(|_| Error::Damaged { path })?
    } else {
        let key = KeyPair::generate().map_err(|source| Error::Issue { subject: "sa".to_owned(), source })?;
        write(&path, &key.serialize_pem())?;
        key
    };
    let public = key.public_key_pem();
    write(&dir.join("sa.pub"), &public)?;
    Ok((key.serialize_pem(), public))
}

fn read_pair(dir: &Path, file: &str) -> Result<Option<Pair>, Error> {
    let certificate = read(&dir.join(format!("{file}.crt")))?;
    let key = read(&dir.join(format!("{file}.key")))?;
    Ok(certificate.zip(key).map(|(certificate, key)| Pair { certificate, key }))
}

/// The key first: a certificate without its key would be of no use, and is made again.
fn write_pair(dir: &Path, file: &str, pair: Pair) -> Result<Pair, Error> {
    let certificate = dir.join(format!("{file}.crt"));
    match fs::remove_file(&certificate) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            return Err(Error::File { path: certificate, source });
        }
        _ => {}
    }
    write(&dir.join(format!("{file}.key")), &pair.key)?;
    write(&certificate, &pair.certificate)?;
    Ok(pair)
}

fn read(path: &Path) -> Result<Option<String>, Error> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::File { path: path.to_owned(), source }),
    }
}

/// Writes a file that only its owner reads, whole or not at all.
pub(crate) fn write(path: &Path, text: &str) -> Result<(), Error> {
    carob_store::file::put(path, text.as_bytes()).map_err(|source| Error::File { path: path.to_owned(), source })
}

impl Pair {
    /// What rustls wants of it.
    pub(crate) fn for_rustls(&self) -> Option<(CertificateDer<'static>, PrivateKeyDer<'static>)> {
        let certificate = CertificateDer::from_pem_slice(self.certificate.as_bytes()).ok()?;
        let key = PrivateKeyDer::from_pem_slice(self.key.as_bytes()).ok()?;
        Some((certificate, key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("carob-pki-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        dir
    }

    #[test]
    fn a_second_start_reuses_what_the_first_made_and_a_new_name_reissues_the_server_certificate() {
        let dir = directory("reuse");
        let first = Pki::open(&dir, &["10.96.0.1".into()]).expect("made");
        let second = Pki::open(&dir, &["10.96.0.1".into()]).expect("read");
        assert_eq!(first.ca_certificate, second.ca_certificate);
        assert_eq!(first.server.certificate, second.server.certificate);
        assert_eq!(first.admin.certificate, second.admin.certificate);
        assert_eq!(first.token_key, second.token_key);
        let third = Pki::open(&dir, &["10.96.0.1".into(), "10.1.2.3".into()]).expect("read");
        assert_eq!(first.ca_certificate, third.ca_certificate);
        assert_ne!(first.server.certificate, third.server.certificate);
        fs::remove_dir_all(&dir).expect("removed");
    }

    #[test]
    fn certificates_are_renewed_in_the_middle_of_their_life_and_the_authority_stays() {
        let folder = tempfile::tempdir().expect("a directory");
        let in_days = |days: i64| Timestamp::now() + jiff::SignedDuration::from_hours(24 * days);
        let first = Pki::open(folder.path(), &[]).expect("made");
        let soon = Pki::as_of(folder.path(), &[], in_days(180)).expect("read");
        assert!(soon.leaves().eq(first.leaves()));
        let later = Pki::as_of(folder.path(), &[], in_days(190)).expect("renewed");
        assert!(later.leaves().zip(first.leaves()).all(|(new, old)| new != old));
        assert_eq!((&later.ca_certificate, &later.front_proxy_ca), (&first.ca_certificate, &first.front_proxy_ca));
        assert!(Pki::open(folder.path(), &[]).expect("read").leaves().eq(later.leaves()), "kept");
    }

    #[test]
    fn a_cluster_whose_authority_is_gone_gets_no_other() {
        let folder = tempfile::tempdir().expect("a directory");
        Pki::open(folder.path(), &[]).expect("made");
        assert!(Pki::of_cluster(folder.path(), &[]).is_ok());
        fs::remove_file(folder.path().join("ca.key")).expect("removed");
        let lost = Pki::of_cluster(folder.path(), &[]).err().expect("refused");
        assert!(matches!(lost, Error::Lost { .. }) && lost.to_string().contains("lacks ca.crt or ca.key"), "{lost}");
    }

    #[test]
    fn keys_are_readable_by_their_owner_only() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = directory("modes");
        Pki::open(&dir, &[]).expect("made");
        for file in ["ca.key", "server.key", "admin.key", "sa.key"] {
            let mode = fs::metadata(dir.join(file)).expect("there").permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{file}");
        }
        fs::remove_dir_all(&dir).expect("removed");
    }

    #[test]
    fn certificates_are_version_three_and_the_admin_is_a_master() {
        let dir = directory("v3");
        let pki = Pki::open(&dir, &[]).expect("made");
        let der = CertificateDer::from_pem_slice(pki.admin.certificate.as_bytes()).expect("PEM");
        let (_, certificate) = X509Certificate::from_der(&der).expect("DER");
        assert_eq!(certificate.version(), x509_parser::x509::X509Version::V3);
        let organization = certificate.subject().iter_organization().next().expect("one").as_str().expect("text");
        assert_eq!(organization, "system:masters");
        fs::remove_dir_all(&dir).expect("removed");
    }
}
