//! Network interfaces (`rtnetlink(7)`, `RTM_*LINK`).

use crate::ALIAS;
use crate::netlink::{Message, Netlink, NetlinkError, attribute, attributes, number, string, tolerate};
use holdfast_model::net::Mac;
use holdfast_model::observed::InterfaceCounters;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_IFALIAS: u16 = 20;
const IFLA_STATS64: u16 = 23;
const IFLA_CARRIER: u16 = 33;
const INFO_KIND: u16 = 1;
const INFO_DATA: u16 = 2;
const INFO_SLAVE_KIND: u16 = 4;
const INFO_SLAVE_DATA: u16 = 5;
const BRPORT_ISOLATED: u16 = 33;
const VLAN_ID: u16 = 1;
const TUN_OWNER: u16 = 1;
const VETH_INFO_PEER: u16 = 1;
const IFLA_NET_NS_FD: u16 = 28;

/// One interface as the kernel has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Kernel index.
    pub index: u32,
    /// Name.
    pub name: String,
    /// MAC; zeroes when it has none.
    pub mac: Mac,
    /// MTU in bytes.
    pub mtu: u32,
    /// Administratively up.
    pub up: bool,
    /// Has carrier.
    pub carrier: bool,
    /// Hardware type is Ethernet.
    pub ethernet: bool,
    /// Index of the bridge (or bond) it is in.
    pub master: Option<u32>,
    /// Index of the interface it lies over.
    pub lower: Option<u32>,
    /// Kind (`bridge`, `vlan`, `tun`, `veth`); empty for hardware.
    pub kind: String,
    /// VLAN id, for a VLAN.
    pub vlan_id: Option<u16>,
    /// Owner, for a tap.
    pub tun_owner: Option<u32>,
    /// Frames do not pass to other isolated ports of its bridge.
    pub isolated: bool,
    /// Made by this program.
    pub ours: bool,
    /// Counters.
    pub counters: InterfaceCounters,
}

/// Reads an `RTM_NEWLINK` or `RTM_DELLINK` body.
#[must_use]
pub fn parse(body: &[u8]) -> Option<Link> {
    // struct ifinfomsg: family, pad, type u16, index i32, flags u32, change u32.
    let kind = u16::from_ne_bytes(body.get(2..4)?.try_into().ok()?);
    let index = u32::from_ne_bytes(body.get(4..8)?.try_into().ok()?);
    let flags = u32::from_ne_bytes(body.get(8..12)?.try_into().ok()?);
    let mut link = Link {
        index,
        name: String::new(),
        mac: [0; 6],
        mtu: 0,
        up: flags & libc::IFF_UP.cast_unsigned() != 0,
        carrier: flags & libc::IFF_LOWER_UP.cast_unsigned() != 0,
        ethernet: kind == libc::ARPHRD_ETHER,
        master: None,
        lower: None,
        kind: String::new(),
        vlan_id: None,
        tun_owner: None,
        isolated: false,
        ours: false,
        counters: InterfaceCounters::default(),
    };
    for (kind, value) in attributes(body.get(16..)?) {
        match kind {
            IFLA_ADDRESS => link.mac = value.try_into().unwrap_or([0; 6]),
            IFLA_IFNAME => link.name = string(value),
            IFLA_MTU => link.mtu = number(value)?,
            IFLA_LINK => link.lower = number(value).filter(|i| *i != 0),
            IFLA_MASTER => link.master = number(value).filter(|i| *i != 0),
            IFLA_IFALIAS => link.ours = string(value) == ALIAS,
            IFLA_CARRIER => link.carrier = value == [1],
            IFLA_LINKINFO => parse_info(value, &mut link),
            IFLA_STATS64 => link.counters = parse_counters(value),
            _ => {}
        }
    }
    Some(link)
}

