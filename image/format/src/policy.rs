//! TPM 2.0 policy digests, computed without a TPM, and the signed PCR policy that a UKI carries.
//!
//! The vault's key is sealed under `PolicyAuthorize(policy key, policyRef)`. Each image brings the signature of the policy
//! under which *it* may unseal: PCR 11 as predicted, PCR 12 and 13 zero, and no bit above its security epoch set in a
//! TPM index. So a new image unlocks offline, and once an epoch is committed older images cannot (part 3 of the TPM 2.0
//! library specification, `TPM2_PolicyPCR`, `TPM2_PolicyNV`, `TPM2_PolicyAuthorize`).
//!
//! | step | digest |
//! |---|---|
//! | PolicyPCR | H(d ‖ 0000017F ‖ selection ‖ H(values)) |
//! | PolicyNV | H(d ‖ 00000149 ‖ H(operand ‖ offset ‖ operation) ‖ name of the index) |
//! | PolicyAuthorize | H(H(0 ‖ 0000016A ‖ name of the key) ‖ policyRef) |
//!
//! A TPM without NT_BITS indexes is sealed under [`POLICY_REF_NO_EPOCH`] instead: same PCRs, no epoch, and weaker; the
//! references differ, so that a signature for one never opens the other.

use crate::keys;
use crate::pcr::{self, Digest, ZERO, sha256};
use p256::ecdsa::signature::{Signer, Verifier};
use p256::ecdsa::{Signature, SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};

const CC_POLICY_NV: u32 = 0x0000_0149;
const CC_POLICY_AUTHORIZE: u32 = 0x0000_016A;
const CC_POLICY_PCR: u32 = 0x0000_017F;
const ALG_SHA256: u16 = 0x000B;
const ALG_NULL: u16 = 0x0010;
const ALG_ECC: u16 = 0x0023;
const ECC_NIST_P256: u16 = 0x0003;
/// sign | userWithAuth.
const AUTHORITY_ATTRIBUTES: u32 = 0x0004_0040;

/// TPM_EO_BITCLEAR: all bits of the operand are clear in the index.
pub const OP_BITCLEAR: u16 = 0x000B;
/// The NT_BITS index that holds the committed security epochs.
pub const EPOCH_INDEX: u32 = 0x0184_0001;
/// Its attributes once written: NT_BITS, OWNERWRITE, OWNERREAD, AUTHREAD, POLICYREAD, NO_DA, WRITTEN.
pub const EPOCH_ATTRIBUTES: u32 = 0x220E_0022;
/// Its attributes when it is defined (WRITTEN not yet set).
pub const EPOCH_ATTRIBUTES_DEFINE: u32 = EPOCH_ATTRIBUTES & !0x2000_0000;
/// Reference of the policy with PCRs and epoch.
pub const POLICY_REF: &str = "holdfast pcr11 epoch";
/// Reference of the policy with PCRs only.
pub const POLICY_REF_NO_EPOCH: &str = "holdfast pcr11";
/// PCRs that the policy selects, ascending.
pub const PCRS: [u32; 3] = [pcr::PCR_UKI, pcr::PCR_OVERRIDES, pcr::PCR_SYSEXT];
const MAX_DOCUMENT: usize = 64 * 1024;

/// TPML_PCR_SELECTION for these PCRs (0 to 23) of the SHA-256 bank.
#[must_use]
pub fn pcr_selection(pcrs: &[u32]) -> Vec<u8> {
    let mut bitmap = [0u8; 3];
    pcrs.iter().filter(|p| **p < 24).for_each(|p| bitmap[(*p / 8) as usize] |= 1 << (p % 8));
    [&1u32.to_be_bytes()[..], &ALG_SHA256.to_be_bytes(), &[3], &bitmap].concat()
}

