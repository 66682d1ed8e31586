//! A controller's wire end for tests of this crate: TLS on loopback, answers by script, faults included. It shares no
//! envelope code with the client.
#![allow(dead_code)] // each test program uses a part of it

use holdfast_api::proto::auth::{AuthBody, AuthContainer};
use holdfast_api::proto::certs::{ZCert, ZCertType, ZControllerCert};
use holdfast_controller_client::identity::{
    AttestationCertificate, CertificateUse, DeviceIdentity, EcPoint, EscrowKey, KeyAgreement, KeyError, Quote, Signer,
};
use holdfast_controller_client::{Client, ClientConfig};
use p256::ecdsa::signature::hazmat::{PrehashSigner, PrehashVerifier};
use p256::elliptic_curve::sec1::ToEncodedPoint;
use p256::pkcs8::DecodePrivateKey;
use prost::Message;
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use sha2::{Digest, Sha256};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

/// A P-256 key with a certificate.
pub struct Key {
    pub signing: p256::ecdsa::SigningKey,
    pub der: Vec<u8>,
    pub pem: String,
    pkcs8: Vec<u8>,
}

impl Key {
    fn make(params: &CertificateParams, issuer: Option<&Issuer<'_, KeyPair>>) -> Self {
        let key = KeyPair::generate().expect("key");
        let certificate = match issuer {
            Some(issuer) => params.signed_by(&key, issuer),
            None => params.self_signed(&key),
        }
        .expect("certificate");
        let pkcs8 = key.serialize_der();
        Self {
            signing: p256::ecdsa::SigningKey::from_pkcs8_der(&pkcs8).expect("PKCS#8"),
            der: certificate.der().to_vec(),
            pem: certificate.pem(),
            pkcs8,
        }
    }

    /// A key and certificate made elsewhere.
    pub fn from_pem(certificate: &str, key: &str) -> Self {
        let signing = p256::ecdsa::SigningKey::from_pkcs8_pem(key).expect("PKCS#8");
        let der = CertificateDer::from_pem_slice(certificate.as_bytes()).expect("certificate");
        Self { signing, der: der.to_vec(), pem: certificate.to_owned(), pkcs8: Vec::new() }
    }

    /// A key whose certificate this key signs.
    pub fn issue(&self, name: &str) -> Self {
        let key = KeyPair::try_from(self.pkcs8.as_slice()).expect("key");
        Self::make(&params(name), Some(&Issuer::new(params("device"), key)))
    }

    pub fn self_signed(name: &str) -> Self {
        Self::make(&params(name), None)
    }
}

impl Signer for Key {
    fn sign_sha256(&self, digest: &[u8; 32]) -> Result<[u8; 64], KeyError> {
        let signature: p256::ecdsa::Signature =
            self.signing.sign_prehash(digest).map_err(|e| KeyError::new("key", e))?;
        Ok(signature.to_bytes().into())
    }
    fn certificate_der(&self) -> &[u8] {
        &self.der
    }
    fn certificate_pem(&self) -> &str {
        &self.pem
    }
}

fn params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::new(vec![name.to_owned()]).expect("parameters");
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params
}

impl KeyAgreement for Key {
    fn shared_point(&self, peer: &EcPoint) -> Result<EcPoint, KeyError> {
        let sec1 = [&[4], peer.x.as_slice(), peer.y.as_slice()].concat();
        let peer = p256::PublicKey::from_sec1_bytes(&sec1).map_err(|e| KeyError::new("ECDH key", e))?;
        let point = (peer.to_projective() * **self.signing.as_nonzero_scalar()).to_affine();
        EcPoint::from_sec1(point.to_encoded_point(false).as_bytes())
            .ok_or_else(|| KeyError::new("ECDH key", "infinity"))
    }
    fn certificate_pem(&self) -> &str {
        &self.pem
    }
}

/// Root, TLS key and signing key of a controller called `controller.test`.
pub struct Pki {
    pub root_pem: String,
    pub tls: Key,
    issuer: Issuer<'static, KeyPair>,
}

