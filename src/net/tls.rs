//! TLS with rustls: whom to trust, our own certificate, and the hash that binds SCRAM to the connection.
//!
//! As libpq: `require` checks the certificate when there is a root certificate file, `verify-ca` checks its authority,
//! `verify-full` also the host's name. Other than libpq a name must be among the certificate's subject alternative names.

mod certificate;
mod verify;

use super::PgError;
use super::options::{
    RootCerts, SslCertMode, SslMode, SslNegotiation, TlsFile, TlsOptions, TlsVersion, files,
};
pub(super) use certificate::server_end_point_hash;
use rustls::client::ResolvesClientCert;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, ServerName};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore, SignatureScheme};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use verify::{Trust, Verifier};

/// A handshake prepared: files read, keys loaded.
#[derive(Debug)]
pub(super) struct TlsPlan {
    pub(super) negotiation: SslNegotiation,
    config: Arc<ClientConfig>,
    server_name: ServerName<'static>,
    own: Arc<OwnCert>,
    cert_mode: SslCertMode,
}

/// Our certificate, if any, and whether the server has asked for one.
#[derive(Debug)]
struct OwnCert {
    key: Option<Arc<CertifiedKey>>,
    asked: AtomicBool,
}

impl ResolvesClientCert for OwnCert {
    fn resolve(&self, _authorities: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.asked.store(true, Ordering::Relaxed);
        self.key.clone()
    }

    fn has_certs(&self) -> bool {
        self.key.is_some()
    }
}

/// Reads what TLS with `server_name` needs.
pub(super) fn plan(options: &TlsOptions, host: &str, server_name: &str) -> Result<TlsPlan, PgError> {
    let failed = |reason: String| PgError::Tls { host: host.to_owned(), reason, hint: None };
    let provider = Arc::new(aws_lc_rs::default_provider());
    let trust = trust(options, &provider).map_err(failed)?;
    let own = OwnCert { key: own_cert(options, &provider).map_err(failed)?, asked: AtomicBool::new(false) };
    if options.cert_mode == SslCertMode::Require && own.key.is_none() {
        return Err(failed("sslcertmode=require, but there is no client certificate".to_owned()));
    }
    let own = Arc::new(own);
    let versions: &[&rustls::SupportedProtocolVersion] = match (options.version_min, options.version_max) {
        (_, TlsVersion::V10 | TlsVersion::V11 | TlsVersion::V12) => &[&rustls::version::TLS12],
        (TlsVersion::V13, TlsVersion::V13) => &[&rustls::version::TLS13],
        (_, TlsVersion::V13) => &[&rustls::version::TLS12, &rustls::version::TLS13],
    };
    let server_name = ServerName::try_from(server_name.to_owned())
        .map_err(|_| failed(format!("{server_name:?} is neither a host name nor an address")))?;
    let verifier = Verifier::new(trust, &provider);
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .map_err(|error| failed(error.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(own.clone());
    config.enable_sni = options.sni;
    if options.negotiation == SslNegotiation::Direct {
        config.alpn_protocols = vec![b"postgresql".to_vec()];
    }
    let config = Arc::new(config);
    Ok(TlsPlan { negotiation: options.negotiation, config, server_name, own, cert_mode: options.cert_mode })
}

impl TlsPlan {
    /// Shakes hands.
    pub(super) async fn handshake(
        &self,
        stream: TcpStream,
        host: &str,
    ) -> Result<TlsStream<TcpStream>, PgError> {
        let failed = |reason: String, hint: Option<&str>| PgError::Tls {
            host: host.to_owned(),
            reason,
            hint: hint.map(str::to_owned),
        };
        let connector = TlsConnector::from(self.config.clone());
        let stream = connector.connect(self.server_name.clone(), stream).await.map_err(|error| {
            let reason = error.to_string();
            let hint = if reason.contains("not valid for") {
                Some("the name must be among the certificate's subject alternative names")
            } else if reason.contains("UnknownIssuer") {
                Some("sslrootcert names the authorities that are trusted")
            } else {
                None
            };
            failed(reason, hint)
        })?;
        if self.cert_mode == SslCertMode::Require && !self.own.asked.load(Ordering::Relaxed) {
            let reason = "sslcertmode=require, but the server did not ask for our certificate";
            return Err(failed(reason.to_owned(), None));
        }
        if self.negotiation == SslNegotiation::Direct
            && stream.get_ref().1.alpn_protocol() != Some(b"postgresql")
        {
            return Err(failed(
                "sslnegotiation=direct, but the server does not speak PostgreSQL there".to_owned(),
                None,
            ));
        }
        Ok(stream)
    }
}

/// The certificate hash for `tls-server-end-point`, if the certificate's signature names one.
pub(super) fn server_end_point(stream: &TlsStream<TcpStream>) -> Option<Vec<u8>> {
    server_end_point_hash(stream.get_ref().1.peer_certificates()?.first()?)
}

/// Whom the options trust.
fn trust(options: &TlsOptions, provider: &Arc<CryptoProvider>) -> Result<Trust, String> {
    let roots = match (&options.mode, &options.root_certs) {
        (SslMode::Disable | SslMode::Allow | SslMode::Prefer, _) => return Ok(Trust::Anyone),
        (_, RootCerts::System) => system_roots()?,
        (_, RootCerts::File(path)) => {
            read_certs(path)?.ok_or(format!("sslrootcert {}: not found", path.display()))?
        }
        (mode, RootCerts::Default(path)) => {
            let found = path.as_deref().map(read_certs).transpose()?.flatten();
            match (found, mode) {
                (Some(certs), _) => certs,
                (None, SslMode::Require) => return Ok(Trust::Anyone),
                (None, _) => {
                    let path = path
                        .as_ref()
                        .map_or("~/.postgresql/root.crt".into(), |path| path.display().to_string());
                    return Err(format!(
                        "sslmode={} needs trusted certificates: {path} not found, and sslrootcert is not set",
                        options.mode.as_str()
                    ));
                }
            }
        }
    };
    let mut store = RootCertStore::empty();
    let (added, _) = store.add_parsable_certificates(roots.iter().cloned());
    if added == 0 {
        return Err("no trusted certificate can be used".to_owned());
    }
    let revocations = match &options.revocations {
        TlsFile::Named(path) => {
            Some(read_crls(path)?.ok_or(format!("sslcrl {}: not found", path.display()))?)
        }
        TlsFile::Default(path) => path.as_deref().map(read_crls).transpose()?.flatten(),
    };
    let mut builder =
        rustls::client::WebPkiServerVerifier::builder_with_provider(Arc::new(store), provider.clone());
    if let Some(revocations) = revocations {
        builder = builder.with_crls(revocations).allow_unknown_revocation_status();
    }
    let verifier = builder.build().map_err(|error| error.to_string())?;
    Ok(match options.mode {
        SslMode::VerifyFull => Trust::AuthorityForName { verifier, roots },
        _ => Trust::Authority { verifier, roots },
    })
}

fn system_roots() -> Result<Vec<CertificateDer<'static>>, String> {
    let found = rustls_native_certs::load_native_certs();
    if found.certs.is_empty() {
        let reasons = found.errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
        return Err(format!("sslrootcert=system: the system has no trusted certificates {reasons}"));
    }
    Ok(found.certs)
}

/// Our certificate and key, when both are there.
fn own_cert(options: &TlsOptions, provider: &CryptoProvider) -> Result<Option<Arc<CertifiedKey>>, String> {
    let (cert, named) = match (&options.cert_mode, &options.cert) {
        (SslCertMode::Disable, _) | (_, TlsFile::Default(None)) => return Ok(None),
        (_, TlsFile::Named(path)) => (path, true),
        (_, TlsFile::Default(Some(path))) => (path, false),
    };
    let chain = match read_certs(cert)? {
        Some(chain) => chain,
        None if named => return Err(format!("sslcert {}: not found", cert.display())),
        None => return Ok(None),
    };
    let key = match &options.key {
        TlsFile::Named(path) | TlsFile::Default(Some(path)) => path,
        TlsFile::Default(None) => {
            return Err(format!("sslcert {}: there is no sslkey to it", cert.display()));
        }
    };
    let key = provider
        .key_provider
        .load_private_key(read_key(key)?)
        .map_err(|error| format!("sslkey {}: {error}", key.display()))?;
    let own = CertifiedKey::new(chain, key);
    if own.keys_match() == Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::KeyMismatch)) {
        return Err(format!("sslcert {} and sslkey do not belong together", cert.display()));
    }
    Ok(Some(Arc::new(own)))
}

