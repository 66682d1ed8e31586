//! Persistent keys: made when absent, checked when present; signing and key agreement with them.
#![forbid(unsafe_code)]

use tss_esapi::Context;
use tss_esapi::handles::{KeyHandle, NvIndexTpmHandle, ObjectHandle, PersistentTpmHandle, TpmHandle};
use tss_esapi::interface_types::dynamic_handles::Persistent;
use tss_esapi::interface_types::resource_handles::{Hierarchy, Provision};
use tss_esapi::interface_types::session_handles::AuthSession;
use tss_esapi::structures::{
    CapabilityData, Digest, EccParameter, EccPoint, Public, PublicBuffer, Signature, SignatureScheme,
};
use tss_esapi::traits::Marshall as _;
use tss_esapi::tss2_esys::{TPM2B_DIGEST, TPMT_TK_HASHCHECK};

use super::certificate::NvReader;
use super::templates::Role;
use super::{KEY_CREATION_LIMIT, Link, OPERATION_LIMIT, Refusal as _, Tpm, TpmError};
use crate::Point;

/// The public half of a key in the TPM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TpmPublic {
    /// The point.
    pub point: Point,
    /// TPM2B_PUBLIC, as the TPM marshals it.
    pub blob: Vec<u8>,
}

/// TPM_ST_HASHCHECK and TPM_RH_NULL: the ticket that says that the digest is the caller's own.
const ST_HASHCHECK: u16 = 0x8024;
const RH_NULL: u32 = 0x4000_0007;
/// NV indices of endorsement certificates, TCG EK Credential Profile §2.2.1.4.
const EK_CERTIFICATE_INDICES: std::ops::RangeInclusive<u32> = 0x01C0_0002..=0x01C0_01FF;
/// Largest certificate that is read.
pub(crate) const CERTIFICATE_MAX: usize = 8192;
/// NV_Read takes at least this much at a time on every TPM (the PC Client profile asks for 512).
pub(crate) const NV_CHUNK: usize = 512;

impl Tpm {
    /// Makes the persistent keys that are not there yet, and checks those that are. A power cut at any
    /// point leaves keys that the next call completes.
    ///
    /// # Errors
    /// [`TpmError::Unexpected`] when a handle holds a key of another kind: it is not replaced, because somebody
    /// may need it; clearing the TPM in the firmware menu frees it.
    pub fn ensure_keys(&self) -> Result<(), TpmError> {
        self.call("make keys", KEY_CREATION_LIMIT, |link| {
            for role in [Role::Device, Role::StorageRoot, Role::Quote, Role::Agreement] {
                ensure(link, role)?;
            }
            Ok(())
        })
    }

    /// Public half of a key.
    ///
    /// # Errors
    /// [`TpmError`] when the key is not there.
    pub fn public(&self, role: Role) -> Result<TpmPublic, TpmError> {
        self.call("read a public key", KEY_CREATION_LIMIT, move |link| match role.handle() {
            Some(handle) => {
                let key = link.required(handle)?;
                let public = read_public(link.context()?, key, role)?;
                describe(&public, role)
            }
            None => {
                let template = role.template()?;
                let context = link.context()?;
                let made = context.execute_with_session(Some(AuthSession::Password), |c| {
                    c.create_primary(Hierarchy::Endorsement, template.clone(), None, None, None, None)
                });
                let made = made.during(format!("make the {role} key"))?;
                context.flush_context(made.key_handle.into()).during("flush the endorsement key")?;
                describe(&made.out_public, role)
            }
        })
    }

    /// ECDSA P-256 by the device key over an SHA-256 digest: r then s.
    ///
    /// # Errors
    /// [`TpmError`].
    pub fn sign_sha256(&self, digest: &[u8; 32]) -> Result<[u8; 64], TpmError> {
        let digest = *digest;
        self.call("sign", OPERATION_LIMIT, move |link| {
            let key = link.required(Role::Device.handle().unwrap_or_default())?;
            let digest = Digest::try_from(digest.to_vec()).during("sign")?;
            let no_ticket =
                TPMT_TK_HASHCHECK { tag: ST_HASHCHECK, hierarchy: RH_NULL, digest: TPM2B_DIGEST::default() };
            let no_ticket = no_ticket.try_into().during("sign")?;
            let signature = link.context()?.execute_with_session(Some(AuthSession::Password), |c| {
                c.sign(key, digest, SignatureScheme::Null, no_ticket)
            });
            ecdsa_bytes(&signature.during("sign with the device key")?)
        })
    }

