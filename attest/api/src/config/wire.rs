//! The fields of an encoded message, without knowing its type (protobuf wire format).

/// What a field holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Value<'a> {
    /// A number of any kind: whole, boolean, enum, fixed width.
    Number(u64),
    /// A text, bytes, a message, or packed numbers.
    Bytes(&'a [u8]),
}

/// Calls `field` for each field in order, with its number. Ends at the first byte that is no protobuf.
pub(super) fn each<'a>(mut bytes: &'a [u8], mut field: impl FnMut(u32, Value<'a>)) {
    while let Some((number, value)) = next(&mut bytes) {
        field(number, value);
    }
}

fn next<'a>(bytes: &mut &'a [u8]) -> Option<(u32, Value<'a>)> {
    let key = varint(bytes)?;
    let value = match key & 7 {
        0 => Value::Number(varint(bytes)?),
        1 => Value::Number(u64::from_le_bytes(take(bytes, 8)?.try_into().ok()?)),
        2 => {
            let length = usize::try_from(varint(bytes)?).ok()?;
            Value::Bytes(take(bytes, length)?)
        }
        5 => Value::Number(u32::from_le_bytes(take(bytes, 4)?.try_into().ok()?).into()),
        _ => return None, // groups, which proto3 does not have
    };
    Some((u32::try_from(key >> 3).ok()?, value))
}

fn take<'a>(bytes: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (taken, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    Some(taken)
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = take(bytes, 1)?[0];
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(bytes: &[u8]) -> Vec<(u32, Value<'_>)> {
        let mut found = Vec::new();
        each(bytes, |number, value| found.push((number, value)));
        found
    }

    #[test]
    fn fields_of_each_wire_type_are_found() {
        let bytes = [0x08, 0x96, 0x01, 0x12, 2, b'h', b'i', 0x1d, 1, 0, 0, 0, 0x21, 2, 0, 0, 0, 0, 0, 0, 0];
        let expected =
            [(1, Value::Number(150)), (2, Value::Bytes(b"hi")), (3, Value::Number(1)), (4, Value::Number(2))];
        assert_eq!(fields(&bytes), expected);
    }

    #[test]
    fn what_is_no_protobuf_ends_the_walk() {
        for bytes in [&[0x08][..], &[0x12, 9, 1], &[0x0b], &[0xff; 12], &[0x1d, 1]] {
            assert_eq!(fields(bytes), [], "{bytes:?}");
        }
    }
}
