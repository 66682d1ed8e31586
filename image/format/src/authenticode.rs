//! Authenticode: the hash that firmware checks a PE image by, and (build only) the signature over it.
//!
//! Sources: Microsoft "Windows Authenticode Portable Executable Signature Format" 1.0; PKCS #7 (RFC 2315).
//! The signature carries no signing time and uses RSA PKCS#1 v1.5, so signing twice gives the same bytes.

use crate::pe::{Pe, PeError};
use sha2::{Digest, Sha256};

/// SHA-256 Authenticode hash: the file without its checksum, its certificate entry and its certificates.
///
/// # Errors
/// [`PeError`] when `image` is not a PE32+ file.
pub fn sha256(image: &[u8]) -> Result<[u8; 32], PeError> {
    let pe = Pe::parse(image)?;
    let (checksum, entry) = (pe.checksum_offset(), pe.certificate_entry_offset());
    let headers = pe.size_of_headers as usize;
    let part = |from: usize, to: usize| image.get(from..to).ok_or(PeError::Malformed("headers are cut short"));
    let mut h = Sha256::new();
    h.update(part(0, checksum)?);
    h.update(part(checksum + 4, entry)?);
    h.update(part(entry + 8, headers)?);
    let mut sections: Vec<_> = pe.sections.iter().filter(|s| s.raw_size != 0).collect();
    sections.sort_by_key(|s| s.raw_offset);
    let mut hashed = headers;
    for s in sections {
        let start = s.raw_offset as usize;
        h.update(part(start, start + s.raw_size as usize)?);
        hashed += s.raw_size as usize;
    }
    // What lies behind the sections, up to the certificates.
    let end = if pe.certificates.1 == 0 { image.len() } else { pe.certificates.0 as usize };
    if end > hashed {
        h.update(part(hashed, end)?);
    }
    Ok(h.finalize().into())
}

#[cfg(feature = "build")]
pub use sign::{SignError, Signer};

#[cfg(feature = "build")]
mod sign {
    use super::{PeError, sha256};
    use crate::pe::Pe;
    use base64::Engine;
    use rsa::pkcs1::DecodeRsaPrivateKey;
    use rsa::pkcs1v15::SigningKey;
    use rsa::pkcs8::DecodePrivateKey;
    use rsa::signature::{SignatureEncoding, Signer as _};
    use sha2::{Digest, Sha256};

