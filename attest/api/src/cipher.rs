//! Object encryption: secrets inside a config, readable only by this device.
//!
//! Key = SHA-256(S.x ‖ S.y) of the ECDH point S of the device's and the controller's certificate named by the cipher
//! context; AES-256-CFB with 128-bit segments; then the SHA-256 of the clear text must fit, the only integrity there is.

use crate::certs::{ControllerCertificates, PublicKey};
use crate::hash::{self, sha256};
use crate::keys::{EcPoint, KeyAgreement, KeyError};
use crate::proto::common::{CipherBlock, CipherContext, EncryptionBlock, EncryptionScheme, KeyExchangeScheme};
use cfb_mode::cipher::{AsyncStreamCipher, KeyIvInit};
use prost::Message;
use std::cell::RefCell;
use std::collections::HashMap;

/// What is needed to read the secrets of a config.
#[derive(Clone, Copy)]
pub struct Keys<'a> {
    /// Certificates of the controller.
    pub certificates: &'a ControllerCertificates,
    /// The device's ECDH key.
    pub agreement: &'a dyn KeyAgreement,
}

/// Decrypts the cipher blocks of one config. Keys are made once for each context, since each costs a TPM operation.
pub struct Decryptor<'a> {
    contexts: &'a [CipherContext],
    keys: Option<Keys<'a>>,
    made: RefCell<HashMap<&'a str, [u8; 32]>>,
}

impl<'a> Decryptor<'a> {
    /// For the cipher contexts of a config; without `keys` every block fails with [`CipherError::NoKeys`].
    #[must_use]
    pub fn new(contexts: &'a [CipherContext], keys: Option<Keys<'a>>) -> Self {
        Self { contexts, keys, made: RefCell::default() }
    }

    /// Decrypts a block.
    ///
    /// # Errors
    /// [`CipherError`].
    pub fn decrypt(&self, block: &CipherBlock) -> Result<EncryptionBlock, CipherError> {
        let key = self.key(&block.cipher_context_id)?;
        let clear = decrypt(&key, block)?;
        EncryptionBlock::decode(clear.as_slice()).map_err(|error| CipherError::ClearText(error.to_string()))
    }

    fn key(&self, id: &str) -> Result<[u8; 32], CipherError> {
        if let Some(key) = self.made.borrow().get(id) {
            return Ok(*key);
        }
        let keys = self.keys.as_ref().ok_or(CipherError::NoKeys)?;
        let context =
            self.contexts.iter().find(|c| c.context_id == id).ok_or_else(|| CipherError::NoContext(id.to_owned()))?;
        let key = context_key(context, keys)?;
        self.made.borrow_mut().insert(&context.context_id, key);
        Ok(key)
    }
}

/// The symmetric key of a context.
fn context_key(context: &CipherContext, keys: &Keys<'_>) -> Result<[u8; 32], CipherError> {
    if context.key_exchange_scheme() != KeyExchangeScheme::KeaEcdh
        || context.encryption_scheme() != EncryptionScheme::SaAes256Cfb
    {
        return Err(CipherError::Scheme {
            context: context.context_id.clone(),
            exchange: context.key_exchange_scheme,
            encryption: context.encryption_scheme,
        });
    }
    if !hash::names_pem(&context.device_cert_hash, keys.agreement.certificate_pem().as_bytes()) {
        return Err(CipherError::OtherDeviceKey {
            context: context.context_id.clone(),
            hash: hex::encode(&context.device_cert_hash),
        });
    }
    let peer =
        keys.certificates.by_hash(&context.controller_cert_hash).ok_or_else(|| CipherError::UnknownCertificate {
            context: context.context_id.clone(),
            hash: hex::encode(&context.controller_cert_hash),
        })?;
    match peer.key() {
        PublicKey::P256(point) => Ok(key_of(&keys.agreement.shared_point(point)?)),
        PublicKey::Rsa(_) => Err(CipherError::NotAgreeing { subject: peer.subject().to_owned() }),
    }
}

/// The symmetric key of a shared point: both coordinates count.
fn key_of(shared: &EcPoint) -> [u8; 32] {
    sha256(&[shared.x, shared.y].concat())
}

/// AES-256-CFB and the check of the clear text's hash.
fn decrypt(key: &[u8; 32], block: &CipherBlock) -> Result<Vec<u8>, CipherError> {
    let iv: &[u8; 16] =
        block.initial_value.as_slice().try_into().map_err(|_| CipherError::InitialValue(block.initial_value.len()))?;
    let mut text = block.cipher_data.clone();
    cfb_mode::Decryptor::<aes::Aes256>::new(key.into(), iv.into()).decrypt(&mut text);
    if sha256(&text).as_slice() == block.clear_text_sha256.as_slice() { Ok(text) } else { Err(CipherError::Hash) }
}

/// A block could not be decrypted.
#[derive(Debug, thiserror::Error)]
pub enum CipherError {
    /// No key at hand yet.
    #[error("the keys for object encryption are not there yet")]
    NoKeys,
    /// The block names a context the config does not have.
    #[error("cipher context {0:?} is not in the config")]
    NoContext(String),
    /// A scheme nobody uses.
    #[error(
        "cipher context {context:?} has key exchange {exchange} and encryption {encryption}: expected 1 (ECDH) and 1 (AES-256-CFB)"
    )]
    Scheme {
        /// Context.
        context: String,
        /// Key exchange scheme.
        exchange: i32,
        /// Encryption scheme.
        encryption: i32,
    },
    /// Made for another key of the device.
    #[error("cipher context {context:?} is for the device certificate {hash}, which is not the one this device has")]
    OtherDeviceKey {
        /// Context.
        context: String,
        /// Hash.
        hash: String,
    },
    /// Made with a certificate that was not announced.
    #[error(
        "cipher context {context:?} is for the controller certificate {hash}, which the controller has not announced"
    )]
    UnknownCertificate {
        /// Context.
        context: String,
        /// Hash.
        hash: String,
    },
    /// A key that cannot do ECDH.
    #[error("certificate {subject} of the controller has an RSA key: expected P-256 for key agreement")]
    NotAgreeing {
        /// Subject.
        subject: String,
    },
    /// The device's key failed.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// Initial value of another length.
    #[error("initial value of the cipher block is {0} bytes: expected 16")]
    InitialValue(usize),
    /// Wrong key or changed text.
    #[error("hash of the decrypted text does not fit: wrong key, or the text was changed")]
    Hash,
    /// The clear text is no `EncryptionBlock`.
    #[error("decrypted text is no encryption block: {0}")]
    ClearText(String),
}

#[cfg(test)]
mod tests;
