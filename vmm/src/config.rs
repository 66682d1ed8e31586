//! `VmConfig`: everything a VM is made of, as JSON.
//!
//! Every file may be given as a path (stand-alone use) or as the number of an inherited descriptor (production, where
//! the parent opens all and this process opens nothing). Unknown fields are errors, so that a typing mistake is not
//! silently a default.
#![forbid(unsafe_code)]

use std::collections::HashSet;
use std::fmt;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Largest accepted JSON text, in bytes.
pub const MAX_CONFIG_BYTES: usize = 256 * 1024;
/// Most vCPUs of one VM. APIC ids must fit the 8-bit field of the MADT.
pub const MAX_VCPUS: u8 = 64;
/// Least guest memory, MiB: below it no kernel of ours unpacks itself.
pub const MIN_MEMORY_MIB: u32 = 32;
/// Most guest memory, MiB (1 TiB).
pub const MAX_MEMORY_MIB: u32 = 1024 * 1024;
/// Most disks plus network interfaces. Bus 0 has 31 free slots; rng and console take two.
pub const MAX_DEVICES: usize = 28;
/// Longest kernel command line, bytes (x86 `COMMAND_LINE_SIZE` less the terminating zero).
pub const MAX_CMDLINE: usize = 2047;

/// One VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmConfig {
    /// Name in messages and thread names; not seen by the guest.
    pub name: String,
    /// Number of vCPUs, 1..=[`MAX_VCPUS`].
    pub vcpus: u8,
    /// Guest memory in MiB.
    pub memory_mib: u32,
    /// Uncompressed ELF `vmlinux` or `bzImage`.
    pub kernel: FileRef,
    /// Initial ramdisk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd: Option<FileRef>,
    /// Kernel command line; [`default_cmdline`] when absent.
    #[serde(default = "default_cmdline")]
    pub cmdline: String,
    /// `/dev/kvm`.
    #[serde(default = "default_kvm")]
    pub kvm: FileRef,
    /// Block devices in PCI order: the first is `/dev/vda`.
    #[serde(default)]
    pub disks: Vec<DiskConfig>,
    /// Network interfaces in PCI order.
    #[serde(default)]
    pub nets: Vec<NetConfig>,
    /// virtio entropy device.
    #[serde(default = "yes")]
    pub rng: bool,
    /// virtio console `hvc0`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub console: Option<ConsoleConfig>,
    /// 16550 at 0x3f8 (`ttyS0`), for kernel debugging: each byte costs an exit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<SerialConfig>,
    /// Listening `SOCK_SEQPACKET` socket (fd), or the path to make one at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub control: Option<FileRef>,
    /// Close the jail before the guest runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jail: Option<JailConfig>,
}

/// A file: by path, or as an inherited descriptor.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileRef {
    /// Opened at start.
    Path(PathBuf),
    /// Inherited from the parent.
    Fd(RawFd),
}

impl fmt::Display for FileRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FileRef::Path(path) => write!(f, "{}", path.display()),
            FileRef::Fd(fd) => write!(f, "inherited fd {fd}"),
        }
    }
}

/// One block device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskConfig {
    /// Serial string the guest reads (`/sys/block/vda/serial`), 1..=20 bytes of ASCII; unique.
    pub id: String,
    /// Raw image; its size is a multiple of 512.
    pub file: FileRef,
    /// Refuse writes.
    #[serde(default)]
    pub read_only: bool,
}

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

/// The virtio console.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConsoleConfig {
    /// Where the guest's output goes; stdout when absent.
    #[serde(default = "stdout")]
    pub output: FileRef,
    /// Where its input comes from; nothing when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input: Option<FileRef>,
}

/// The serial port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SerialConfig {
    /// Where the guest's output goes; stdout when absent.
    #[serde(default = "stdout")]
    pub output: FileRef,
}

/// What the jail drops to. Needs root to enter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JailConfig {
    /// User id to become; not 0.
    pub uid: u32,
    /// Group id to become; not 0.
    pub gid: u32,
    /// Own pid namespace (costs one waiting parent process).
    #[serde(default = "yes")]
    pub pid_namespace: bool,
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

/// What is wrong with a configuration.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ConfigError {
    /// Too long.
    #[error("config: {found} bytes of JSON, at most {MAX_CONFIG_BYTES} are accepted")]
    TooLong {
        /// Bytes found.
        found: usize,
    },
    /// Not the JSON we expect.
    #[error("config: {0}; see `vmm --help` for an example")]
    Json(String),
    /// A number is out of its range.
    #[error("config: {field} is {found}, expected {expected}")]
    Range {
        /// Field name.
        field: String,
        /// Value found.
        found: String,
        /// Range in words.
        expected: String,
    },
    /// An address is not usable.
    #[error("config: mac {found:?} is not a unicast address like 02:00:00:00:00:01")]
    Mac {
        /// Text found.
        found: String,
    },
    /// The same descriptor is named twice.
    #[error("config: {second} uses inherited fd {fd}, which {first} already uses; pass a duplicate")]
    FdTwice {
        /// The descriptor.
        fd: RawFd,
        /// First user.
        first: String,
        /// Second user.
        second: String,
    },
}

