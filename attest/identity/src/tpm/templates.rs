//! What each key is: its handle and its TPMT_PUBLIC template (TPM 2.0 Part 2 §12.2.4).
//!
//! All are primary keys: the same TPM makes the same key from the same template, so a key that was lost from its
//! persistent handle comes back unchanged. A cleared TPM makes other keys.
#![forbid(unsafe_code)]

use holdfast_format::policy::authority_public;
use p256::ecdsa::VerifyingKey;
use tss_esapi::structures::Public;
use tss_esapi::traits::UnMarshall as _;

use super::{Refusal as _, TpmError};

/// The keys of the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Signs envelopes and certificates.
    Device,
    /// Parent of the sealed vault key.
    StorageRoot,
    /// Signs quotes, and nothing that did not come from the TPM.
    Quote,
    /// Agrees on the keys of encrypted objects.
    Agreement,
    /// Proves which TPM this is.
    Endorsement,
}

// TPMA_OBJECT, Part 2 §8.3.
const FIXED_TPM: u32 = 1 << 1;
const FIXED_PARENT: u32 = 1 << 4;
const SENSITIVE_DATA_ORIGIN: u32 = 1 << 5;
const USER_WITH_AUTH: u32 = 1 << 6;
const ADMIN_WITH_POLICY: u32 = 1 << 7;
const NO_DA: u32 = 1 << 10;
const RESTRICTED: u32 = 1 << 16;
const DECRYPT: u32 = 1 << 17;
const SIGN: u32 = 1 << 18;

/// Never leaves this TPM, made inside it, used without a password, not subject to lockout.
const RESIDENT: u32 = FIXED_TPM | FIXED_PARENT | SENSITIVE_DATA_ORIGIN | USER_WITH_AUTH | NO_DA;

const ALG_NULL: &[u8] = &[0x00, 0x10];
const AES_128_CFB: &[u8] = &[0x00, 0x06, 0x00, 0x80, 0x00, 0x43];
const ECDSA_SHA256: &[u8] = &[0x00, 0x18, 0x00, 0x0b];
const ECDH_SHA256: &[u8] = &[0x00, 0x19, 0x00, 0x0b];

/// PolicySecret(TPM_RH_ENDORSEMENT), "PolicyA" of the TCG EK Credential Profile §B.6.2.
const EK_POLICY: [u8; 32] = [
    0x83, 0x71, 0x97, 0x67, 0x44, 0x84, 0xb3, 0xf8, 0x1a, 0x90, 0xcc, 0x8d, 0x46, 0xa5, 0xd7, 0x24, 0xfd, 0x52, 0xd7,
    0x6e, 0x06, 0x52, 0x0b, 0x64, 0xf2, 0xa1, 0xda, 0x1b, 0x33, 0x14, 0x69, 0xaa,
];

impl Role {
    /// Persistent handle; the endorsement key is made when asked for and not kept.
    pub fn handle(self) -> Option<u32> {
        match self {
            Self::Device => Some(0x817F_FFFF),
            Self::StorageRoot => Some(0x8100_0002),
            Self::Quote => Some(0x8100_0004),
            Self::Agreement => Some(0x8100_0005),
            Self::Endorsement => None,
        }
    }

    /// Object attributes.
    pub fn attributes(self) -> u32 {
        match self {
            Self::Device => RESIDENT | SIGN,
            Self::StorageRoot => RESIDENT | RESTRICTED | DECRYPT,
            Self::Quote => RESIDENT | RESTRICTED | SIGN,
            Self::Agreement => RESIDENT | DECRYPT,
            // Template L-2 of the TCG EK Credential Profile (ECC NIST P-256, low range).
            Self::Endorsement => {
                FIXED_TPM | FIXED_PARENT | SENSITIVE_DATA_ORIGIN | ADMIN_WITH_POLICY | RESTRICTED | DECRYPT
            }
        }
    }

    /// The public template. P-256 and SHA-256 throughout.
    pub(crate) fn template(self) -> Result<Public, TpmError> {
        let (symmetric, scheme) = match self {
            Self::Device | Self::Quote => (ALG_NULL, ECDSA_SHA256),
            Self::Agreement => (ALG_NULL, ECDH_SHA256),
            Self::StorageRoot | Self::Endorsement => (AES_128_CFB, ALG_NULL),
        };
        let mut t = vec![0x00, 0x23, 0x00, 0x0b]; // TPM_ALG_ECC, nameAlg SHA-256
        t.extend(self.attributes().to_be_bytes());
        if self == Self::Endorsement {
            t.extend([0x00, 0x20]);
            t.extend(EK_POLICY);
        } else {
            t.extend([0x00, 0x00]);
        }
        t.extend(symmetric);
        t.extend(scheme);
        t.extend([0x00, 0x03]); // TPM_ECC_NIST_P256
        t.extend(ALG_NULL); // no KDF
        let unique = if self == Self::Endorsement { 32u8 } else { 0 };
        for _coordinate in 0..2 {
            t.extend([0x00, unique]);
            t.extend(std::iter::repeat_n(0u8, usize::from(unique)));
        }
        Public::unmarshall(&t).during(format!("template of the {self} key"))
    }
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Device => "device",
            Self::StorageRoot => "storage root",
            Self::Quote => "quote",
            Self::Agreement => "ECDH",
            Self::Endorsement => "endorsement",
        })
    }
}

/// Template of the sealed vault key: a keyed hash object that only a policy opens (no userWithAuth) and that
/// wrong attempts do not count against (noDA).
pub(crate) fn sealed(auth_policy: &[u8; 32]) -> Result<Public, TpmError> {
    let mut t = vec![0x00, 0x08, 0x00, 0x0b]; // TPM_ALG_KEYEDHASH, nameAlg SHA-256
    t.extend((FIXED_TPM | FIXED_PARENT | ADMIN_WITH_POLICY | NO_DA).to_be_bytes());
    t.extend([0x00, 0x20]);
    t.extend(auth_policy);
    t.extend(ALG_NULL); // no scheme: sealed data
    t.extend([0x00, 0x00]);
    Public::unmarshall(&t).during("template of the sealed vault key")
}

/// The release's policy key as the TPM loads it.
pub(crate) fn policy_key(key: &VerifyingKey) -> Result<Public, TpmError> {
    Public::unmarshall(&authority_public(key)).during("template of the release's policy key")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_those_of_the_profile() {
        assert_eq!(Role::Device.attributes(), 0x0004_0472);
        assert_eq!(Role::StorageRoot.attributes(), 0x0003_0472);
        assert_eq!(Role::Quote.attributes(), 0x0005_0472);
        assert_eq!(Role::Agreement.attributes(), 0x0002_0472);
        assert_eq!(Role::Endorsement.attributes(), 0x0003_00b2);
    }

    #[test]
    fn every_template_is_understood_by_the_tss() {
        for role in [Role::Device, Role::StorageRoot, Role::Quote, Role::Agreement, Role::Endorsement] {
            assert!(role.template().is_ok(), "{role}");
        }
        assert!(sealed(&[7; 32]).is_ok());
        let key = p256::ecdsa::SigningKey::from_slice(&[1; 32]).unwrap();
        assert!(policy_key(key.verifying_key()).is_ok());
    }
}