/// The policy digest after `TPM2_PolicyPCR` on `policy`; `values` are (PCR, value).
#[must_use]
pub fn policy_pcr(policy: &Digest, values: &[(u32, Digest)]) -> Digest {
    let mut sorted = values.to_vec();
    sorted.sort_by_key(|(n, _)| *n);
    let numbers: Vec<u32> = sorted.iter().map(|(n, _)| *n).collect();
    let all: Vec<u8> = sorted.iter().flat_map(|(_, v)| *v).collect();
    sha256(&[policy, &CC_POLICY_PCR.to_be_bytes(), &pcr_selection(&numbers), &sha256(&[&all])])
}

/// The policy digest after `TPM2_PolicyNV` on `policy`.
#[must_use]
pub fn policy_nv(policy: &Digest, name: &[u8], operand: &[u8], offset: u16, operation: u16) -> Digest {
    let args = sha256(&[operand, &offset.to_be_bytes(), &operation.to_be_bytes()]);
    sha256(&[policy, &CC_POLICY_NV.to_be_bytes(), &args, name])
}

/// The policy digest after `TPM2_PolicyAuthorize`: what objects are sealed under.
#[must_use]
pub fn policy_authorize(key_name: &[u8], policy_ref: &[u8]) -> Digest {
    let inner = sha256(&[&ZERO, &CC_POLICY_AUTHORIZE.to_be_bytes(), key_name]);
    sha256(&[&inner, policy_ref])
}

/// Name of an 8-byte NV index with an empty authPolicy.
#[must_use]
pub fn nv_name(index: u32, attributes: u32) -> [u8; 34] {
    // TPMS_NV_PUBLIC: index, nameAlg, attributes, authPolicy (empty), dataSize.
    let public =
        [&index.to_be_bytes()[..], &ALG_SHA256.to_be_bytes(), &attributes.to_be_bytes(), &[0, 0], &8u16.to_be_bytes()]
            .concat();
    name(&public)
}

/// Operand of the epoch check of an image with security epoch `epoch`: the bits above it.
#[must_use]
pub fn epoch_operand(epoch: u32) -> [u8; 8] {
    (!0u64).checked_shl(epoch + 1).unwrap_or(0).to_be_bytes()
}

/// What `TPM2_NV_SetBits` gets when `epoch` is committed. Epoch 0 sets bit 0, which marks the index as written.
#[must_use]
pub fn epoch_bit(epoch: u32) -> u64 {
    1u64.checked_shl(epoch).unwrap_or(0)
}

/// TPMT_PUBLIC under which the policy key is loaded (`TPM2_LoadExternal`, owner hierarchy): its exact bytes decide the
/// key's name, which is in the sealed object's policy for good.
#[must_use]
pub fn authority_public(key: &VerifyingKey) -> Vec<u8> {
    let point = key.to_encoded_point(false);
    let mut out = Vec::new();
    for v in [ALG_ECC, ALG_SHA256] {
        out.extend(v.to_be_bytes());
    }
    out.extend(AUTHORITY_ATTRIBUTES.to_be_bytes());
    // authPolicy size, symmetric, scheme, curve, kdf
    for v in [0, ALG_NULL, ALG_NULL, ECC_NIST_P256, ALG_NULL] {
        out.extend(v.to_be_bytes());
    }
    for coordinate in point.as_bytes()[1..].chunks_exact(32) {
        out.extend(32u16.to_be_bytes());
        out.extend(coordinate);
    }
    out
}

/// Name of the policy key: nameAlg and digest of [`authority_public`].
#[must_use]
pub fn authority_name(key: &VerifyingKey) -> [u8; 34] {
    name(&authority_public(key))
}

/// The policy that an image approves: PCR 11 as given, 12 and 13 zero, and (with an epoch) the epoch check.
#[must_use]
pub fn approved_policy(pcr11: &Digest, epoch: Option<u32>) -> Digest {
    let values = PCRS.map(|p| (p, if p == pcr::PCR_UKI { *pcr11 } else { ZERO }));
    let d = policy_pcr(&ZERO, &values);
    match epoch {
        None => d,
        Some(e) => policy_nv(&d, &nv_name(EPOCH_INDEX, EPOCH_ATTRIBUTES), &epoch_operand(e), 0, OP_BITCLEAR),
    }
}

