//! Addresses of apps within a network instance: fixed ones, kept ones, then the lowest free.

use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use uuid::Uuid;

/// What was given out, kept over restarts and config changes: instance, then app and interface number.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Allocations {
    /// Address by instance and by `APP-UUID/INDEX`.
    pub instances: BTreeMap<Uuid, BTreeMap<String, Ipv4Addr>>,
}

/// Key of an app's interface.
#[must_use]
pub fn key(app: Uuid, index: usize) -> String {
    format!("{app}/{index}")
}

/// A request for an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wish {
    /// Who.
    pub key: String,
    /// Which, when the config says so.
    pub fixed: Option<Ipv4Addr>,
}

/// The addresses of one instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Space {
    /// Network address.
    pub network: Ipv4Addr,
    /// Prefix length, at most 30.
    pub prefix_length: u8,
    /// Taken by the bridge.
    pub gateway: Ipv4Addr,
    /// First and last that may be given out without being asked for.
    pub range: (Ipv4Addr, Ipv4Addr),
}

impl Space {
    /// Host addresses: without network and broadcast address.
    #[must_use]
    pub fn hosts(&self) -> (Ipv4Addr, Ipv4Addr) {
        let size = u32::MAX.checked_shr(u32::from(self.prefix_length)).unwrap_or(0);
        let first = u32::from(self.network) & !size;
        ((first + 1).into(), (first + size - 1).into())
    }

    fn is_host(&self, ip: Ipv4Addr) -> bool {
        let (first, last) = self.hosts();
        (first..=last).contains(&ip) && ip != self.gateway
    }
}

/// Gives every wish an address or a reason why not.
#[must_use]
pub fn allocate(
    space: &Space,
    kept: &BTreeMap<String, Ipv4Addr>,
    wishes: &[Wish],
) -> BTreeMap<String, Result<Ipv4Addr, String>> {
    let mut taken: BTreeSet<Ipv4Addr> = BTreeSet::new();
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
    let in_range = |ip: &Ipv4Addr| (first..=last).contains(ip) && space.is_host(*ip);
    for w in wishes.iter().filter(|w| w.fixed.is_none()) {
        if let Some(ip) = kept.get(&w.key).filter(|ip| in_range(ip))
            && taken.insert(*ip)
        {
            out.insert(w.key.clone(), Ok(*ip));
        }
    }
    let mut next = u32::from(first);
    for w in wishes.iter().filter(|w| w.fixed.is_none()) {
        if out.contains_key(&w.key) {
            continue;
        }
        let mut found = Err(format!("no free address in {first} - {last}"));
        while next <= u32::from(last) {
            let ip = Ipv4Addr::from(next);
            next += 1;
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

    fn space() -> Space {
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

    proptest! {
        #[test]
        fn addresses_are_distinct_and_kept_while_wished_for(
            first in proptest::collection::btree_set(0..20_u8, 0..16),
            second in proptest::collection::btree_set(0..20_u8, 0..16),
            fixed in proptest::option::of(2..14_u8),
        ) {
            let wish = |n: &u8| Wish { key: n.to_string(), fixed: None };
            let before: Vec<Wish> = first.iter().map(wish).collect();
            let old: BTreeMap<String, Ipv4Addr> = allocate(&space(), &BTreeMap::new(), &before)
                .into_iter().filter_map(|(k, r)| Some((k, r.ok()?))).collect();
            let mut wishes: Vec<Wish> = second.iter().map(wish).collect();
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
