//! IPv4 and UDP headers around a message on a packet socket (RFC 791, RFC 768).

use std::net::Ipv4Addr;

/// A datagram as it came.
#[derive(Debug, PartialEq, Eq)]
pub struct Datagram<'a> {
    /// Source address.
    pub source: Ipv4Addr,
    /// Destination address.
    pub destination: Ipv4Addr,
    /// Source port.
    pub source_port: u16,
    /// UDP payload.
    pub payload: &'a [u8],
}

fn sum(data: &[u8], start: u32) -> u32 {
    let (pairs, rest) = data.as_chunks::<2>();
    let last = rest.first().map_or(0, |b| u32::from(*b) << 8);
    pairs.iter().fold(start, |s, p| s + u32::from(u16::from_be_bytes(*p))) + last
}

fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

fn pseudo(source: Ipv4Addr, destination: Ipv4Addr, udp_len: u16) -> u32 {
    let s = sum(&source.octets(), 17 + u32::from(udp_len));
    sum(&destination.octets(), s)
}

/// Reads an IPv4 packet with a UDP datagram for `port`. `None` when it is anything else, a fragment, cut, or (when
/// `check_udp`) damaged. Without `check_udp` the sender left the checksum to hardware that was never there.
#[must_use]
pub fn parse_udp(packet: &[u8], port: u16, check_udp: bool) -> Option<Datagram<'_>> {
    let first = *packet.first()?;
    let header_len = usize::from(first & 15) * 4;
    let header = packet.get(..header_len)?;
    if first >> 4 != 4 || header_len < 20 || fold(sum(header, 0)) != 0 {
        return None;
    }
    let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
    let more_or_offset = u16::from_be_bytes([header[6], header[7]]) & 0x3fff;
    if header[9] != 17 || more_or_offset != 0 {
        return None;
    }
    let udp = packet.get(header_len..total)?;
    let source = Ipv4Addr::new(header[12], header[13], header[14], header[15]);
    let destination = Ipv4Addr::new(header[16], header[17], header[18], header[19]);
    let udp_len = u16::from_be_bytes([*udp.get(4)?, *udp.get(5)?]);
    let udp = udp.get(..usize::from(udp_len))?;
    let payload = udp.get(8..)?;
    if u16::from_be_bytes([udp[2], udp[3]]) != port {
        return None;
    }
    let has_checksum = udp[6] != 0 || udp[7] != 0;
    if check_udp && has_checksum && fold(sum(udp, pseudo(source, destination, udp_len))) != 0 {
        return None;
    }
    Some(Datagram { source, destination, source_port: u16::from_be_bytes([udp[0], udp[1]]), payload })
}

/// An IPv4 packet with a UDP datagram. The payload is at most 1400 bytes, so it is never fragmented.
#[must_use]
pub fn build_udp(
    (source, source_port): (Ipv4Addr, u16),
    (destination, destination_port): (Ipv4Addr, u16),
    payload: &[u8],
) -> Vec<u8> {
    let payload = &payload[..payload.len().min(1400)];
    let udp_len = payload.len() as u16 + 8;
    let total = udp_len + 20;
    let mut out = vec![0x45, 0xc0, 0, 0, 0, 0, 0x40, 0, 64, 17, 0, 0];
    out[2..4].copy_from_slice(&total.to_be_bytes());
    out.extend_from_slice(&source.octets());
    out.extend_from_slice(&destination.octets());
    let check = fold(sum(&out, 0));
    out[10..12].copy_from_slice(&check.to_be_bytes());
    let start = out.len();
    out.extend_from_slice(&source_port.to_be_bytes());
    out.extend_from_slice(&destination_port.to_be_bytes());
    out.extend_from_slice(&udp_len.to_be_bytes());
    out.extend_from_slice(&[0, 0]);
    out.extend_from_slice(payload);
    let check = match fold(sum(&out[start..], pseudo(source, destination, udp_len))) {
        // Zero means "none" on the wire.
        0 => 0xffff,
        c => c,
    };
    out[start + 6..start + 8].copy_from_slice(&check.to_be_bytes());
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const A: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
    const B: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);

    #[test]
    fn header_checksum_is_as_in_rfc_1071() {
        // The example of many textbooks.
        let h = [0x45, 0, 0, 0x73, 0, 0, 0x40, 0, 0x40, 0x11, 0, 0, 0xc0, 0xa8, 0, 1, 0xc0, 0xa8, 0, 0xc7];
        assert_eq!(fold(sum(&h, 0)), 0xb861);
    }

    proptest! {
        #[test]
        fn what_is_built_is_read_and_any_flipped_bit_is_noticed(
            payload in proptest::collection::vec(any::<u8>(), 0..600), at in any::<prop::sample::Index>(), bit in 0..8_u8,
        ) {
            let mut p = build_udp((A, 67), (B, 68), &payload);
            let read = parse_udp(&p, 68, true).expect("own packet");
            prop_assert_eq!((read.source, read.destination, read.source_port, read.payload), (A, B, 67, &payload[..]));
            let i = at.index(p.len());
            p[i] ^= 1 << bit;
            prop_assert_eq!(parse_udp(&p, 68, true), None);
        }
    }
}
