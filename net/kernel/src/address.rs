//! Addresses of the host (`RTM_*ADDR`).

use crate::PROTOCOL;
use crate::link::Link;
use crate::netlink::{Message, Netlink, NetlinkError, attributes, number, tolerate};
use holdfast_model::net::Prefix;
use std::net::IpAddr;

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;
const IFA_PROTO: u16 = 11;

/// An address as the kernel has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Interface index.
    pub index: u32,
    /// Address and prefix length.
    pub prefix: Prefix,
    /// Made by this program.
    pub ours: bool,
}

/// Address family number and bytes of an address.
#[must_use]
pub fn family_and_bytes(ip: IpAddr) -> (u8, Vec<u8>) {
    match ip {
        IpAddr::V4(a) => (libc::AF_INET as u8, a.octets().to_vec()),
        IpAddr::V6(a) => (libc::AF_INET6 as u8, a.octets().to_vec()),
    }
}

/// An address of 4 or 16 bytes.
#[must_use]
pub fn address(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(b) = <[u8; 4]>::try_from(bytes) {
        return Some(IpAddr::from(b));
    }
    <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from)
}

/// Reads an `RTM_NEWADDR` body.
#[must_use]
pub fn parse(body: &[u8]) -> Option<Found> {
    // struct ifaddrmsg: family, prefix length, flags, scope, index u32.
    let length = *body.get(1)?;
    let index = u32::from_ne_bytes(body.get(4..8)?.try_into().ok()?);
    let (mut remote, mut local, mut ours) = (None, None, false);
    for (kind, value) in attributes(body.get(8..)?) {
        match kind {
            IFA_ADDRESS => remote = address(value),
            IFA_LOCAL => local = address(value),
            IFA_PROTO => ours = number(value) == Some(u32::from(PROTOCOL)),
            _ => {}
        }
    }
    Some(Found { index, prefix: Prefix { address: local.or(remote)?, length }, ours })
}

fn message(kind: u16, flags: i32, link: &Link, prefix: Prefix) -> Message {
    let (family, bytes) = family_and_bytes(prefix.address);
    let mut header = [family, prefix.length, 0, 0, 0, 0, 0, 0];
    header[4..8].copy_from_slice(&link.index.to_ne_bytes());
    let mut m = Message::new(kind, flags, &header);
    m.attr(IFA_LOCAL, &bytes).attr(IFA_ADDRESS, &bytes);
    m
}

impl Netlink {
    /// All addresses of all interfaces.
    pub fn addresses(&mut self) -> Result<Vec<Found>, NetlinkError> {
        let m = Message::new(libc::RTM_GETADDR, 0, &[0; 8]);
        let answers = self.dump("list addresses", m)?;
        Ok(answers.iter().filter_map(|a| parse(&a.body)).collect())
    }

    /// Adds an address; one that is there already is no error.
    pub fn add_address(&mut self, link: &Link, prefix: Prefix) -> Result<(), NetlinkError> {
        let flags = libc::NLM_F_CREATE | libc::NLM_F_REPLACE;
        let mut m = message(libc::RTM_NEWADDR, flags, link, prefix);
        if let IpAddr::V4(a) = prefix.address
            && prefix.length < 31
        {
            let host_bits = u32::MAX.checked_shr(u32::from(prefix.length)).unwrap_or(0);
            m.attr(IFA_BROADCAST, &(u32::from(a) | host_bits).to_be_bytes());
        }
        m.attr(IFA_PROTO, &[PROTOCOL]);
        self.request(&format!("add {prefix} to {}", link.name), m)
    }

    /// Removes an address; one that is gone already is no error.
    pub fn delete_address(&mut self, link: &Link, prefix: Prefix) -> Result<(), NetlinkError> {
        let m = message(libc::RTM_DELADDR, 0, link, prefix);
        tolerate(self.request(&format!("remove {prefix} from {}", link.name), m), &[libc::EADDRNOTAVAIL, libc::ENODEV])
    }
}