fn name(public: &[u8]) -> [u8; 34] {
    let mut n = [0u8; 34];
    n[..2].copy_from_slice(&ALG_SHA256.to_be_bytes());
    n[2..].copy_from_slice(&sha256(&[public]));
    n
}

/// The content of `.pcrsig`: policies signed for this image. PID 1 finds it as `/.extra/tpm2-pcr-signature.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedPolicies {
    /// PCR 11 for which they hold, hexadecimal: to say *why* an unseal fails.
    pub pcr11: String,
    /// Security epoch of the image.
    pub epoch: u32,
    /// One for each reference.
    pub policies: Vec<SignedPolicy>,
}

/// One signed policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedPolicy {
    /// [`POLICY_REF`] or [`POLICY_REF_NO_EPOCH`].
    pub policy_ref: String,
    /// Digest that the session must have reached, hexadecimal.
    pub approved_policy: String,
    /// ECDSA P-256 over H(approvedPolicy ‖ policyRef): r ‖ s, hexadecimal.
    pub signature: String,
}

/// A `.pcrsig` that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// Not the document.
    #[error("PCR policy document: {0}")]
    Document(String),
    /// No policy with that reference.
    #[error("PCR policy document has no policy {0:?}")]
    NoPolicy(String),
    /// Not signed by that key.
    #[error("PCR policy {policy_ref:?} is not signed by the key of this image")]
    Signature {
        /// Which.
        policy_ref: String,
    },
    /// The key.
    #[error(transparent)]
    Key(#[from] keys::KeyError),
}

/// A policy taken out of the document, its signature verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Approved {
    /// Digest that the session must have reached before `TPM2_PolicyAuthorize`.
    pub policy: Digest,
    /// policyRef bytes.
    pub policy_ref: Vec<u8>,
    /// What `TPM2_VerifySignature` gets as digest.
    pub digest: Digest,
    /// Signature, first half.
    pub r: [u8; 32],
    /// Signature, second half.
    pub s: [u8; 32],
}

impl SignedPolicies {
    /// Signs both policies for an image whose PCR 11 (after `enter-pid1`) is `pcr11`.
    #[must_use]
    pub fn sign(pcr11: &Digest, epoch: u32, key: &SigningKey) -> SignedPolicies {
        let policies = [(POLICY_REF, Some(epoch)), (POLICY_REF_NO_EPOCH, None)].map(|(policy_ref, epoch)| {
            let approved = approved_policy(pcr11, epoch);
            // `sign` hashes the message: the result is over H(approvedPolicy ‖ policyRef). RFC 6979: no randomness.
            let signature: Signature = key.sign(&[&approved[..], policy_ref.as_bytes()].concat());
            SignedPolicy {
                policy_ref: policy_ref.into(),
                approved_policy: hex::encode(approved),
                signature: hex::encode(signature.to_bytes()),
            }
        });
        SignedPolicies { pcr11: hex::encode(pcr11), epoch, policies: policies.into() }
    }

    /// The bytes of `.pcrsig`.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Reads `.pcrsig`.
    ///
    /// # Errors
    /// [`PolicyError::Document`].
    pub fn decode(bytes: &[u8]) -> Result<SignedPolicies, PolicyError> {
        if bytes.len() > MAX_DOCUMENT {
            return Err(PolicyError::Document(format!("{} bytes, expected at most {MAX_DOCUMENT}", bytes.len())));
        }
        serde_json::from_slice(bytes).map_err(|e| PolicyError::Document(e.to_string()))
    }