    /// d · `peer` with the ECDH key, both coordinates.
    ///
    /// # Errors
    /// [`TpmError`] when `peer` is not on the curve.
    pub fn shared_point(&self, peer: &Point) -> Result<Point, TpmError> {
        let peer = *peer;
        self.call("agree on a point", OPERATION_LIMIT, move |link| {
            let key = link.required(Role::Agreement.handle().unwrap_or_default())?;
            let parameter = |b: [u8; 32]| EccParameter::try_from(b.to_vec()).during("ECDH point");
            let point = EccPoint::new(parameter(peer.x)?, parameter(peer.y)?);
            let shared = link
                .context()?
                .execute_with_session(Some(AuthSession::Password), |c| c.ecdh_z_gen(key, point))
                .during("ECDH with the peer's point")?;
            to_point(&shared)
        })
    }

    /// Endorsement certificates that the manufacturer stored, DER, with their NV indices. Which algorithms there
    /// are differs from TPM to TPM, so the list of indices is read, not assumed.
    ///
    /// # Errors
    /// [`TpmError`].
    pub fn endorsement_certificates(&self) -> Result<Vec<(u32, Vec<u8>)>, TpmError> {
        self.call("read endorsement certificates", OPERATION_LIMIT, |link| {
            let context = link.context()?;
            let (listed, _more) = context
                .execute_without_session(|c| {
                    c.get_capability(tss_esapi::constants::CapabilityType::Handles, *EK_CERTIFICATE_INDICES.start(), 64)
                })
                .during("list NV indices")?;
            let CapabilityData::Handles(handles) = listed else {
                return Ok(Vec::new());
            };
            let mut found = Vec::new();
            for handle in handles.as_ref() {
                let index = u32::from(*handle);
                if EK_CERTIFICATE_INDICES.contains(&index)
                    && let Some(der) = read_certificate(context, index, NvReader::Owner)?
                {
                    found.push((index, der));
                }
            }
            Ok(found)
        })
    }
}

/// Reads an NV index and cuts the DER certificate out of it; `None` when there is another thing in it (indices for
/// nonces and templates lie between those for certificates).
pub(crate) fn read_certificate(
    context: &mut Context,
    index: u32,
    reader: NvReader,
) -> Result<Option<Vec<u8>>, TpmError> {
    let what = || format!("read NV index {index:#010x}");
    let handle = NvIndexTpmHandle::new(index).during(what())?;
    let object = context.execute_without_session(|c| c.tr_from_tpm_public(TpmHandle::NvIndex(handle))).during(what())?;
    let nv = object.into();
    let (public, _name) = context.execute_without_session(|c| c.nv_read_public(nv)).during(what())?;
    let size = public.data_size().min(CERTIFICATE_MAX);
    let mut bytes = Vec::with_capacity(size);
    while bytes.len() < size {
        let chunk = u16::try_from((size - bytes.len()).min(NV_CHUNK)).unwrap_or(u16::MAX);
        let offset = u16::try_from(bytes.len()).unwrap_or(u16::MAX);
        let read = context
            .execute_with_session(Some(AuthSession::Password), |c| c.nv_read(reader.auth(nv), nv, chunk, offset));
        match read {
            Ok(part) if !part.is_empty() => bytes.extend_from_slice(part.as_ref()),
            // Not readable with this authorisation, or never written: not a certificate.
            _ => return Ok(None),
        }
    }
    let mut object: ObjectHandle = nv.into();
    context.tr_close(&mut object).during(what())?;
    Ok(cut_der_sequence(&bytes))
}

/// The first DER SEQUENCE with a two byte length in `bytes`: a certificate is never shorter than 256 bytes.
pub(crate) fn cut_der_sequence(bytes: &[u8]) -> Option<Vec<u8>> {
    let [0x30, 0x82, high, low, ..] = bytes else {
        return None;
    };
    let total = 4 + usize::from(u16::from_be_bytes([*high, *low]));
    bytes.get(..total).map(<[u8]>::to_vec)
}

fn ensure(link: &mut Link, role: Role) -> Result<(), TpmError> {
    let Some(handle) = role.handle() else {
        return Ok(());
    };
    if let Some(key) = link.persistent(handle)? {
        let public = read_public(link.context()?, key, role)?;
        return check(&public, role, handle);
    }
    let template = role.template()?;
    let context = link.context()?;
    let made = context
        .execute_with_session(Some(AuthSession::Password), |c| {
            c.create_primary(Hierarchy::Owner, template, None, None, None, None)
        })
        .during(format!("make the {role} key"))?;
    let persistent =
        Persistent::Persistent(PersistentTpmHandle::new(handle).during(format!("persistent handle {handle:#010x}"))?);
    let kept = context.execute_with_session(Some(AuthSession::Password), |c| {
        c.evict_control(Provision::Owner, made.key_handle.into(), persistent)
    });
    // The transient copy is flushed whether or not it could be kept.
    context.flush_context(made.key_handle.into()).during("flush a transient key")?;
    kept.during(format!("keep the {role} key at {handle:#010x}"))?;
    Ok(())
}

