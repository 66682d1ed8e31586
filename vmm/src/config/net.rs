//! Network interfaces.

use std::fmt;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::str::FromStr;

use holdfast_links::path::LONGEST;
use serde::{Deserialize, Serialize};

use super::{ConfigError, FdList, FileRef, range};
use crate::rate::Limits;
use crate::virtio::net::MAX_PAIRS;

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
    /// A path that two VMs know ([`holdfast_links::path`]), 1 to 105 bytes: whichever starts first, they find each other, and
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

    pub(super) fn validate(&self, name: &str, vcpus: u8) -> Result<(), ConfigError> {
        if let Some(mtu) = self.mtu {
            range(&format!("{name}.mtu"), &mtu, "68 to 65521", (68..=65521).contains(&mtu))?;
        }
        let pairs = self.queue_pairs;
        let most = MAX_PAIRS.min(vcpus.into());
        let expected = format!("1 to {most} (at most {MAX_PAIRS}, and one for each vCPU)");
        range(&format!("{name}.queue_pairs"), &pairs, &expected, (1..=most).contains(&pairs))?;
        match (&self.tap, &self.link) {
            (Some(tap), None) => self.validate_tap(name, tap)?,
            (None, Some(LinkRef::Unix(unix))) => {
                let expected = "1, since the cable is a unix link";
                range(&format!("{name}.queue_pairs"), &pairs, expected, pairs == 1)?;
                range(&format!("{name}.vhost"), &"given", "to be left out, since the cable is no tap", {
                    self.vhost.is_none()
                })?;
                if let UnixRef::Path(path) = unix {
                    let expected = format!("1 to {LONGEST} bytes, so that it fits a socket's address");
                    let len = path.as_os_str().len();
                    range(&format!("{name}.link.unix.path"), &format!("{len} bytes"), &expected, {
                        (1..=LONGEST).contains(&len)
                    })?;
                }
            }
            (tap, _) => {
                let found = if tap.is_some() { "given beside tap" } else { "absent, and tap too" };
                range(&format!("{name}.link"), &found, "either tap or link", false)?;
            }
        }
        let Some(limits) = &self.limits else {
            return Ok(());
        };
        let expected = "to be left out with vhost, where frames do not pass through the VMM: limit the tap with tc or nft \
                        on the host, or leave out vhost";
        range(&format!("{name}.limits"), &"given", expected, self.vhost.is_none())?;
        for (way, limits) in [("receive", &limits.receive), ("transmit", &limits.transmit)] {
            if let Some(fault) = limits.fault() {
                range(&format!("{name}.limits.{way}.{}", fault.field), &fault.found, &fault.expected, false)?;
            }
        }
        Ok(())
    }

    fn validate_tap(&self, name: &str, tap: &TapRef) -> Result<(), ConfigError> {
        let pairs = usize::from(self.queue_pairs);
        let one_for_each = format!("one for each of {pairs} queue pairs");
        let count = |field: &str, count: usize| {
            range(&format!("{name}.{field}"), &format!("{count} descriptors"), &one_for_each, count == pairs)
        };
        match tap {
            TapRef::Name(tap) => {
                range(&format!("{name}.tap"), &format!("{tap:?}"), "an interface name of 1 to 15 characters", {
                    (1..=15).contains(&tap.len()) && tap.bytes().all(|c| c.is_ascii_graphic() && c != b'/')
                })?;
            }
            TapRef::Fd(_) => count("tap", 1)?,
            TapRef::Fds(fds) => count("tap", fds.len())?,
        }
        match &self.vhost {
            Some(VhostRef::Fd(_)) => count("vhost", 1),
            Some(VhostRef::Fds(fds)) => count("vhost", fds.len()),
            Some(VhostRef::Path(_)) | None => Ok(()),
        }
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

    fn parse(json: &str, vcpus: u8) -> Result<(), String> {
        let text = format!(r#"{{"mac": "02:00:00:00:00:01", {json}}}"#);
        let net: NetConfig = serde_json::from_str(&text).map_err(|e| e.to_string())?;
        let again: NetConfig = serde_json::from_slice(&serde_json::to_vec(&net).unwrap()).unwrap();
        assert_eq!(again, net);
        net.validate("nets[0]", vcpus).map_err(|e| e.to_string())
    }

    #[test]
    fn cables_and_queue_pairs_are_taken() {
        for json in [
            r#""tap": {"name": "tap0"}, "queue_pairs": 4, "vhost": {"path": "/dev/vhost-net"}"#,
            r#""tap": {"fds": [4, 5]}, "queue_pairs": 2, "vhost": {"fds": [6, 7]}"#,
            r#""tap": {"fds": [4]}, "vhost": {"fd": 5}"#,
            r#""link": {"unix": {"fd": 4}}, "mtu": 65521"#,
            r#""link": {"unix": {"path": "/run/cable"}}, "mtu": 9000"#,
            r#""link": {"unix": {"fd": 4}}, "limits": {"receive": {"bytes_per_second": 1000000}}"#,
            r#""tap": {"fd": 4}, "limits": {"transmit": {"ops_per_second": 100, "burst_ops": 10}}"#,
        ] {
            assert_eq!(parse(json, 4), Ok(()), "{json}");
        }
    }

    #[test]
    fn what_does_not_go_together_is_named() {
        for (json, words) in [
            (r#""mtu": 1500"#, &["nets[0].link", "absent", "either tap or link"][..]),
            (r#""tap": {"fd": 4}, "link": {"unix": {"fd": 5}}"#, &["nets[0].link", "beside tap"]),
            (r#""tap": {"name": "tap0"}, "queue_pairs": 5"#, &["queue_pairs is 5", "1 to 4", "vCPU"]),
            (r#""tap": {"name": "tap0"}, "queue_pairs": 0"#, &["queue_pairs is 0"]),
            (r#""tap": {"fd": 4}, "queue_pairs": 2"#, &["tap is 1 descriptors", "2 queue pairs"]),
            (r#""tap": {"name": "t"}, "queue_pairs": 2, "vhost": {"fd": 5}"#, &["vhost is 1 descriptors"]),
            (r#""link": {"unix": {"fd": 4}}, "queue_pairs": 2"#, &["queue_pairs is 2", "unix"]),
            (r#""link": {"unix": {"fd": 4}}, "vhost": {"fd": 5}"#, &["vhost", "no tap"]),
            (r#""link": {"unix": {"path": ""}}"#, &["link.unix.path is 0 bytes", "1 to 105"]),
            (r#""tap": {"fd": 4}, "vhost": {"fd": 5}, "limits": {}"#, &["limits", "vhost", "tc or nft"]),
            (
                r#""tap": {"fd": 4}, "limits": {"receive": {"bytes_per_second": 0}}"#,
                &["limits.receive.bytes_per_second"],
            ),
            (r#""tap": {"name": "far/too"}"#, &["nets[0].tap", "interface name"]),
        ] {
            let error = parse(json, 4).unwrap_err();
            assert!(words.iter().all(|word| error.contains(word)), "{words:?} not in {error:?}");
        }
        let long = |len| parse(&format!(r#""link": {{"unix": {{"path": "{}"}}}}"#, "p".repeat(len)), 1);
        assert!(long(105).is_ok() && long(106).unwrap_err().contains("106 bytes"));
        assert!(parse(r#""tap": {"name": "tap0"}, "queue_pairs": 17"#, 64).unwrap_err().contains("1 to 16"));
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
