//! nftables over netlink: the items of the firewall as messages, and transactions of them.
//!
//! Layout of the messages: `linux/netfilter/nf_tables.h`. Reading order: this file (messages of each kind), [`encode`]
//! (expressions of rules), [`commit`] (transactions), [`read`] (what exists), [`attributes`] (numbers).

pub mod attributes;
pub mod commit;
pub mod encode;
pub mod read;

use crate::netlink::Message;
use attributes::*;
use encode::{rule_expressions, verdict_data};
use holdfast_plan::firewall::skeleton::{Fixed, Layout};
use holdfast_plan::firewall::{Base, ChainKind, Family, Hook, Map, Part, PartType, Policy, Rule, TABLE};
use holdfast_plan::kinds::firewall_element::Target;
use holdfast_plan::kinds::{FirewallChain, FirewallCounter, FirewallElement, FirewallSkeleton};

/// Messages, each with what it is about.
pub type Messages = Vec<(String, Message)>;

const CREATE: i32 = libc::NLM_F_CREATE;

fn family_number(family: Family) -> u8 {
    match family {
        Family::Inet => libc::NFPROTO_INET as u8,
        Family::Bridge => libc::NFPROTO_BRIDGE as u8,
    }
}

fn message(kind: i32, flags: i32, family: Family) -> Message {
    let kind = (libc::NFNL_SUBSYS_NFTABLES << 8 | kind) as u16;
    // struct nfgenmsg: family, version 0, resource id 0.
    Message::new(kind, flags, &[family_number(family), libc::NFNETLINK_V0 as u8, 0, 0])
}

/// The table with its maps and base chains; what exists of it is made complete.
#[must_use]
pub fn create_skeleton(skeleton: &FirewallSkeleton) -> Messages {
    let family = skeleton.family;
    let layout = Layout::of(family);
    let mut table = message(libc::NFT_MSG_NEWTABLE, CREATE, family);
    table.text(NFTA_TABLE_NAME, TABLE).attr(NFTA_TABLE_USERDATA, &comment(&read::digest_text(skeleton.digest)));
    let mut list = vec![(format!("table {family} {TABLE}"), table)];
    for (id, map) in (1..).zip(&layout.maps) {
        list.push((format!("map {}", map.name), new_map(family, map, id)));
    }
    for chain in &layout.chains {
        list.push((format!("chain {}", chain.name), new_chain(family, chain.name, chain.base.as_ref())));
    }
    for Fixed { name, rules, .. } in &layout.chains {
        list.extend(fill(family, name, rules, None));
    }
    list
}

/// The whole table.
#[must_use]
pub fn remove_skeleton(skeleton: &FirewallSkeleton) -> Messages {
    let mut m = message(NFT_MSG_DESTROYTABLE, 0, skeleton.family);
    m.text(NFTA_TABLE_NAME, TABLE);
    vec![(format!("remove table {} {TABLE}", skeleton.family), m)]
}

/// A chain with its rules.
#[must_use]
pub fn create_chain(chain: &FirewallChain) -> Messages {
    let mut list = vec![(format!("chain {}", chain.name), new_chain(chain.family, &chain.name, None))];
    list.extend(fill(chain.family, &chain.name, &chain.rules, chain.counter.as_deref()));
    list
}

/// A chain; its rules go with it.
#[must_use]
pub fn remove_chain(chain: &FirewallChain) -> Messages {
    let mut m = message(NFT_MSG_DESTROYCHAIN, 0, chain.family);
    m.text(NFTA_CHAIN_TABLE, TABLE).text(NFTA_CHAIN_NAME, &chain.name);
    vec![(format!("remove chain {}", chain.name), m)]
}

