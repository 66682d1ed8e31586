//! Reading back what exists of the firewall.

use super::attributes::*;
use super::{message, width};
use crate::error::NetlinkError;
use crate::netlink::{Message, Netlink, attribute, attributes, string};
use holdfast_plan::firewall::{Family, Map, Owner, Part, PartType, TABLE};
use holdfast_plan::kinds::firewall_element::{FirewallElement, Target};
use std::net::Ipv4Addr;

/// A counter's values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Count {
    /// Packets.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// How a digest is written on the table.
#[must_use]
pub fn digest_text(digest: u64) -> String {
    format!("holdfast {digest:016x}")
}

impl Netlink {
    /// Attributes of all objects of a kind; none when the table does not exist.
    fn objects(&self, what: &str, request: Message) -> Result<Vec<Vec<u8>>, NetlinkError> {
        match self.dump(what, request) {
            Err(e) if e.errno() == Some(libc::ENOENT) => Ok(Vec::new()),
            Err(e) => Err(e),
            // Behind struct nfgenmsg.
            Ok(answers) => Ok(answers.into_iter().filter_map(|a| a.body.get(4..).map(<[u8]>::to_vec)).collect()),
        }
    }

    /// Digest of the skeleton that exists; 0 when the table has none.
    pub fn skeleton(&self, family: Family) -> Result<Option<u64>, NetlinkError> {
        let tables = self.objects("list firewall tables", message(libc::NFT_MSG_GETTABLE, 0, family))?;
        let ours = |t: &&Vec<u8>| attribute(t, NFTA_TABLE_NAME).map(string).is_some_and(|n| n == TABLE);
        Ok(tables.iter().find(ours).map(|table| {
            // Type and length of the comment come before its text.
            let comment = attribute(table, NFTA_TABLE_USERDATA).and_then(|d| d.get(2..)).map(string);
            let digest = comment.and_then(|c| u64::from_str_radix(c.strip_prefix("holdfast ")?, 16).ok());
            digest.unwrap_or(0)
        }))
    }

    /// Names of the chains of the table.
    pub fn chains(&self, family: Family) -> Result<Vec<String>, NetlinkError> {
        let chains = self.objects("list firewall chains", message(libc::NFT_MSG_GETCHAIN, 0, family))?;
        let ours = |c: &&Vec<u8>| attribute(c, NFTA_CHAIN_TABLE).map(string).is_some_and(|n| n == TABLE);
        Ok(chains.iter().filter(ours).filter_map(|c| attribute(c, NFTA_CHAIN_NAME).map(string)).collect())
    }

    /// The named counters of the table.
    pub fn counters(&self, family: Family) -> Result<Vec<(String, Count)>, NetlinkError> {
        let mut request = message(libc::NFT_MSG_GETOBJ, 0, family);
        request.text(NFTA_OBJ_TABLE, TABLE).be32(NFTA_OBJ_TYPE, NFT_OBJECT_COUNTER);
        let counter = |object: &Vec<u8>| {
            let data = attribute(object, NFTA_OBJ_DATA)?;
            let number = |kind| Some(u64::from_be_bytes(attribute(data, kind)?.try_into().ok()?));
            let count = Count { packets: number(NFTA_COUNTER_PACKETS)?, bytes: number(NFTA_COUNTER_BYTES)? };
            Some((attribute(object, NFTA_OBJ_NAME).map(string)?, count))
        };
        Ok(self.objects("list firewall counters", request)?.iter().filter_map(counter).collect())
    }

    /// The elements of a map.
    pub fn elements(&self, family: Family, map: &Map) -> Result<Vec<FirewallElement>, NetlinkError> {
        let mut request = message(libc::NFT_MSG_GETSETELEM, 0, family);
        request.text(NFTA_SET_ELEM_LIST_TABLE, TABLE).text(NFTA_SET_ELEM_LIST_SET, map.name);
        let answers = self.objects(&format!("list elements of {}", map.name), request)?;
        let lists = answers.iter().filter_map(|a| attribute(a, NFTA_SET_ELEM_LIST_ELEMENTS));
        let elements = lists.flat_map(attributes).filter_map(|(_, element)| {
            let key = key_parts(map.key, attribute(attribute(element, NFTA_SET_ELEM_KEY)?, NFTA_DATA_VALUE)?)?;
            let target = match map.verdicts {
                false => Target::Member,
                true => target(attribute(attribute(element, NFTA_SET_ELEM_DATA)?, NFTA_DATA_VERDICT)?)?,
            };
            Some(FirewallElement { family, map: map.name, key, target, owner: Owner::default() })
        });
        Ok(elements.collect())
    }
}

fn target(verdict: &[u8]) -> Option<Target> {
    let code = i32::from_be_bytes(attribute(verdict, NFTA_VERDICT_CODE)?.try_into().ok()?);
    let chain = || attribute(verdict, NFTA_VERDICT_CHAIN).map(string);
    match code {
        libc::NF_ACCEPT => Some(Target::Accept),
        libc::NFT_JUMP => chain().map(Target::Jump),
        libc::NFT_GOTO => chain().map(Target::Goto),
        _ => None,
    }
}

fn key_parts(types: &[PartType], mut bytes: &[u8]) -> Option<Vec<Part>> {
    let mut parts = Vec::new();
    for kind in types {
        let part;
        (part, bytes) = bytes.split_at_checked(width(*kind))?;
        parts.push(match kind {
            PartType::Interface => Part::Interface(string(part)),
            PartType::Address4 => Part::Address4(Ipv4Addr::from(<[u8; 4]>::try_from(part).ok()?)),
            PartType::Protocol => Part::Protocol(part[0]),
            PartType::Port => Part::Port(u16::from_be_bytes([part[0], part[1]])),
        });
    }
    Some(parts)
}
