//! The network before any config: what the site says, else DHCP on every Ethernet port; and the names that the site knows.

use holdfast_format::site::{Addressing, Site};
use holdfast_model::desired::Desired;
use holdfast_model::net::{Addressing4, Addressing6, Layers, Static};
use holdfast_plan::{LinkFact, last_resort};
use std::fmt::Write as _;

/// The ports of the site; `None` without a site.
#[must_use]
pub fn of_site(site: Option<&Site>, cards: &[LinkFact]) -> Option<Layers> {
    let network = &site?.network;
    let chosen: Vec<LinkFact> = cards
        .iter()
        .filter(|card| network.interface.as_ref().is_none_or(|wanted| *wanted == card.name))
        .cloned()
        .collect();
    let mut first = of_any(&chosen);
    if let Addressing::Static { address, prefix_len, gateway, dns } = &network.addressing {
        for adapter in &mut first.adapters {
            let fixed = Static { address: *address, prefix_length: *prefix_len, gateway: *gateway };
            (adapter.v4, adapter.v6) = (Addressing4::Static(fixed), Addressing6::None);
            adapter.dns.clone_from(dns);
        }
    }
    Some(first)
}

/// DHCP on every card.
#[must_use]
pub fn of_any(cards: &[LinkFact]) -> Layers {
    layers(&last_resort(cards))
}

/// The device's own network in a config.
#[must_use]
pub fn layers(desired: &Desired) -> Layers {
    Layers { ports: desired.ports.clone(), links: desired.links.clone(), adapters: desired.adapters.clone() }
}

/// The file of static host names: those that the site gives addresses for.
#[must_use]
pub fn hosts(site: Option<&Site>) -> String {
    let mut text = String::from("127.0.0.1 localhost\n::1 localhost\n");
    if let Some(site) = site {
        if let (Some(address), Ok((name, _))) = (site.server_address, site.host_port()) {
            let _ = writeln!(text, "{address} {name}");
        }
        for host in &site.hosts {
            let _ = writeln!(text, "{} {}", host.address, host.name);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_format::site::{FirstNetwork, Host};

    fn cards() -> [LinkFact; 2] {
        ["eth0", "eth1"].map(|name| LinkFact { name: name.into(), mac: [2; 6], pci: String::new() })
    }

    fn site(network: FirstNetwork) -> Site {
        Site {
            server: "controller.example:443".into(),
            server_address: Some([192, 0, 2, 1].into()),
            root_certs_pem: String::new(),
            onboard_cert_pem: String::new(),
            onboard_key_pem: String::new(),
            serial: None,
            soft_serial: None,
            hosts: vec![Host { name: "registry.example".into(), address: [192, 0, 2, 2].into() }],
            network,
        }
    }

    #[test]
    fn a_site_chooses_one_port_and_its_address() {
        let addressing = Addressing::Static {
            address: [10, 0, 0, 9].into(),
            prefix_len: 24,
            gateway: Some([10, 0, 0, 1].into()),
            dns: vec![[10, 0, 0, 2].into()],
        };
        let chosen =
            of_site(Some(&site(FirstNetwork { interface: Some("eth1".into()), addressing })), &cards()).unwrap();
        assert_eq!(chosen.adapters.len(), 1);
        let adapter = &chosen.adapters[0];
        let fixed = Static { address: [10, 0, 0, 9].into(), prefix_length: 24, gateway: Some([10, 0, 0, 1].into()) };
        assert_eq!((adapter.name.as_str(), adapter.v4), ("eth1", Addressing4::Static(fixed)));
        assert_eq!((adapter.v6, adapter.dns.len()), (Addressing6::None, 1));
    }

    #[test]
    fn a_site_that_chooses_nothing_means_dhcp_on_every_port() {
        assert_eq!(of_site(Some(&site(FirstNetwork::default())), &cards()), Some(of_any(&cards())));
        assert_eq!(of_site(None, &cards()), None);
        assert_eq!(of_any(&cards()).adapters.len(), 2);
    }

    #[test]
    fn names_of_the_site_are_in_the_hosts_file() {
        let text = hosts(Some(&site(FirstNetwork::default())));
        assert!(text.contains("192.0.2.1 controller.example\n") && text.contains("192.0.2.2 registry.example\n"));
        assert!(hosts(None).starts_with("127.0.0.1 localhost\n"));
    }
}