impl VmConfig {
    /// Parses and checks JSON text.
    ///
    /// # Errors
    /// [`ConfigError`] names the field, what was found and what is expected.
    pub fn from_json(text: &[u8]) -> Result<Self, ConfigError> {
        if text.len() > MAX_CONFIG_BYTES {
            return Err(ConfigError::TooLong { found: text.len() });
        }
        let config: VmConfig = serde_json::from_slice(text).map_err(|e| ConfigError::Json(e.to_string()))?;
        config.validate()?;
        Ok(config)
    }

    /// The JSON text that [`VmConfig::from_json`] reads.
    pub fn to_json(&self) -> Vec<u8> {
        // Only maps with non-string keys and failing writers make serde_json fail; here is neither.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Checks everything that can be checked without touching the host.
    ///
    /// # Errors
    /// The first fault found.
    pub fn validate(&self) -> Result<(), ConfigError> {
        range("name", &format!("{:?}", self.name), "1 to 64 printable ASCII characters", {
            (1..=64).contains(&self.name.len()) && self.name.bytes().all(|c| c.is_ascii_graphic())
        })?;
        range("vcpus", &self.vcpus, &format!("1 to {MAX_VCPUS}"), (1..=MAX_VCPUS).contains(&self.vcpus))?;
        range(
            "memory_mib",
            &self.memory_mib,
            &format!("{MIN_MEMORY_MIB} to {MAX_MEMORY_MIB}"),
            (MIN_MEMORY_MIB..=MAX_MEMORY_MIB).contains(&self.memory_mib),
        )?;
        range(
            "cmdline",
            &format!("{} bytes", self.cmdline.len()),
            &format!("at most {MAX_CMDLINE} bytes of printable ASCII"),
            self.cmdline.len() <= MAX_CMDLINE && self.cmdline.bytes().all(|c| (0x20..0x7f).contains(&c)),
        )?;
        let devices = self.disks.len() + self.nets.len();
        range("disks + nets", &devices, &format!("at most {MAX_DEVICES}"), devices <= MAX_DEVICES)?;
        let mut ids = HashSet::new();
        for (n, disk) in self.disks.iter().enumerate() {
            range(
                &format!("disks[{n}].id"),
                &format!("{:?}", disk.id),
                "1 to 20 printable ASCII characters, unique",
                {
                    (1..=20).contains(&disk.id.len())
                        && disk.id.bytes().all(|c| c.is_ascii_graphic())
                        && ids.insert(disk.id.as_str())
                },
            )?;
        }
        for (n, net) in self.nets.iter().enumerate() {
            if let Some(mtu) = net.mtu {
                range(&format!("nets[{n}].mtu"), &mtu, "68 to 65521", (68..=65521).contains(&mtu))?;
            }
            if let TapRef::Name(name) = &net.tap {
                range(&format!("nets[{n}].tap"), &format!("{name:?}"), "an interface name of 1 to 15 characters", {
                    (1..=15).contains(&name.len()) && name.bytes().all(|c| c.is_ascii_graphic() && c != b'/')
                })?;
            }
        }
        if let Some(jail) = &self.jail {
            range("jail.uid", &jail.uid, "not 0 (root)", jail.uid != 0)?;
            range("jail.gid", &jail.gid, "not 0 (root)", jail.gid != 0)?;
        }
        self.fds_are_used_once()
    }

    /// Every inherited descriptor with the name of its user, in config order.
    pub fn inherited_fds(&self) -> Vec<(RawFd, String)> {
        let mut fds = Vec::new();
        let mut add = |file: Option<&FileRef>, user: String| {
            if let Some(FileRef::Fd(fd)) = file {
                fds.push((*fd, user));
            }
        };
        add(Some(&self.kernel), "kernel".into());
        add(self.initrd.as_ref(), "initrd".into());
        add(Some(&self.kvm), "kvm".into());
        add(self.control.as_ref(), "control".into());
        add(self.console.as_ref().map(|c| &c.output), "console.output".into());
        add(self.console.as_ref().and_then(|c| c.input.as_ref()), "console.input".into());
        add(self.serial.as_ref().map(|s| &s.output), "serial.output".into());
        for (n, disk) in self.disks.iter().enumerate() {
            add(Some(&disk.file), format!("disks[{n}].file"));
        }
        for (n, net) in self.nets.iter().enumerate() {
            if let TapRef::Fd(fd) = net.tap {
                add(Some(&FileRef::Fd(fd)), format!("nets[{n}].tap"));
            }
            add(net.vhost.as_ref(), format!("nets[{n}].vhost"));
        }
        fds
    }

    fn fds_are_used_once(&self) -> Result<(), ConfigError> {
        let fds = self.inherited_fds();
        for (n, (fd, second)) in fds.iter().enumerate() {
            range(second, fd, "a descriptor number from 0 to 1048575", (0..1 << 20).contains(fd))?;
            // Standard streams are duplicated on use and may be shared.
            if *fd > 2
                && let Some((_, first)) = fds[..n].iter().find(|(other, _)| other == fd)
            {
                return Err(ConfigError::FdTwice { fd: *fd, first: first.clone(), second: second.clone() });
            }
        }
        Ok(())
    }
}

/// A quiet command line that avoids probes which only cost exits:
/// no port-0xCF8 early scan, no i8042 or 8250 probing, console on `hvc0`, reboot at once on panic.
pub fn default_cmdline() -> String {
    "console=hvc0 quiet loglevel=4 panic=-1 reboot=a,w pci=noearly,lastbus=0 8250.nr_uarts=0 i8042.noaux i8042.nokbd \
     cryptomgr.notests no_timer_check random.trust_cpu=on"
        .to_string()
}

fn range(field: &str, found: &dyn fmt::Display, expected: &str, ok: bool) -> Result<(), ConfigError> {
    if ok {
        return Ok(());
    }
    Err(ConfigError::Range { field: field.into(), found: found.to_string(), expected: expected.into() })
}

fn default_kvm() -> FileRef {
    FileRef::Path("/dev/kvm".into())
}

fn stdout() -> FileRef {
    FileRef::Fd(1)
}

fn yes() -> bool {
    true
}

/// Fuzz entry: arbitrary bytes never panic, and an accepted config survives a round trip.
#[doc(hidden)]
pub fn fuzz_config(data: &[u8]) {
    if let Ok(config) = VmConfig::from_json(data) {
        assert_eq!(VmConfig::from_json(&config.to_json()).as_ref(), Ok(&config));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FULL: &str = r#"{
        "name": "web", "vcpus": 2, "memory_mib": 256,
        "kernel": {"path": "/boot/vmlinux"}, "initrd": {"fd": 7}, "cmdline": "quiet",
        "disks": [{"id": "root", "file": {"fd": 8}, "read_only": true}],
        "nets": [{"mac": "02:00:00:00:00:01", "tap": {"fd": 9}, "vhost": {"fd": 10}, "mtu": 1500}],
        "console": {}, "control": {"fd": 11}, "jail": {"uid": 1000, "gid": 1000}
    }"#;

    fn with(change: impl Fn(&mut serde_json::Value)) -> Result<VmConfig, ConfigError> {
        let mut value: serde_json::Value = serde_json::from_str(FULL).unwrap();
        change(&mut value);
        VmConfig::from_json(&serde_json::to_vec(&value).unwrap())
    }

    #[test]
    fn full_config_is_read_with_defaults_filled() {
        let config = VmConfig::from_json(FULL.as_bytes()).unwrap();
        assert_eq!(config.kvm, FileRef::Path("/dev/kvm".into()));
        assert_eq!(config.console.as_ref().unwrap().output, FileRef::Fd(1));
        assert!(config.rng && config.jail.as_ref().unwrap().pid_namespace);
        assert_eq!(VmConfig::from_json(&config.to_json()).unwrap(), config);
    }

    #[test]
    fn faults_name_the_field() {
        type Change = Box<dyn Fn(&mut serde_json::Value)>;
        let cases: [(&str, Change); 10] = [
            ("vcpus", Box::new(|v| v["vcpus"] = 0.into())),
            ("memory_mib", Box::new(|v| v["memory_mib"] = 0.into())),
            ("name", Box::new(|v| v["name"] = "".into())),
            ("cmdline", Box::new(|v| v["cmdline"] = "a\nb".into())),
            ("disks[0].id", Box::new(|v| v["disks"][0]["id"] = "x".repeat(21).into())),
            ("mac", Box::new(|v| v["nets"][0]["mac"] = "03:00:00:00:00:01".into())),
            ("mtu", Box::new(|v| v["nets"][0]["mtu"] = 10.into())),
            ("jail.uid", Box::new(|v| v["jail"]["uid"] = 0.into())),
            ("colour", Box::new(|v| v["colour"] = "blue".into())),
            ("fd 8", Box::new(|v| v["nets"][0]["tap"]["fd"] = 8.into())),
        ];
        for (needle, change) in cases {
            let error = with(change).unwrap_err().to_string();
            assert!(error.contains(needle), "{needle:?} not in {error:?}");
        }
    }

    #[test]
    fn duplicate_disk_ids_are_refused() {
        let error = with(|v| {
            let mut second = v["disks"][0].clone();
            second["file"]["fd"] = 20.into();
            v["disks"].as_array_mut().unwrap().push(second);
        });
        assert!(error.unwrap_err().to_string().contains("disks[1].id"));
    }

    #[test]
    fn default_cmdline_passes_its_own_check() {
        assert!(with(|v| v["cmdline"] = default_cmdline().into()).is_ok());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn arbitrary_text_never_panics(data in proptest::collection::vec(any::<u8>(), 0..200)) {
            fuzz_config(&data);
        }

        #[test]
        fn mac_round_trips(mac in any::<[u8; 6]>()) {
            let mut mac = mac;
            mac[0] = (mac[0] & 0xfe) | 2;
            let mac = MacAddress(mac);
            prop_assert_eq!(mac.to_string().parse::<MacAddress>().unwrap(), mac);
        }
    }
}
