//! Changes to bytes that parsers fear: flipped bits, cuts, splices, repeats, lengths that lie.

/// A small, fast generator (SplitMix64): the same numbers on every machine.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// From a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `bound`; 0 for a bound of 0.
    pub fn below(&mut self, bound: usize) -> usize {
        if bound == 0 { 0 } else { usize::try_from(self.number() % bound as u64).unwrap_or(0) }
    }
}

/// Numbers that sit at the edges of integer types and of common limits.
const EDGES: [u64; 12] =
    [0, 1, 0x7f, 0x80, 0xff, 0x7fff, 0xffff, 0x7fff_ffff, 0xffff_ffff, 0x7fff_ffff_ffff_ffff, u64::MAX - 1, u64::MAX];

/// Pieces that mean something to some parser: nesting, ends of lines, escapes, digits too large.
const WORDS: [&[u8]; 16] = [
    b"[",
    b"{\"a\":",
    b"\"",
    b"\\u0000",
    b"\r\n",
    b"\0",
    b"../",
    b"/",
    b"-1",
    b"18446744073709551616",
    b"1e999",
    b"null",
    b"\xc0\x0c",
    b"\xff\xff\xff\xff\xff\xff\xff\xff\x7f",
    b".wh.",
    b"%",
];

/// Changes `data` one to four times; the result has at most `max` bytes. `other` is what is spliced in.
pub fn mutate(random: &mut Random, data: &mut Vec<u8>, other: &[u8], max: usize) {
    for _ in 0..=random.below(4) {
        once(random, data, other);
        data.truncate(max);
    }
}

fn once(random: &mut Random, data: &mut Vec<u8>, other: &[u8]) {
    let at = random.below(data.len());
    match random.below(9) {
        // A bit, a byte.
        0 => {
            if let Some(byte) = data.get_mut(at) {
                *byte ^= 1 << random.below(8);
            }
        }
        1 => {
            let value = u8::try_from(random.below(256)).unwrap_or(0);
            if let Some(byte) = data.get_mut(at) {
                *byte = value;
            }
        }
        // Cut the end, or a piece.
        2 => data.truncate(at),
        3 => {
            let end = (at + 1 + random.below(32)).min(data.len());
            data.drain(at.min(end)..end);
        }
        // A piece again, once or so often that recursion and totals show.
        4 => {
            let end = (at + 1 + random.below(64)).min(data.len());
            let piece = data[at.min(end)..end].to_vec();
            let times = if random.below(8) == 0 { 1 + random.below(400) } else { 1 + random.below(3) };
            insert(data, at, &piece.repeat(times));
        }
        // A piece of another sample.
        5 => {
            let from = random.below(other.len());
            let to = (from + 1 + random.below(128)).min(other.len());
            insert(data, at, &other[from.min(to)..to]);
        }
        // A length field that lies: an edge number, or the true number and a little, in either order of bytes.
        6 => {
            let width = [1, 2, 4, 8][random.below(4)];
            let number = if random.below(2) == 0 {
                EDGES[random.below(EDGES.len())]
            } else {
                (data.len() as u64).wrapping_add(random.number() % 9).wrapping_sub(4)
            };
            let bytes = if random.below(2) == 0 {
                number.to_le_bytes()[..width].to_vec()
            } else {
                number.to_be_bytes()[8 - width..].to_vec()
            };
            for (target, byte) in data.iter_mut().skip(at).zip(bytes) {
                *target = byte;
            }
        }
        7 => insert(data, at, WORDS[random.below(WORDS.len())]),
        // A run of one value.
        _ => {
            let value = [0, 0xff, b'0', b'A'][random.below(4)];
            let length = 1 + random.below(64);
            insert(data, at, &vec![value; length]);
        }
    }
}

fn insert(data: &mut Vec<u8>, at: usize, piece: &[u8]) {
    let at = at.min(data.len());
    data.splice(at..at, piece.iter().copied());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_makes_the_same_bytes_and_the_bound_holds() {
        let run = || {
            let mut random = Random::new(7);
            let mut data = b"some sample of bytes".to_vec();
            for _ in 0..2000 {
                mutate(&mut random, &mut data, b"another sample", 512);
                assert!(data.len() <= 512);
            }
            data
        };
        assert_eq!(run(), run());
    }

    #[test]
    fn every_kind_of_change_happens() {
        let mut random = Random::new(1);
        let sample = vec![5u8; 64];
        let (mut longer, mut shorter, mut same) = (0, 0, 0);
        for _ in 0..1000 {
            let mut data = sample.clone();
            once(&mut random, &mut data, b"xyz");
            match data.len().cmp(&sample.len()) {
                std::cmp::Ordering::Greater => longer += 1,
                std::cmp::Ordering::Less => shorter += 1,
                std::cmp::Ordering::Equal => same += 1,
            }
        }
        assert!(longer > 100 && shorter > 100 && same > 100, "{longer} {shorter} {same}");
    }
}