impl Pki {
    pub fn new() -> Self {
        let key = KeyPair::generate().expect("key");
        let mut root = params("root");
        root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        root.extended_key_usages.clear();
        let root_pem = root.self_signed(&key).expect("root").pem();
        let issuer = Issuer::new(root, key);
        Self { root_pem, tls: Key::make(&params("controller.test"), Some(&issuer)), issuer }
    }

    pub fn signing_key(&self, name: &str) -> Key {
        Key::make(&params(name), Some(&self.issuer))
    }
}

/// An envelope as a controller makes it.
pub fn envelope(payload: &[u8], signer: &Key) -> Vec<u8> {
    AuthContainer {
        protected_payload: Some(AuthBody { payload: payload.to_vec() }),
        algo: 2,
        sender_cert_hash: sha256(signer.pem.trim().as_bytes()).to_vec(),
        signature_hash: signer.sign_sha256(&sha256(payload)).expect("sign").to_vec(),
        ..AuthContainer::default()
    }
    .encode_to_vec()
}

/// The reply of `/certs`.
pub fn certs_reply(signer: &Key) -> Vec<u8> {
    let cert = ZCert {
        hash_algo: 1,
        cert_hash: sha256(signer.pem.trim().as_bytes())[..16].to_vec(),
        r#type: ZCertType::CertTypeControllerSigning.into(),
        cert: signer.pem.as_bytes().to_vec(),
        ..ZCert::default()
    };
    envelope(&ZControllerCert { certs: vec![cert] }.encode_to_vec(), signer)
}

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    /// Below `/api/v2/edgedevice/`.
    pub path: String,
    pub head: String,
    pub body: Vec<u8>,
}

impl Request {
    /// The payload, if the envelope names `key`'s certificate by its DER and the signature fits.
    pub fn payload(&self, key: &Key) -> Vec<u8> {
        let envelope = AuthContainer::decode(self.body.as_slice()).expect("envelope");
        let payload = envelope.protected_payload.expect("payload").payload;
        assert_eq!(envelope.algo, 2);
        assert_eq!(envelope.sender_cert_hash, sha256(&key.der));
        let signature = p256::ecdsa::Signature::from_slice(&envelope.signature_hash).expect("64 bytes");
        key.signing.verifying_key().verify_prehash(&sha256(&payload), &signature).expect("signature");
        payload
    }
}

/// What the server does with a request.
pub enum Answer {
    Reply(u16, Vec<u8>),
    /// Half of a reply, then the connection is cut.
    CutBody(Vec<u8>),
    /// The connection is cut without a reply.
    Cut,
    /// Nothing, for as long as the client waits.
    Hang,
}

pub type Script = Box<dyn FnMut(&Request) -> Answer + Send>;

/// The server.
pub struct Server {
    pub port: u16,
    pub requests: Arc<Mutex<Vec<Request>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    pub async fn start(tls: &Key, script: impl FnMut(&Request) -> Answer + Send + 'static) -> Self {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(
                vec![CertificateDer::from(tls.der.clone())],
                PrivateKeyDer::try_from(tls.pkcs8.clone()).expect("key"),
            )
            .expect("server certificate");
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let port = listener.local_addr().expect("address").port();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let script = Arc::new(Mutex::new(Box::new(script) as Script));
        let kept = Arc::clone(&requests);
        let task = tokio::spawn(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else {
                    return;
                };
                let (acceptor, script, kept) = (acceptor.clone(), Arc::clone(&script), Arc::clone(&kept));
                tokio::spawn(async move {
                    if let Ok(stream) = acceptor.accept(stream).await {
                        serve(stream, &script, &kept).await;
                    }
                });
            }
        });
        Self { port, requests, task }
    }

    pub fn client(&self, roots_pem: &str) -> Client {
        Client::new(self.config(roots_pem)).expect("client")
    }

    pub fn config(&self, roots_pem: &str) -> ClientConfig {
        ClientConfig {
            server: format!("controller.test:{}", self.port),
            address: Some("127.0.0.1".parse().expect("address")),
            roots_pem: roots_pem.as_bytes().to_vec(),
            clock_floor: SystemTime::UNIX_EPOCH,
            serial: "serial-1".to_owned(),
            soft_serial: "soft_1".to_owned(),
        }
    }

    pub fn paths(&self) -> Vec<String> {
        self.requests.lock().expect("lock").iter().map(|request| request.path.clone()).collect()
    }
}

