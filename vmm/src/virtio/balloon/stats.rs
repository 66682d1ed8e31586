//! What a guest says of its memory (virtio 1.3 §5.5.6.3), and what `stats` tells of the balloon.
#![forbid(unsafe_code)]

use holdfast_model::contract::vm::GuestMemory;

/// Bytes of a record: le16 tag, le64 value, packed.
pub const RECORD: usize = 10;
/// Most records taken from one buffer: several times what any specification names.
pub const MAX_RECORDS: usize = 64;

/// Reads whole records; unknown tags are for later versions and ignored, the last of equal ones counts.
pub(super) fn parse(records: &[u8], ram_bytes: u64) -> GuestMemory {
    let mut this = GuestMemory::default();
    for record in records.chunks_exact(RECORD) {
        let (Ok(tag), Ok(value)) = (record[..2].try_into(), record[2..].try_into()) else {
            continue;
        };
        let (tag, value) = (u16::from_le_bytes(tag), u64::from_le_bytes(value));
        // §5.5.6.4, then Linux's of 6.12.
        let (field, is_size) = match tag {
            0 => (&mut this.swap_in_bytes, false),
            1 => (&mut this.swap_out_bytes, false),
            2 => (&mut this.major_faults, false),
            3 => (&mut this.minor_faults, false),
            4 => (&mut this.free_bytes, true),
            5 => (&mut this.total_bytes, true),
            6 => (&mut this.available_bytes, true),
            7 => (&mut this.cache_bytes, true),
            10 => (&mut this.oom_kills, false),
            _ => continue,
        };
        *field = Some(if is_size { value.min(ram_bytes) } else { value });
    }
    this
}
#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn record(tag: u16, value: u64) -> Vec<u8> {
        [&tag.to_le_bytes()[..], &value.to_le_bytes()].concat()
    }

    #[test]
    fn tags_of_the_specification_become_fields() {
        let all: Vec<u8> = (0..=15).flat_map(|tag| record(tag, 100 + u64::from(tag))).collect();
        let found = parse(&all, 1 << 30);
        let expected = GuestMemory {
            total_bytes: Some(105),
            free_bytes: Some(104),
            available_bytes: Some(106),
            cache_bytes: Some(107),
            swap_in_bytes: Some(100),
            swap_out_bytes: Some(101),
            major_faults: Some(102),
            minor_faults: Some(103),
            oom_kills: Some(110),
        };
        assert_eq!(found, expected);
        let text = serde_json::to_string(&GuestMemory { free_bytes: Some(1), ..Default::default() }).unwrap();
        assert_eq!(text, r#"{"free_bytes":1}"#);
    }

    #[test]
    fn claims_beyond_the_guests_ram_are_cut() {
        let found = parse(&[record(5, u64::MAX), record(2, u64::MAX)].concat(), 4096);
        assert_eq!((found.total_bytes, found.major_faults), (Some(4096), Some(u64::MAX)));
    }

    #[test]
    fn unknown_tags_and_a_short_tail_are_ignored() {
        let mut records = [record(4, 7), record(999, 1), record(4, 8)].concat();
        records.extend([4, 0, 1]);
        let found = parse(&records, 100);
        assert_eq!(found, GuestMemory { free_bytes: Some(8), ..Default::default() });
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]
        #[test]
        fn sizes_stay_within_ram(data in proptest::collection::vec(any::<u8>(), 0..200), ram in 0u64..1 << 40) {
            let found = parse(&data, ram);
            for size in [found.total_bytes, found.free_bytes, found.available_bytes, found.cache_bytes] {
                prop_assert!(size.is_none_or(|size| size <= ram));
            }
        }
    }
}
