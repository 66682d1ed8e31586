//! Quotes over PCR 0 to 15.
#![forbid(unsafe_code)]

use p256::ecdsa;
use sha2::{Digest as _, Sha256};
use tss_esapi::interface_types::session_handles::AuthSession;
use tss_esapi::structures::{AttestInfo, Data, SignatureScheme};
use tss_esapi::traits::Marshall as _;

use super::keys::ecdsa_bytes;
use super::pcr::{PcrValue, read, selection};
use super::templates::Role;
use super::{OPERATION_LIMIT, Refusal as _, Tpm, TpmError};

/// The PCRs that a quote covers.
pub const QUOTED: std::ops::Range<u32> = 0..16;
/// Longest nonce that fits `extraData` next to the name of the signer.
pub const NONCE_MAX: usize = 64;

/// A quote with the values it covers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quote {
    /// TPMS_ATTEST as the TPM made it.
    pub attest: Vec<u8>,
    /// ECDSA by the quote key over SHA-256 of `attest`, DER of (r, s).
    pub signature_der: Vec<u8>,
    /// PCR 0 to 15 of the SHA-256 bank.
    pub pcrs: Vec<PcrValue>,
}

impl Tpm {
    /// Quotes PCR 0 to 15 with `nonce` (1 to 64 bytes) in `extraData`. The values that come with it are those the
    /// quote is over, also when somebody extends meanwhile.
    ///
    /// # Errors
    /// [`TpmError`].
    pub fn quote(&self, nonce: &[u8]) -> Result<Quote, TpmError> {
        if nonce.is_empty() || nonce.len() > NONCE_MAX {
            return Err(TpmError::Unexpected {
                object: "nonce of a quote".into(),
                expected: format!("1 to {NONCE_MAX} bytes"),
                found: format!("{} bytes", nonce.len()),
            });
        }
        let nonce = nonce.to_vec();
        self.call("quote", OPERATION_LIMIT, move |link| {
            let indices: Vec<u32> = QUOTED.collect();
            for _attempt in 0..4 {
                let pcrs = read(link, &indices)?;
                let key = link.required(Role::Quote.handle().unwrap_or_default())?;
                let data = Data::try_from(nonce.clone()).during("nonce of a quote")?;
                let wanted = selection(&indices)?;
                let (attest, signature) = link
                    .context()?
                    .execute_with_session(Some(AuthSession::Password), |c| {
                        c.quote(key, data, SignatureScheme::Null, wanted)
                    })
                    .during("quote")?;
                let AttestInfo::Quote { info } = attest.attested() else {
                    continue;
                };
                if info.pcr_digest().as_ref() != digest_of(&pcrs) {
                    continue; // somebody extended between reading and quoting
                }
                let raw = ecdsa_bytes(&signature)?;
                let der = ecdsa::Signature::from_slice(&raw).map_err(|_| TpmError::Unexpected {
                    object: "signature of the quote".into(),
                    expected: "r and s in range".into(),
                    found: "zero or too large".into(),
                })?;
                return Ok(Quote {
                    attest: attest.marshall().during("marshal the quote")?,
                    signature_der: der.to_der().as_bytes().to_vec(),
                    pcrs,
                });
            }
            Err(TpmError::Unexpected {
                object: "PCR 0 to 15".into(),
                expected: "to stay the same while they are quoted".into(),
                found: "a change in each of four attempts".into(),
            })
        })
    }
}

fn digest_of(pcrs: &[PcrValue]) -> [u8; 32] {
    pcrs.iter().fold(Sha256::new(), |h, (_, value)| h.chain_update(value)).finalize().into()
}
