//! Hashes by which envelopes and cipher contexts name certificates.
//!
//! | certificate of | hash over |
//! |---|---|
//! | the device (device and onboarding key) | DER |
//! | the controller | PEM text, white space trimmed at both ends |
//! | the device, in attestation and cipher contexts | PEM text |

use ring::digest;

/// SHA-256.
#[must_use]
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    out
}

/// SHA-256 of a PEM text without the white space around it.
#[must_use]
pub fn trimmed_pem_hash(pem: &[u8]) -> [u8; 32] {
    sha256(trim(pem))
}

/// True when `received`, 16 or 32 bytes long, is the start of `full`. No other length ever matches.
#[must_use]
pub fn names(received: &[u8], full: &[u8; 32]) -> bool {
    matches!(received.len(), 16 | 32) && full.starts_with(received)
}

/// True when `received` names the certificate with this PEM text, trimmed or as it stands.
#[must_use]
pub fn names_pem(received: &[u8], pem: &[u8]) -> bool {
    names(received, &trimmed_pem_hash(pem)) || names(received, &sha256(pem))
}

/// `text` without ASCII white space (vertical tab included) at both ends.
fn trim(text: &[u8]) -> &[u8] {
    let space = |b: &u8| b.is_ascii_whitespace() || *b == 0x0b;
    let start = text.iter().position(|b| !space(b)).unwrap_or(text.len());
    let end = text.iter().rposition(|b| !space(b)).map_or(start, |last| last + 1);
    &text[start..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn white_space_around_a_pem_text_does_not_change_its_hash() {
        let text = b"-----BEGIN X-----\nAA\n-----END X-----";
        let padded = [b"\n\t ".as_slice(), text, b" \r\n\x0b\x0c"].concat();
        assert_eq!(trimmed_pem_hash(&padded), sha256(text));
        assert_ne!(sha256(&padded), sha256(text));
        assert_eq!(trimmed_pem_hash(b" \n "), sha256(b""));
    }

    #[test]
    fn only_the_first_16_or_all_32_bytes_name_a_certificate() {
        let full = sha256(b"certificate");
        for length in 0..=32 {
            assert_eq!(names(&full[..length], &full), length == 16 || length == 32, "{length} bytes");
        }
        assert!(!names(&[full.as_slice(), &[0]].concat(), &full));
        let mut other = full;
        other[15] ^= 1;
        assert!(!names(&other[..16], &full));
    }
}
