//! Network interfaces (`rtnetlink(7)`, `RTM_*LINK`).

use crate::ALIAS;
use crate::error::{NetlinkError, tolerate};
use crate::rtnl::{self, Rtnl};
use holdfast_model::gauges::InterfaceCounters;
use holdfast_model::net::Mac;
use rtnetlink::packet_core::Nla;
use rtnetlink::packet_route::link::{
    InfoBridgePort, InfoData, InfoPortData, InfoTun, InfoVeth, InfoVlan, LinkAttribute, LinkFlags, LinkInfo,
    LinkLayerType, LinkMessage, Stats64,
};
use rtnetlink::{LinkBridge, LinkBridgePort, LinkMessageBuilder, LinkUnspec, LinkVeth, LinkVlan};
use std::os::fd::RawFd;

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
    /// For several queues, for a tap.
    pub tun_multi_queue: bool,
    /// Frames do not pass to other isolated ports of its bridge.
    pub isolated: bool,
    /// Made by this program.
    pub ours: bool,
    /// Counters.
    pub counters: InterfaceCounters,
}

impl Link {
    /// Its MTU in bytes; 0 when it is down. One of ours that is down was left half done: no MTU makes it differ from what is
    /// intended.
    pub(crate) fn mtu_if_up(&self) -> u32 {
        if self.up { self.mtu } else { 0 }
    }
}

impl From<LinkMessage> for Link {
    fn from(message: LinkMessage) -> Self {
        let header = message.header;
        let mut link = Self {
            index: header.index,
            name: String::new(),
            mac: [0; 6],
            mtu: 0,
            up: header.flags.contains(LinkFlags::Up),
            carrier: header.flags.contains(LinkFlags::LowerUp),
            ethernet: header.link_layer_type == LinkLayerType::Ether,
            master: None,
            lower: None,
            kind: String::new(),
            vlan_id: None,
            tun_owner: None,
            tun_multi_queue: false,
            isolated: false,
            ours: false,
            counters: InterfaceCounters::default(),
        };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::Address(mac) => link.mac = mac.try_into().unwrap_or([0; 6]),
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::Mtu(mtu) => link.mtu = mtu,
                LinkAttribute::Link(index) => link.lower = Some(index).filter(|i| *i != 0),
                LinkAttribute::Controller(index) => link.master = Some(index).filter(|i| *i != 0),
                LinkAttribute::IfAlias(alias) => link.ours = alias == ALIAS,
                LinkAttribute::Carrier(carrier) => link.carrier = carrier == 1,
                LinkAttribute::LinkInfo(info) => info.iter().for_each(|i| read_info(i, &mut link)),
                LinkAttribute::Stats64(stats) => link.counters = counters(&stats),
                _ => {}
            }
        }
        link
    }
}

fn read_info(info: &LinkInfo, link: &mut Link) {
    match info {
        LinkInfo::Kind(kind) => link.kind = kind.to_string(),
        LinkInfo::Data(InfoData::Vlan(data)) => {
            link.vlan_id = data.iter().find_map(|v| if let InfoVlan::Id(id) = v { Some(*id) } else { None });
        }
        LinkInfo::Data(InfoData::Tun(data)) => {
            link.tun_owner = tun_value(data, IFLA_TUN_OWNER).map(u32::from_ne_bytes);
            link.tun_multi_queue = tun_value(data, IFLA_TUN_MULTI_QUEUE).is_some_and(|[flag]| flag != 0);
        }
        LinkInfo::PortData(InfoPortData::BridgePort(data)) => {
            link.isolated = data.contains(&InfoBridgePort::Isolated(true));
        }
        _ => {}
    }
}

/// Attributes of a tap that the crate has no names for (`linux/if_link.h`).
const IFLA_TUN_OWNER: u16 = 1;
const IFLA_TUN_MULTI_QUEUE: u16 = 7;

/// The value of an attribute, if the list has it with `SIZE` bytes.
fn tun_value<const SIZE: usize>(data: &[InfoTun], attribute: u16) -> Option<[u8; SIZE]> {
    let found = data.iter().find(|d| d.kind() == attribute && d.value_len() == SIZE)?;
    let mut value = [0; SIZE];
    found.emit_value(&mut value);
    Some(value)
}

fn counters(stats: &Stats64) -> InterfaceCounters {
    InterfaceCounters {
        rx_packets: stats.rx_packets,
        tx_packets: stats.tx_packets,
        rx_bytes: stats.rx_bytes,
        tx_bytes: stats.tx_bytes,
        rx_errors: stats.rx_errors,
        tx_errors: stats.tx_errors,
        rx_drops: stats.rx_dropped,
        tx_drops: stats.tx_dropped,
    }
}

/// A change of an interface that is there.
fn change(link: &Link) -> LinkMessageBuilder<LinkUnspec> {
    LinkUnspec::new_with_index(link.index)
}

impl Rtnl {
    /// All interfaces.
    pub async fn links(&self) -> Result<Vec<Link>, NetlinkError> {
        let answers = self.handle()?.link().get().execute();
        let links = rtnl::list("list interfaces", answers).await?;
        Ok(links.into_iter().map(Link::from).collect())
    }

    /// The interface of that name, if there is one.
    pub async fn find_link(&self, name: &str) -> Result<Option<Link>, NetlinkError> {
        let answers = self.handle()?.link().get().match_name(name).execute();
        match rtnl::list(&format!("look for interface {name}"), answers).await {
            Err(e) if e.errno() == Some(libc::ENODEV) => Ok(None),
            other => Ok(other?.into_iter().next().map(Link::from)),
        }
    }

