//! TLS by rustls with ring.

use std::error::Error as StdError;
use std::io;
use std::path::Path;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{
    AlertDescription, CertificateError, ClientConfig, ClientConnection, DigitallySignedStruct,
    Error, RootCertStore, SignatureScheme, StreamOwned,
};

use super::{Stream, TlsError, TlsFiles};
use crate::fs;

/// How to connect by TLS: made once, shared by all connections.
#[derive(Clone)]
pub struct Tls {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Tls {
    /// Reads the files of `files`; `host` is the name in the broker's certificate where the files
    /// say no other.
    ///
    /// # Errors
    /// [`TlsError`], naming option and file.
    pub fn load(files: &TlsFiles, host: &str) -> Result<Self, TlsError> {
        let (key, name) = match &files.name {
            Some(name) => ("broker.tls_name", name.as_str()),
            None => ("broker.host", host),
        };
        let name = ServerName::try_from(name.to_owned())
            .map_err(|_| TlsError::Name { key, name: name.into() })?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = verifier(&files.ca, &provider, name.clone())?;
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| content("broker.ca_file", &files.ca, error))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        let config = match &files.client {
            None => builder.with_no_client_auth(),
            Some((cert_file, key_file)) => {
                let certs = certificates("broker.cert_file", cert_file)?;
                let bytes = read("broker.key_file", key_file)?;
                let key = PrivateKeyDer::from_pem_slice(&bytes)
                    .map_err(|_| content("broker.key_file", key_file, "no private key in it"))?;
                builder
                    .with_client_auth_cert(certs, key)
                    .map_err(|error| content("broker.key_file", key_file, error))?
            }
        };
        Ok(Self { config: Arc::new(config), name })
    }

    /// An encrypted stream over a connected one; the handshake happens with the first bytes.
    ///
    /// # Errors
    /// Where the system has no random numbers.
    pub fn wrap(&self, stream: impl Stream + 'static) -> io::Result<Box<dyn Stream>> {
        let connection = ClientConnection::new(Arc::clone(&self.config), self.name.clone());
        let connection = connection.map_err(io::Error::other)?;
        Ok(Box::new(StreamOwned::new(connection, stream)))
    }

    /// The same for the MQTT client.
    #[must_use]
    pub fn transport(&self) -> rumqttc::Transport {
        let config = rumqttc::TlsConfiguration::Rustls(Arc::clone(&self.config));
        rumqttc::Transport::tls_with_config(config)
    }
}

fn read(key: &'static str, path: &Path) -> Result<Vec<u8>, TlsError> {
    fs::read_there(path).map_err(|source| TlsError::File { key, source })
}

fn content(key: &'static str, path: &Path, what: impl ToString) -> TlsError {
    TlsError::Content { key, path: path.into(), what: what.to_string() }
}

fn certificates(key: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let bytes = read(key, path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    let found = found.map_err(|error| content(key, path, error))?;
    if found.is_empty() { Err(content(key, path, "no certificate in it")) } else { Ok(found) }
}

fn verifier(
    ca: &Path,
    provider: &Arc<CryptoProvider>,
    name: ServerName<'static>,
) -> Result<Named, TlsError> {
    const KEY: &str = "broker.ca_file";
    let mut roots = RootCertStore::empty();
    for certificate in certificates(KEY, ca)? {
        roots.add(certificate).map_err(|error| content(KEY, ca, error))?;
    }
    let inner =
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider)).build();
    Ok(Named { inner: inner.map_err(|error| content(KEY, ca, error))?, name })
}

/// The standard verification, but for the configured name: the MQTT client only knows the address
/// that it connects to.
#[derive(Debug)]
struct Named {
    inner: Arc<WebPkiServerVerifier>,
    name: ServerName<'static>,
}

impl ServerCertVerifier for Named {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _address: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.inner.verify_server_cert(end_entity, intermediates, &self.name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

pub(super) fn remedy(error: &(dyn StdError + 'static)) -> Option<String> {
    use CertificateError as Bad;
    const NO_CERTIFICATE: &str =
        "it demands a client certificate: set broker.cert_file and broker.key_file";
    let Some(found) = in_chain(error) else {
        // The MQTT client hands this alert on as text: it comes after the handshake.
        let is_alert = error.to_string().ends_with("alert: CertificateRequired");
        return is_alert.then(|| NO_CERTIFICATE.into());
    };
    let what = match found {
        Error::InvalidCertificate(Bad::UnknownIssuer) => {
            "its certificate is not signed by broker.ca_file: name the CA that signed it".into()
        }
        Error::InvalidCertificate(Bad::Expired | Bad::ExpiredContext { .. }) => {
            "its certificate has expired: renew it, and look at this machine's clock".into()
        }
        Error::InvalidCertificate(Bad::NotValidYet | Bad::NotValidYetContext { .. }) => {
            "its certificate is not valid yet: look at this machine's clock".into()
        }
        Error::InvalidCertificate(Bad::NotValidForName | Bad::NotValidForNameContext { .. }) => {
            "its certificate is for another name: set broker.tls_name to the one that it has".into()
        }
        Error::InvalidCertificate(bad) => format!("its certificate is refused: {bad}"),
        Error::AlertReceived(
            AlertDescription::CertificateRequired | AlertDescription::HandshakeFailure,
        ) => NO_CERTIFICATE.into(),
        Error::AlertReceived(AlertDescription::ProtocolVersion) => {
            "it has no TLS 1.3: use a Mosquitto with OpenSSL 1.1.1 or newer".into()
        }
        Error::AlertReceived(alert) => {
            format!("it refuses the handshake ({alert:?}): look at broker.cert_file and at its log")
        }
        Error::InvalidMessage(_) => {
            "it does not speak TLS on this port: correct broker.port, or leave broker.ca_file empty"
                .into()
        }
        other => format!("the TLS handshake failed: {other}"),
    };
    Some(what)
}

/// The rustls error that is `error` or lies behind it.
fn in_chain<'e>(error: &'e (dyn StdError + 'static)) -> Option<&'e Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<Error>() {
            return Some(found);
        }
        // An I/O error keeps what it wraps to itself: its source is that one's source.
        let wrapped = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        next = match wrapped {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    None
}
