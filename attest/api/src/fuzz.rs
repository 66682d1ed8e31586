//! Entries for fuzzing: each takes bytes as a stranger would send them and must return.

use crate::certs::{ControllerCertificates, Roots, ValidAt};
use crate::config;
use crate::envelope::Received;
use crate::proto::attest::ZAttestResponse;
use crate::proto::config::ConfigResponse;
use prost::Message;
use rustls_pki_types::UnixTime;
use std::time::Duration;

/// A P-256 root made for this purpose; its key is gone.
const ROOT: &[u8] = include_bytes!("../testdata/fuzz-root.pem");

/// An envelope.
pub fn fuzz_envelope(data: &[u8]) {
    let _ = Received::parse(data);
}

/// A certificate list in its envelope.
pub fn fuzz_certificates(data: &[u8]) {
    let Ok(roots) = Roots::from_pem(ROOT) else {
        return;
    };
    let now = ValidAt::Time(UnixTime::since_unix_epoch(Duration::from_secs(1_800_000_000)));
    let _ = ControllerCertificates::from_reply(data, &roots, now);
    let _ = ControllerCertificates::from_reply(data, &roots, ValidAt::CheckedBefore);
    let _ = Roots::from_pem(data);
}

/// A config after its envelope was opened.
pub fn fuzz_config(data: &[u8]) {
    if let Ok(response) = ConfigResponse::decode(data) {
        let _ = config::from_response(&response.config.unwrap_or_default(), data, None);
    }
}

/// A reply of attestation.
pub fn fuzz_attest_response(data: &[u8]) {
    let _ = ZAttestResponse::decode(data);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn no_bytes_make_a_parser_panic(data in proptest::collection::vec(any::<u8>(), 0..200)) {
            fuzz_envelope(&data);
            fuzz_certificates(&data);
            fuzz_config(&data);
            fuzz_attest_response(&data);
        }
    }
}