/// A private key whose file nobody else may read: 0600 of our own, or 0640 of root's.
fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, String> {
    let failed = |reason: String| format!("sslkey {}: {reason}", path.display());
    let found = std::fs::metadata(path).map_err(|error| failed(error.to_string()))?;
    let forbidden = if found.uid() == 0 { 0o037 } else { 0o077 };
    if !found.is_file() {
        return Err(failed("is not a regular file".to_owned()));
    }
    if found.mode() & forbidden != 0 {
        return Err(failed(
            "has group or world access; permissions should be 0600, or 0640 if root owns it".to_owned(),
        ));
    }
    let file = files::read_file(path).map_err(|error| failed(error.to_string()))?;
    let text = file.ok_or_else(|| failed("not found".to_owned()))?.text;
    if text.reveal().contains("ENCRYPTED") {
        return Err(failed("is encrypted, which walden does not support".to_owned()));
    }
    PrivateKeyDer::from_pem_slice(text.reveal().as_bytes()).map_err(|error| failed(error.to_string()))
}

fn read_certs(path: &Path) -> Result<Option<Vec<CertificateDer<'static>>>, String> {
    let failed = |reason: String| format!("certificate file {}: {reason}", path.display());
    let Some(file) = files::read_file(path).map_err(|error| failed(error.to_string()))? else {
        return Ok(None);
    };
    let certs: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(file.text.reveal().as_bytes()).collect();
    match certs {
        Ok(certs) if certs.is_empty() => Err(failed("holds no certificate".to_owned())),
        Ok(certs) => Ok(Some(certs)),
        Err(error) => Err(failed(error.to_string())),
    }
}

fn read_crls(path: &Path) -> Result<Option<Vec<CertificateRevocationListDer<'static>>>, String> {
    let failed = |reason: String| format!("revocation list {}: {reason}", path.display());
    let Some(file) = files::read_file(path).map_err(|error| failed(error.to_string()))? else {
        return Ok(None);
    };
    let lists: Result<Vec<_>, _> =
        CertificateRevocationListDer::pem_slice_iter(file.text.reveal().as_bytes()).collect();
    lists.map(Some).map_err(|error| failed(error.to_string()))
}
