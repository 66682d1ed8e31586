//! What checks write: shared by the payload and by the tests that look from outside.

/// Bytes of a disk sector.
pub const SECTOR: usize = 512;

/// A step of splitmix64: a number that looks random, from any number.
pub fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

/// Fills a sector with what `seed` says sector `number` holds: every word differs from its neighbours in place and time.
pub fn fill_sector(bytes: &mut [u8], seed: u64, number: u64) {
    for (n, word) in (0u64..).zip(bytes.chunks_exact_mut(8)) {
        word.copy_from_slice(&mix(seed << 48 ^ number << 8 ^ n).to_le_bytes());
    }
}

/// Whether a sector holds what [`fill_sector`] puts there.
pub fn is_sector(bytes: &[u8], seed: u64, number: u64) -> bool {
    (0u64..).zip(bytes.chunks_exact(8)).all(|(n, word)| word == mix(seed << 48 ^ number << 8 ^ n).to_le_bytes())
}
