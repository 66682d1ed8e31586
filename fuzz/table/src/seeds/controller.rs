//! Seeds of what goes to and comes from the controller.

use super::Seeds;
use flate2::{Compression, GzBuilder};
use holdfast_api::proto;
use prost::Message as _;
use std::io::Write;

/// An envelope around a small payload.
#[must_use]
pub fn envelope() -> Seeds {
    let inner = proto::certs::ZControllerCert::default().encode_to_vec();
    let container = proto::auth::AuthContainer {
        protected_payload: Some(proto::auth::AuthBody { payload: inner }),
        sender_cert_hash: vec![1; 32],
        signature_hash: vec![2; 64],
        ..Default::default()
    };
    vec![container.encode_to_vec()]
}

/// A config with one of most things.
#[must_use]
pub fn config() -> Seeds {
    let id = |n: u32| {
        Some(proto::config::UuiDandVersion { uuid: format!("00000000-0000-0000-0000-{n:012}"), version: "1".into() })
    };
    let config = proto::config::EdgeDevConfig {
        id: id(1),
        apps: vec![proto::config::AppInstanceConfig {
            uuidandversion: id(2),
            displayname: "web".into(),
            activate: true,
            ..Default::default()
        }],
        network_instances: vec![proto::config::NetworkInstanceConfig {
            uuidandversion: id(3),
            displayname: "local".into(),
            ..Default::default()
        }],
        config_items: vec![proto::config::ConfigItem { key: "timer.config.interval".into(), value: "30".into() }],
        ..Default::default()
    };
    let response = proto::config::ConfigResponse { config: Some(config), config_hash: "h".into() };
    vec![response.encode_to_vec()]
}

/// A reply of attestation with a nonce.
#[must_use]
pub fn attest_response() -> Seeds {
    let response = proto::attest::ZAttestResponse {
        nonce: Some(proto::attest::ZAttestNonceResp { nonce: vec![7; 32] }),
        ..Default::default()
    };
    vec![response.encode_to_vec()]
}

/// A request with a quote.
#[must_use]
pub fn attest_request() -> Seeds {
    let request = proto::attest::ZAttestReq {
        req_type: proto::attest::ZAttestReqType::AttestReqQuote as i32,
        quote: Some(proto::attest::ZAttestQuote {
            attest_data: quote().remove(0),
            signature: vec![2; 64],
            ..Default::default()
        }),
        ..Default::default()
    };
    vec![request.encode_to_vec()]
}

/// A TPMS_ATTEST of a quote over PCR 0 (TPM 2.0 part 2, 10.12.12).
#[must_use]
pub fn quote() -> Seeds {
    let mut out = vec![0xff, 0x54, 0x43, 0x47, 0x80, 0x18, 0, 0, 0, 4, 1, 2, 3, 4];
    out.extend([0; 25]);
    out.extend([0, 0, 0, 1, 0, 0x0b, 3, 1, 0, 0, 0, 32]);
    out.extend([5; 32]);
    vec![out]
}

/// A certificate in PEM.
#[must_use]
pub fn certificate() -> Seeds {
    vec![include_bytes!("../../../../qemu-tests/controller/tests/data/device.cert.pem").to_vec()]
}

/// A stored config file's head.
#[must_use]
pub fn config_file() -> Seeds {
    vec![[b"HFCONF1\n".as_slice(), &[2, 0, 0, 0], b"ab", &[3, 0, 0, 0], b"xyz", &[0; 32]].concat()]
}

/// A gzip upload of log lines.
#[must_use]
pub fn logs() -> Seeds {
    let line =
        r#"{"severity":"info","source":"node","iid":"7","content":"hi","msgid":3,"timestamp":{"seconds":5,"nanos":6}}"#;
    let mut encoder = GzBuilder::new()
        .comment(r#"{"devID":"d","image":"IMGA","eveVersion":"1"}"#)
        .write(Vec::new(), Compression::fast());
    let _ = encoder.write_all(line.as_bytes());
    encoder.finish().into_iter().collect()
}
