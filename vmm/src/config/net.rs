//! Network interfaces.

use std::fmt;
use std::os::fd::RawFd;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{ConfigError, FdList, FileRef, range};

/// One network interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetConfig {
    /// Address of the guest's end.
    pub mac: MacAddress,
    /// The tap device.
    pub tap: TapRef,
    /// `/dev/vhost-net`; without it frames pass through this process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vhost: Option<FileRef>,
    /// MTU told to the guest, 68..=65521.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u16>,
}

/// A tap device: by interface name, or as an attached descriptor
/// (`IFF_TAP | IFF_NO_PI | IFF_VNET_HDR`).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TapRef {
    /// Attached to at start.
    Name(String),
    /// Inherited, already attached.
    Fd(RawFd),
}

impl NetConfig {
    /// A card with address `mac` on `tap`, its frames passing through this process.
    pub fn new(mac: MacAddress, tap: TapRef) -> Self {
        Self { mac, tap, vhost: None, mtu: None }
    }

    pub(super) fn validate(&self, name: &str) -> Result<(), ConfigError> {
        if let Some(mtu) = self.mtu {
            range(&format!("{name}.mtu"), &mtu, "68 to 65521", (68..=65521).contains(&mtu))?;
        }
        if let TapRef::Name(tap) = &self.tap {
            range(&format!("{name}.tap"), &format!("{tap:?}"), "an interface name of 1 to 15 characters", {
                (1..=15).contains(&tap.len()) && tap.bytes().all(|c| c.is_ascii_graphic() && c != b'/')
            })?;
        }
        Ok(())
    }

    pub(super) fn list_fds(&self, name: &str, fds: &mut FdList) {
        if let TapRef::Fd(fd) = self.tap {
            fds.add(&format!("{name}.tap"), Some(&FileRef::Fd(fd)));
        }
        fds.add(&format!("{name}.vhost"), self.vhost.as_ref());
    }
}

/// An Ethernet address, `02:00:00:00:00:01` in text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddress(pub [u8; 6]);

impl FromStr for MacAddress {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let bad = || ConfigError::Mac { found: text.chars().take(40).collect() };
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
    type Error = ConfigError;

    fn try_from(text: String) -> Result<Self, ConfigError> {
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
