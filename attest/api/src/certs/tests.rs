use super::*;
use crate::hash::sha256;
use crate::keys::{KeyError, Signer};
use crate::proto::auth::{AuthBody, AuthContainer};
use crate::proto::certs::ZCert;
use p256::ecdsa::signature::hazmat::PrehashSigner;
use p256::pkcs8::DecodePrivateKey;
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose};

/// A P-256 key with a certificate, standing in for either side.
pub(crate) struct TestKey {
    key: p256::ecdsa::SigningKey,
    der: Vec<u8>,
    pem: String,
}

impl TestKey {
    /// Self-signed.
    pub(crate) fn new(name: &str) -> Self {
        let key = KeyPair::generate().expect("key");
        let certificate = parameters(name).self_signed(&key).expect("certificate");
        Self::from_parts(&key, &certificate)
    }

    /// Issued by a test authority.
    pub(crate) fn issued(parameters: &CertificateParams, by: &Issuer<'_, KeyPair>) -> Self {
        let key = KeyPair::generate().expect("key");
        let certificate = parameters.signed_by(&key, by).expect("certificate");
        Self::from_parts(&key, &certificate)
    }

    fn from_parts(key: &KeyPair, certificate: &rcgen::Certificate) -> Self {
        Self {
            key: p256::ecdsa::SigningKey::from_pkcs8_der(&key.serialize_der()).expect("PKCS#8"),
            der: certificate.der().to_vec(),
            pem: certificate.pem(),
        }
    }

    /// The private scalar's key agreement.
    pub(crate) fn secret(&self) -> p256::SecretKey {
        p256::SecretKey::from_bytes(&self.key.to_bytes()).expect("scalar")
    }
}

impl Signer for TestKey {
    fn sign_sha256(&self, digest: &[u8; 32]) -> Result<[u8; 64], KeyError> {
        let signature: p256::ecdsa::Signature =
            self.key.sign_prehash(digest).map_err(|e| KeyError::new("test key", e))?;
        Ok(signature.to_bytes().into())
    }
    fn certificate_der(&self) -> &[u8] {
        &self.der
    }
    fn certificate_pem(&self) -> &str {
        &self.pem
    }
}

pub(crate) fn certificate_for(key: &TestKey) -> ControllerCertificate {
    ControllerCertificate::from_pem(key.pem.as_bytes(), true).expect("certificate")
}

/// A leaf as controllers in the field make it: serverAuth, and a key usage without digitalSignature.
pub(crate) fn parameters(name: &str) -> CertificateParams {
    let mut parameters = CertificateParams::new(vec![name.to_owned()]).expect("parameters");
    parameters.distinguished_name.push(rcgen::DnType::CommonName, name);
    parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    parameters.key_usages = vec![KeyUsagePurpose::CrlSign];
    parameters.not_before = rcgen::date_time_ymd(2026, 1, 1);
    parameters.not_after = rcgen::date_time_ymd(2036, 1, 1);
    parameters
}

pub(crate) struct Authority {
    pub(crate) issuer: Issuer<'static, KeyPair>,
    pub(crate) pem: String,
}

fn authority_parameters(name: &str) -> CertificateParams {
    let mut parameters = parameters(name);
    parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    parameters.extended_key_usages.clear();
    parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    parameters
}

pub(crate) fn root(name: &str) -> Authority {
    let key = KeyPair::generate().expect("key");
    let parameters = authority_parameters(name);
    let pem = parameters.self_signed(&key).expect("root").pem();
    Authority { issuer: Issuer::new(parameters, key), pem }
}

pub(crate) fn intermediate(name: &str, by: &Authority) -> Authority {
    let key = KeyPair::generate().expect("key");
    let parameters = authority_parameters(name);
    let pem = parameters.signed_by(&key, &by.issuer).expect("intermediate").pem();
    Authority { issuer: Issuer::new(parameters, key), pem }
}

pub(crate) fn listed(kind: ZCertType, pem: &str) -> ZCert {
    ZCert {
        hash_algo: 1,
        cert_hash: hash::trimmed_pem_hash(pem.as_bytes())[..16].to_vec(),
        r#type: kind.into(),
        cert: pem.as_bytes().to_vec(),
        ..ZCert::default()
    }
}

pub(crate) fn reply(certs: Vec<ZCert>, signer: &TestKey) -> Vec<u8> {
    let payload = ZControllerCert { certs }.encode_to_vec();
    AuthContainer {
        algo: 2,
        sender_cert_hash: hash::trimmed_pem_hash(signer.pem.as_bytes()).to_vec(),
        signature_hash: signer.sign_sha256(&sha256(&payload)).expect("sign").to_vec(),
        protected_payload: Some(AuthBody { payload }),
        ..AuthContainer::default()
    }
    .encode_to_vec()
}

/// 2027-01-15, inside the validity of the test certificates.
pub(crate) const NOW: ValidAt = ValidAt::Time(UnixTime::since_unix_epoch(Duration::from_secs(1_800_000_000)));

const SIGNING: ZCertType = ZCertType::CertTypeControllerSigning;
const ECDH: ZCertType = ZCertType::CertTypeControllerEcdhExchange;
const INTERMEDIATE: ZCertType = ZCertType::CertTypeControllerIntermediate;

