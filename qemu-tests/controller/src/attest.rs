//! Attestation and key escrow of one device: a function of what the device has proved so far and of what it asks.
//!
//! Stricter than the reference controller where that one is weak: a nonce is used once and only for a while, a failed
//! quote takes the token away, the quote certificate must be signed by the device key, and a device that once had a
//! quote certificate cannot fall back to the form without PCR values.

use crate::tpm::{self, Pcr, Quote};
use crate::x509::Cert;
use holdfast_api::proto::attest::{
    AttestStorageKeysResp, AttestStorageKeysResponseCode, AttestVersionType, AttestVolumeKey, TpmHashAlgo,
    ZAttestNonceResp, ZAttestQuote, ZAttestQuoteResp, ZAttestReq, ZAttestReqType, ZAttestRespType, ZAttestResponse,
    ZAttestResponseCode,
};
use holdfast_api::proto::certs::{ZCert, ZCertType};
use holdfast_api::proto::common::HashAlgorithm;
use p256::ecdsa::Signature;
use p256::ecdsa::signature::Verifier;
use prost::Message;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// How long a nonce can be used.
pub const NONCE_LIFETIME: Duration = Duration::from_secs(300);
/// Most certificates and escrowed keys of one device.
const MAX_ITEMS: usize = 16;
/// PCRs a quote must cover.
const QUOTED: u32 = 16;

/// A refusal that is an HTTP status, not an attestation answer.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("attest: {0}")]
pub struct BadRequest(pub String);

/// A certificate that the device sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceCert {
    /// Value of `ZCertType`: 11 quote, 12 endorsement, 13 key agreement.
    pub kind: i32,
    /// `certHash` as sent, hex.
    pub hash: String,
    /// PEM text.
    pub pem: String,
    /// The key lives in a TPM, says the device.
    pub is_tpm: bool,
}

/// What the last quote showed; for people and tests.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Report {
    /// The quote was accepted.
    pub accepted: bool,
    /// Why not, or what kind of proof it was.
    pub reason: String,
    /// PCR values in hex, empty without a TPM.
    pub pcrs: BTreeMap<u32, String>,
    /// Versions as sent: `eve`, `firmware`.
    pub versions: BTreeMap<String, String>,
    /// Events in the log, if one came.
    pub events: Option<usize>,
    /// PCRs to which the event log does not lead.
    pub log_mismatches: Vec<u32>,
    /// Trouble with the event log.
    pub log_error: String,
}

/// What one device has proved; durable.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Proof {
    /// Certificates; at most one for quotes and one for key agreement.
    pub certs: Vec<DeviceCert>,
    /// Integrity token in force, hex.
    pub token: Option<String>,
    /// Encoded `AttestVolumeKey`s in escrow, hex.
    pub keys: Vec<String>,
    /// The last quote.
    pub report: Option<Report>,
}

/// Which PCR values are accepted.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// Refuse a quote that no template matches (and a device without TPM).
    #[serde(default)]
    pub enforce: bool,
    /// The accepted states.
    #[serde(default)]
    pub templates: Vec<Template>,
    /// PCRs to which the event log must lead.
    #[serde(default)]
    pub event_log_must_lead_to: Vec<u32>,
}

/// One accepted state.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Template {
    /// Version of the base OS; empty: any.
    #[serde(default)]
    pub eve_version: String,
    /// Version of the firmware; empty: any.
    #[serde(default)]
    pub firmware_version: String,
    /// Wanted values in hex; `*`: any. PCRs that are not named are not checked.
    pub pcrs: BTreeMap<u32, String>,
}

impl Template {
    fn matches(&self, report: &Report) -> bool {
        let version = |wanted: &str, kind: &str| {
            wanted.is_empty() || report.versions.get(kind).is_some_and(|found| found == wanted)
        };
        version(&self.eve_version, "eve")
            && version(&self.firmware_version, "firmware")
            && self.pcrs.iter().all(|(index, wanted)| {
                report.pcrs.get(index).is_some_and(|found| wanted == "*" || found.eq_ignore_ascii_case(wanted))
            })
    }
}

/// A nonce that was handed out.
#[derive(Debug, Clone)]
pub struct Nonce {
    value: Vec<u8>,
    since: Instant,
}

