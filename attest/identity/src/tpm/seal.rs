//! Sealing the vault key to the release's signed policy, and opening it.
//!
//! The sealed object's policy is `PolicyAuthorize(release key, reference)`: it depends on the release key only and so
//! never changes. What a boot must fulfil is signed by the release and travels in the image: PolicyPCR over 11, 12
//! and 13, then PolicyNV over the epoch index. The variant without PolicyNV has another reference, so a key sealed with
//! epochs does not open by it. All digests come from [`holdfast_format::policy`].
#![forbid(unsafe_code)]

use holdfast_format::policy::{EPOCH_INDEX, PCRS, authority_name, policy_authorize};
use tss_esapi::attributes::SessionAttributesBuilder;
use tss_esapi::constants::SessionType;
use tss_esapi::handles::SessionHandle;
use tss_esapi::interface_types::algorithm::HashingAlgorithm;
use tss_esapi::structures::{Public, PublicBuffer, SensitiveData, SymmetricDefinition};
use tss_esapi::traits::{Marshall as _, UnMarshall as _};
use zeroize::Zeroizing;

use super::esys::{Approval, BitsClear};
use super::pcr::{read, selection};
use super::policy::ReleasePolicy;
use super::templates::{self, Role};
use super::{Condition, KEY_CREATION_LIMIT, Link, OPERATION_LIMIT, Refusal as _, Response, Tpm, TpmError};
use crate::{SealedKey, VaultKey};

/// PCRs that must have been extended before anything is sealed: firmware code, boot loader code, Secure Boot state, UKI.
/// One that is zero was not measured (or the bank is off), and binding to it binds to nothing.
const MUST_BE_MEASURED: [u32; 4] = [0, 4, 7, 11];

impl Tpm {
    /// Refuses when PCRs that must be measured are zero.
    ///
    /// # Errors
    /// [`TpmError::NotSealable`] naming the PCRs.
    pub fn check_measured(&self) -> Result<(), TpmError> {
        let zero: Vec<String> = self
            .read_pcrs(&MUST_BE_MEASURED)?
            .iter()
            .filter(|(_, value)| *value == [0; 32])
            .map(|(index, _)| index.to_string())
            .collect();
        if zero.is_empty() {
            return Ok(());
        }
        Err(TpmError::NotSealable(format!(
            "expected PCR 0, 4, 7 and 11 to be extended, PCR {} is zero: this boot was not measured",
            zero.join(", ")
        )))
    }

    /// Seals `key` to the release's policy, with the epoch condition or without.
    ///
    /// # Errors
    /// [`TpmError`].
    pub fn seal(&self, key: &VaultKey, policy: &ReleasePolicy, with_epoch: bool) -> Result<SealedKey, TpmError> {
        let approved = policy.approved(with_epoch).map_err(TpmError::NotSealable)?;
        let authorize = policy_authorize(&authority_name(&policy.key), &approved.policy_ref);
        let secret = Zeroizing::new(key.expose().to_vec());
        self.call("seal the vault key", KEY_CREATION_LIMIT, move |link| {
            let template = templates::sealed(&authorize)?;
            let data = SensitiveData::try_from(secret.to_vec()).during("seal the vault key")?;
            let parent = link.required(Role::StorageRoot.handle().unwrap_or_default())?;
            let context = link.context()?;
            // Salted with the storage root key and encrypting: the key does not cross the bus in clear.
            let session = context
                .execute_without_session(|c| {
                    c.start_auth_session(
                        Some(parent),
                        None,
                        None,
                        SessionType::Hmac,
                        SymmetricDefinition::AES_128_CFB,
                        HashingAlgorithm::Sha256,
                    )
                })
                .during("start a session")?
                .ok_or_else(|| TpmError::NotSealable("the TPM gave no session".into()))?;
            let (attributes, mask) = SessionAttributesBuilder::new().with_decrypt(true).with_encrypt(true).build();
            let made = context.tr_sess_set_attributes(session, attributes, mask).and_then(|()| {
                context
                    .execute_with_session(Some(session), |c| c.create(parent, template, None, Some(data), None, None))
            });
            let flushed = context.flush_context(SessionHandle::from(session).into());
            let made = made.during("seal the vault key")?;
            flushed.during("flush the session")?;
            let public = PublicBuffer::try_from(made.out_public)
                .and_then(|b| b.marshall())
                .during("marshal the sealed object")?;
            let private = made.out_private.value().to_vec();
            Ok(SealedKey::Tpm { epoch_bound: with_epoch, private, public })
        })
    }

