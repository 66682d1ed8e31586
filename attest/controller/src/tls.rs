//! TLS towards the controller: trust in the roots of the site and in nothing else.

use holdfast_api::certs::Roots;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::time_provider::TimeProvider;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// Makes the TLS settings: 1.2 or 1.3, sessions resumed, no client certificate.
pub(crate) fn settings(roots: &Roots, clock: Clock) -> Result<ClientConfig, rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut store = RootCertStore::empty();
    for root in roots.certificates() {
        store.add(root.clone())?;
    }
    let chains = WebPkiServerVerifier::builder_with_provider(Arc::new(store), Arc::clone(&provider))
        .build()
        .map_err(|error| rustls::Error::General(error.to_string()))?;
    let verifier = SiteVerifier { chains, roots: roots.clone(), provider: Arc::clone(&provider) };
    Ok(ClientConfig::builder_with_details(provider, Arc::new(clock))
        .with_safe_default_protocol_versions()?
        .dangerous() // the verifier below is stricter than the name of this method suggests
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth())
}

/// Wall time that is never believed to be earlier than a moment known to have passed, such as the build of the image.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    pub(crate) floor: SystemTime,
}

impl Clock {
    pub(crate) fn now(&self) -> UnixTime {
        let now = SystemTime::now().max(self.floor);
        UnixTime::since_unix_epoch(now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO))
    }
}

impl TimeProvider for Clock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(self.now())
    }
}

/// Chains to the roots of the site; a server certificate that is itself one of the roots is trusted as it stands.
#[derive(Debug)]
struct SiteVerifier {
    chains: Arc<WebPkiServerVerifier>,
    roots: Roots,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for SiteVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if self.roots.contains(leaf, now) {
            let parsed = webpki::EndEntityCert::try_from(leaf)
                .map_err(|_| rustls::Error::InvalidCertificate(rustls::CertificateError::BadEncoding))?;
            return parsed
                .verify_is_valid_for_subject_name(name)
                .map(|()| ServerCertVerified::assertion())
                .map_err(|_| rustls::Error::InvalidCertificate(rustls::CertificateError::NotValidForName));
        }
        self.chains.verify_server_cert(leaf, intermediates, name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(
            message,
            certificate,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// True when a TLS error says that the server's certificate is not valid yet: its clock or ours is off, a temporary state.
pub(crate) fn not_valid_yet(error: &std::io::Error) -> bool {
    use rustls::CertificateError::{NotValidYet, NotValidYetContext};
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    matches!(inner, Some(rustls::Error::InvalidCertificate(NotValidYet | NotValidYetContext { .. })))
}
