//! The controller's own certificates: a root, a TLS leaf, a signing leaf and a key-agreement leaf, all P-256.
//!
//! Made at first start, kept as PEM files in the data directory, and replaced one at a time by a rotation.

use crate::store::{StoreError, read_optional, replace};
use crate::x509::{Cert, pem_hash};
use holdfast_api::proto::certs::{ZCert, ZCertType, ZControllerCert};
use holdfast_api::proto::common::HashAlgorithm;
use p256::SecretKey;
use p256::pkcs8::{DecodePrivateKey, EncodePrivateKey, LineEnding};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};
use std::path::Path;

/// Why the certificates could not be had.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// rcgen refused.
    #[error("certificate {name}: cannot be made: {cause}")]
    Make {
        /// Which certificate.
        name: &'static str,
        /// What rcgen said.
        cause: String,
    },
    /// A stored file is damaged.
    #[error("{name}: stored certificate or key is damaged: {cause}; remove the pki folder to make new ones")]
    Damaged {
        /// Which identity.
        name: &'static str,
        /// What the parser said.
        cause: String,
    },
    /// The disk.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What goes into new certificates.
#[derive(Debug, Clone)]
pub struct PkiOptions {
    /// DNS names and IP addresses of the TLS leaf.
    pub server_names: Vec<String>,
    /// Issue the signing and key-agreement leaves from an intermediate CA, as large controllers do.
    pub intermediate: bool,
}

impl Default for PkiOptions {
    fn default() -> Self {
        Self { server_names: vec!["localhost".into(), "127.0.0.1".into()], intermediate: false }
    }
}

/// A certificate with its private key.
#[derive(Clone)]
pub struct Identity {
    /// The certificate.
    pub cert: Cert,
    /// The key as PKCS#8 PEM.
    pub key_pem: String,
    key: SecretKey,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Identity({})", self.cert.subject())
    }
}

impl Identity {
    fn new(name: &'static str, cert_pem: &str, key_pem: &str) -> Result<Self, PkiError> {
        let damaged = |cause: String| PkiError::Damaged { name, cause };
        let cert = Cert::from_pem(name, cert_pem.as_bytes()).map_err(|e| damaged(e.to_string()))?;
        let key = SecretKey::from_pkcs8_pem(key_pem).map_err(|e| damaged(e.to_string()))?;
        let matching = cert.public_key(name).map_err(|e| damaged(e.to_string()))? == key.public_key();
        if !matching {
            return Err(damaged("key and certificate do not belong together".into()));
        }
        Ok(Self { cert, key_pem: key_pem.to_owned(), key })
    }

    /// The key for ECDSA.
    pub fn signing_key(&self) -> p256::ecdsa::SigningKey {
        p256::ecdsa::SigningKey::from(&self.key)
    }

    /// The key for ECDH.
    pub fn secret_key(&self) -> &SecretKey {
        &self.key
    }

    /// The key as PKCS#8 DER, for TLS.
    pub fn key_der(&self) -> Vec<u8> {
        self.key.to_pkcs8_der().expect("a P-256 key always encodes as PKCS#8").as_bytes().to_vec()
    }
}

/// Which leaf a rotation replaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// The TLS server certificate.
    Tls,
    /// The certificate that signs envelopes.
    Signing,
    /// The certificate of object encryption.
    Ecdh,
}

impl std::str::FromStr for Role {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "tls" => Ok(Self::Tls),
            "signing" => Ok(Self::Signing),
            "ecdh" => Ok(Self::Ecdh),
            other => Err(format!("role {other:?}: expected tls, signing or ecdh")),
        }
    }
}

/// All certificates of this controller.
#[derive(Debug, Clone)]
pub struct Pki {
    /// Trust anchor of everything below, and of the artifact server.
    pub root: Identity,
    /// Issuer of `signing` and `ecdh`, if there is one.
    pub intermediate: Option<Identity>,
    /// TLS server leaf.
    pub tls: Identity,
    /// Signs envelopes.
    pub signing: Identity,
    /// Agrees keys with devices.
    pub ecdh: Identity,
    /// An onboarding certificate for devices of the demo and the tests; allowed only once it is onboarded.
    pub onboarding: Identity,
    server_names: Vec<String>,
}

const KEY_BEGINS: &str = "-----BEGIN PRIVATE KEY-----";
const ROOT_NAME: &str = "Holdfast test controller root";
const INTERMEDIATE_NAME: &str = "Holdfast test controller intermediate";
const FILES: [&str; 6] = ["root", "intermediate", "tls", "signing", "ecdh", "onboarding"];

impl Pki {
    /// Makes everything anew, in memory.
    pub fn generate(options: &PkiOptions) -> Result<Self, PkiError> {
        let root = make_ca("root", ROOT_NAME, None)?;
        let intermediate =
            options.intermediate.then(|| make_ca("intermediate", INTERMEDIATE_NAME, Some(&root))).transpose()?;
        let leaf_issuer = intermediate.as_ref().map_or_else(|| CaRef::root(&root), CaRef::intermediate);
        let signing = make_leaf(Role::Signing, &options.server_names, &leaf_issuer)?;
        let ecdh = make_leaf(Role::Ecdh, &options.server_names, &leaf_issuer)?;
        let tls = make_leaf(Role::Tls, &options.server_names, &CaRef::root(&root))?;
        let onboarding = make_onboarding()?;
        Ok(Self { root, intermediate, tls, signing, ecdh, onboarding, server_names: options.server_names.clone() })
    }

