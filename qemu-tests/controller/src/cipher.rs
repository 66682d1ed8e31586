//! Object encryption: secrets inside the configuration, readable only by the device (`CipherBlock`).
//!
//! The key is SHA-256 over both coordinates of the ECDH point of the controller's and the device's certificates; the
//! cipher is AES-256 in CFB mode with full 16-byte segments; the only integrity is the SHA-256 of the clear text.

use aes::cipher::{AsyncStreamCipher, KeyIvInit};
use holdfast_api::proto::common::{
    CipherBlock, CipherContext, EncryptionBlock, EncryptionScheme, HashAlgorithm, KeyExchangeScheme,
};
use p256::elliptic_curve::sec1::ToEncodedPoint;
use p256::{PublicKey, SecretKey};
use prost::Message;
use sha2::{Digest, Sha256};

/// SHA-256(S.x ‖ S.y) with S = private · public.
pub fn shared_key(private: &SecretKey, public: &PublicKey) -> [u8; 32] {
    let point = (public.to_projective() * *private.to_nonzero_scalar()).to_affine();
    let encoded = point.to_encoded_point(false);
    // Uncompressed SEC1: one tag byte, then both coordinates. The product of a non-zero scalar and a point of a
    // prime-order curve is never the identity, so both are there.
    Sha256::digest(&encoded.as_bytes()[1..]).into()
}

/// A context that names both certificates. The device's hash is the one it sent with its certificate.
pub fn context(id: &str, controller_cert_hash: &[u8; 32], device_cert_hash: &[u8]) -> CipherContext {
    CipherContext {
        context_id: id.to_owned(),
        hash_scheme: HashAlgorithm::Sha25616bytes as i32,
        key_exchange_scheme: KeyExchangeScheme::KeaEcdh as i32,
        encryption_scheme: EncryptionScheme::SaAes256Cfb as i32,
        device_cert_hash: device_cert_hash.to_vec(),
        controller_cert_hash: controller_cert_hash[..16].to_vec(),
    }
}

/// Encrypts one secret under `key`. `iv` must be fresh for every block.
pub fn encrypt(context_id: &str, key: &[u8; 32], iv: [u8; 16], secret: &EncryptionBlock) -> CipherBlock {
    let mut data = secret.encode_to_vec();
    let clear_text_sha256 = Sha256::digest(&data).to_vec();
    cfb_mode::Encryptor::<aes::Aes256>::new(key.into(), &iv.into()).encrypt(&mut data);
    CipherBlock {
        cipher_context_id: context_id.to_owned(),
        initial_value: iv.to_vec(),
        cipher_data: data,
        clear_text_sha256,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(text: &str) -> SecretKey {
        SecretKey::from_slice(&Sha256::digest(text)).expect("scalar")
    }

    #[test]
    fn golden_vector_of_the_reference() {
        let device = secret("device ecdh test key");
        let controller = secret("controller ecdh test key");
        assert_eq!(hex::encode(device.to_bytes()), "9ce868f8eaf7fe8466c900e810e633b99e1b431ec228cfae0af0f320ac5c978b");
        let key = shared_key(&controller, &device.public_key());
        assert_eq!(hex::encode(key), "4c744b872c75b5b85ede3597b4f1de345d0f3546c5d6dc00b42b5bb289c7ca87");
        assert_eq!(key, shared_key(&device, &controller.public_key()));
        let iv: [u8; 16] = Sha256::digest("iv")[..16].try_into().expect("16 bytes");
        let block = encrypt(
            "ctx",
            &key,
            iv,
            &EncryptionBlock { ds_api_key: "user".into(), ds_password: "secret".into(), ..Default::default() },
        );
        assert_eq!(hex::encode(&block.initial_value), "0ab306823035661bb8dba21cc2535231");
        assert_eq!(hex::encode(&block.cipher_data), "c743fa61c22f9cc4943a1df8d684");
        assert_eq!(
            hex::encode(&block.clear_text_sha256),
            "065256a76e35a22d3e35435e388fee5ca933cdf4514d72a7394fd397108cdb5c"
        );
    }
}