    /// The interface of that name; the error says which there are.
    pub async fn link(&self, name: &str) -> Result<Link, NetlinkError> {
        if let Some(link) = self.find_link(name).await? {
            return Ok(link);
        }
        let links = self.links().await?;
        let names: Vec<&str> = links.iter().map(|l| l.name.as_str()).collect();
        Err(NetlinkError::NotFound {
            what: format!("interface {name}"),
            hint: format!("; present are {}", names.join(", ")),
        })
    }

    /// True when an interface of that name and kind exists; a conflict when it is of another kind.
    pub(crate) async fn has_link(&self, name: &str, kind: &str) -> Result<bool, NetlinkError> {
        match self.find_link(name).await? {
            None => Ok(false),
            Some(l) if l.kind == kind => Ok(true),
            Some(l) => Err(NetlinkError::Conflict {
                what: format!("{kind} {name}"),
                found: format!("an interface of kind {:?} has the name", l.kind),
            }),
        }
    }

    /// The last steps of every interface made here.
    pub(crate) async fn finish_link(&self, name: &str, mtu: u32) -> Result<(), NetlinkError> {
        let link = self.link(name).await?;
        if !link.ours {
            self.mark_ours(&link).await?;
        }
        self.set_mtu(&link, mtu).await?;
        self.set_up(&link, true).await
    }

    /// Removes the interface of that name, if there is one.
    pub(crate) async fn remove_link(&self, name: &str) -> Result<(), NetlinkError> {
        match self.find_link(name).await? {
            Some(link) => self.delete_link(&link).await,
            None => Ok(()),
        }
    }

    /// Makes a bridge without spanning tree. Its own MAC is fixed.
    pub async fn add_bridge(&self, name: &str, mac: Mac) -> Result<(), NetlinkError> {
        // Multicast snooping off: with isolated ports there is nothing to prune, and it needs a querier.
        let bridge = LinkMessageBuilder::<LinkBridge>::new(name).address(mac.to_vec()).mcast_snooping(false);
        self.add_link(&format!("make bridge {name}"), bridge.build()).await
    }

    /// Makes a VLAN interface over another.
    pub async fn add_vlan(&self, name: &str, parent: u32, id: u16) -> Result<(), NetlinkError> {
        self.add_link(&format!("make vlan {name}"), LinkVlan::new(name, parent, id).build()).await
    }

    /// Makes a pair of joined interfaces, one end in another namespace (tests and cables between namespaces).
    pub async fn add_veth(
        &self,
        name: &str,
        peer: &str,
        peer_mac: Option<Mac>,
        peer_namespace: Option<RawFd>,
    ) -> Result<(), NetlinkError> {
        let mut other = LinkUnspec::new_with_name(peer);
        if let Some(mac) = peer_mac {
            other = other.address(mac.to_vec());
        }
        if let Some(namespace) = peer_namespace {
            other = other.setns_by_fd(namespace);
        }
        let veth = LinkVeth::new(name, peer).set_info_data(InfoData::Veth(InfoVeth::Peer(other.build())));
        self.add_link(&format!("make veth {name}"), veth.build()).await
    }

    /// Marks the interface as made by us.
    pub async fn mark_ours(&self, link: &Link) -> Result<(), NetlinkError> {
        self.change_link("mark", link, change(link).alias(ALIAS).build()).await
    }

    /// Brings the interface up or down, when it is not so already.
    pub async fn set_up(&self, link: &Link, up: bool) -> Result<(), NetlinkError> {
        if link.up == up {
            return Ok(());
        }
        let (what, message) = if up { ("bring up", change(link).up()) } else { ("bring down", change(link).down()) };
        self.change_link(what, link, message.build()).await
    }

    /// Sets the MTU in bytes, when it is not so already.
    pub async fn set_mtu(&self, link: &Link, mtu: u32) -> Result<(), NetlinkError> {
        if link.mtu == mtu {
            return Ok(());
        }
        self.change_link(&format!("set mtu {mtu} of"), link, change(link).mtu(mtu).build()).await
    }

    /// Sets the MAC, when it is not so already.
    pub async fn set_mac(&self, link: &Link, mac: Mac) -> Result<(), NetlinkError> {
        if link.mac == mac {
            return Ok(());
        }
        self.change_link("set MAC of", link, change(link).address(mac.to_vec()).build()).await
    }

    /// Puts the interface into a bridge (`Some`) or takes it out.
    pub async fn set_master(&self, link: &Link, master: Option<u32>) -> Result<(), NetlinkError> {
        if link.master == master {
            return Ok(());
        }
        self.change_link("set bridge of", link, change(link).controller(master.unwrap_or(0)).build()).await
    }

    /// Isolates a bridge port from other isolated ports.
    pub async fn set_isolated(&self, link: &Link, isolated: bool) -> Result<(), NetlinkError> {
        self.change_link("isolate", link, LinkBridgePort::new(link.index).isolated(isolated).build()).await
    }

    /// Removes an interface; one that is gone already is no error.
    pub async fn delete_link(&self, link: &Link) -> Result<(), NetlinkError> {
        let request = self.handle()?.link().del(link.index).execute();
        tolerate(rtnl::done(&format!("remove {}", link.name), request).await, &[libc::ENODEV])
    }

    async fn add_link(&self, what: &str, message: LinkMessage) -> Result<(), NetlinkError> {
        let request = self.handle()?.link().add(message).execute();
        rtnl::done(what, request).await
    }

    async fn change_link(&self, what: &str, link: &Link, message: LinkMessage) -> Result<(), NetlinkError> {
        let request = self.handle()?.link().change(message).execute();
        rtnl::done(&format!("{what} {}", link.name), request).await
    }
}