fn parse_info(info: &[u8], link: &mut Link) {
    link.kind = attribute(info, INFO_KIND).map(string).unwrap_or_default();
    if let Some(data) = attribute(info, INFO_DATA) {
        match link.kind.as_str() {
            "vlan" => {
                link.vlan_id = attribute(data, VLAN_ID).and_then(number).and_then(|n| u16::try_from(n).ok());
            }
            "tun" => link.tun_owner = attribute(data, TUN_OWNER).and_then(number),
            _ => {}
        }
    }
    if attribute(info, INFO_SLAVE_KIND).map(string).as_deref() == Some("bridge")
        && let Some(data) = attribute(info, INFO_SLAVE_DATA)
    {
        link.isolated = attribute(data, BRPORT_ISOLATED) == Some(&[1]);
    }
}

/// struct rtnl_link_stats64: rx/tx packets, rx/tx bytes, rx/tx errors, rx/tx dropped, ...
fn parse_counters(value: &[u8]) -> InterfaceCounters {
    let field = |i: usize| value.get(i * 8..i * 8 + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_ne_bytes);
    InterfaceCounters {
        rx_packets: field(0),
        tx_packets: field(1),
        rx_bytes: field(2),
        tx_bytes: field(3),
        rx_errors: field(4),
        tx_errors: field(5),
        rx_drops: field(6),
        tx_drops: field(7),
    }
}

fn header(index: u32, flags: u32, change: u32) -> [u8; 16] {
    let mut h = [0; 16];
    h[4..8].copy_from_slice(&index.to_ne_bytes());
    h[8..12].copy_from_slice(&flags.to_ne_bytes());
    h[12..16].copy_from_slice(&change.to_ne_bytes());
    h
}

const UP: u32 = libc::IFF_UP as u32;

impl Netlink {
    /// All interfaces.
    pub fn links(&mut self) -> Result<Vec<Link>, NetlinkError> {
        let answers = self.dump("list interfaces", Message::new(libc::RTM_GETLINK, 0, &header(0, 0, 0)))?;
        Ok(answers.iter().filter_map(|a| parse(&a.body)).collect())
    }

    /// The interface of that name, if there is one.
    pub fn find_link(&mut self, name: &str) -> Result<Option<Link>, NetlinkError> {
        Ok(self.links()?.into_iter().find(|l| l.name == name))
    }

    /// The interface of that name; the error says which there are.
    pub fn link(&mut self, name: &str) -> Result<Link, NetlinkError> {
        let links = self.links()?;
        if let Some(link) = links.iter().find(|l| l.name == name) {
            return Ok(link.clone());
        }
        let names: Vec<&str> = links.iter().map(|l| l.name.as_str()).collect();
        Err(NetlinkError::NotFound {
            what: format!("interface {name}"),
            hint: format!("; present are {}", names.join(", ")),
        })
    }

    fn add_link(
        &mut self,
        name: &str,
        kind: &str,
        fill: impl FnOnce(&mut Message),
        data: impl FnOnce(&mut Message),
    ) -> Result<(), NetlinkError> {
        let mut m = Message::new(libc::RTM_NEWLINK, libc::NLM_F_CREATE | libc::NLM_F_EXCL, &header(0, 0, 0));
        m.text(IFLA_IFNAME, name);
        fill(&mut m);
        m.nest(IFLA_LINKINFO, |m| {
            m.text(INFO_KIND, kind).nest(INFO_DATA, data);
        });
        self.request(&format!("make {kind} {name}"), m)
    }

    /// Makes a bridge without spanning tree. Its own MAC is fixed.
    pub fn add_bridge(&mut self, name: &str, mac: Mac) -> Result<(), NetlinkError> {
        // Multicast snooping off: with isolated ports there is nothing to prune, and it needs a querier.
        const MCAST_SNOOPING: u16 = 23;
        self.add_link(
            name,
            "bridge",
            |m| {
                m.attr(IFLA_ADDRESS, &mac);
            },
            |m| {
                m.attr(MCAST_SNOOPING, &[0]);
            },
        )
    }

    /// Makes a VLAN interface over another.
    pub fn add_vlan(&mut self, name: &str, parent: u32, id: u16) -> Result<(), NetlinkError> {
        self.add_link(
            name,
            "vlan",
            |m| {
                m.u32(IFLA_LINK, parent);
            },
            |m| {
                m.attr(VLAN_ID, &id.to_ne_bytes());
            },
        )
    }

