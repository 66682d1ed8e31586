use super::*;
use crate::release::{Kind, PRODUCT, Release};
use p256::ecdsa::SigningKey;
use proptest::prelude::*;

fn key() -> SigningKey {
    SigningKey::from_slice(&[7; 32]).unwrap()
}

fn release() -> Release {
    Release { product: PRODUCT.into(), version: "1.2.3".into(), epoch: 2, kind: Kind::Dev }
}

fn expect() -> Expect {
    Expect {
        product: PRODUCT.into(),
        keys: vec![*SigningKey::from_slice(&[8; 32]).unwrap().verifying_key(), *key().verifying_key()],
        min_epoch: 2,
        os_bytes: 8 << 20,
        esp_bytes: 4 << 20,
    }
}

/// For tests that check thousands of signatures: only the key that signed.
fn expect_one_key() -> Expect {
    Expect { keys: vec![*key().verifying_key()], ..expect() }
}

/// An OS image with a packable, a zero, an unpackable and a short chunk.
fn os_image() -> Vec<u8> {
    let mut os = vec![b'x'; CHUNK as usize];
    os.extend(vec![0; CHUNK as usize]);
    let mut seed = 1u32;
    os.extend((0..CHUNK).map(|_| {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (seed >> 24) as u8
    }));
    os.extend(b"tail");
    os
}

fn payload(os: &[u8], esp: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    write(&mut out, &release(), Images { os, esp }, &key()).unwrap();
    out
}

/// Reads in pieces of `step` bytes; the images as they would be written.
fn read(bytes: &[u8], step: usize, expect: Expect) -> Result<(Vec<u8>, Vec<u8>), PayloadError> {
    let mut reader = Reader::new(expect);
    let (mut os, mut esp) = (Vec::new(), Vec::new());
    for mut piece in bytes.chunks(step) {
        while let Some(chunk) = reader.next(&mut piece)? {
            let image = if chunk.image == ImageKind::Os { &mut os } else { &mut esp };
            assert_eq!(chunk.offset, image.len() as u64);
            match chunk.body {
                Body::Zero(n) => image.resize(image.len() + n as usize, 0),
                Body::Data(d) => image.extend(d),
            }
        }
    }
    let manifest = reader.finish()?;
    assert_eq!(manifest.version, "1.2.3");
    Ok((os, esp))
}

#[test]
fn a_payload_round_trips_in_any_split_and_is_reproducible() {
    let (os, esp) = (os_image(), b"esp".to_vec());
    let bytes = payload(&os, &esp);
    assert_eq!(bytes, payload(&os, &esp));
    assert!(bytes.len() < os.len() - 1_900_000, "zeros and text are not stored: {}", bytes.len());
    for step in [997, 65536, usize::MAX >> 1] {
        assert!(read(&bytes, step, expect()).unwrap() == (os.clone(), esp.clone()));
    }
    assert_eq!(read(&payload(b"o", b"e"), 1, expect()), Ok((b"o".to_vec(), b"e".to_vec())));
}

#[test]
fn what_does_not_fit_this_machine_is_named() {
    let bytes = payload(&os_image(), b"esp");
    let refuse = |change: fn(&mut Expect)| {
        let mut e = expect();
        change(&mut e);
        read(&bytes, 4096, e).unwrap_err()
    };
    assert!(matches!(refuse(|e| e.product = "other".into()), PayloadError::Product { .. }));
    assert_eq!(refuse(|e| e.keys.truncate(1)), PayloadError::Signature { keys: 1 });
    assert!(matches!(refuse(|e| e.min_epoch = 3), PayloadError::Epoch { found: 2, expected: 3, .. }));
    assert!(matches!(refuse(|e| e.os_bytes = 1 << 20), PayloadError::TooLarge { image: ImageKind::Os, .. }));
    assert!(matches!(read(b"<html>404 not found</html>", 7, expect()), Err(PayloadError::Magic { .. })));
    assert!(matches!(read(&[bytes.clone(), vec![0]].concat(), 4096, expect()), Err(PayloadError::Trailing { .. })));
}

#[test]
fn every_truncation_is_refused() {
    let bytes = payload(&vec![b'o'; 300_000], b"esp image");
    for n in 0..bytes.len() {
        let e = read(&bytes[..n], 512, expect_one_key()).unwrap_err();
        assert!(
            matches!(e, PayloadError::Truncated { found, expected } if found == n as u64 && expected > found),
            "{n}: {e}"
        );
    }
}

#[test]
fn every_flipped_byte_is_refused_before_it_is_handed_out() {
    let (os, esp) = (vec![b'o'; 3000], b"esp image that is not packed".to_vec());
    let bytes = payload(&os, &esp);
    for at in 0..bytes.len() {
        let mut bad = bytes.clone();
        bad[at] ^= 1 << (at % 8);
        let mut reader = Reader::new(expect_one_key());
        let mut input = &bad[..];
        loop {
            match reader.next(&mut input) {
                Ok(Some(Chunk { image, body: Body::Data(d), .. })) => {
                    assert_eq!(d, if image == ImageKind::Os { os.clone() } else { esp.clone() }, "byte {at}");
                }
                Ok(Some(_)) => panic!("byte {at}: there are no zero chunks"),
                // A changed length field makes the reader wait for what never comes.
                Ok(None) => break,
                Err(_) => {
                    assert_eq!(reader.next(&mut &b""[..]), Err(PayloadError::Failed));
                    break;
                }
            }
        }
        assert!(reader.finish().is_err(), "byte {at} flipped, and the payload is accepted");
    }
}

#[test]
fn nothing_is_handed_out_before_the_signature_is_checked() {
    let bytes = payload(b"os", b"esp");
    let head = bytes.len() - b"osesp".len();
    let mut reader = Reader::new(expect());
    assert_eq!(reader.next(&mut &bytes[..head - 1]), Ok(None));
    assert!(reader.manifest().is_none());
    assert_eq!(reader.next(&mut &bytes[head - 1..head]), Ok(None));
    assert_eq!(reader.manifest().unwrap().total_bytes(), 5);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn flips_in_large_payloads_are_refused(at: prop::sample::Index, bit in 0u8..8) {
        static PAYLOAD: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
        let bytes = PAYLOAD.get_or_init(|| payload(&os_image()[..(CHUNK + 1000) as usize], &vec![3; 100_000]));
        let mut bytes = bytes.clone();
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        prop_assert!(read(&bytes, 10_000, expect()).is_err());
    }

    #[test]
    fn hostile_bytes_do_not_panic(data in prop::collection::vec(any::<u8>(), 0..512)) {
        reader::fuzz_payload(&data);
        reader::fuzz_payload(&[b"HFUPDATE\x01\0\0\0\x10\0\0\0".as_slice(), &data].concat());
    }
}
