use super::*;
use crate::certs::Roots;
use crate::certs::tests::{NOW, TestKey, listed, parameters, reply, root};
use crate::keys::Signer;
use crate::proto::certs::ZCertType;
use p256::elliptic_curve::sec1::ToEncodedPoint;

/// Key agreement in software.
struct SoftwareKey {
    secret: p256::SecretKey,
    pem: String,
}

impl KeyAgreement for SoftwareKey {
    fn shared_point(&self, peer: &EcPoint) -> Result<EcPoint, KeyError> {
        let sec1 = [&[4], peer.x.as_slice(), peer.y.as_slice()].concat();
        let peer = p256::PublicKey::from_sec1_bytes(&sec1).map_err(|e| KeyError::new("ECDH key", e))?;
        let point = peer.to_projective() * *self.secret.to_nonzero_scalar();
        let encoded = point.to_affine().to_encoded_point(false);
        EcPoint::from_sec1(encoded.as_bytes()).ok_or_else(|| KeyError::new("ECDH key", "point at infinity"))
    }
    fn certificate_pem(&self) -> &str {
        &self.pem
    }
}

fn bytes(text: &str) -> Vec<u8> {
    hex::decode(text).expect("hex")
}

fn scalar(text: &str) -> p256::SecretKey {
    p256::SecretKey::from_slice(&bytes(text)).expect("scalar")
}

fn golden_block(context: &str) -> CipherBlock {
    CipherBlock {
        cipher_context_id: context.to_owned(),
        initial_value: bytes("0ab306823035661bb8dba21cc2535231"),
        cipher_data: bytes("c743fa61c22f9cc4943a1df8d684"),
        clear_text_sha256: bytes("065256a76e35a22d3e35435e388fee5ca933cdf4514d72a7394fd397108cdb5c"),
    }
}

#[test]
fn golden_vector_point_key_and_text() {
    let device = SoftwareKey {
        secret: scalar("9ce868f8eaf7fe8466c900e810e633b99e1b431ec228cfae0af0f320ac5c978b"),
        pem: String::new(),
    };
    let controller = scalar("4d796555b2920fa1c66e6259187aaaf95b2360df1c64262a332d1d1eb4af0960");
    let peer = EcPoint::from_sec1(controller.public_key().to_encoded_point(false).as_bytes()).expect("point");
    let shared = device.shared_point(&peer).expect("shared");
    assert_eq!(hex::encode(shared.x), "3775a50e322d482046c8a81cbbc34185418f86196e6a47b2b6fa41a2d05ec7f3");
    assert_eq!(hex::encode(shared.y), "4c22888e7d45d434460fc1cee62b311b2a458b970039396be76d145bcc6a4a7c");
    let key = key_of(&shared);
    assert_eq!(hex::encode(key), "4c744b872c75b5b85ede3597b4f1de345d0f3546c5d6dc00b42b5bb289c7ca87");
    let clear = decrypt(&key, &golden_block("")).expect("decrypt");
    assert_eq!(hex::encode(&clear), "0a04757365721206736563726574");
    let block = EncryptionBlock::decode(clear.as_slice()).expect("block");
    assert_eq!((block.ds_api_key.as_str(), block.ds_password.as_str()), ("user", "secret"));
}

#[test]
fn changed_text_wrong_key_and_short_initial_value_are_refused() {
    let key: [u8; 32] =
        bytes("4c744b872c75b5b85ede3597b4f1de345d0f3546c5d6dc00b42b5bb289c7ca87").try_into().expect("32 bytes");
    let mut changed = golden_block("");
    changed.cipher_data[0] ^= 1;
    assert!(matches!(decrypt(&key, &changed), Err(CipherError::Hash)));
    assert!(matches!(decrypt(&[0; 32], &golden_block("")), Err(CipherError::Hash)));
    let mut short = golden_block("");
    short.initial_value.pop();
    assert!(matches!(decrypt(&key, &short), Err(CipherError::InitialValue(15))));
}

#[test]
fn context_finds_both_certificates_by_hash_even_the_signing_one() {
    let root = root("root");
    let controller = TestKey::issued(&parameters("signing"), &root.issuer);
    let roots = Roots::from_pem(root.pem.as_bytes()).expect("roots");
    let list = vec![listed(ZCertType::CertTypeControllerSigning, controller.certificate_pem())];
    let certificates =
        ControllerCertificates::from_reply(&reply(list, &controller), &roots, NOW).expect("certificates");
    let device = TestKey::new("device ecdh");
    let agreement = SoftwareKey { secret: device.secret(), pem: device.certificate_pem().to_owned() };
    let keys = Keys { certificates: &certificates, agreement: &agreement };

    // The controller's side: its own scalar and the device's public point.
    let other = SoftwareKey { secret: controller.secret(), pem: String::new() };
    let device_point =
        EcPoint::from_sec1(device.secret().public_key().to_encoded_point(false).as_bytes()).expect("point");
    let key = key_of(&other.shared_point(&device_point).expect("shared"));
    let clear =
        EncryptionBlock { protected_user_data: "text".to_owned(), ..EncryptionBlock::default() }.encode_to_vec();
    let mut data = clear.clone();
    cfb_mode::Encryptor::<aes::Aes256>::new(&key.into(), &[9; 16].into()).encrypt(&mut data);
    let block = CipherBlock {
        cipher_context_id: "c".to_owned(),
        initial_value: vec![9; 16],
        cipher_data: data,
        clear_text_sha256: sha256(&clear).to_vec(),
    };
    let context = CipherContext {
        context_id: "c".to_owned(),
        hash_scheme: 1,
        key_exchange_scheme: 1,
        encryption_scheme: 1,
        device_cert_hash: sha256(agreement.pem.as_bytes())[..16].to_vec(),
        controller_cert_hash: hash::trimmed_pem_hash(controller.certificate_pem().as_bytes())[..16].to_vec(),
    };

    let contexts = [context.clone()];
    let decryptor = Decryptor::new(&contexts, Some(keys));
    assert_eq!(decryptor.decrypt(&block).expect("decrypt").protected_user_data, "text");
    assert_eq!(decryptor.decrypt(&block).expect("again, from the kept key").protected_user_data, "text");
    assert!(matches!(Decryptor::new(&[], Some(keys)).decrypt(&block), Err(CipherError::NoContext(_))));
    assert!(matches!(Decryptor::new(&contexts, None).decrypt(&block), Err(CipherError::NoKeys)));
    let foreign = [CipherContext { device_cert_hash: vec![1; 16], ..context.clone() }];
    assert!(matches!(Decryptor::new(&foreign, Some(keys)).decrypt(&block), Err(CipherError::OtherDeviceKey { .. })));
    let unknown = [CipherContext { controller_cert_hash: vec![1; 16], ..context.clone() }];
    assert!(matches!(
        Decryptor::new(&unknown, Some(keys)).decrypt(&block),
        Err(CipherError::UnknownCertificate { .. })
    ));
    let scheme = [CipherContext { encryption_scheme: 7, ..context }];
    assert!(matches!(Decryptor::new(&scheme, Some(keys)).decrypt(&block), Err(CipherError::Scheme { .. })));
}