#[test]
fn list_with_an_intermediate_is_accepted_and_opens_envelopes() {
    let root = root("root");
    let middle = intermediate("middle", &root);
    let signing = TestKey::issued(&parameters("signing"), &middle.issuer);
    let ecdh = TestKey::issued(&parameters("ecdh"), &middle.issuer);
    let roots = Roots::from_pem(root.pem.as_bytes()).expect("roots");
    let list = vec![
        listed(SIGNING, &format!("{}\n\n", signing.pem)),
        listed(ECDH, &ecdh.pem),
        listed(INTERMEDIATE, &middle.pem),
    ];
    let envelope = reply(list, &signing);

    let certificates = ControllerCertificates::from_reply(&envelope, &roots, NOW).expect("accepted");

    assert!(certificates.rejected().is_empty(), "{:?}", certificates.rejected());
    assert!(certificates.open(&reply(Vec::new(), &signing)).is_ok());
    // The ECDH certificate is known, but may not sign replies.
    assert!(certificates.by_hash(&hash::trimmed_pem_hash(ecdh.pem.as_bytes())[..16]).is_some());
    assert!(matches!(certificates.open(&reply(Vec::new(), &ecdh)), Err(EnvelopeError::UnknownSender(_))));
    // Kept across a reboot with no clock.
    assert!(ControllerCertificates::from_reply(certificates.envelope(), &roots, ValidAt::CheckedBefore).is_ok());
}

#[test]
fn list_is_refused_when_the_chain_of_its_signer_does_not_hold() {
    let root = root("root");
    let roots = Roots::from_pem(root.pem.as_bytes()).expect("roots");
    let middle = intermediate("middle", &root);
    let other = super::tests::root("other root");
    let mut client = parameters("client");
    client.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let mut expired = parameters("expired");
    expired.not_after = rcgen::date_time_ymd(2026, 6, 1);

    for (why, signer) in [
        ("foreign root", TestKey::issued(&parameters("leaf"), &other.issuer)),
        ("missing intermediate", TestKey::issued(&parameters("leaf"), &middle.issuer)),
        ("not for serverAuth", TestKey::issued(&client, &root.issuer)),
        ("expired", TestKey::issued(&expired, &root.issuer)),
        ("self-signed", TestKey::new("leaf")),
    ] {
        let result =
            ControllerCertificates::from_reply(&reply(vec![listed(SIGNING, &signer.pem)], &signer), &roots, NOW);
        assert!(matches!(result, Err(CertificateError::NoSigner { .. })), "{why}: {result:?}");
    }
}

#[test]
fn leaf_without_extended_key_usage_is_accepted() {
    let root = root("root");
    let mut plain = parameters("plain");
    plain.extended_key_usages.clear();
    let signer = TestKey::issued(&plain, &root.issuer);
    let roots = Roots::from_pem(root.pem.as_bytes()).expect("roots");
    assert!(
        ControllerCertificates::from_reply(&reply(vec![listed(SIGNING, &signer.pem)], &signer), &roots, NOW).is_ok()
    );
}

#[test]
fn certificate_that_is_itself_a_root_of_the_site_is_accepted_while_valid() {
    let signer = TestKey::new("controller");
    let roots = Roots::from_pem(signer.pem.as_bytes()).expect("roots");
    let envelope = reply(vec![listed(SIGNING, &signer.pem)], &signer);
    assert!(ControllerCertificates::from_reply(&envelope, &roots, NOW).is_ok());
    let late = ValidAt::Time(UnixTime::since_unix_epoch(Duration::from_secs(2_200_000_000)));
    assert!(ControllerCertificates::from_reply(&envelope, &roots, late).is_err());
}

#[test]
fn list_signed_by_another_key_under_the_right_hash_is_refused() {
    let root = root("root");
    let roots = Roots::from_pem(root.pem.as_bytes()).expect("roots");
    let signer = TestKey::issued(&parameters("signing"), &root.issuer);
    let thief = TestKey { pem: signer.pem.clone(), ..TestKey::new("thief") };
    let result = ControllerCertificates::from_reply(&reply(vec![listed(SIGNING, &signer.pem)], &thief), &roots, NOW);
    assert!(matches!(result, Err(CertificateError::Envelope(EnvelopeError::BadSignature { .. }))), "{result:?}");
}

#[test]
fn too_long_list_is_refused() {
    let signer = TestKey::new("controller");
    let roots = Roots::from_pem(signer.pem.as_bytes()).expect("roots");
    let list = vec![listed(SIGNING, &signer.pem); MAX_CERTIFICATES + 1];
    let result = ControllerCertificates::from_reply(&reply(list, &signer), &roots, NOW);
    assert!(matches!(result, Err(CertificateError::TooMany(33))), "{result:?}");
}

#[test]
fn rsa_signature_of_openssl_verifies() {
    let pem = include_bytes!("../../testdata/controller-rsa.pem");
    let signature = hex::decode(
        "3563443377e8c38808deb22dcf50c784e5e0661380dcd2cbbe98f13f8197cda1c395dbd4543589867b3dec82ff23b2947b7c0af066c3a0e7\
         e42af2c9940e01de289e75ac528499f6f9f70cd8618089df794a3acc9231ed51c4f40eeaed6f47450e09a7257a887be7c6934dcd83a8703a\
         2459f701f7c6f851c20d79d7a9e881c73a0dfc011e991ac190cf4be0d4849f223005fc2565dc12593e38d3d43690de1794836cf13a4de2f7\
         83684a6c0bc839bc5e1481dd26559d11e05cb40ee5e6d8754d711e2f778343f653bd2bec12f4ff0481ae1fc1c6329450cc9411c4931e59a2\
         5aef45bf45d6a10cf48694e970a9b0b0dc5e6ceef0d10c2eaccbc5a3634788c6",
    )
    .expect("hex");
    let certificate = ControllerCertificate::from_pem(pem, true).expect("certificate");
    assert!(certificate.key().verifies(b"signed by openssl", &signature));
    assert!(!certificate.key().verifies(b"signed by OpenSSL", &signature));
}

#[test]
fn roots_need_at_least_one_certificate() {
    assert!(Roots::from_pem(b"").is_err());
    assert!(Roots::from_pem(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").is_err());
}