    /// Loads the certificates from `dir`, or makes and stores them. The TLS leaf is made again when the wanted server
    /// names changed.
    pub fn load_or_create(dir: &Path, options: &PkiOptions) -> Result<Self, PkiError> {
        let load = |name: &'static str| -> Result<Option<Identity>, PkiError> {
            let Some(bytes) = read_optional(&dir.join(format!("{name}.pem")))? else {
                return Ok(None);
            };
            let text = String::from_utf8_lossy(&bytes);
            let at = text.find(KEY_BEGINS).ok_or_else(|| PkiError::Damaged {
                name,
                cause: format!("expected a certificate and then {KEY_BEGINS:?}"),
            })?;
            let (cert, key) = text.split_at(at);
            Identity::new(name, cert, key).map(Some)
        };
        let names = read_optional(&dir.join("server-names"))?;
        let wanted = options.server_names.join("\n");
        // The list of names is written last: without it the first start did not finish, and all is made anew.
        if let (Some(names), Some(root), Some(tls), Some(signing), Some(ecdh), Some(onboarding)) =
            (names, load("root")?, load("tls")?, load("signing")?, load("ecdh")?, load("onboarding")?)
        {
            let mut pki = Self {
                root,
                intermediate: load("intermediate")?,
                tls,
                signing,
                ecdh,
                onboarding,
                server_names: options.server_names.clone(),
            };
            if names != wanted.as_bytes() {
                pki.rotate(Role::Tls)?;
                pki.save(dir)?;
            }
            return Ok(pki);
        }
        let pki = Self::generate(options)?;
        pki.save(dir)?;
        Ok(pki)
    }

    /// Writes all files, certificate and key of an identity in one, so that they always belong together.
    pub fn save(&self, dir: &Path) -> Result<(), PkiError> {
        let all = [
            Some(&self.root),
            self.intermediate.as_ref(),
            Some(&self.tls),
            Some(&self.signing),
            Some(&self.ecdh),
            Some(&self.onboarding),
        ];
        for (name, identity) in FILES.iter().zip(all) {
            if let Some(identity) = identity {
                let both = format!("{}{}", identity.cert.pem, identity.key_pem);
                replace(&dir.join(format!("{name}.pem")), both.as_bytes())?;
            }
        }
        replace(&dir.join("server-names"), self.server_names.join("\n").as_bytes())?;
        Ok(())
    }

    /// Replaces one leaf by a new key and certificate.
    pub fn rotate(&mut self, role: Role) -> Result<(), PkiError> {
        let issuer = match (&self.intermediate, role) {
            (Some(intermediate), Role::Signing | Role::Ecdh) => CaRef::intermediate(intermediate),
            _ => CaRef::root(&self.root),
        };
        let leaf = make_leaf(role, &self.server_names, &issuer)?;
        match role {
            Role::Tls => self.tls = leaf,
            Role::Signing => self.signing = leaf,
            Role::Ecdh => self.ecdh = leaf,
        }
        Ok(())
    }

    /// The list that GET /certs answers.
    pub fn zcerts(&self) -> ZControllerCert {
        let entry = |identity: &Identity, kind: ZCertType| {
            let pem = identity.cert.pem.trim();
            ZCert {
                hash_algo: HashAlgorithm::Sha25616bytes as i32,
                cert_hash: pem_hash(pem)[..16].to_vec(),
                r#type: kind as i32,
                cert: pem.as_bytes().to_vec(),
                ..Default::default()
            }
        };
        let mut certs = vec![
            entry(&self.signing, ZCertType::CertTypeControllerSigning),
            entry(&self.ecdh, ZCertType::CertTypeControllerEcdhExchange),
        ];
        if let Some(intermediate) = &self.intermediate {
            certs.push(entry(intermediate, ZCertType::CertTypeControllerIntermediate));
        }
        ZControllerCert { certs }
    }

    /// Text that changes whenever the list of [`Pki::zcerts`] changes (`controllercert_confighash`).
    pub fn confighash(&self) -> String {
        use prost::Message;
        use sha2::Digest;
        hex::encode(sha2::Sha256::digest(self.zcerts().encode_to_vec()))
    }
}

/// The parameters of a CA certificate and the key that signs with it.
struct CaRef<'a> {
    common_name: &'static str,
    identity: &'a Identity,
}

impl<'a> CaRef<'a> {
    fn root(identity: &'a Identity) -> Self {
        Self { common_name: ROOT_NAME, identity }
    }

    fn intermediate(identity: &'a Identity) -> Self {
        Self { common_name: INTERMEDIATE_NAME, identity }
    }
}

