//! The foreign functions that tss-esapi 7 does not wrap: the policy session that unseals (PolicyNV), NV_SetBits.
//!
//! A policy session belongs to one ESYS context, and the typed crate keeps its own private. So one short-lived
//! context of ours runs each of these operations from beginning to end. It flushes everything that it made,
//! whatever the outcome.

use std::ffi::CString;
use std::ptr::{null, null_mut};

use holdfast_format::policy::{Approved, OP_BITCLEAR};
use tss_esapi::structures::{PcrSelectionList, Public};
use tss_esapi::tss2_esys as ffi;
use zeroize::Zeroizing;

use super::{Response, TpmError, classify};

const NONE: ffi::ESYS_TR = 4095;
const PASSWORD: ffi::ESYS_TR = 255;
const OWNER: ffi::ESYS_TR = 257;

// TPM 2.0 Part 2: algorithm identifiers, session types, operations.
const ALG_AES: u16 = 0x0006;
const ALG_SHA256: u16 = 0x000B;
const ALG_ECDSA: u16 = 0x0018;
const ALG_CFB: u16 = 0x0043;
const SE_POLICY: u8 = 0x01;
const SESSION_ENCRYPT: u8 = 1 << 6;

/// An ESYS context of the foreign functions.
pub(crate) struct Esys {
    esys: *mut ffi::ESYS_CONTEXT,
    tcti: *mut ffi::TSS2_TCTI_CONTEXT,
    /// Sessions and transient objects to flush.
    made: Vec<ffi::ESYS_TR>,
}

/// A signature by the release over an approved policy.
pub(crate) struct Approval<'a> {
    pub(crate) key: &'a Public,
    pub(crate) approved: &'a Approved,
}

/// Condition on an NV index inside the policy: none of `bits` is set.
pub(crate) struct BitsClear {
    pub(crate) index: u32,
    pub(crate) bits: [u8; 8],
}

impl Esys {
    /// Opens the TPM behind a TCTI string.
    pub(crate) fn open(tcti_name: &str) -> Result<Self, TpmError> {
        let error = |reason: String| TpmError::Open { tcti: tcti_name.to_owned(), reason };
        let name = CString::new(tcti_name).map_err(|_| error("the name holds a NUL".into()))?;
        let mut this = Self { esys: null_mut(), tcti: null_mut(), made: Vec::new() };
        // SAFETY: `name` is NUL-terminated and outlives the call; the context pointer is ours to be written.
        let rc = unsafe { ffi::Tss2_TctiLdr_Initialize(name.as_ptr(), &mut this.tcti) };
        ok(rc, "open the TCTI").map_err(|e| error(e.to_string()))?;
        // SAFETY: `tcti` was initialized just above and is finalized only after `esys` (in drop); a null
        // ABI version asks for none in particular.
        let rc = unsafe { ffi::Esys_Initialize(&mut this.esys, this.tcti, null_mut()) };
        ok(rc, "open ESYS").map_err(|e| error(e.to_string()))?;
        Ok(this)
    }

    /// Sets bits in an NV index of type NT_BITS, with the (empty) owner authorisation.
    pub(crate) fn nv_set_bits(&mut self, index: u32, bits: u64) -> Result<(), TpmError> {
        let nv = self.from_tpm(index)?;
        // SAFETY: the context is live, `nv` was made by it, the fixed handles are the library's own.
        let rc = unsafe { ffi::Esys_NV_SetBits(self.esys, OWNER, nv, PASSWORD, NONE, NONE, bits) };
        ok(rc, &format!("set bits of NV index {index:#010x}"))
    }

