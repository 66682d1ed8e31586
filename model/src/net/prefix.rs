//! IP prefixes, and which of them nobody may use for a network of apps.

use serde::{Deserialize, Serialize};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An IP prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Prefix {
    /// Network address.
    pub address: IpAddr,
    /// Prefix length: 0..=32 or 0..=128.
    pub length: u8,
}

impl std::fmt::Display for Prefix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

impl std::str::FromStr for Prefix {
    type Err = String;
    /// Parses `address/length`.
    fn from_str(text: &str) -> Result<Self, String> {
        let (a, l) = text.split_once('/').ok_or_else(|| format!("{text:?} is not address/length"))?;
        let address: IpAddr = a.parse().map_err(|_| format!("{a:?} is not an IP address"))?;
        let max = if address.is_ipv4() { 32 } else { 128 };
        let length =
            l.parse().ok().filter(|l| *l <= max).ok_or_else(|| format!("{l:?} is not a prefix length of 0..={max}"))?;
        Ok(Self { address, length })
    }
}

impl Prefix {
    /// True when `ip` lies in the prefix (same family).
    #[must_use]
    pub fn contains(&self, ip: IpAddr) -> bool {
        match (self.address, ip) {
            (IpAddr::V4(n), IpAddr::V4(i)) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.length)).unwrap_or(0);
                u32::from(n) & mask == u32::from(i) & mask
            }
            (IpAddr::V6(n), IpAddr::V6(i)) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.length)).unwrap_or(0);
                u128::from(n) & mask == u128::from(i) & mask
            }
            _ => false,
        }
    }
}

/// Prefixes with a meaning of their own (IANA special-purpose registries, RFC 6890) and that meaning. Private ranges are not
/// among them: they are what networks of apps are for.
const RESERVED_4: [(Ipv4Addr, u8, &str); 6] = [
    (Ipv4Addr::UNSPECIFIED, 8, "this network"),
    (Ipv4Addr::new(127, 0, 0, 0), 8, "loopback"),
    (Ipv4Addr::new(169, 254, 0, 0), 16, "link-local"),
    (Ipv4Addr::new(192, 0, 0, 0), 24, "protocol assignments"),
    (Ipv4Addr::new(224, 0, 0, 0), 4, "multicast"),
    (Ipv4Addr::new(240, 0, 0, 0), 4, "reserved"),
];
/// The same for IPv6.
const RESERVED_6: [(Ipv6Addr, u8, &str); 4] = [
    (Ipv6Addr::UNSPECIFIED, 96, "unspecified, loopback and IPv4-compatible addresses"),
    (Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0), 96, "IPv4-mapped addresses"),
    (Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10, "link-local"),
    (Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0), 8, "multicast"),
];

impl Prefix {
    /// True when the two have an address in common.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        self.contains(other.address) && self.length <= other.length
            || other.contains(self.address) && other.length <= self.length
    }

    /// The reserved prefix that this one overlaps, and what it is reserved for.
    #[must_use]
    pub fn reserved(&self) -> Option<(Self, &'static str)> {
        let v4 = RESERVED_4.iter().map(|(ip, length, why)| (Self { address: IpAddr::V4(*ip), length: *length }, *why));
        let v6 = RESERVED_6.iter().map(|(ip, length, why)| (Self { address: IpAddr::V6(*ip), length: *length }, *why));
        v4.chain(v6).find(|(prefix, _)| prefix.overlaps(self))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(text: &str) -> Prefix {
        text.parse().expect(text)
    }

    #[test]
    fn prefixes_overlap_when_one_contains_the_other() {
        for (a, b, expected) in [
            ("10.0.0.0/8", "10.1.2.0/24", true),
            ("10.1.2.7/24", "10.1.2.200/32", true),
            ("10.1.0.0/24", "10.1.1.0/24", false),
            ("0.0.0.0/0", "10.1.1.0/24", true),
            ("::/0", "10.1.1.0/24", false),
            ("fd00::/8", "fd12:3456::/32", true),
        ] {
            assert_eq!(prefix(a).overlaps(&prefix(b)), expected, "{a} {b}");
            assert_eq!(prefix(b).overlaps(&prefix(a)), expected, "{b} {a}");
        }
    }

    #[test]
    fn a_network_of_apps_can_be_private_and_not_reserved() {
        for text in
            ["10.11.12.0/24", "172.16.0.0/12", "192.168.1.0/24", "100.64.0.0/10", "198.51.100.0/24", "fd00::/64"]
        {
            assert_eq!(prefix(text).reserved(), None, "{text}");
        }
        for (text, why) in [
            ("127.0.0.0/24", "loopback"),
            ("169.254.169.0/24", "link-local"),
            ("224.0.0.0/24", "multicast"),
            ("0.0.0.0/8", "this network"),
            ("255.255.255.0/24", "reserved"),
            ("192.0.0.0/16", "protocol assignments"),
            ("fe80::/64", "link-local"),
        ] {
            assert_eq!(prefix(text).reserved().map(|(_, why)| why), Some(why), "{text}");
        }
    }
}
