//! Names that are answered here: apps by their host names, and the static entries of the network.

use super::message::{A, AAAA, ANY, Code, PTR, Query, Record};
use holdfast_model::contract::network::NetworkService;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

/// Own names.
#[derive(Debug, Default)]
pub struct Names {
    forward: BTreeMap<Vec<u8>, Vec<IpAddr>>,
    reverse: BTreeMap<Ipv4Addr, String>,
    /// The network reaches other servers; else unknown names are refused.
    has_upstream: bool,
}

impl Names {
    /// From the tables of a service.
    #[must_use]
    pub fn new(service: &NetworkService) -> Self {
        let mut names = Self { has_upstream: !service.upstreams.is_empty(), ..Self::default() };
        for a in service.assignments.iter().filter(|a| !a.host_name.is_empty()) {
            let full = if service.domain.is_empty() {
                a.host_name.clone()
            } else {
                format!("{}.{}", a.host_name, service.domain)
            };
            for ip in a.addresses.iter() {
                names.add(&a.host_name, ip);
                names.add(&full, ip);
            }
            if let Some(ip) = a.addresses.v4 {
                names.reverse.insert(ip, full);
            }
        }
        for (name, addresses) in &service.names {
            for ip in addresses {
                names.add(name, *ip);
            }
        }
        names
    }

    fn add(&mut self, name: &str, ip: IpAddr) {
        let name = name.trim_end_matches('.').to_ascii_lowercase().into_bytes();
        let list = self.forward.entry(name).or_default();
        if !list.contains(&ip) {
            list.push(ip);
        }
    }

    /// The answer, when the name is ours or is nobody's business outside.
    #[must_use]
    pub fn answer(&self, q: &Query) -> Option<Vec<u8>> {
        if !q.is_internet() {
            return Some(q.reply(Code::Refused, &[]));
        }
        if let Some(ips) = self.forward.get(&q.name) {
            let records: Vec<Record> = ips
                .iter()
                .filter(|ip| match q.kind {
                    A => ip.is_ipv4(),
                    AAAA => ip.is_ipv6(),
                    ANY => true,
                    _ => false,
                })
                .map(|ip| Record::Address(*ip))
                .collect();
            return Some(q.reply(Code::NoError, &records));
        }
        if let Some(ip) = reverse_address(&q.name)
            && let Some(name) = self.reverse.get(&ip)
        {
            let is_pointer = q.kind == PTR || q.kind == ANY;
            let record = Record::Name(name.clone());
            return Some(q.reply(Code::NoError, if is_pointer { std::slice::from_ref(&record) } else { &[] }));
        }
        // A bare word is a name of this network or of none.
        let bare = !q.name.is_empty() && !q.name.contains(&b'.');
        match (bare, self.has_upstream) {
            (true, _) => Some(q.reply(Code::NameError, &[])),
            (false, false) => Some(q.reply(Code::Refused, &[])),
            (false, true) => None,
        }
    }
}

/// `4.3.2.1.in-addr.arpa` is 1.2.3.4.
fn reverse_address(name: &[u8]) -> Option<Ipv4Addr> {
    let text = std::str::from_utf8(name).ok()?;
    let backwards: Ipv4Addr = text.strip_suffix(".in-addr.arpa")?.parse().ok()?;
    let [d, c, b, a] = backwards.octets();
    Some(Ipv4Addr::new(a, b, c, d))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dns::message::tests::query;
    use holdfast_model::contract::network::{Assignment, NetworkV4};

    fn names(upstream: bool) -> Names {
        Names::new(&NetworkService {
            v4: NetworkV4 {
                gateway: Ipv4Addr::new(10, 1, 0, 1),
                prefix_length: 24,
                router: None,
                pool: None,
                routes: Vec::new(),
            },
            assignments: vec![Assignment {
                mac: [2; 6],
                addresses: Ipv4Addr::new(10, 1, 0, 5).into(),
                host_name: "Web".into(),
            }],
            domain: "edge".into(),
            mtu: None,
            lease_seconds: 1,
            names: vec![(
                "db.example".into(),
                vec!["192.0.2.7".parse().expect("ip"), "2001:db8::7".parse().expect("ip")],
            )],
            upstreams: if upstream { vec!["192.0.2.53:53".parse().expect("address")] } else { Vec::new() },
        })
    }

    /// Response code and number of answers; `None` = asked upstream.
    fn outcome(n: &Names, name: &str, kind: u16) -> Option<(u8, u8)> {
        let q = Query::parse(&query(1, name, kind)).expect("query");
        n.answer(&q).map(|a| (a[3] & 15, a[7]))
    }

    #[test]
    fn own_names_are_answered_and_others_asked() {
        let n = names(true);
        let table = [
            ("web", A, Some((0, 1))),
            ("WEB.edge", A, Some((0, 1))),
            ("web", AAAA, Some((0, 0))),
            ("db.example", A, Some((0, 1))),
            ("db.example", ANY, Some((0, 2))),
            ("5.0.1.10.in-addr.arpa", PTR, Some((0, 1))),
            ("6.0.1.10.in-addr.arpa", PTR, None),
            ("nobody", A, Some((3, 0))),
            ("www.example", A, None),
        ];
        for (name, kind, want) in table {
            assert_eq!(outcome(&n, name, kind), want, "{name} {kind}");
        }
    }

    #[test]
    fn air_gapped_network_refuses_what_it_does_not_know() {
        assert_eq!(outcome(&names(false), "www.example", A), Some((5, 0)));
    }
}