    /// Unseals a keyed hash object under `parent` (a persistent handle) with the approved policy. The session is
    /// salted with the parent and the answer is encrypted with AES-128-CFB on the way to us.
    pub(crate) fn unseal(
        &mut self,
        parent: u32,
        private: &[u8],
        public: &Public,
        pcrs: &PcrSelectionList,
        bits_clear: Option<&BitsClear>,
        approval: &Approval<'_>,
    ) -> Result<Zeroizing<Vec<u8>>, TpmError> {
        let parent = self.from_tpm(parent)?;
        let (key_name, ticket) = self.verify(approval)?;

        let mut symmetric = ffi::TPMT_SYM_DEF { algorithm: ALG_AES, ..Default::default() };
        symmetric.keyBits.aes = 128;
        symmetric.mode.aes = ALG_CFB;
        let mut session = NONE;
        // SAFETY: live context; `parent` was made by it; `symmetric` and `session` live through the call; a null
        // nonce lets the library choose one.
        let rc = unsafe {
            ffi::Esys_StartAuthSession(
                self.esys,
                parent,
                NONE,
                NONE,
                NONE,
                NONE,
                null(),
                SE_POLICY,
                &symmetric,
                ALG_SHA256,
                &mut session,
            )
        };
        ok(rc, "start a policy session")?;
        self.made.push(session);
        // SAFETY: live context, session made by it.
        let rc = unsafe { ffi::Esys_TRSess_SetAttributes(self.esys, session, SESSION_ENCRYPT, SESSION_ENCRYPT) };
        ok(rc, "let the session encrypt answers")?;

        let selection = ffi::TPML_PCR_SELECTION::from(pcrs.clone());
        let current = ffi::TPM2B_DIGEST::default();
        // SAFETY: live context and session; both structures live through the call. The empty digest makes the TPM
        // take the current values.
        let rc = unsafe { ffi::Esys_PolicyPCR(self.esys, session, NONE, NONE, NONE, &current, &selection) };
        ok(rc, "PolicyPCR")?;

        if let Some(condition) = bits_clear {
            let nv = self.from_tpm(condition.index)?;
            let operand = digest(&condition.bits);
            // SAFETY: live context, handles made by it, `operand` lives through the call. The index authorises its own
            // reading with an empty password.
            let rc = unsafe {
                ffi::Esys_PolicyNV(self.esys, nv, nv, session, PASSWORD, NONE, NONE, &operand, 0, OP_BITCLEAR)
            };
            ok(rc, "PolicyNV")?;
        }

        let policy = digest(&approval.approved.policy);
        let policy_ref = digest(&approval.approved.policy_ref);
        // SAFETY: live context and session; all structures live through the call. TPM2B_NONCE and TPM2B_DIGEST are
        // the same type.
        let rc = unsafe {
            ffi::Esys_PolicyAuthorize(self.esys, session, NONE, NONE, NONE, &policy, &policy_ref, &key_name, &ticket)
        };
        ok(rc, "PolicyAuthorize")?;

        let object = self.load(parent, private, public)?;
        let mut out = null_mut();
        // SAFETY: live context; object and session made by it; `out` is ours to be written.
        let rc = unsafe { ffi::Esys_Unseal(self.esys, object, session, NONE, NONE, &mut out) };
        ok(rc, "Unseal")?;
        // SAFETY: on success `out` points to one structure allocated by the library. Its secret is wiped before it goes
        // back.
        let secret = unsafe {
            let data = &mut *out;
            let len = usize::from(data.size).min(data.buffer.len());
            let secret = Zeroizing::new(data.buffer[..len].to_vec());
            zeroize::Zeroize::zeroize(&mut data.buffer[..]);
            ffi::Esys_Free(out.cast());
            secret
        };
        Ok(secret)
    }

    /// Loads the release's key, lets the TPM check the signature, and returns the key's name with the ticket that says
    /// so. The key goes into the owner hierarchy: under the null hierarchy the TPM gives no usable ticket.
    fn verify(&mut self, approval: &Approval<'_>) -> Result<(ffi::TPM2B_NAME, ffi::TPMT_TK_VERIFIED), TpmError> {
        let public = to_public(approval.key)?;
        let mut key = NONE;
        // SAFETY: live context; `public` lives through the call; a null private part loads the public part only.
        let rc = unsafe { ffi::Esys_LoadExternal(self.esys, NONE, NONE, NONE, null(), &public, OWNER, &mut key) };
        ok(rc, "load the release's policy key")?;
        self.made.push(key);

        let mut ecdsa = ffi::TPMS_SIGNATURE_ECC { hash: ALG_SHA256, ..Default::default() };
        ecdsa.signatureR.size = 32;
        ecdsa.signatureR.buffer[..32].copy_from_slice(&approval.approved.r);
        ecdsa.signatureS.size = 32;
        ecdsa.signatureS.buffer[..32].copy_from_slice(&approval.approved.s);
        let mut signature = ffi::TPMT_SIGNATURE { sigAlg: ALG_ECDSA, ..Default::default() };
        signature.signature.ecdsa = ecdsa;
        let signed = digest(&approval.approved.digest);
        let mut ticket = null_mut();
        // SAFETY: live context and key; the structures live through the call; `ticket` is ours to be written.
        let rc =
            unsafe { ffi::Esys_VerifySignature(self.esys, key, NONE, NONE, NONE, &signed, &signature, &mut ticket) };
        ok(rc, "verify the release's signature over its policy")?;
        // SAFETY: on success `ticket` points to one structure allocated by the library.
        let ticket = unsafe { take(ticket) };

        let mut name = null_mut();
        // SAFETY: live context and key; `name` is ours to be written.
        let rc = unsafe { ffi::Esys_TR_GetName(self.esys, key, &mut name) };
        ok(rc, "name of the release's policy key")?;
        // SAFETY: on success `name` points to one structure allocated by the library.
        let name = unsafe { take(name) };
        // Room for the sealed object: a TPM without resource manager has three places.
        self.flush(key);
        Ok((name, ticket))
    }