/// A counter; one that exists goes on counting.
#[must_use]
pub fn create_counter(counter: &FirewallCounter) -> Messages {
    let mut m = message(libc::NFT_MSG_NEWOBJ, CREATE, counter.family);
    m.text(NFTA_OBJ_TABLE, TABLE).text(NFTA_OBJ_NAME, &counter.name).be32(NFTA_OBJ_TYPE, NFT_OBJECT_COUNTER);
    m.nest(NFTA_OBJ_DATA, |m| {
        m.be64(NFTA_COUNTER_BYTES, 0).be64(NFTA_COUNTER_PACKETS, 0);
    });
    vec![(format!("counter {}", counter.name), m)]
}

/// A counter.
#[must_use]
pub fn remove_counter(counter: &FirewallCounter) -> Messages {
    let mut m = message(NFT_MSG_DESTROYOBJ, 0, counter.family);
    m.text(NFTA_OBJ_TABLE, TABLE).text(NFTA_OBJ_NAME, &counter.name).be32(NFTA_OBJ_TYPE, NFT_OBJECT_COUNTER);
    vec![(format!("remove counter {}", counter.name), m)]
}

/// An element, in place of one with the same key.
#[must_use]
pub fn create_element(element: &FirewallElement) -> Messages {
    let mut list = remove_element(element);
    let target = match &element.target {
        Target::Member => None,
        Target::Accept => Some((libc::NF_ACCEPT, None)),
        Target::Jump(chain) => Some((libc::NFT_JUMP, Some(chain.as_str()))),
        Target::Goto(chain) => Some((libc::NFT_GOTO, Some(chain.as_str()))),
    };
    let m = element_message(libc::NFT_MSG_NEWSETELEM, CREATE, element, |m| {
        if let Some((code, chain)) = target {
            m.nest(NFTA_SET_ELEM_DATA, |m| verdict_data(m, code, chain));
        }
    });
    list.push((format!("element of {}", element.map), m));
    list
}

/// An element.
#[must_use]
pub fn remove_element(element: &FirewallElement) -> Messages {
    let m = element_message(NFT_MSG_DESTROYSETELEM, 0, element, |_| {});
    vec![(format!("remove element of {}", element.map), m)]
}

fn element_message(kind: i32, flags: i32, element: &FirewallElement, data: impl FnOnce(&mut Message)) -> Message {
    let mut m = message(kind, flags, element.family);
    m.text(NFTA_SET_ELEM_LIST_TABLE, TABLE).text(NFTA_SET_ELEM_LIST_SET, element.map);
    m.nest(NFTA_SET_ELEM_LIST_ELEMENTS, |m| {
        m.nest(NFTA_LIST_ELEM, |m| {
            m.nest(NFTA_SET_ELEM_KEY, |m| {
                m.attr(NFTA_DATA_VALUE, &key_bytes(&element.key));
            });
            data(m);
        });
    });
    m
}

fn new_map(family: Family, map: &Map, id: u32) -> Message {
    let mut m = message(libc::NFT_MSG_NEWSET, CREATE, family);
    m.text(NFTA_SET_TABLE, TABLE).text(NFTA_SET_NAME, map.name).be32(NFTA_SET_ID, id);
    let (mut kind, mut len) = (0, 0);
    for part in map.key {
        kind = kind << datatypes::BITS | data_type(*part);
        len += width(*part) as u32;
    }
    m.be32(NFTA_SET_KEY_TYPE, kind).be32(NFTA_SET_KEY_LEN, len);
    if map.verdicts {
        m.be32(NFTA_SET_FLAGS, libc::NFT_SET_MAP.cast_unsigned());
        m.be32(NFTA_SET_DATA_TYPE, libc::NFT_DATA_VERDICT).be32(NFTA_SET_DATA_LEN, 16);
    }
    if map.key == [PartType::Interface] {
        // For `nft` to show the names: NFTNL_UDATA_SET_KEYBYTEORDER (0) of 4 bytes, BYTEORDER_HOST_ENDIAN (1).
        let data = [&[0, 4][..], &1_u32.to_ne_bytes()].concat();
        m.attr(NFTA_SET_USERDATA, &data);
    }
    m
}

