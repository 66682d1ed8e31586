//! Attestation and key escrow: certificates, nonce, quote, store keys.
//!
//! ```text
//!  Certificates -> Nonce -> Quote(nonce) --SUCCESS--> StoreKeys(token) --SUCCESS--> Done
//! ```
//! Any failure ends the pass; the next one begins at the certificates after [`crate::timing::ATTESTATION_RESTART`].
//! A device without a TPM takes the same way with a quote that holds no PCR values, because `/config` refuses an empty
//! token; it has no keys to store.

use crate::client::Client;
use crate::failure::Failure;
use crate::identity::{AttestationCertificate, CertificateUse, DeviceIdentity, EscrowKey, KeyError, Quote};
use crate::timing::{ATTESTATION_RESTART, limits};
use flate2::{Compression, write::GzEncoder};
use holdfast_api::hash;
use holdfast_api::proto::attest::{
    AttestStorageKeys, AttestStorageKeysResponseCode, AttestVersionInfo, AttestVersionType, AttestVolumeKey,
    AttestVolumeKeyType, TpmHashAlgo, TpmPcrValue, ZAttestQuote, ZAttestReq, ZAttestReqType, ZAttestRespType,
    ZAttestResponse, ZAttestResponseCode,
};
use holdfast_api::proto::certs::{ZCert, ZCertAttr, ZCertMetaData, ZCertMetaDataType, ZCertType};
use holdfast_model::observed::AttestationState;
use prost::Message;
use std::io::Write;
use tokio::time::sleep;

/// Longest nonce that fits a quote.
const MAX_NONCE: usize = 64;

/// The controller believes the device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attested {
    /// To be sent with every poll of the config.
    pub token: Vec<u8>,
    /// Keys that the controller gave back.
    pub escrowed: Vec<EscrowKey>,
    /// Why the keys could not be left with the controller; `None` when they were or there are none.
    pub escrow_error: Option<String>,
}

/// Attestation failed.
#[derive(Debug, thiserror::Error)]
pub enum AttestError {
    /// A request failed.
    #[error(transparent)]
    Request(#[from] Failure),
    /// A key of the device failed.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The controller refused the certificates: maintenance mode.
    #[error("the controller refused the certificates of this device: {0}")]
    CertificatesRefused(Failure),
    /// The controller refused a step.
    #[error("attestation, {step}: expected success, the controller answered {answer}")]
    Refused {
        /// Which step.
        step: &'static str,
        /// What it said.
        answer: String,
    },
}

/// A step of attestation with what it needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Send the certificates.
    Certificates,
    /// Ask for a nonce.
    Nonce,
    /// Quote over this nonce.
    Quote(Vec<u8>),
    /// Leave the keys with the controller.
    StoreKeys(Attested),
    /// Done.
    Done(Attested),
}

impl Step {
    /// The state to report while this step runs.
    #[must_use]
    pub fn state(&self) -> AttestationState {
        match self {
            Self::Certificates | Self::Nonce => AttestationState::NonceWait,
            Self::Quote(_) => AttestationState::AttestWait,
            Self::StoreKeys(_) => AttestationState::AttestEscrowWait,
            Self::Done(_) => AttestationState::Complete,
        }
    }
}

/// The step that follows `step` with the controller's answer.
///
/// # Errors
/// [`AttestError::Refused`] when the answer is not a success of this step.
pub fn advance(step: Step, answer: ZAttestResponse) -> Result<Step, AttestError> {
    let refused = |step: &'static str, answer: String| Err(AttestError::Refused { step, answer });
    match step {
        Step::Certificates => match answer.resp_type() {
            ZAttestRespType::AttestRespCert => Ok(Step::Nonce),
            other => refused("certificates", format!("{other:?}")),
        },
        Step::Nonce => match answer.nonce {
            Some(nonce) if (1..=MAX_NONCE).contains(&nonce.nonce.len()) => Ok(Step::Quote(nonce.nonce)),
            Some(nonce) => refused("nonce", format!("{} bytes (1 to {MAX_NONCE} can be quoted)", nonce.nonce.len())),
            None => refused("nonce", "no nonce".to_owned()),
        },
        Step::Quote(_) => match answer.quote_resp {
            Some(quote) if quote.response() == ZAttestResponseCode::Success && !quote.integrity_token.is_empty() => {
                Ok(Step::StoreKeys(Attested {
                    token: quote.integrity_token,
                    escrowed: quote.keys.into_iter().map(|key| EscrowKey(key.key)).collect(),
                    escrow_error: None,
                }))
            }
            Some(quote) if quote.response() == ZAttestResponseCode::Success => {
                refused("quote", "success without a token".to_owned())
            }
            Some(quote) => refused("quote", format!("{:?}", quote.response())),
            None => refused("quote", "no verdict".to_owned()),
        },
        Step::StoreKeys(attested) => match answer.storage_keys_resp.map(|reply| reply.response()) {
            Some(AttestStorageKeysResponseCode::Success) => Ok(Step::Done(attested)),
            other => refused("key escrow", format!("{other:?}")),
        },
        Step::Done(attested) => Ok(Step::Done(attested)),
    }
}