fn new_key(name: &'static str) -> Result<(KeyPair, String), PkiError> {
    let make = |cause: String| PkiError::Make { name, cause };
    let pair = KeyPair::generate().map_err(|e| make(e.to_string()))?;
    let key = SecretKey::from_pkcs8_der(&pair.serialize_der()).map_err(|e| make(e.to_string()))?;
    let pem = key.to_pkcs8_pem(LineEnding::LF).map_err(|e| make(e.to_string()))?;
    Ok((pair, pem.to_string()))
}

/// Validity is wide on purpose: a device under test may start with a clock that is years off.
fn params(common_name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(2049, 12, 31);
    params
}

fn ca_params(common_name: &str) -> CertificateParams {
    let mut params = params(common_name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn make_ca(name: &'static str, common_name: &'static str, issuer: Option<&Identity>) -> Result<Identity, PkiError> {
    let (pair, key_pem) = new_key(name)?;
    let params = ca_params(common_name);
    let cert = match issuer {
        None => params.self_signed(&pair),
        Some(root) => with_issuer(name, &CaRef::root(root), |issuer| params.signed_by(&pair, issuer))?,
    }
    .map_err(|e| PkiError::Make { name, cause: e.to_string() })?;
    Identity::new(name, &cert.pem(), &key_pem)
}

fn with_issuer<T>(
    name: &'static str,
    ca: &CaRef<'_>,
    f: impl FnOnce(&Issuer<'_, KeyPair>) -> T,
) -> Result<T, PkiError> {
    let pair = KeyPair::from_pem(&ca.identity.key_pem).map_err(|e| PkiError::Make { name, cause: e.to_string() })?;
    Ok(f(&Issuer::new(ca_params(ca.common_name), pair)))
}

fn make_leaf(role: Role, server_names: &[String], ca: &CaRef<'_>) -> Result<Identity, PkiError> {
    let (name, common_name): (&'static str, &str) = match role {
        Role::Tls => ("tls", "Holdfast test controller"),
        Role::Signing => ("signing", "Holdfast test controller signing"),
        Role::Ecdh => ("ecdh", "Holdfast test controller key agreement"),
    };
    let make = |cause: String| PkiError::Make { name, cause };
    let (pair, key_pem) = new_key(name)?;
    let mut params = params(common_name);
    match role {
        Role::Tls => {
            params.subject_alt_names =
                CertificateParams::new(server_names.to_vec()).map_err(|e| make(e.to_string()))?.subject_alt_names;
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
            params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        }
        Role::Signing => params.key_usages = vec![KeyUsagePurpose::DigitalSignature],
        Role::Ecdh => params.key_usages = vec![KeyUsagePurpose::KeyAgreement],
    }
    params.use_authority_key_identifier_extension = true;
    let cert = with_issuer(name, ca, |issuer| params.signed_by(&pair, issuer))?.map_err(|e| make(e.to_string()))?;
    Identity::new(name, &cert.pem(), &key_pem)
}

fn make_onboarding() -> Result<Identity, PkiError> {
    let name = "onboarding";
    let (pair, key_pem) = new_key(name)?;
    let cert =
        params("Holdfast onboarding").self_signed(&pair).map_err(|e| PkiError::Make { name, cause: e.to_string() })?;
    Identity::new(name, &cert.pem(), &key_pem)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_survive_a_restart_and_new_names_change_only_the_tls_leaf() {
        let dir = tempfile::tempdir().expect("tempdir");
        let mut options = PkiOptions::default();
        let first = Pki::load_or_create(dir.path(), &options).expect("made");
        let second = Pki::load_or_create(dir.path(), &options).expect("loaded");
        assert_eq!(first.signing.cert, second.signing.cert);
        assert_eq!(first.confighash(), second.confighash());
        options.server_names.push("controller.example".into());
        let third = Pki::load_or_create(dir.path(), &options).expect("loaded");
        assert_eq!(first.root.cert, third.root.cert);
        assert_ne!(first.tls.cert, third.tls.cert);
        assert_eq!(first.confighash(), third.confighash());
    }

    #[test]
    fn leaves_are_signed_by_the_root_or_the_intermediate() {
        for intermediate in [false, true] {
            let pki = Pki::generate(&PkiOptions { intermediate, ..PkiOptions::default() }).expect("made");
            let root = pki.root.cert.verifying_key("root").expect("key");
            let issuer = pki.intermediate.as_ref().map_or(root, |i| {
                assert!(i.cert.is_signed_by(&root));
                i.cert.verifying_key("intermediate").expect("key")
            });
            assert!(pki.tls.cert.is_signed_by(&root));
            assert!(pki.signing.cert.is_signed_by(&issuer));
            assert!(pki.ecdh.cert.is_signed_by(&issuer));
            assert_eq!(pki.zcerts().certs.len(), if intermediate { 3 } else { 2 });
        }
    }

    #[test]
    fn rotation_changes_the_hash_that_devices_watch() {
        let mut pki = Pki::generate(&PkiOptions::default()).expect("made");
        let before = pki.confighash();
        pki.rotate(Role::Tls).expect("rotated");
        assert_eq!(pki.confighash(), before);
        pki.rotate(Role::Signing).expect("rotated");
        assert_ne!(pki.confighash(), before);
    }
}
