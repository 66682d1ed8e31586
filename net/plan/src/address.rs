//! Addresses of apps within a network instance, of either version of IP: fixed ones, kept ones, then the lowest free.

use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Deserializer, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use uuid::Uuid;

/// Addresses of one version by instance and by `APP-UUID/INDEX` (see [`key`]).
pub type Given<A> = BTreeMap<Uuid, BTreeMap<String, A>>;

/// What was given out, kept over restarts and config changes.
///
/// Written to disk by one version of the system and read by another: a version that does not know IPv6 here finds its
/// `instances` as it left them, and an entry that cannot be read costs only itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Allocations {
    /// IPv4.
    #[serde(rename = "instances", deserialize_with = "lenient")]
    pub v4: Given<Ipv4Addr>,
    /// IPv6. This version gives none out; what another gave out is kept for it.
    #[serde(rename = "instances6", deserialize_with = "lenient", skip_serializing_if = "BTreeMap::is_empty")]
    pub v6: Given<Ipv6Addr>,
}

/// A value, or something else in its place.
#[derive(Deserialize)]
#[serde(untagged, bound = "T: DeserializeOwned")]
enum Maybe<T> {
    Is(T),
    IsNot(IgnoredAny),
}

impl<T> Maybe<T> {
    fn ok(self) -> Option<T> {
        match self {
            Self::Is(value) => Some(value),
            Self::IsNot(_) => None,
        }
    }
}

fn lenient<'de, D: Deserializer<'de>, A: DeserializeOwned>(from: D) -> Result<Given<A>, D::Error> {
    let instances = Maybe::<BTreeMap<String, Maybe<BTreeMap<String, Maybe<A>>>>>::deserialize(from)?;
    let read = |(id, given): (String, Maybe<BTreeMap<String, Maybe<A>>>)| {
        let given = given.ok()?.into_iter().filter_map(|(key, address)| Some((key, address.ok()?))).collect();
        Some((id.parse().ok()?, given))
    };
    Ok(instances.ok().into_iter().flatten().filter_map(read).collect())
}

/// Key of an app's interface.
#[must_use]
pub fn key(app: Uuid, index: usize) -> String {
    format!("{app}/{index}")
}

/// An address of one version of IP, as a number.
pub trait Family: Copy + Ord + fmt::Display + Into<IpAddr> {
    /// Bits of an address.
    const BITS: u8;
    /// The last address of a subnet is one for all hosts (RFC 919).
    const HAS_BROADCAST: bool;
    /// As a number.
    fn number(self) -> u128;
    /// From a number, of which bits beyond the address do not count.
    fn from_number(number: u128) -> Self;
}

impl Family for Ipv4Addr {
    const BITS: u8 = 32;
    const HAS_BROADCAST: bool = true;
    fn number(self) -> u128 {
        u32::from(self).into()
    }
    fn from_number(number: u128) -> Self {
        Self::from((number & u128::from(u32::MAX)) as u32)
    }
}

impl Family for Ipv6Addr {
    const BITS: u8 = 128;
    const HAS_BROADCAST: bool = false;
    fn number(self) -> u128 {
        self.into()
    }
    fn from_number(number: u128) -> Self {
        number.into()
    }
}

/// A request for an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wish<A> {
    /// Who.
    pub key: String,
    /// Which, when the config says so.
    pub fixed: Option<A>,
}

/// The addresses of one instance in one version of IP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Space<A> {
    /// Any address of the subnet.
    pub network: A,
    /// Prefix length, at least two less than the bits of an address.
    pub prefix_length: u8,
    /// Taken by the bridge.
    pub gateway: A,
    /// First and last that may be given out without being asked for.
    pub range: (A, A),
}

impl<A: Family> Space<A> {
    /// Host addresses: without the subnet's own (in IPv6 that of all its routers) and without the broadcast address.
    #[must_use]
    pub fn hosts(&self) -> (A, A) {
        let free = u32::from(A::BITS.saturating_sub(self.prefix_length));
        let size = 1_u128.checked_shl(free).unwrap_or(0).wrapping_sub(1);
        let first = self.network.number() & !size;
        (A::from_number(first + 1), A::from_number(first + size - u128::from(A::HAS_BROADCAST)))
    }