/// One pass of attestation. `report` hears each state as it begins.
///
/// # Errors
/// [`AttestError`]; begin again after [`ATTESTATION_RESTART`].
pub async fn attest(
    client: &Client,
    identity: &dyn DeviceIdentity,
    mut report: impl FnMut(AttestationState),
) -> Result<Attested, AttestError> {
    let mut step = Step::Certificates;
    let mut with_tpm = false;
    loop {
        report(step.state());
        step = match step {
            Step::Certificates => {
                let certificates = identity.attestation_certificates()?;
                let request = ZAttestReq {
                    req_type: ZAttestReqType::AttestReqCert.into(),
                    certs: certificates.iter().map(wire_certificate).collect(),
                    ..ZAttestReq::default()
                };
                let answer = client.attest_step(identity, &request).await.map_err(|failure| {
                    if failure.class().is_final() { AttestError::CertificatesRefused(failure) } else { failure.into() }
                })?;
                advance(Step::Certificates, answer)?
            }
            Step::Nonce => {
                let request = ZAttestReq { req_type: ZAttestReqType::AttestReqNonce.into(), ..ZAttestReq::default() };
                let answer = client.attest_step(identity, &request).await?;
                advance(Step::Nonce, answer)?
            }
            Step::Quote(nonce) => {
                report(AttestationState::QuoteWait);
                let quote = identity.quote(&nonce)?;
                with_tpm = quote.is_some();
                report(AttestationState::AttestWait);
                let request = quote_request(identity, quote);
                let answer = client.attest_step(identity, &request).await?;
                advance(Step::Quote(nonce), answer)?
            }
            Step::StoreKeys(attested) => {
                // What the controller believes does not hang on the escrow: its failure is reported, not fatal.
                match store_keys(client, identity, &attested, with_tpm).await {
                    Ok(()) => Step::Done(attested),
                    Err(error) => Step::Done(Attested { escrow_error: Some(error.to_string()), ..attested }),
                }
            }
            Step::Done(attested) => return Ok(attested),
        };
    }
}

/// Attests until it works. `report` hears each state, and the error text of a pass that failed (empty otherwise).
pub async fn attest_until_done(
    client: &Client,
    identity: &dyn DeviceIdentity,
    mut report: impl FnMut(AttestationState, &str),
) -> Attested {
    loop {
        match attest(client, identity, |state| report(state, "")).await {
            Ok(attested) => return attested,
            Err(error) => report(AttestationState::RestartWait, &error.to_string()),
        }
        sleep(ATTESTATION_RESTART).await;
    }
}

async fn store_keys(
    client: &Client,
    identity: &dyn DeviceIdentity,
    attested: &Attested,
    with_tpm: bool,
) -> Result<(), AttestError> {
    if !with_tpm {
        return Ok(());
    }
    let keys = identity.keys_to_escrow()?;
    if keys.is_empty() || keys == attested.escrowed {
        return Ok(());
    }
    let request = ZAttestReq {
        req_type: ZAttestReqType::StoreKeys.into(),
        storage_keys: Some(AttestStorageKeys {
            integrity_token: attested.token.clone(),
            keys: keys
                .into_iter()
                .map(|EscrowKey(key)| AttestVolumeKey {
                    key_type: AttestVolumeKeyType::Vsk.into(),
                    key,
                    ..AttestVolumeKey::default()
                })
                .collect(),
        }),
        ..ZAttestReq::default()
    };
    let answer = client.attest_step(identity, &request).await?;
    advance(Step::StoreKeys(attested.clone()), answer).map(|_| ())
}

