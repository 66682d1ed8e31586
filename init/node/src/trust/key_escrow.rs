//! The vault's key as the controller keeps it.

use anyhow::Result;
use holdfast_api::proto::attest::{AttestVolumeKeyData, AttestVolumeKeyVersion};
use holdfast_controller_client::identity::EscrowKey;
use holdfast_identity::escrow::{self, Escrowed};
use holdfast_identity::{Identity, VaultKey};
use prost::Message as _;

/// The vault's key as the controller keeps it: EVE's `AttestVolumeKeyData`, which only this device's ECDH key opens.
pub(super) fn to_escrow(identity: &dyn Identity, key: &VaultKey) -> Result<EscrowKey> {
    let wrapped = escrow::wrap(identity, key)?;
    let message = AttestVolumeKeyData {
        encrypted_key: wrapped.encrypted,
        digest_sha256: wrapped.sha256.to_vec(),
        ..Default::default()
    };
    Ok(EscrowKey(message.encode_to_vec()))
}

pub(super) fn from_escrow(identity: &dyn Identity, EscrowKey(bytes): &EscrowKey) -> Result<VaultKey> {
    let message = AttestVolumeKeyData::decode(bytes.as_slice()).map_err(|e| {
        anyhow::anyhow!("escrowed vault key: expected an AttestVolumeKeyData, found {} bytes: {e}", bytes.len())
    })?;
    if message.version != AttestVolumeKeyVersion::Legacy as i32 {
        anyhow::bail!("escrowed vault key: expected version 0 (AES-CFB), found {}", message.version);
    }
    let sha256 = message.digest_sha256.as_slice().try_into().map_err(|_| {
        anyhow::anyhow!("escrowed vault key: expected a digest of 32 bytes, found {}", message.digest_sha256.len())
    })?;
    Ok(escrow::unwrap(identity, &Escrowed { encrypted: message.encrypted_key, sha256 })?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_that_the_controller_gives_back_is_the_one_that_it_was_given_or_an_error_that_says_why() {
        let folder = tempfile::tempdir().unwrap();
        let identity = |name: &str| holdfast_identity::SoftwareIdentity::new(&folder.path().join(name), "test");
        let (mine, other) = (identity("mine"), identity("other"));
        let key = VaultKey::random().unwrap();
        let kept = to_escrow(&mine, &key).unwrap();
        assert_eq!(
            to_escrow(&mine, &key).unwrap(),
            kept,
            "the same each time: what the controller has is not sent again"
        );
        assert_eq!(from_escrow(&mine, &kept).unwrap().expose(), key.expose());

        let refused = |identity: &dyn Identity, message: AttestVolumeKeyData| {
            from_escrow(identity, &EscrowKey(message.encode_to_vec())).unwrap_err().to_string()
        };
        let message = AttestVolumeKeyData::decode(kept.0.as_slice()).unwrap();
        assert!(refused(&other, message.clone()).contains("another's"));
        let newer = AttestVolumeKeyData { version: 1, ..message.clone() };
        assert!(refused(&mine, newer).contains("found 1"));
        let cut = AttestVolumeKeyData { digest_sha256: vec![1], ..message };
        assert!(refused(&mine, cut).contains("found 1"));
        assert!(from_escrow(&mine, &EscrowKey(vec![0xff; 9])).unwrap_err().to_string().contains("9 bytes"));
    }
}