async fn serve(
    mut stream: tokio_rustls::server::TlsStream<tokio::net::TcpStream>,
    script: &Mutex<Script>,
    kept: &Mutex<Vec<Request>>,
) {
    let mut bytes = Vec::new();
    let head_end = loop {
        if let Some(at) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break at + 4;
        }
        let mut chunk = [0; 4096];
        match stream.read(&mut chunk).await {
            Ok(0) | Err(_) => return,
            Ok(n) => bytes.extend_from_slice(&chunk[..n]),
        }
    };
    let head = String::from_utf8_lossy(&bytes[..head_end]).into_owned();
    let length: usize = head
        .lines()
        .find_map(|line| {
            line.to_ascii_lowercase().strip_prefix("content-length:").map(|n| n.trim().parse().expect("length"))
        })
        .unwrap_or(0);
    let mut body = bytes[head_end..].to_vec();
    while body.len() < length {
        let mut chunk = [0; 4096];
        match stream.read(&mut chunk).await {
            Ok(0) | Err(_) => return,
            Ok(n) => body.extend_from_slice(&chunk[..n]),
        }
    }
    let mut words = head.split(' ');
    let method = words.next().expect("method").to_owned();
    let path = words.next().expect("path").strip_prefix("/api/v2/edgedevice/").expect("API path").to_owned();
    let request = Request { method, path, head, body };
    kept.lock().expect("lock").push(request.clone());
    let answer = (script.lock().expect("lock"))(&request);
    match answer {
        Answer::Reply(status, body) => {
            let head = format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
            let body = if status == 304 || status == 204 { Vec::new() } else { body };
            let _ = stream.write_all(&[head.as_bytes(), &body].concat()).await;
            let _ = stream.shutdown().await;
        }
        Answer::CutBody(body) => {
            let head = format!("HTTP/1.1 200 X\r\nContent-Length: {}\r\n\r\n", body.len());
            let _ = stream.write_all(&[head.as_bytes(), &body[..body.len() / 2]].concat()).await;
            let _ = stream.flush().await;
        }
        Answer::Cut => {}
        Answer::Hang => tokio::time::sleep(std::time::Duration::from_secs(60)).await,
    }
}

/// A device with keys in memory; `tpm` makes it answer as one with a TPM.
pub struct Device {
    pub device: Key,
    pub onboarding: Key,
    pub ecdh: Key,
    pub tpm: bool,
}

impl Device {
    pub fn new(tpm: bool) -> Self {
        let device = Key::self_signed("device");
        Self { ecdh: device.issue("ecdh"), device, onboarding: Key::self_signed("onboarding"), tpm }
    }
}

impl DeviceIdentity for Device {
    fn device(&self) -> &dyn Signer {
        &self.device
    }
    fn onboarding(&self) -> Option<&dyn Signer> {
        Some(&self.onboarding)
    }
    fn serial(&self) -> &str {
        "serial-1"
    }
    fn soft_serial(&self) -> &str {
        "soft_1"
    }
    fn attestation_certificates(&self) -> Result<Vec<AttestationCertificate>, KeyError> {
        Ok(vec![AttestationCertificate {
            usage: CertificateUse::EcdhExchange,
            pem: self.ecdh.pem.clone(),
            tpm_public: self.tpm.then(|| vec![9, 9]),
            in_tpm: self.tpm,
        }])
    }
    fn quote(&self, nonce: &[u8]) -> Result<Option<Quote>, KeyError> {
        let pcrs = (0..16).map(|index| (index, [index as u8; 32])).collect();
        Ok(self.tpm.then(|| Quote { attest: nonce.to_vec(), signature_der: vec![0x30, 0], pcrs }))
    }
    fn event_log(&self) -> Option<Vec<u8>> {
        Some(vec![1; 1000])
    }
    fn os_version(&self) -> &str {
        "1.0"
    }
    fn firmware_version(&self) -> &str {
        "vendor-1-date"
    }
    fn keys_to_escrow(&self) -> Result<Vec<EscrowKey>, KeyError> {
        Ok(vec![EscrowKey(vec![4, 2])])
    }
}