    const OID_SIGNED_DATA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07, 0x02];
    const OID_RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01];
    const OID_SHA256: &[u8] = &[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01];
    const OID_CONTENT_TYPE: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x09, 0x03];
    const OID_MESSAGE_DIGEST: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x09, 0x04];
    const OID_SPC_INDIRECT_DATA: &[u8] = &[0x2b, 0x06, 0x01, 0x04, 0x01, 0x82, 0x37, 0x02, 0x01, 0x04];
    const OID_SPC_PE_IMAGE_DATA: &[u8] = &[0x2b, 0x06, 0x01, 0x04, 0x01, 0x82, 0x37, 0x02, 0x01, 0x0f];

    const INTEGER: u8 = 0x02;
    const OCTETS: u8 = 0x04;
    const OID: u8 = 0x06;
    const SEQUENCE: u8 = 0x30;
    const SET: u8 = 0x31;
    const CONTEXT_0: u8 = 0xa0;

    /// Why an image could not be signed.
    #[derive(Debug, thiserror::Error)]
    pub enum SignError {
        /// The image.
        #[error(transparent)]
        Pe(#[from] PeError),
        /// The private key.
        #[error("signing key: {0}; expected an unencrypted RSA key as PKCS#8 or PKCS#1 PEM")]
        Key(String),
        /// The certificate.
        #[error("signing certificate: {0}; expected one X.509 certificate as PEM")]
        Certificate(&'static str),
        /// Signed already.
        #[error("image is signed already")]
        Signed,
    }

    /// A key and its certificate.
    pub struct Signer {
        key: SigningKey<Sha256>,
        certificate: Vec<u8>,
        /// `issuer` and `serialNumber`, DER, as a SignerInfo names them.
        issuer_and_serial: Vec<u8>,
    }

    impl Signer {
        /// From PEM texts.
        ///
        /// # Errors
        /// [`SignError::Key`], [`SignError::Certificate`].
        pub fn from_pem(key: &str, certificate: &str) -> Result<Signer, SignError> {
            let key = rsa::RsaPrivateKey::from_pkcs8_pem(key)
                .or_else(|e| rsa::RsaPrivateKey::from_pkcs1_pem(key).map_err(|_| SignError::Key(e.to_string())))?;
            let certificate = pem_body(certificate).ok_or(SignError::Certificate("no PEM block CERTIFICATE"))?;
            let issuer_and_serial = issuer_and_serial(&certificate).ok_or(SignError::Certificate("malformed DER"))?;
            Ok(Signer { key: SigningKey::new(key), certificate, issuer_and_serial })
        }

        /// The signing certificate, DER: what goes into Secure Boot's db.
        #[must_use]
        pub fn certificate(&self) -> &[u8] {
            &self.certificate
        }

        /// `image` with the signature appended.
        ///
        /// # Errors
        /// [`SignError::Pe`], [`SignError::Signed`].
        pub fn sign(&self, image: &[u8]) -> Result<Vec<u8>, SignError> {
            if Pe::parse(image)?.certificates != (0, 0) {
                return Err(SignError::Signed);
            }
            let mut out = image.to_vec();
            // The certificate table must start at a multiple of 8; the padding is part of what is hashed.
            out.resize(out.len().next_multiple_of(8), 0);
            let pe = Pe::parse(&out)?;
            let blob = self.pkcs7(&sha256(&out)?);
            let length = 8 + blob.len().next_multiple_of(8);
            let offset = out.len() as u32;
            let entry = pe.certificate_entry_offset();
            out[entry..entry + 4].copy_from_slice(&offset.to_le_bytes());
            out[entry + 4..entry + 8].copy_from_slice(&(length as u32).to_le_bytes());
            // WIN_CERTIFICATE: length, revision 2.0, type PKCS_SIGNED_DATA.
            out.extend((length as u32).to_le_bytes());
            out.extend([0x00, 0x02, 0x02, 0x00]);
            out.extend(&blob);
            out.resize(offset as usize + length, 0);
            Ok(out)
        }

        fn pkcs7(&self, image_hash: &[u8; 32]) -> Vec<u8> {
            let sha256_id = der(SEQUENCE, &[&der(OID, &[OID_SHA256]), &[0x05, 0x00]]);
            let rsa_id = der(SEQUENCE, &[&der(OID, &[OID_RSA]), &[0x05, 0x00]]);
            // SpcPeImageData: no flags, and the file name that every signer writes.
            let obsolete: Vec<u8> = "<<<Obsolete>>>".encode_utf16().flat_map(u16::to_be_bytes).collect();
            let file = der(CONTEXT_0, &[&der(0xa2, &[&der(0x80, &[&obsolete])])]);
            let pe_data = der(SEQUENCE, &[&[0x03, 0x01, 0x00], &file]);
            let spc_content = [
                der(SEQUENCE, &[&der(OID, &[OID_SPC_PE_IMAGE_DATA]), &pe_data]),
                der(SEQUENCE, &[&sha256_id, &der(OCTETS, &[image_hash])]),
            ]
            .concat();
            // The message digest covers the content of the outer SEQUENCE, without its tag and length.
            let digest = Sha256::digest(&spc_content);
            let spc = der(SEQUENCE, &[&spc_content]);
            let attributes = [
                attribute(OID_CONTENT_TYPE, &der(OID, &[OID_SPC_INDIRECT_DATA])),
                attribute(OID_MESSAGE_DIGEST, &der(OCTETS, &[&digest])),
            ]
            .concat();
            // Signed as a SET, stored under the implicit tag [0].
            let signature = self.key.sign(&der(SET, &[&attributes])).to_vec();
            let one = der(INTEGER, &[&[1]]);
            let signer_info = der(
                SEQUENCE,
                &[
                    &one,
                    &self.issuer_and_serial,
                    &sha256_id,
                    &der(CONTEXT_0, &[&attributes]),
                    &rsa_id,
                    &der(OCTETS, &[&signature]),
                ],
            );
            let content = der(SEQUENCE, &[&der(OID, &[OID_SPC_INDIRECT_DATA]), &der(CONTEXT_0, &[&spc])]);
            let signed = der(
                SEQUENCE,
                &[
                    &one,
                    &der(SET, &[&sha256_id]),
                    &content,
                    &der(CONTEXT_0, &[&self.certificate]),
                    &der(SET, &[&signer_info]),
                ],
            );
            der(SEQUENCE, &[&der(OID, &[OID_SIGNED_DATA]), &der(CONTEXT_0, &[&signed])])
        }
    }

    fn attribute(oid: &[u8], value: &[u8]) -> Vec<u8> {
        der(SEQUENCE, &[&der(OID, &[oid]), &der(SET, &[value])])
    }

    /// One DER element.
    fn der(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
        let len: usize = parts.iter().map(|p| p.len()).sum();
        let mut out = vec![tag];
        if len < 0x80 {
            out.push(len as u8);
        } else {
            let bytes = len.to_be_bytes();
            let skip = bytes.iter().take_while(|b| **b == 0).count();
            out.push(0x80 | (bytes.len() - skip) as u8);
            out.extend(&bytes[skip..]);
        }
        parts.iter().for_each(|p| out.extend_from_slice(p));
        out
    }

    /// One DER element and what follows it.
    struct Element<'a> {
        tag: u8,
        whole: &'a [u8],
        content: &'a [u8],
        rest: &'a [u8],
    }

    /// Splits one DER element off.
    fn element(b: &[u8]) -> Option<Element<'_>> {
        let (tag, first) = (*b.first()?, *b.get(1)? as usize);
        let (head, len) = if first < 0x80 {
            (2, first)
        } else {
            let n = first & 0x7f;
            let digits = b.get(2..2 + n).filter(|_| (1..=4).contains(&n))?;
            (2 + n, digits.iter().fold(0usize, |a, d| a << 8 | usize::from(*d)))
        };
        let end = head.checked_add(len)?;
        Some(Element { tag, whole: b.get(..end)?, content: b.get(head..end)?, rest: b.get(end..)? })
    }

    /// TBSCertificate: [0] version, serialNumber, signature, issuer, ... (RFC 5280 §4.1).
    fn issuer_and_serial(certificate: &[u8]) -> Option<Vec<u8>> {
        let mut tbs = element(element(certificate)?.content)?.content;
        if *tbs.first()? == CONTEXT_0 {
            tbs = element(tbs)?.rest;
        }
        let serial = element(tbs)?;
        let algorithm = element(serial.rest)?;
        let issuer = element(algorithm.rest)?;
        let known = serial.tag == INTEGER && issuer.tag == SEQUENCE;
        known.then(|| der(SEQUENCE, &[issuer.whole, serial.whole]))
    }

    fn pem_body(pem: &str) -> Option<Vec<u8>> {
        let (_, rest) = pem.split_once("-----BEGIN CERTIFICATE-----")?;
        let (body, _) = rest.split_once("-----END CERTIFICATE-----")?;
        let body: String = body.split_whitespace().collect();
        base64::engine::general_purpose::STANDARD.decode(body).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pe::tiny_pe;

    #[test]
    fn checksum_and_signature_do_not_change_the_hash_and_code_does() {
        let mut pe = tiny_pe();
        let before = sha256(&pe).unwrap();
        pe[0x98 + 64] = 0xff;
        assert_eq!(sha256(&pe).unwrap(), before);
        pe[0x400] ^= 1;
        assert_ne!(sha256(&pe).unwrap(), before);
    }
}