fn data_type(part: PartType) -> u32 {
    match part {
        PartType::Interface => datatypes::IFNAME,
        PartType::Address4 => datatypes::IPADDR,
        PartType::Protocol => datatypes::INET_PROTOCOL,
        PartType::Port => datatypes::INET_SERVICE,
    }
}

/// Bytes of a part in a key: whole registers of 4.
fn width(part: PartType) -> usize {
    match part {
        PartType::Interface => libc::IFNAMSIZ,
        PartType::Address4 | PartType::Protocol | PartType::Port => 4,
    }
}

/// An interface name as it lies in a register.
fn interface_name(name: &str) -> [u8; libc::IFNAMSIZ] {
    let mut value = [0; libc::IFNAMSIZ];
    let len = name.len().min(libc::IFNAMSIZ - 1);
    value[..len].copy_from_slice(&name.as_bytes()[..len]);
    value
}

fn key_bytes(key: &[Part]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for part in key {
        match part {
            Part::Interface(name) => bytes.extend(interface_name(name)),
            Part::Address4(address) => bytes.extend(address.octets()),
            Part::Protocol(number) => bytes.push(*number),
            Part::Port(port) => bytes.extend(port.to_be_bytes()),
        }
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    bytes
}

fn new_chain(family: Family, name: &str, base: Option<&Base>) -> Message {
    let mut m = message(libc::NFT_MSG_NEWCHAIN, CREATE, family);
    m.text(NFTA_CHAIN_TABLE, TABLE).text(NFTA_CHAIN_NAME, name);
    if let Some(base) = base {
        let hook = match base.hook {
            Hook::Prerouting => libc::NF_INET_PRE_ROUTING,
            Hook::Input => libc::NF_INET_LOCAL_IN,
            Hook::Forward => libc::NF_INET_FORWARD,
            Hook::Output => libc::NF_INET_LOCAL_OUT,
            Hook::Postrouting => libc::NF_INET_POST_ROUTING,
        };
        m.nest(NFTA_CHAIN_HOOK, |m| {
            m.be32(NFTA_HOOK_HOOKNUM, hook.cast_unsigned()).be32(NFTA_HOOK_PRIORITY, base.priority.cast_unsigned());
        });
        m.be32(NFTA_CHAIN_POLICY, u32::from(base.policy == Policy::Accept));
        m.text(
            NFTA_CHAIN_TYPE,
            match base.kind {
                ChainKind::Filter => "filter",
                ChainKind::Nat => "nat",
            },
        );
    }
    m
}

/// The rules of a chain, in place of those it has.
fn fill(family: Family, chain: &str, rules: &[Rule], counter: Option<&str>) -> Messages {
    let mut flush = message(libc::NFT_MSG_DELRULE, 0, family);
    flush.text(NFTA_RULE_TABLE, TABLE).text(NFTA_RULE_CHAIN, chain);
    let mut list = vec![(format!("rules of chain {chain}"), flush)];
    for (i, rule) in rules.iter().enumerate() {
        let mut m = message(libc::NFT_MSG_NEWRULE, CREATE | libc::NLM_F_APPEND, family);
        m.text(NFTA_RULE_TABLE, TABLE).text(NFTA_RULE_CHAIN, chain);
        m.nest(NFTA_RULE_EXPRESSIONS, |m| rule_expressions(m, family, rule, counter));
        list.push((format!("rule {} of chain {chain}", i + 1), m));
    }
    list
}

/// User data of which `nft` shows a comment: type 0, length with NUL, text (`NFTNL_UDATA_TABLE_COMMENT` of libnftnl).
fn comment(text: &str) -> Vec<u8> {
    let mut data = vec![0, (text.len() + 1) as u8];
    data.extend(text.as_bytes());
    data.push(0);
    data
}