    /// The policy with this reference, checked against the key of `.pcrpkey`.
    ///
    /// # Errors
    /// [`PolicyError`].
    pub fn approved(&self, policy_ref: &str, key: &VerifyingKey) -> Result<Approved, PolicyError> {
        let p = self.policies.iter().find(|p| p.policy_ref == policy_ref);
        let p = p.ok_or_else(|| PolicyError::NoPolicy(policy_ref.into()))?;
        let bytes = |h: &str| hex::decode(h).unwrap_or_default();
        let policy: Digest = bytes(&p.approved_policy)
            .try_into()
            .map_err(|_| PolicyError::Document("approved_policy is not 64 hexadecimal digits".into()))?;
        let refused = || PolicyError::Signature { policy_ref: policy_ref.into() };
        let signature = Signature::from_slice(&bytes(&p.signature)).map_err(|_| refused())?;
        let message = [&policy[..], policy_ref.as_bytes()].concat();
        key.verify(&message, &signature).map_err(|_| refused())?;
        let (r, s) = signature.split_bytes();
        Ok(Approved { policy, policy_ref: policy_ref.into(), digest: sha256(&[&message]), r: r.into(), s: s.into() })
    }
}

/// Fuzz entry: a `.pcrsig` section.
#[doc(hidden)]
pub fn fuzz_policy(data: &[u8]) {
    if let (Ok(d), Ok(key)) = (SignedPolicies::decode(data), SigningKey::from_slice(&[1; 32])) {
        let _ = d.approved(POLICY_REF, key.verifying_key());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> SigningKey {
        SigningKey::from_slice(&[9; 32]).unwrap()
    }

    #[test]
    fn a_signed_policy_round_trips_and_other_keys_are_refused() {
        let signed = SignedPolicies::sign(&[5; 32], 3, &key());
        let read = SignedPolicies::decode(&signed.encode()).unwrap();
        assert_eq!(read, signed);
        let a = read.approved(POLICY_REF, key().verifying_key()).unwrap();
        assert_eq!(a.policy, approved_policy(&[5; 32], Some(3)));
        let other = SigningKey::from_slice(&[8; 32]).unwrap();
        assert!(matches!(read.approved(POLICY_REF, other.verifying_key()), Err(PolicyError::Signature { .. })));
        assert!(matches!(read.approved("x", key().verifying_key()), Err(PolicyError::NoPolicy(_))));
    }

    #[test]
    fn a_signature_for_one_reference_does_not_serve_the_other() {
        let mut signed = SignedPolicies::sign(&[5; 32], 3, &key());
        signed.policies[0].policy_ref = POLICY_REF_NO_EPOCH.into();
        signed.policies.truncate(1);
        assert!(signed.approved(POLICY_REF_NO_EPOCH, key().verifying_key()).is_err());
    }

    #[test]
    fn the_operand_covers_exactly_the_bits_above_the_epoch() {
        assert_eq!(u64::from_be_bytes(epoch_operand(0)), !1);
        assert_eq!(u64::from_be_bytes(epoch_operand(62)), 1 << 63);
        assert_eq!(u64::from_be_bytes(epoch_operand(63)), 0);
        for e in 0..64 {
            assert_eq!(u64::from_be_bytes(epoch_operand(e)) & epoch_bit(e), 0);
            assert!(e == 63 || u64::from_be_bytes(epoch_operand(e)) & epoch_bit(e + 1) != 0);
        }
    }

    #[test]
    fn the_selection_of_pcr_11_12_13_is_the_documented_one() {
        assert_eq!(hex::encode(pcr_selection(&PCRS)), "00000001000b03003800");
    }

    #[test]
    fn different_epochs_and_pcrs_give_different_policies() {
        let a = approved_policy(&[1; 32], Some(0));
        assert_ne!(a, approved_policy(&[1; 32], Some(1)));
        assert_ne!(a, approved_policy(&[2; 32], Some(0)));
        assert_ne!(a, approved_policy(&[1; 32], None));
    }
}
