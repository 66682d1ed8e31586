//! What the client asks of the device's identity. `attest/identity` answers over a TPM or over key files.
//!
//! Calls are synchronous and may take as long as a TPM does (a quote: up to some hundred milliseconds); none waits for
//! the network.

pub use holdfast_api::keys::{EcPoint, KeyAgreement, KeyError, Signer};

/// The device as its controller knows it.
pub trait DeviceIdentity: Send + Sync {
    /// The device key: signs every envelope but that of `/register`.
    fn device(&self) -> &dyn Signer;

    /// The onboarding key of the site: signs `/register` only. `None` when the site carries none (a device registered
    /// by other means).
    fn onboarding(&self) -> Option<&dyn Signer>;

    /// Hardware serial number, at most 256 characters; empty when the machine has none.
    fn serial(&self) -> &str;

    /// Serial number given when flashing: letters, digits, `_` and `-`, at most 256; empty when none.
    fn soft_serial(&self) -> &str;

    /// Certificates for attestation step CERT, each signed by the device key. The ECDH certificate must be among them;
    /// without a TPM it is the only one.
    ///
    /// # Errors
    /// [`KeyError`] when one cannot be read or made.
    fn attestation_certificates(&self) -> Result<Vec<AttestationCertificate>, KeyError>;

    /// A TPM quote over PCR 0-15 of the SHA-256 bank with `nonce` (12 to 32 bytes as far as known, at most 64) in
    /// `extraData`; `None` on a device without a TPM.
    ///
    /// # Errors
    /// [`KeyError`] when the TPM refuses.
    fn quote(&self, nonce: &[u8]) -> Result<Option<Quote>, KeyError>;

    /// The TCG binary event log, as the firmware and the kernel give it; `None` when there is none.
    fn event_log(&self) -> Option<Vec<u8>>;

    /// Version of the running OS image.
    fn os_version(&self) -> &str;

    /// Firmware as `vendor-version-date`; empty when not known.
    fn firmware_version(&self) -> &str;

    /// Keys to leave with the controller, already encrypted so that only this TPM can use them. Empty when there is
    /// nothing to escrow.
    ///
    /// # Errors
    /// [`KeyError`] when they cannot be made.
    fn keys_to_escrow(&self) -> Result<Vec<EscrowKey>, KeyError>;
}

/// Use of a device certificate (`ZCertType`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CertificateUse {
    /// Key agreement for object encryption.
    EcdhExchange,
    /// Restricted signing key: signs quotes.
    RestrictedSigning,
    /// Endorsement key.
    Endorsement,
}

/// One certificate of attestation step CERT.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttestationCertificate {
    /// What it is for.
    pub usage: CertificateUse,
    /// PEM text.
    pub pem: String,
    /// The TPM's public blob of the key (`TPM2B_PUBLIC`), so that a controller can make a credential for it.
    pub tpm_public: Option<Vec<u8>>,
    /// The key lives in a TPM.
    pub in_tpm: bool,
}

/// A TPM quote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quote {
    /// `TPMS_ATTEST` as the TPM marshalled it.
    pub attest: Vec<u8>,
    /// ECDSA of the restricted signing key over SHA-256(`attest`), ASN.1 DER of (r, s) (unlike the envelope).
    pub signature_der: Vec<u8>,
    /// The quoted PCRs of the SHA-256 bank: index and value, in index order.
    pub pcrs: Vec<(u32, [u8; 32])>,
}

/// A key in escrow, encrypted; the controller cannot read it. (A serialized `AttestVolumeKeyData`.)
#[derive(Clone, PartialEq, Eq)]
pub struct EscrowKey(pub Vec<u8>);

impl std::fmt::Debug for EscrowKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "EscrowKey({} bytes)", self.0.len())
    }
}