/// Answers one request and changes `proof` and `nonce` accordingly. `device` is the device certificate.
pub fn answer(
    request: &[u8],
    device: &Cert,
    proof: &mut Proof,
    nonce: &mut Option<Nonce>,
    policy: &Policy,
) -> Result<ZAttestResponse, BadRequest> {
    let request = ZAttestReq::decode(request).map_err(|error| BadRequest(format!("not a ZAttestReq: {error}")))?;
    match ZAttestReqType::try_from(request.req_type) {
        Ok(ZAttestReqType::AttestReqCert) => {
            proof.certs = read_certs(&request.certs, device)?;
            Ok(ZAttestResponse { resp_type: ZAttestRespType::AttestRespCert as i32, ..Default::default() })
        }
        Ok(ZAttestReqType::AttestReqNonce) => {
            // 24 hex characters: between the 12 and 32 bytes that TPMs of all kinds take.
            let value = uuid::Uuid::new_v4().simple().to_string().into_bytes()[..24].to_vec();
            *nonce = Some(Nonce { value: value.clone(), since: Instant::now() });
            Ok(ZAttestResponse {
                resp_type: ZAttestRespType::AttestRespNonce as i32,
                nonce: Some(ZAttestNonceResp { nonce: value }),
                ..Default::default()
            })
        }
        Ok(ZAttestReqType::AttestReqQuote) => {
            let quote = request.quote.ok_or_else(|| BadRequest("type QUOTE without a quote".into()))?;
            let quote_resp = answer_quote(&quote, proof, nonce.take(), policy);
            Ok(ZAttestResponse {
                resp_type: ZAttestRespType::AttestRespQuoteResp as i32,
                quote_resp: Some(quote_resp),
                ..Default::default()
            })
        }
        Ok(ZAttestReqType::StoreKeys) => {
            let keys = request.storage_keys.ok_or_else(|| BadRequest("type STORE_KEYS without storage_keys".into()))?;
            let known = proof.token.as_ref().is_some_and(|token| *token == hex::encode(&keys.integrity_token));
            let response = if known {
                if keys.keys.len() > MAX_ITEMS {
                    return Err(BadRequest(format!("at most {MAX_ITEMS} keys, found {}", keys.keys.len())));
                }
                proof.keys = keys.keys.iter().map(|key| hex::encode(key.encode_to_vec())).collect();
                AttestStorageKeysResponseCode::Success
            } else {
                AttestStorageKeysResponseCode::ItokenMismatch
            };
            Ok(ZAttestResponse {
                resp_type: ZAttestRespType::StoreKeys as i32,
                storage_keys_resp: Some(AttestStorageKeysResp { response: response as i32 }),
                ..Default::default()
            })
        }
        _ => Err(BadRequest(format!("reqType: expected 1 to 4, found {}", request.req_type))),
    }
}

