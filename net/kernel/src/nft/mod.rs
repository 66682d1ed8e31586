//! nftables over netlink: a whole table in one transaction.
//!
//! Layout of the messages: `linux/netfilter/nf_tables.h`; the expressions are in [`encode`].

pub mod encode;

use crate::error::NetlinkError;
use crate::netlink::{Message, Netlink, attribute, string};
use encode::rule_expressions;
use holdfast_plan::firewall::{Base, ChainKind, Family, Hook, Policy, Table};

const SUBSYSTEM: u16 = 10;
const NEWTABLE: u16 = 0;
const GETTABLE: u16 = 1;
const DELTABLE: u16 = 2;
const NEWCHAIN: u16 = 3;
const NEWRULE: u16 = 6;
const TABLE_NAME: u16 = 1;
const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_POLICY: u16 = 5;
const CHAIN_TYPE: u16 = 7;
const HOOK_NUMBER: u16 = 1;
const HOOK_PRIORITY: u16 = 2;
const RULE_TABLE: u16 = 1;
const RULE_CHAIN: u16 = 2;
const RULE_EXPRESSIONS: u16 = 4;

fn family_number(family: Family) -> u8 {
    match family {
        Family::Inet => 1,
        Family::Bridge => 7,
    }
}

fn message(kind: u16, flags: i32, family: Family) -> Message {
    // struct nfgenmsg: family, version 0, resource id 0.
    Message::new(SUBSYSTEM << 8 | kind, flags, &[family_number(family), 0, 0, 0])
}

fn table_message(kind: u16, family: Family, name: &str) -> Message {
    let mut m = message(kind, if kind == NEWTABLE { libc::NLM_F_CREATE } else { 0 }, family);
    m.text(TABLE_NAME, name);
    m
}

fn fill_base(m: &mut Message, base: &Base) {
    let hook = match base.hook {
        Hook::Prerouting => 0,
        Hook::Input => 1,
        Hook::Forward => 2,
        Hook::Output => 3,
        Hook::Postrouting => 4,
    };
    m.nest(CHAIN_HOOK, |m| {
        m.be32(HOOK_NUMBER, hook).be32(HOOK_PRIORITY, base.priority.cast_unsigned());
    });
    m.be32(CHAIN_POLICY, u32::from(base.policy == Policy::Accept));
    m.text(
        CHAIN_TYPE,
        match base.kind {
            ChainKind::Filter => "filter",
            ChainKind::Nat => "nat",
        },
    );
}

/// The transaction that replaces a table: made so that it surely exists, removed, made anew.
#[must_use]
pub fn replacement(table: &Table) -> Vec<(String, Message)> {
    let mut items = removal(table.family, &table.name);
    items.push(("new table".into(), table_message(NEWTABLE, table.family, &table.name)));
    for chain in &table.chains {
        let mut m = message(NEWCHAIN, libc::NLM_F_CREATE, table.family);
        m.text(CHAIN_TABLE, &table.name).text(CHAIN_NAME, &chain.name);
        if let Some(base) = &chain.base {
            fill_base(&mut m, base);
        }
        items.push((format!("chain {}", chain.name), m));
    }
    for chain in &table.chains {
        for (i, rule) in chain.rules.iter().enumerate() {
            let mut m = message(NEWRULE, libc::NLM_F_CREATE | libc::NLM_F_APPEND, table.family);
            m.text(RULE_TABLE, &table.name).text(RULE_CHAIN, &chain.name);
            m.nest(RULE_EXPRESSIONS, |m| rule_expressions(m, table.family, rule));
            items.push((format!("rule {} of chain {}", i + 1, chain.name), m));
        }
    }
    items
}

fn removal(family: Family, name: &str) -> Vec<(String, Message)> {
    vec![
        ("table".into(), table_message(NEWTABLE, family, name)),
        ("old table".into(), table_message(DELTABLE, family, name)),
    ]
}

impl Netlink {
    /// Replaces a table with all its chains and rules at once. Connections keep their tracking.
    pub fn replace_table(&self, table: &Table) -> Result<(), NetlinkError> {
        let what = format!("replace nftables table {}", table.name);
        self.transaction(&what, SUBSYSTEM, replacement(table))
    }

    /// Removes a table; one that is gone already is no error.
    pub fn delete_table(&self, family: Family, name: &str) -> Result<(), NetlinkError> {
        let what = format!("remove nftables table {name}");
        self.transaction(&what, SUBSYSTEM, removal(family, name))
    }

    /// Names of the tables of a family.
    pub fn tables(&self, family: Family) -> Result<Vec<String>, NetlinkError> {
        let answers = self.dump("list nftables tables", message(GETTABLE, 0, family))?;
        Ok(answers
            .iter()
            .filter(|a| a.body.first() == Some(&family_number(family)))
            .filter_map(|a| attribute(a.body.get(4..)?, TABLE_NAME).map(string))
            .collect())
    }
}