    fn is_host(&self, ip: A) -> bool {
        let (first, last) = self.hosts();
        (first..=last).contains(&ip) && ip != self.gateway
    }
}

/// Gives every wish an address or a reason why not.
#[must_use]
pub fn allocate<A: Family>(
    space: &Space<A>,
    kept: &BTreeMap<String, A>,
    wishes: &[Wish<A>],
) -> BTreeMap<String, Result<A, String>> {
    let mut taken: BTreeSet<A> = BTreeSet::new();
    let mut out = BTreeMap::new();
    for w in wishes {
        let Some(ip) = w.fixed else { continue };
        let result = if !space.is_host(ip) {
            Err(format!(
                "address {ip} is not a free host address of {}/{} with gateway {}",
                space.network, space.prefix_length, space.gateway
            ))
        } else if !taken.insert(ip) {
            Err(format!("address {ip} is already fixed for another interface"))
        } else {
            Ok(ip)
        };
        out.insert(w.key.clone(), result);
    }
    let (first, last) = space.range;
    let in_range = |ip: &A| (first..=last).contains(ip) && space.is_host(*ip);
    for w in wishes.iter().filter(|w| w.fixed.is_none()) {
        if let Some(ip) = kept.get(&w.key).filter(|ip| in_range(ip))
            && taken.insert(*ip)
        {
            out.insert(w.key.clone(), Ok(*ip));
        }
    }
    let mut next = Some(first.number());
    for w in wishes.iter().filter(|w| w.fixed.is_none()) {
        if out.contains_key(&w.key) {
            continue;
        }
        let mut found = Err(format!("no free address in {first} - {last}"));
        while let Some(number) = next.filter(|number| *number <= last.number()) {
            let ip = A::from_number(number);
            next = number.checked_add(1);
            if in_range(&ip) && taken.insert(ip) {
                found = Ok(ip);
                break;
            }
        }
        out.insert(w.key.clone(), found);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn space() -> Space<Ipv4Addr> {
        Space {
            network: Ipv4Addr::new(10, 1, 0, 0),
            prefix_length: 28,
            gateway: Ipv4Addr::new(10, 1, 0, 1),
            range: (Ipv4Addr::new(10, 1, 0, 1), Ipv4Addr::new(10, 1, 0, 14)),
        }
    }

    #[test]
    fn fixed_addresses_are_checked() {
        let wish = |k: &str, ip: [u8; 4]| Wish { key: k.into(), fixed: Some(ip.into()) };
        let out = allocate(
            &space(),
            &BTreeMap::new(),
            &[
                wish("a", [10, 1, 0, 5]),
                wish("b", [10, 1, 0, 5]),
                wish("c", [10, 1, 0, 1]),
                wish("d", [10, 1, 0, 15]),
                wish("e", [10, 2, 0, 5]),
            ],
        );
        assert_eq!(out["a"], Ok(Ipv4Addr::new(10, 1, 0, 5)));
        assert!(["b", "c", "d", "e"].iter().all(|k| out[*k].is_err()), "{out:?}");
    }

    #[test]
    fn a_subnet_of_either_version_gives_the_lowest_free_address_and_no_broadcast_address_in_ipv4() {
        let wishes: Vec<Wish<_>> = ["a", "b", "c"].map(|k| Wish { key: k.to_owned(), fixed: None }).into();
        let v6 = |text: &str| text.parse::<Ipv6Addr>().expect("address");
        let mut space = Space {
            network: v6("fd00::"),
            prefix_length: 126,
            gateway: v6("fd00::1"),
            range: (v6("fd00::"), v6("fd00::3")),
        };
        assert_eq!(space.hosts(), (v6("fd00::1"), v6("fd00::3")));
        let out = allocate(&space, &BTreeMap::new(), &wishes);
        assert_eq!((&out["a"], &out["b"]), (&Ok(v6("fd00::2")), &Ok(v6("fd00::3"))));
        assert!(out["c"].is_err());
        space.prefix_length = 64;
        assert_eq!(space.hosts().1, v6("fd00::ffff:ffff:ffff:ffff"));

        let v4 = Ipv4Addr::new;
        let space = Space {
            network: v4(10, 0, 0, 7),
            prefix_length: 30,
            gateway: v4(10, 0, 0, 5),
            range: (v4(10, 0, 0, 4), v4(10, 0, 0, 7)),
        };
        assert_eq!(space.hosts(), (v4(10, 0, 0, 5), v4(10, 0, 0, 6)));
        let wishes: Vec<Wish<_>> = ["a", "b"].map(|k| Wish { key: k.to_owned(), fixed: None }).into();
        let out = allocate(&space, &BTreeMap::new(), &wishes);
        assert_eq!(out["a"], Ok(v4(10, 0, 0, 6)));
        assert!(out["b"].is_err());
    }

    const APP: &str = "0000000b-0000-4000-8000-000000000000/0";

    fn kept(v6: Option<&str>) -> Allocations {
        let id = Uuid::from_u128(1);
        let v6 = v6.map(|ip| (id, [(APP.to_owned(), ip.parse().expect("address"))].into()));
        Allocations {
            v4: [(id, [(APP.to_owned(), Ipv4Addr::new(10, 1, 0, 2))].into())].into(),
            v6: v6.into_iter().collect(),
        }
    }

    #[test]
    fn what_earlier_versions_wrote_is_read_and_they_read_what_this_one_writes() {
        let earlier = format!(r#"{{"instances":{{"00000000-0000-0000-0000-000000000001":{{"{APP}":"10.1.0.2"}}}}}}"#);
        assert_eq!(serde_json::from_str::<Allocations>(&earlier).expect("read"), kept(None));
        assert_eq!(serde_json::to_string(&kept(None)).expect("written"), earlier);
    }

    #[test]
    fn what_a_later_version_adds_is_kept_or_passed_over() {
        let later = format!(
            r#"{{"instances":{{"00000000-0000-0000-0000-000000000001":{{"{APP}":"10.1.0.2","x":{{"v4":"10.1.0.3"}}}},"not a uuid":{{}},
            "00000000-0000-0000-0000-000000000002":7}},"instances6":{{"00000000-0000-0000-0000-000000000001":{{"{APP}":"fd00::2"}}}},
            "more":[1]}}"#
        );
        let read: Allocations = serde_json::from_str(&later).expect("read");
        assert_eq!(read, kept(Some("fd00::2")));
        let written = serde_json::to_string(&read).expect("written");
        assert_eq!(serde_json::from_str::<Allocations>(&written).expect("read again"), read);
        let broken: Allocations = serde_json::from_str(r#"{"instances":[]}"#).expect("read");
        assert_eq!(broken, Allocations::default());
    }

    proptest! {
        #[test]
        fn addresses_are_distinct_and_kept_while_wished_for(
            first in proptest::collection::btree_set(0..20_u8, 0..16),
            second in proptest::collection::btree_set(0..20_u8, 0..16),
            fixed in proptest::option::of(2..14_u8),
        ) {
            let wish = |n: &u8| Wish { key: n.to_string(), fixed: None };
            let before: Vec<Wish<_>> = first.iter().map(wish).collect();
            let old: BTreeMap<String, Ipv4Addr> = allocate(&space(), &BTreeMap::new(), &before)
                .into_iter().filter_map(|(k, r)| Some((k, r.ok()?))).collect();
            let mut wishes: Vec<Wish<_>> = second.iter().map(wish).collect();
            let pinned = fixed.map(|n| Ipv4Addr::new(10, 1, 0, n));
            wishes.extend(pinned.map(|ip| Wish { key: "pinned".into(), fixed: Some(ip) }));
            let now = allocate(&space(), &old, &wishes);
            let given: Vec<Ipv4Addr> = now.values().filter_map(|r| r.clone().ok()).collect();
            let distinct: BTreeSet<_> = given.iter().collect();
            prop_assert_eq!(given.len(), distinct.len());
            prop_assert!(given.iter().all(|ip| space().is_host(*ip)));
            for (k, ip) in &old {
                if second.contains(&k.parse::<u8>().expect("number")) && pinned != Some(*ip) {
                    prop_assert_eq!(&now[k], &Ok(*ip));
                }
            }
            prop_assert!(given.len() == wishes.len() || given.len() == 13);
        }
    }
}
