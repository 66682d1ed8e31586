//! Network interfaces.

use std::fmt;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{FdList, FileRef, Limits};

/// One network interface: a card on a cable, which is either `tap` or `link`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetConfig {
    /// Address of the guest's end.
    pub mac: MacAddress,
    /// A tap device of the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tap: Option<TapRef>,
    /// Another kind of cable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link: Option<LinkRef>,
    /// `/dev/vhost-net`; without it frames pass through this process. Only for a tap.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vhost: Option<VhostRef>,
    /// Pairs of receive and transmit queues, 1 to 16 and at most one for each vCPU; more than one only for a tap.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub queue_pairs: u16,
    /// MTU told to the guest, 68..=65521.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u16>,
    /// Limits, for frames that pass through this process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<NetLimits>,
}

/// A tap device: by interface name, or as attached descriptors (`IFF_TAP | IFF_NO_PI | IFF_VNET_HDR`, and
/// `IFF_MULTI_QUEUE` for more than one).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TapRef {
    /// Attached to at start.
    Name(String),
    /// Inherited, already attached: the only queue pair.
    Fd(RawFd),
    /// Inherited, already attached: one for each queue pair.
    Fds(Vec<RawFd>),
}

/// `/dev/vhost-net`: by path, or as descriptors that no VM has used before.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VhostRef {
    /// Opened once for each queue pair.
    Path(PathBuf),
    /// Inherited, for the only queue pair.
    Fd(RawFd),
    /// Inherited, one for each queue pair.
    Fds(Vec<RawFd>),
}

/// A cable that is no tap.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LinkRef {
    /// Unix packet sockets: one Ethernet frame in each packet, straight to another VM.
    Unix(UnixRef),
}

/// The cable's end.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UnixRef {
    /// A connected `SOCK_SEQPACKET` or `SOCK_DGRAM` socket, inherited.
    Fd(RawFd),
    /// A path that two VMs know (`holdfast_links::path`), 1 to 105 bytes: whichever starts first, they find each other, and
    /// again after one of them was gone. Its files are `PATH`, `PATH.0` and `PATH.1`.
    Path(PathBuf),
}

/// Limits of one card, of all its queue pairs together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetLimits {
    /// Of frames to the guest.
    #[serde(default)]
    pub receive: Limits,
    /// Of frames from the guest.
    #[serde(default)]
    pub transmit: Limits,
}

fn one() -> u16 {
    1
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_one(pairs: &u16) -> bool {
    *pairs == 1
}

impl NetConfig {
    /// A card with address `mac` on `tap`, its frames passing through this process.
    pub fn new(mac: MacAddress, tap: TapRef) -> Self {
        Self { mac, tap: Some(tap), link: None, vhost: None, queue_pairs: 1, mtu: None, limits: None }
    }

    /// A card with address `mac` on another kind of cable.
    pub fn linked(mac: MacAddress, link: LinkRef) -> Self {
        Self { mac, tap: None, link: Some(link), vhost: None, queue_pairs: 1, mtu: None, limits: None }
    }

    pub(super) fn list_fds(&self, name: &str, fds: &mut FdList) {
        let mut add = |field: &str, list: &[RawFd]| {
            for (n, fd) in list.iter().enumerate() {
                let place = if list.len() > 1 { format!("[{n}]") } else { String::new() };
                fds.add(&format!("{name}.{field}{place}"), Some(&FileRef::Fd(*fd)));
            }
        };
        match &self.tap {
            Some(TapRef::Fd(fd)) => add("tap", &[*fd]),
            Some(TapRef::Fds(list)) => add("tap", list),
            Some(TapRef::Name(_)) | None => {}
        }
        if let Some(LinkRef::Unix(UnixRef::Fd(fd))) = &self.link {
            add("link", &[*fd]);
        }
        match &self.vhost {
            Some(VhostRef::Fd(fd)) => add("vhost", &[*fd]),
            Some(VhostRef::Fds(list)) => add("vhost", list),
            Some(VhostRef::Path(_)) | None => {}
        }
    }
}

/// A text that is no unicast Ethernet address.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("mac {found:?} is not a unicast address like 02:00:00:00:00:01")]
pub struct MacFault {
    /// The first 40 characters of the text.
    pub found: String,
}

/// An Ethernet address, `02:00:00:00:00:01` in text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddress(pub [u8; 6]);

impl FromStr for MacAddress {
    type Err = MacFault;

    fn from_str(text: &str) -> Result<Self, MacFault> {
        let bad = || MacFault { found: text.chars().take(40).collect() };
        let mut mac = [0u8; 6];
        let mut parts = text.split(':');
        for byte in &mut mac {
            let part = parts.next().ok_or_else(bad)?;
            if part.len() != 2 || !part.bytes().all(|c| c.is_ascii_hexdigit()) {
                return Err(bad());
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| bad())?;
        }
        if parts.next().is_some() || mac[0] & 1 != 0 || mac == [0; 6] {
            return Err(bad());
        }
        Ok(MacAddress(mac))
    }
}

impl TryFrom<String> for MacAddress {
    type Error = MacFault;

    fn try_from(text: String) -> Result<Self, MacFault> {
        text.parse()
    }
}

impl From<MacAddress> for String {
    fn from(mac: MacAddress) -> String {
        mac.to_string()
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_mac_that_is_not_unicast_is_named() {
        for text in ["03:00:00:00:00:01", "00:00:00:00:00:00", "02:00:00:00:00", "02-00-00-00-00-01", ""] {
            assert_eq!(text.parse::<MacAddress>(), Err(MacFault { found: text.into() }));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn mac_round_trips(mac in any::<[u8; 6]>()) {
            let mut mac = mac;
            mac[0] = (mac[0] & 0xfe) | 2;
            let mac = MacAddress(mac);
            prop_assert_eq!(mac.to_string().parse::<MacAddress>().unwrap(), mac);
        }
    }
}