fn read_public(context: &mut Context, key: KeyHandle, role: Role) -> Result<Public, TpmError> {
    let read = context.execute_without_session(|c| c.read_public(key));
    Ok(read.during(format!("read the public {role} key"))?.0)
}

/// The key at `handle` must be what we would have made, its point aside.
fn check(found: &Public, role: Role, handle: u32) -> Result<(), TpmError> {
    let wanted = role.template()?;
    let same = match (found, &wanted) {
        (
            Public::Ecc { object_attributes: a, name_hashing_algorithm: n, auth_policy: p, parameters: q, .. },
            Public::Ecc { object_attributes: a2, name_hashing_algorithm: n2, auth_policy: p2, parameters: q2, .. },
        ) => a == a2 && n == n2 && p == p2 && q == q2,
        _ => false,
    };
    if same {
        return Ok(());
    }
    Err(TpmError::Unexpected {
        object: format!("persistent handle {handle:#010x}"),
        expected: format!("the {role} key (ECC P-256, attributes {:#010x})", role.attributes()),
        found: format!(
            "another key, {}; it is left alone: clear the TPM in the firmware menu if nobody needs it",
            match found {
                Public::Ecc { object_attributes, .. } =>
                    format!("ECC, attributes {:#010x}", u32::from(*object_attributes)),
                Public::Rsa { object_attributes, .. } =>
                    format!("RSA, attributes {:#010x}", u32::from(*object_attributes)),
                _ => "not an asymmetric one".into(),
            }
        ),
    })
}

fn describe(public: &Public, role: Role) -> Result<TpmPublic, TpmError> {
    let Public::Ecc { unique, .. } = public else {
        return Err(TpmError::Unexpected {
            object: format!("{role} key"),
            expected: "an ECC key".into(),
            found: "another type".into(),
        });
    };
    let blob = PublicBuffer::try_from(public.clone())
        .and_then(|b| b.marshall())
        .during(format!("marshal the public {role} key"))?;
    Ok(TpmPublic { point: to_point(unique)?, blob })
}

pub(crate) fn to_point(p: &EccPoint) -> Result<Point, TpmError> {
    Ok(Point { x: pad(p.x().as_ref(), "x coordinate")?, y: pad(p.y().as_ref(), "y coordinate")? })
}

/// r then s of an ECDSA signature.
pub(crate) fn ecdsa_bytes(signature: &Signature) -> Result<[u8; 64], TpmError> {
    let Signature::EcDsa(ecdsa) = signature else {
        return Err(TpmError::Unexpected {
            object: "signature".into(),
            expected: "ECDSA".into(),
            found: "another scheme".into(),
        });
    };
    let mut out = [0; 64];
    out[..32].copy_from_slice(&pad(ecdsa.signature_r().as_ref(), "r")?);
    out[32..].copy_from_slice(&pad(ecdsa.signature_s().as_ref(), "s")?);
    Ok(out)
}

/// TPMs may leave leading zeros away.
fn pad(bytes: &[u8], what: &str) -> Result<[u8; 32], TpmError> {
    let mut out = [0; 32];
    let start = 32usize.checked_sub(bytes.len()).ok_or_else(|| TpmError::Unexpected {
        object: what.into(),
        expected: "at most 32 bytes".into(),
        found: format!("{} bytes", bytes.len()),
    })?;
    out[start..].copy_from_slice(bytes);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_coordinates_are_padded_in_front() {
        let padded = pad(&[1, 2], "x").unwrap();
        assert_eq!(padded[..30], [0; 30]);
        assert_eq!(padded[30..], [1, 2]);
        assert!(pad(&[0; 33], "x").is_err());
    }

    #[test]
    fn certificates_are_cut_at_their_der_length() {
        let mut nv = vec![0x30, 0x82, 0x00, 0x03, 1, 2, 3];
        nv.extend([0xff; 40]);
        assert_eq!(cut_der_sequence(&nv), Some(vec![0x30, 0x82, 0x00, 0x03, 1, 2, 3]));
        assert_eq!(cut_der_sequence(&[0x30, 0x82, 0xff, 0xff, 0]), None);
        assert_eq!(cut_der_sequence(&[0xff; 16]), None);
    }
}