fn read_certs(certs: &[ZCert], device: &Cert) -> Result<Vec<DeviceCert>, BadRequest> {
    if certs.len() > MAX_ITEMS {
        return Err(BadRequest(format!("at most {MAX_ITEMS} certificates, found {}", certs.len())));
    }
    let device_key = device.verifying_key("device certificate").map_err(|error| BadRequest(error.to_string()))?;
    let mut out: Vec<DeviceCert> = Vec::new();
    for cert in certs {
        let name = format!("certificate of type {}", cert.r#type);
        let bad = |cause: String| BadRequest(format!("{name}: {cause}"));
        let kind = ZCertType::try_from(cert.r#type).map_err(|_| bad("unknown type".into()))?;
        let signed_by_device = match kind {
            ZCertType::CertTypeDeviceRestrictedSigning | ZCertType::CertTypeDeviceEcdhExchange => true,
            // An endorsement certificate comes from the TPM's maker, or from nobody.
            ZCertType::CertTypeDeviceEndorsementRsa => false,
            _ => return Err(bad("expected 11, 12 or 13 from a device".into())),
        };
        let read = Cert::from_pem(&name, &cert.cert).map_err(|error| bad(error.to_string()))?;
        // EVE hashes the PEM file as it is; a trimmed text is the same file to any reader.
        let hashes = [Sha256::digest(&cert.cert).into(), crate::x509::pem_hash(&read.pem)];
        let length = match HashAlgorithm::try_from(cert.hash_algo) {
            Ok(HashAlgorithm::Sha25616bytes) => 16,
            Ok(HashAlgorithm::Sha25632bytes) => 32,
            _ => {
                return Err(bad(format!("hashAlgo: expected 1 or 2, found {}", cert.hash_algo)));
            }
        };
        if !hashes.iter().any(|hash: &[u8; 32]| hash[..length] == cert.cert_hash) {
            return Err(bad("certHash is not the hash of the PEM text".into()));
        }
        if signed_by_device {
            read.verifying_key(&name).map_err(|error| bad(error.to_string()))?;
            if !read.is_signed_by(&device_key) {
                return Err(bad("is not signed by the device key".into()));
            }
        }
        // The maker's endorsement certificate may come beside the device's own.
        if signed_by_device && out.iter().any(|known| known.kind == cert.r#type) {
            return Err(bad("sent twice".into()));
        }
        out.push(DeviceCert {
            kind: cert.r#type,
            hash: hex::encode(&cert.cert_hash),
            pem: read.pem,
            is_tpm: cert.attributes.as_ref().is_some_and(|attributes| attributes.is_tpm),
        });
    }
    Ok(out)
}

fn answer_quote(quote: &ZAttestQuote, proof: &mut Proof, nonce: Option<Nonce>, policy: &Policy) -> ZAttestQuoteResp {
    let mut report = Report::default();
    let outcome = check_quote(quote, proof, nonce, policy, &mut report);
    let (code, reason) = match outcome {
        Ok(reason) => (ZAttestResponseCode::Success, reason),
        Err((code, reason)) => (code, reason),
    };
    report.accepted = code == ZAttestResponseCode::Success;
    report.reason = reason;
    let with_tpm = !report.pcrs.is_empty();
    proof.report = Some(report);
    let mut response = ZAttestQuoteResp { response: code as i32, ..Default::default() };
    if code == ZAttestResponseCode::Success {
        let token = uuid::Uuid::new_v4().as_bytes().to_vec();
        proof.token = Some(hex::encode(&token));
        response.integrity_token = token;
        if with_tpm {
            response.keys = proof
                .keys
                .iter()
                .filter_map(|key| AttestVolumeKey::decode(hex::decode(key).ok()?.as_slice()).ok())
                .collect();
        }
    } else {
        proof.token = None;
    }
    response
}

type Refusal = (ZAttestResponseCode, String);

fn check_quote(
    quote: &ZAttestQuote,
    proof: &Proof,
    nonce: Option<Nonce>,
    policy: &Policy,
    report: &mut Report,
) -> Result<String, Refusal> {
    let failed = |reason: String| (ZAttestResponseCode::QuoteFailed, reason);
    for version in &quote.versions {
        let kind = match AttestVersionType::try_from(version.version_type) {
            Ok(AttestVersionType::Eve) => "eve",
            Ok(AttestVersionType::Firmware) => "firmware",
            _ => continue,
        };
        report.versions.insert(kind.into(), version.version.chars().take(200).collect());
    }
    let certificate = proof.certs.iter().find(|cert| cert.kind == ZCertType::CertTypeDeviceRestrictedSigning as i32);
    if quote.pcr_values.is_empty() {
        return match certificate {
            Some(_) => Err(failed("no PCR values, although the device has a quote certificate".into())),
            None if policy.enforce => Err(failed("no TPM, and the policy asks for one".into())),
            None => Ok("no TPM: nothing is proved".into()),
        };
    }
    let Some(certificate) = certificate else {
        return Err((ZAttestResponseCode::NoCertFound, "the device has not sent a quote certificate (type 11)".into()));
    };
    let cert = Cert::from_pem("quote certificate", certificate.pem.as_bytes()).map_err(|e| failed(e.to_string()))?;
    let key = cert.verifying_key("quote certificate").map_err(|e| failed(e.to_string()))?;
    let signature = Signature::from_der(&quote.signature)
        .or_else(|_| Signature::from_slice(&quote.signature))
        .map_err(|_| failed("signature: neither ASN.1 DER nor 64 bytes of r and s".into()))?;
    key.verify(&quote.attest_data, &signature)
        .map_err(|_| failed("signature: does not verify with the quote certificate".into()))?;
    let attested = Quote::parse(&quote.attest_data).map_err(|e| failed(e.to_string()))?;
    let fresh = nonce.is_some_and(|nonce| nonce.since.elapsed() < NONCE_LIFETIME && nonce.value == attested.extra_data);
    if !fresh {
        return Err((
            ZAttestResponseCode::NonceMismatch,
            "extraData is not a nonce that was handed out, unused and less than five minutes old".into(),
        ));
    }
    let mut values: BTreeMap<u32, Pcr> = BTreeMap::new();
    for value in &quote.pcr_values {
        if value.hash_algo != TpmHashAlgo::Sha256 as i32 {
            return Err(failed(format!("PCR {}: hash: expected SHA-256, found {}", value.index, value.hash_algo)));
        }
        let bytes = Pcr::try_from(value.value.as_slice())
            .map_err(|_| failed(format!("PCR {}: expected 32 bytes, found {}", value.index, value.value.len())))?;
        if values.insert(value.index, bytes).is_some() {
            return Err(failed(format!("PCR {}: sent twice", value.index)));
        }
    }
    attested.check_values(&values).map_err(|e| failed(e.to_string()))?;
    if let Some(missing) = (0..QUOTED).find(|index| !values.contains_key(index)) {
        return Err(failed(format!("PCR {missing}: is not part of the quote; expected PCRs 0 to 15")));
    }
    report.pcrs = values.iter().map(|(index, value)| (*index, hex::encode(value))).collect();
    if !quote.tpm_binary_event_log.is_empty() {
        match tpm::replay_gzip(&quote.tpm_binary_event_log) {
            Ok(replay) => {
                report.events = Some(replay.events);
                report.log_mismatches = replay.mismatches(&values);
                let unexplained =
                    policy.event_log_must_lead_to.iter().find(|index| replay.pcrs.get(index) != values.get(index));
                if let Some(index) = unexplained {
                    return Err(failed(format!("PCR {index}: the event log does not lead to the quoted value")));
                }
            }
            Err(error) => report.log_error = error.to_string(),
        }
    }
    if !policy.event_log_must_lead_to.is_empty() && report.events.is_none() {
        return Err(failed("event log: the policy asks for one that can be read".into()));
    }
    if policy.enforce && !policy.templates.iter().any(|template| template.matches(report)) {
        return Err(failed(mismatch(&policy.templates, report)));
    }
    Ok("quote by the TPM's key over PCRs 0 to 15".into())
}

/// Says which PCR of the nearest template differs: without it nobody can tell what moved.
fn mismatch(templates: &[Template], report: &Report) -> String {
    let differing = |template: &Template| -> Vec<String> {
        template
            .pcrs
            .iter()
            .filter(|(index, wanted)| {
                *wanted != "*" && report.pcrs.get(index).is_none_or(|found| !found.eq_ignore_ascii_case(wanted))
            })
            .map(|(index, wanted)| {
                let found = report.pcrs.get(index).map_or("none", String::as_str);
                format!("PCR {index}: expected {wanted}, found {found}")
            })
            .collect()
    };
    match templates.iter().map(differing).min_by_key(Vec::len) {
        None => "policy: there is no template".into(),
        Some(list) if list.is_empty() => {
            format!("policy: no template for the versions {:?}", report.versions)
        }
        Some(list) => format!("policy: {}", list.join("; ")),
    }
}

/// Fuzz entry: an attestation request of any bytes, before and after a nonce was handed out.
#[doc(hidden)]
pub fn fuzz_attest(data: &[u8]) {
    let Ok(device) = Cert::from_pem("device", FUZZ_CERT.as_bytes()) else {
        return;
    };
    let mut proof = Proof::default();
    let mut nonce = Some(Nonce { value: b"x".to_vec(), since: Instant::now() });
    let _ = answer(data, &device, &mut proof, &mut nonce, &Policy::default());
}

const FUZZ_CERT: &str = include_str!("../tests/data/device.cert.pem");

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_api::proto::attest::TpmPcrValue;
    use proptest::prelude::*;

    fn request() -> Vec<u8> {
        ZAttestReq {
            req_type: ZAttestReqType::AttestReqQuote as i32,
            quote: Some(ZAttestQuote {
                attest_data: vec![1; 40],
                signature: vec![2; 64],
                pcr_values: vec![TpmPcrValue { index: 1, hash_algo: 2, value: vec![3; 32] }],
                ..Default::default()
            }),
            ..Default::default()
        }
        .encode_to_vec()
    }

    #[test]
    fn a_policy_without_a_tpm_is_only_met_by_a_tpm() {
        let quote = ZAttestQuote::default();
        let mut proof = Proof::default();
        let open = answer_quote(&quote, &mut proof, None, &Policy::default());
        assert_eq!(open.response, ZAttestResponseCode::Success as i32);
        assert!(proof.token.is_some());
        let policy = Policy { enforce: true, ..Policy::default() };
        let closed = answer_quote(&quote, &mut proof, None, &policy);
        assert_eq!(closed.response, ZAttestResponseCode::QuoteFailed as i32);
        assert!(closed.integrity_token.is_empty() && proof.token.is_none());
    }

    #[test]
    fn an_old_nonce_is_not_taken() {
        let device = Cert::from_pem("device", FUZZ_CERT.as_bytes()).expect("certificate");
        let mut nonce = None;
        let ask = ZAttestReq { req_type: 2, ..Default::default() }.encode_to_vec();
        answer(&ask, &device, &mut Proof::default(), &mut nonce, &Policy::default()).expect("nonce");
        let first = nonce.clone().expect("nonce").value;
        answer(&ask, &device, &mut Proof::default(), &mut nonce, &Policy::default()).expect("nonce");
        assert_ne!(nonce.clone().expect("nonce").value, first, "only the latest counts");
        answer(&request(), &device, &mut Proof::default(), &mut nonce, &Policy::default()).expect("answer");
        assert!(nonce.is_none(), "a quote uses the nonce up, good or bad");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn damaged_requests_are_answered_without_panic(at in 0usize..200, value: u8, cut in 0usize..200) {
            let mut data = request();
            let at = at % data.len();
            data[at] = value;
            data.truncate(cut);
            fuzz_attest(&data);
        }
    }
}
