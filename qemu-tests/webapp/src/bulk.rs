//! Many bytes that nobody can guess and everybody can check: the same stream each time, whole or cut short.
//!
//! It is that of xorshift64* (Vigna, "An experimental exploration of Marsaglia's xorshift generators, scrambled", 2014), its
//! numbers as eight bytes each, little-endian. The first 4 MiB have the SHA-256
//! `aec939e1948e860ea9ef40c85e67cbd926945a5425d08f41dea8072b1c581d61`, which a test here and the scenarios pin.

use std::io::{self, Write};

/// Most bytes of one answer.
pub const MAX_BYTES: u64 = 64 << 20;
/// Where the generator begins: any number but 0 does.
const SEED: u64 = 0x9e37_79b9_7f4a_7c15;
/// Bytes made between two writes.
const CHUNK: u64 = 32 * 1024;

/// Writes the first `bytes` bytes of the stream.
///
/// # Errors
/// When the reader went away.
pub fn write(out: &mut impl Write, bytes: u64) -> io::Result<()> {
    let mut state = SEED;
    let mut chunk = Vec::with_capacity(CHUNK as usize);
    let mut left = bytes;
    while left > 0 {
        chunk.clear();
        while (chunk.len() as u64) < left.min(CHUNK) {
            chunk.extend_from_slice(&next(&mut state).to_le_bytes());
        }
        chunk.truncate(usize::try_from(left).unwrap_or(usize::MAX).min(chunk.len()));
        out.write_all(&chunk)?;
        left -= chunk.len() as u64;
    }
    Ok(())
}

fn next(state: &mut u64) -> u64 {
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    state.wrapping_mul(0x2545_f491_4f6c_dd1d)
}

#[cfg(test)]
mod tests {
    use super::*;
    use sha2::{Digest, Sha256};

    fn stream(bytes: u64) -> Vec<u8> {
        let mut out = Vec::new();
        write(&mut out, bytes).unwrap();
        out
    }

    #[test]
    fn the_stream_is_the_one_that_tests_know() {
        let digest = Sha256::digest(stream(4 << 20));
        let text: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(text, "aec939e1948e860ea9ef40c85e67cbd926945a5425d08f41dea8072b1c581d61");
    }

    #[test]
    fn a_short_stream_is_the_beginning_of_a_long_one() {
        let long = stream(CHUNK + 100);
        for bytes in [0, 1, 7, 8, 9, CHUNK - 1, CHUNK, CHUNK + 1] {
            let short = stream(bytes);
            assert_eq!(short.len() as u64, bytes);
            assert!(long.starts_with(&short), "{bytes}");
        }
    }
}
