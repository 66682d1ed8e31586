//! The device certificate in NV memory, where EVE keeps it too.
//!
//! The controller knows a device by the hash of this certificate, and an ECDSA signature comes out differently each time: a
//! certificate made anew is another device. In the TPM it outlives the disk, and can be read while the vault is closed, which is when
//! the key in escrow is asked for. It is public: anybody may read it, only the owner writes.
#![forbid(unsafe_code)]

use tss_esapi::attributes::NvIndexAttributes;
use tss_esapi::handles::{NvIndexHandle, NvIndexTpmHandle, TpmHandle};
use tss_esapi::interface_types::algorithm::HashingAlgorithm;
use tss_esapi::interface_types::resource_handles::{NvAuth, Provision};
use tss_esapi::interface_types::session_handles::AuthSession;
use tss_esapi::structures::{MaxNvBuffer, NvPublicBuilder};

use super::keys::{CERTIFICATE_MAX, NV_CHUNK, read_certificate};
use super::{Link, OPERATION_LIMIT, Refusal as _, Tpm, TpmError};

/// EVE's index of the device certificate.
pub const DEVICE_CERTIFICATE_INDEX: u32 = 0x0150_0000;
/// TPMA_NV (Part 2 §13.4): OWNERWRITE, OWNERREAD, AUTHREAD with the empty password, NO_DA, type ordinary.
const ATTRIBUTES: u32 = 1 << 1 | 1 << 17 | 1 << 18 | 1 << 25;

impl Tpm {
    /// The certificate, DER; `None` when there is none, or writing it was cut off.
    ///
    /// # Errors
    /// [`TpmError`].
    pub fn read_device_certificate(&self) -> Result<Option<Vec<u8>>, TpmError> {
        self.call("read the device certificate", OPERATION_LIMIT, |link| {
            if !link.exists(DEVICE_CERTIFICATE_INDEX)? {
                return Ok(None);
            }
            read_certificate(link.context()?, DEVICE_CERTIFICATE_INDEX, NvReader::Index)
        })
    }

    /// Writes the certificate, if it is not the one that is there.
    ///
    /// # Errors
    /// [`TpmError`]; [`TpmError::Unexpected`] when it is none, or too large.
    pub fn write_device_certificate(&self, der: &[u8]) -> Result<(), TpmError> {
        if super::keys::cut_der_sequence(der).as_deref() != Some(der) || der.len() > CERTIFICATE_MAX {
            return Err(TpmError::Unexpected {
                object: "device certificate".into(),
                expected: format!("DER of at most {CERTIFICATE_MAX} bytes"),
                found: format!("{} bytes", der.len()),
            });
        }
        if self.read_device_certificate()?.as_deref() == Some(der) {
            return Ok(()); // spares the NV memory a write
        }
        let der = der.to_vec();
        self.call("write the device certificate", OPERATION_LIMIT, move |link| replace(link, &der))
    }
}

/// With whose authorisation an index is read.
#[derive(Debug, Clone, Copy)]
pub(crate) enum NvReader {
    /// The owner's.
    Owner,
    /// Its own, empty.
    Index,
}

impl NvReader {
    pub(crate) fn auth(self, index: NvIndexHandle) -> NvAuth {
        match self {
            Self::Owner => NvAuth::Owner,
            Self::Index => NvAuth::NvIndex(index),
        }
    }
}

fn replace(link: &mut Link, der: &[u8]) -> Result<(), TpmError> {
    let what = || format!("write NV index {DEVICE_CERTIFICATE_INDEX:#010x}");
    let handle = NvIndexTpmHandle::new(DEVICE_CERTIFICATE_INDEX).during(what())?;
    let there = link.exists(DEVICE_CERTIFICATE_INDEX)?;
    let context = link.context()?;
    if there {
        let old =
            context.execute_without_session(|c| c.tr_from_tpm_public(TpmHandle::NvIndex(handle))).during(what())?;
        context
            .execute_with_session(Some(AuthSession::Password), |c| c.nv_undefine_space(Provision::Owner, old.into()))
            .during(what())?;
    }
    let public = NvPublicBuilder::new()
        .with_nv_index(handle)
        .with_index_name_algorithm(HashingAlgorithm::Sha256)
        .with_index_attributes(NvIndexAttributes::try_from(ATTRIBUTES).during(what())?)
        .with_data_area_size(der.len())
        .build()
        .during(what())?;
    let nv = context
        .execute_with_session(Some(AuthSession::Password), |c| c.nv_define_space(Provision::Owner, None, public))
        .during(what())?;
    // The beginning last: bytes that were never written read as ones, which begin no certificate.
    for (n, chunk) in der.chunks(NV_CHUNK).enumerate().rev() {
        let data = MaxNvBuffer::try_from(chunk.to_vec()).during(what())?;
        let offset = u16::try_from(n * NV_CHUNK).unwrap_or(u16::MAX);
        context
            .execute_with_session(Some(AuthSession::Password), |c| c.nv_write(NvAuth::Owner, nv, data, offset))
            .during(what())?;
    }
    let mut object = nv.into();
    context.tr_close(&mut object).during(what())
}
