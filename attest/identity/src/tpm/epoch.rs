//! The NV index of security epochs: 64 bits that can only be set.
//!
//! An image of epoch e signs "no bit above e is set" into its policy; committing an image sets its bit. From then on
//! an older image boots but the vault stays closed to it. Every TPM of the PC Client profile has indices of type
//! NT_BITS; one that has not gets the policy without epochs, and says so in the strength report.
#![forbid(unsafe_code)]

use holdfast_format::policy::{EPOCH_ATTRIBUTES, EPOCH_ATTRIBUTES_DEFINE, epoch_bit};
use tss_esapi::attributes::NvIndexAttributes;
use tss_esapi::handles::{NvIndexTpmHandle, ObjectHandle, TpmHandle};
use tss_esapi::interface_types::algorithm::HashingAlgorithm;
use tss_esapi::interface_types::resource_handles::{NvAuth, Provision};
use tss_esapi::interface_types::session_handles::AuthSession;
use tss_esapi::structures::{NvPublic, NvPublicBuilder};

use super::{Link, OPERATION_LIMIT, Refusal as _, Response, Tpm, TpmError};

/// Highest epoch.
pub const EPOCH_MAX: u32 = 63;
/// TPMA_NV_WRITTEN.
const WRITTEN: u32 = EPOCH_ATTRIBUTES & !EPOCH_ATTRIBUTES_DEFINE;

impl Tpm {
    /// Makes the index at `index` with no bit set, if it is not there. `false` when this TPM cannot.
    ///
    /// # Errors
    /// [`TpmError::Unexpected`] when the index holds something else.
    pub fn ensure_epoch_index(&self, index: u32) -> Result<bool, TpmError> {
        self.call("make the epoch index", OPERATION_LIMIT, move |link| {
            if look(link, index)?.is_none() {
                match define(link, index) {
                    Ok(()) => {}
                    Err(TpmError::Refused { kind: Response::Other, .. }) => return Ok(false),
                    Err(e) => return Err(e),
                }
            }
            let public = look(link, index)?;
            let found = public.as_ref().map_or(0, |p| u32::try_from(p.attributes()).unwrap_or(0));
            let size = public.map_or(0, |p| p.data_size());
            if found | WRITTEN != EPOCH_ATTRIBUTES || size != 8 {
                return Err(TpmError::Unexpected {
                    object: format!("NV index {index:#010x}"),
                    expected: format!("the epoch index, 8 bytes, attributes {EPOCH_ATTRIBUTES:#010x}"),
                    found: format!("{size} bytes, attributes {found:#010x}; it is left alone"),
                });
            }
            if found & WRITTEN == 0 {
                // The first write makes its name final; it sets no bit.
                link.esys()?.nv_set_bits(index, 0)?;
            }
            Ok(true)
        })
    }

    /// The bits that are set, or `None` when there is no index.
    ///
    /// # Errors
    /// [`TpmError`].
    pub fn read_epochs(&self, index: u32) -> Result<Option<u64>, TpmError> {
        self.call("read the epoch index", OPERATION_LIMIT, move |link| {
            let Some((object, _)) = open(link, index)? else {
                return Ok(None);
            };
            let nv = object.into();
            let read = link
                .context()?
                .execute_with_session(Some(AuthSession::Password), |c| c.nv_read(NvAuth::NvIndex(nv), nv, 8, 0))
                .during(format!("read NV index {index:#010x}"))?;
            close(link, object)?;
            Ok(<[u8; 8]>::try_from(read.as_ref()).ok().map(u64::from_be_bytes))
        })
    }

    /// Sets the bit of `epoch` (0 to 63). Setting it again changes nothing.
    ///
    /// # Errors
    /// [`TpmError`].
    pub fn commit_epoch(&self, index: u32, epoch: u32) -> Result<(), TpmError> {
        if epoch > EPOCH_MAX {
            return Err(TpmError::Unexpected {
                object: "security epoch".into(),
                expected: format!("0 to {EPOCH_MAX}"),
                found: epoch.to_string(),
            });
        }
        if self.read_epochs(index)?.is_some_and(|bits| bits & epoch_bit(epoch) != 0) {
            return Ok(()); // spares the NV memory a write
        }
        self.call("commit the epoch", OPERATION_LIMIT, move |link| link.esys()?.nv_set_bits(index, epoch_bit(epoch)))
    }
}

fn open(link: &mut Link, index: u32) -> Result<Option<(ObjectHandle, NvPublic)>, TpmError> {
    let what = || format!("look up NV index {index:#010x}");
    let handle = NvIndexTpmHandle::new(index).during(what())?;
    if !link.exists(index)? {
        return Ok(None);
    }
    let context = link.context()?;
    let object = context.execute_without_session(|c| c.tr_from_tpm_public(TpmHandle::NvIndex(handle))).during(what())?;
    let (public, _name) = context.execute_without_session(|c| c.nv_read_public(object.into())).during(what())?;
    Ok(Some((object, public)))
}

fn look(link: &mut Link, index: u32) -> Result<Option<NvPublic>, TpmError> {
    let Some((object, public)) = open(link, index)? else {
        return Ok(None);
    };
    close(link, object)?;
    Ok(Some(public))
}

fn close(link: &mut Link, mut object: ObjectHandle) -> Result<(), TpmError> {
    link.context()?.tr_close(&mut object).during("close an NV index")
}

fn define(link: &mut Link, index: u32) -> Result<(), TpmError> {
    let what = || format!("define NV index {index:#010x}");
    let attributes = NvIndexAttributes::try_from(EPOCH_ATTRIBUTES_DEFINE).during(what())?;
    let public = NvPublicBuilder::new()
        .with_nv_index(NvIndexTpmHandle::new(index).during(what())?)
        .with_index_name_algorithm(HashingAlgorithm::Sha256)
        .with_index_attributes(attributes)
        .with_data_area_size(8)
        .build()
        .during(what())?;
    let nv = link
        .context()?
        .execute_with_session(Some(AuthSession::Password), |c| c.nv_define_space(Provision::Owner, None, public))
        .during(what())?;
    close(link, nv.into())
}
