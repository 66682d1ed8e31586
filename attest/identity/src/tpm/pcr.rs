//! Reading and extending PCRs of the SHA-256 bank.
#![forbid(unsafe_code)]

use sha2::{Digest as _, Sha256};
use tss_esapi::handles::PcrHandle;
use tss_esapi::interface_types::algorithm::HashingAlgorithm;
use tss_esapi::interface_types::session_handles::AuthSession;
use tss_esapi::structures::{Digest, DigestValues, PcrSelectionList, PcrSlot};

use super::{Link, OPERATION_LIMIT, Refusal as _, Tpm, TpmError};

/// A PCR with its value.
pub type PcrValue = (u32, [u8; 32]);

impl Tpm {
    /// Reads PCRs, in ascending order of index. Indices are 0 to 23.
    ///
    /// # Errors
    /// [`TpmError::Unexpected`] when the SHA-256 bank is not active.
    pub fn read_pcrs(&self, indices: &[u32]) -> Result<Vec<PcrValue>, TpmError> {
        let mut indices = indices.to_vec();
        indices.sort_unstable();
        indices.dedup();
        self.call("read PCRs", OPERATION_LIMIT, move |link| read(link, &indices))
    }

    /// Extends a PCR with `digest` (the value that is hashed into it).
    ///
    /// # Errors
    /// [`TpmError`].
    pub fn extend_pcr(&self, index: u32, digest: &[u8; 32]) -> Result<(), TpmError> {
        let digest = *digest;
        // One attempt only by construction: a busy TPM has not extended.
        self.call("extend a PCR", OPERATION_LIMIT, move |link| {
            let handle = PcrHandle::try_from(index).during(format!("PCR {index}"))?;
            let mut values = DigestValues::new();
            values.set(HashingAlgorithm::Sha256, Digest::try_from(digest.to_vec()).during("PCR digest")?);
            link.context()?
                .execute_with_session(Some(AuthSession::Password), |c| c.pcr_extend(handle, values))
                .during(format!("extend PCR {index}"))
        })
    }

    /// Extends PCR 11 with a boot-phase word: SHA-256 of the word, without a NUL.
    ///
    /// # Errors
    /// [`TpmError`].
    pub fn extend_phase(&self, word: &str) -> Result<(), TpmError> {
        self.extend_pcr(11, &Sha256::digest(word).into())
    }
}

pub(crate) fn selection(indices: &[u32]) -> Result<PcrSelectionList, TpmError> {
    let slots: Vec<PcrSlot> = indices
        .iter()
        .map(|i| PcrSlot::try_from(1u32.checked_shl(*i).unwrap_or(0)).during(format!("PCR {i}")))
        .collect::<Result<_, _>>()?;
    PcrSelectionList::builder().with_selection(HashingAlgorithm::Sha256, &slots).build().during("PCR selection")
}

pub(crate) fn read(link: &mut Link, indices: &[u32]) -> Result<Vec<PcrValue>, TpmError> {
    let context = link.context()?;
    let mut out = Vec::with_capacity(indices.len());
    // PCR_Read answers with eight digests at most.
    for some in indices.chunks(8) {
        let wanted = selection(some)?;
        let (_counter, _selected, digests) =
            context.execute_without_session(|c| c.pcr_read(wanted)).during("read PCRs")?;
        if digests.len() != some.len() {
            return Err(TpmError::Unexpected {
                object: format!("PCRs {some:?} of the SHA-256 bank"),
                expected: format!("{} values", some.len()),
                found: format!("{} (is the SHA-256 bank switched off in the firmware?)", digests.len()),
            });
        }
        for (index, digest) in some.iter().zip(digests.value()) {
            let value = <[u8; 32]>::try_from(digest.as_ref()).map_err(|_| TpmError::Unexpected {
                object: format!("PCR {index}"),
                expected: "32 bytes".into(),
                found: format!("{} bytes", digest.len()),
            })?;
            out.push((*index, value));
        }
    }
    Ok(out)
}