    /// Opens a sealed key under the policy of the running image.
    ///
    /// # Errors
    /// [`TpmError::StaysSealed`] when this boot does not fulfil the policy, with the condition that failed.
    pub fn unseal(
        &self,
        private: &[u8],
        public: &[u8],
        policy: &ReleasePolicy,
        with_epoch: bool,
    ) -> Result<VaultKey, TpmError> {
        let approved = policy
            .approved(with_epoch)
            .map_err(|reason| TpmError::StaysSealed { condition: Condition::Boot, reason })?;
        let (private, public, policy) = (private.to_vec(), public.to_vec(), policy.clone());
        let secret = self.call("unseal the vault key", OPERATION_LIMIT, move |link| {
            let public = PublicBuffer::unmarshall(&public).and_then(Public::try_from).during("sealed object")?;
            let key = templates::policy_key(&policy.key)?;
            let bits_clear = with_epoch.then(|| BitsClear { index: EPOCH_INDEX, bits: policy.forbidden_bits() });
            let approval = Approval { key: &key, approved: &approved };
            let parent = Role::StorageRoot.handle().unwrap_or_default();
            let wanted = selection(&PCRS)?;
            let opened = link.esys()?.unseal(parent, &private, &public, &wanted, bits_clear.as_ref(), &approval);
            opened.map_err(|e| explain(link, e, &policy))
        })?;
        VaultKey::new(secret).ok_or_else(|| TpmError::Unexpected {
            object: "unsealed vault key".into(),
            expected: format!("{} bytes", VaultKey::LEN),
            found: "another length".into(),
        })
    }
}

/// Says which condition of the policy failed, as far as it can be told.
fn explain(link: &mut Link, error: TpmError, policy: &ReleasePolicy) -> TpmError {
    let TpmError::Refused { operation, reason, kind: Response::Policy } = &error else {
        return error;
    };
    if operation == "PolicyNV" {
        let reason = format!(
            "the running image has security epoch {}, and a higher one is committed in this TPM; boot a newer image",
            policy.document.epoch
        );
        return TpmError::StaysSealed { condition: Condition::Epoch, reason };
    }
    let expected = |pcr: u32| {
        if pcr == PCRS[0] { policy.document.pcr11.clone() } else { "0".repeat(64) }
    };
    let mut condition = Condition::Boot;
    let differing = match read(link, &PCRS) {
        Ok(values) => values
            .iter()
            .inspect(|(pcr, value)| {
                if *pcr == PCRS[0] && policy.is_past_vault_open(value) {
                    condition = Condition::Phase;
                }
            })
            .map(|(pcr, value)| (pcr, expected(*pcr), hex::encode(value)))
            .filter(|(_, expected, found)| expected != found)
            .map(|(pcr, expected, found)| format!("PCR {pcr}: expected {expected}, found {found}"))
            .collect::<Vec<_>>()
            .join("; "),
        Err(e) => e.to_string(),
    };
    let reason = match condition {
        Condition::Phase => format!("the phase vault-open of this boot is already past: {differing}"),
        _ if differing.is_empty() => format!(
            "{operation}: {reason}; the PCRs are as the release measured them: it was sealed under another release key"
        ),
        _ => format!("this boot is not as the release measured it: {differing}"),
    };
    TpmError::StaysSealed { condition, reason }
}