    fn load(&mut self, parent: ffi::ESYS_TR, private: &[u8], public: &Public) -> Result<ffi::ESYS_TR, TpmError> {
        let mut blob = ffi::TPM2B_PRIVATE::default();
        let room = blob.buffer.get_mut(..private.len()).ok_or_else(|| TpmError::Unexpected {
            object: "sealed blob".into(),
            expected: "at most 1550 bytes".into(),
            found: format!("{} bytes", private.len()),
        })?;
        room.copy_from_slice(private);
        blob.size = u16::try_from(private.len()).unwrap_or(u16::MAX);
        let public = to_public(public)?;
        let mut object = NONE;
        // SAFETY: live context; `parent` was made by it; the structures live through the call.
        let rc = unsafe { ffi::Esys_Load(self.esys, parent, PASSWORD, NONE, NONE, &blob, &public, &mut object) };
        ok(rc, "load the sealed vault key (was it sealed by another TPM, or was this one cleared?)")?;
        self.made.push(object);
        Ok(object)
    }

    /// ESYS handle of a persistent object or NV index.
    #[allow(clippy::wrong_self_convention)] // TR_FromTPMPublic is the TSS's name for it
    fn from_tpm(&mut self, handle: u32) -> Result<ffi::ESYS_TR, TpmError> {
        let mut object = NONE;
        // SAFETY: live context; `object` is ours to be written.
        let rc = unsafe { ffi::Esys_TR_FromTPMPublic(self.esys, handle, NONE, NONE, NONE, &mut object) };
        ok(rc, &format!("look up handle {handle:#010x}"))?;
        Ok(object)
    }

    fn flush(&mut self, handle: ffi::ESYS_TR) {
        self.made.retain(|h| *h != handle);
        // SAFETY: live context, handle made by it and flushed once. A failure leaves an object behind that the
        // resource manager removes when the device is closed.
        let _ = unsafe { ffi::Esys_FlushContext(self.esys, handle) };
    }
}

impl Drop for Esys {
    fn drop(&mut self) {
        while let Some(handle) = self.made.pop() {
            self.flush(handle);
        }
        // SAFETY: both pointers were made by the matching initialize functions, are null when that failed (which
        // the functions accept), and are not used afterwards. ESYS goes first because it uses the TCTI.
        unsafe {
            if !self.esys.is_null() {
                ffi::Esys_Finalize(&mut self.esys);
            }
            if !self.tcti.is_null() {
                ffi::Tss2_TctiLdr_Finalize(&mut self.tcti);
            }
        }
    }
}

/// Copies a structure that the library allocated and gives the memory back.
///
/// # Safety
/// `p` points to one valid `T` from the library's allocator and is not used afterwards.
unsafe fn take<T: Copy>(p: *mut T) -> T {
    // SAFETY: the caller's promise.
    unsafe {
        let value = *p;
        ffi::Esys_Free(p.cast());
        value
    }
}

fn ok(rc: ffi::TSS2_RC, operation: &str) -> Result<(), TpmError> {
    if rc == 0 {
        return Ok(());
    }
    let error = tss_esapi::Error::Tss2Error(rc.into());
    // PolicyNV answers TPM_RC_POLICY, and PolicyAuthorize TPM_RC_VALUE, for "not satisfied".
    let kind = match (operation, classify(error)) {
        ("PolicyAuthorize", Response::Other) => Response::Policy,
        (_, kind) => kind,
    };
    Err(TpmError::Refused { operation: operation.to_owned(), reason: error.to_string(), kind })
}

fn to_public(public: &Public) -> Result<ffi::TPM2B_PUBLIC, TpmError> {
    ffi::TPM2B_PUBLIC::try_from(public.clone()).map_err(|e| TpmError::Refused {
        operation: "marshal a public area".into(),
        reason: e.to_string(),
        kind: Response::Other,
    })
}

/// A sized buffer; at most 64 bytes, more are cut off (no caller has more).
fn digest(bytes: &[u8]) -> ffi::TPM2B_DIGEST {
    let mut out = ffi::TPM2B_DIGEST::default();
    let len = bytes.len().min(out.buffer.len());
    out.buffer[..len].copy_from_slice(&bytes[..len]);
    out.size = u16::try_from(len).unwrap_or(0);
    out
}