fn wire_certificate(certificate: &AttestationCertificate) -> ZCert {
    let kind = match certificate.usage {
        CertificateUse::EcdhExchange => ZCertType::CertTypeDeviceEcdhExchange,
        CertificateUse::RestrictedSigning => ZCertType::CertTypeDeviceRestrictedSigning,
        CertificateUse::Endorsement => ZCertType::CertTypeDeviceEndorsementRsa,
    };
    ZCert {
        hash_algo: 1,
        cert_hash: hash::sha256(certificate.pem.as_bytes())[..16].to_vec(),
        r#type: kind.into(),
        cert: certificate.pem.as_bytes().to_vec(),
        attributes: Some(ZCertAttr { is_mutable: false, is_tpm: certificate.in_tpm }),
        meta_data_items: certificate
            .tpm_public
            .iter()
            .map(|public| ZCertMetaData { r#type: ZCertMetaDataType::Tpm2Public.into(), meta_data: public.clone() })
            .collect(),
    }
}

/// The quote request; the event log is left out when it would not fit.
fn quote_request(identity: &dyn DeviceIdentity, quote: Option<Quote>) -> ZAttestReq {
    let version =
        |kind: AttestVersionType, text: &str| AttestVersionInfo { version_type: kind.into(), version: text.to_owned() };
    let mut wire = ZAttestQuote {
        versions: vec![
            version(AttestVersionType::Eve, identity.os_version()),
            version(AttestVersionType::Firmware, identity.firmware_version()),
        ],
        ..ZAttestQuote::default()
    };
    if let Some(quote) = quote {
        wire.attest_data = quote.attest;
        wire.signature = quote.signature_der;
        wire.pcr_values = quote
            .pcrs
            .into_iter()
            .map(|(index, value)| TpmPcrValue { index, hash_algo: TpmHashAlgo::Sha256.into(), value: value.to_vec() })
            .collect();
        let room = limits::QUOTE_REQUEST - wire.encoded_len().min(limits::QUOTE_REQUEST);
        let log = identity.event_log().and_then(|log| gzip(&log));
        wire.tpm_binary_event_log = log.filter(|log| log.len() < room).unwrap_or_default();
    }
    ZAttestReq { req_type: ZAttestReqType::AttestReqQuote.into(), quote: Some(wire), ..ZAttestReq::default() }
}

fn gzip(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).ok()?;
    encoder.finish().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_api::proto::attest::{AttestStorageKeysResp, ZAttestNonceResp, ZAttestQuoteResp};

    fn verdict(response: ZAttestResponseCode, token: &[u8]) -> ZAttestResponse {
        let quote = ZAttestQuoteResp {
            response: response.into(),
            integrity_token: token.to_vec(),
            keys: vec![AttestVolumeKey { key: vec![7], ..AttestVolumeKey::default() }],
        };
        ZAttestResponse { quote_resp: Some(quote), ..ZAttestResponse::default() }
    }

    #[test]
    fn good_answers_lead_from_certificates_to_done() {
        let certificates =
            ZAttestResponse { resp_type: ZAttestRespType::AttestRespCert.into(), ..ZAttestResponse::default() };
        let step = advance(Step::Certificates, certificates).expect("certificates");
        assert_eq!(step, Step::Nonce);
        let nonce = ZAttestResponse {
            nonce: Some(ZAttestNonceResp { nonce: b"0123456789ab".to_vec() }),
            ..ZAttestResponse::default()
        };
        let step = advance(step, nonce).expect("nonce");
        assert_eq!(step, Step::Quote(b"0123456789ab".to_vec()));
        let step = advance(step, verdict(ZAttestResponseCode::Success, b"token")).expect("quote");
        let Step::StoreKeys(attested) = &step else { panic!("{step:?}") };
        assert_eq!(
            (attested.token.as_slice(), attested.escrowed.as_slice()),
            (b"token".as_slice(), [EscrowKey(vec![7])].as_slice())
        );
        let stored = AttestStorageKeysResp { response: AttestStorageKeysResponseCode::Success.into() };
        let step = advance(step, ZAttestResponse { storage_keys_resp: Some(stored), ..ZAttestResponse::default() })
            .expect("stored");
        assert_eq!(step.state(), AttestationState::Complete);
    }

    #[test]
    fn every_other_answer_is_a_refusal_that_says_which() {
        let mismatch = AttestStorageKeysResp { response: AttestStorageKeysResponseCode::ItokenMismatch.into() };
        let attested = Attested { token: vec![1], escrowed: Vec::new(), escrow_error: None };
        let long = ZAttestNonceResp { nonce: vec![0; 65] };
        let cases = [
            (Step::Certificates, ZAttestResponse::default(), "AttestRespNone"),
            (Step::Nonce, ZAttestResponse::default(), "no nonce"),
            (Step::Nonce, ZAttestResponse { nonce: Some(long), ..ZAttestResponse::default() }, "65 bytes"),
            (
                Step::Nonce,
                ZAttestResponse { nonce: Some(ZAttestNonceResp::default()), ..ZAttestResponse::default() },
                "0 bytes",
            ),
            (Step::Quote(vec![1]), ZAttestResponse::default(), "no verdict"),
            (Step::Quote(vec![1]), verdict(ZAttestResponseCode::Success, b""), "without a token"),
            (Step::Quote(vec![1]), verdict(ZAttestResponseCode::NonceMismatch, b"t"), "NonceMismatch"),
            (Step::Quote(vec![1]), verdict(ZAttestResponseCode::NoCertFound, b"t"), "NoCertFound"),
            (Step::Quote(vec![1]), verdict(ZAttestResponseCode::QuoteFailed, b"t"), "QuoteFailed"),
            (
                Step::StoreKeys(attested),
                ZAttestResponse { storage_keys_resp: Some(mismatch), ..ZAttestResponse::default() },
                "ItokenMismatch",
            ),
        ];
        for (step, answer, text) in cases {
            let name = format!("{step:?}");
            let error = advance(step, answer).expect_err(&name).to_string();
            assert!(error.contains(text), "{name}: {error}");
        }
    }
}