    /// Makes a pair of joined interfaces, one end in another namespace (tests and cables between namespaces).
    pub fn add_veth(
        &mut self,
        name: &str,
        peer: &str,
        peer_mac: Option<Mac>,
        peer_namespace: Option<i32>,
    ) -> Result<(), NetlinkError> {
        self.add_link(
            name,
            "veth",
            |_| {},
            |m| {
                m.nest(VETH_INFO_PEER, |m| {
                    m.raw(&header(0, 0, 0)).text(IFLA_IFNAME, peer);
                    if let Some(mac) = peer_mac {
                        m.attr(IFLA_ADDRESS, &mac);
                    }
                    if let Some(fd) = peer_namespace {
                        m.attr(IFLA_NET_NS_FD, &fd.to_ne_bytes());
                    }
                });
            },
        )
    }

    fn change_link(
        &mut self,
        what: &str,
        link: &Link,
        flags: u32,
        change: u32,
        fill: impl FnOnce(&mut Message),
    ) -> Result<(), NetlinkError> {
        let mut m = Message::new(libc::RTM_NEWLINK, 0, &header(link.index, flags, change));
        fill(&mut m);
        self.request(&format!("{what} {}", link.name), m)
    }

    /// Marks the interface as made by us.
    pub fn mark_ours(&mut self, link: &Link) -> Result<(), NetlinkError> {
        self.change_link("mark", link, 0, 0, |m| {
            // Without NUL: the kernel keeps the bytes as given.
            m.attr(IFLA_IFALIAS, ALIAS.as_bytes());
        })
    }

    /// Brings the interface up or down, when it is not so already.
    pub fn set_up(&mut self, link: &Link, up: bool) -> Result<(), NetlinkError> {
        if link.up == up {
            return Ok(());
        }
        let what = if up { "bring up" } else { "bring down" };
        self.change_link(what, link, if up { UP } else { 0 }, UP, |_| {})
    }

    /// Sets the MTU in bytes, when it is not so already.
    pub fn set_mtu(&mut self, link: &Link, mtu: u32) -> Result<(), NetlinkError> {
        if link.mtu == mtu {
            return Ok(());
        }
        self.change_link(&format!("set mtu {mtu} of"), link, 0, 0, |m| {
            m.u32(IFLA_MTU, mtu);
        })
    }

    /// Sets the MAC, when it is not so already.
    pub fn set_mac(&mut self, link: &Link, mac: Mac) -> Result<(), NetlinkError> {
        if link.mac == mac {
            return Ok(());
        }
        self.change_link("set MAC of", link, 0, 0, |m| {
            m.attr(IFLA_ADDRESS, &mac);
        })
    }

    /// Puts the interface into a bridge (`Some`) or takes it out.
    pub fn set_master(&mut self, link: &Link, master: Option<u32>) -> Result<(), NetlinkError> {
        if link.master == master {
            return Ok(());
        }
        self.change_link("set bridge of", link, 0, 0, |m| {
            m.u32(IFLA_MASTER, master.unwrap_or(0));
        })
    }

    /// Isolates a bridge port from other isolated ports.
    pub fn set_isolated(&mut self, link: &Link, isolated: bool) -> Result<(), NetlinkError> {
        self.change_link("isolate", link, 0, 0, |m| {
            m.nest(IFLA_LINKINFO, |m| {
                m.text(INFO_SLAVE_KIND, "bridge").nest(INFO_SLAVE_DATA, |m| {
                    m.attr(BRPORT_ISOLATED, &[u8::from(isolated)]);
                });
            });
        })
    }

    /// Removes an interface; one that is gone already is no error.
    pub fn delete_link(&mut self, link: &Link) -> Result<(), NetlinkError> {
        let m = Message::new(libc::RTM_DELLINK, 0, &header(link.index, 0, 0));
        tolerate(self.request(&format!("remove {}", link.name), m), &[libc::ENODEV])
    }
}
