//! `VmConfig`: everything a VM is made of, as JSON.
//!
//! Every file may be given as a path (stand-alone use) or as the number of an inherited descriptor (production, where
//! the parent opens all and this process opens nothing). Unknown fields are errors, so that a typing mistake is not
//! silently a default.
//!
//! Modules: one for each kind of device, with its fields, their ranges and its descriptors.
#![forbid(unsafe_code)]

use std::collections::HashSet;
use std::fmt;
use std::os::fd::RawFd;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::memory::PageSize;
use crate::rate::Limits;

/// Largest accepted JSON text, in bytes.
pub const MAX_CONFIG_BYTES: usize = 256 * 1024;
/// Most vCPUs of one VM. APIC ids must fit the 8-bit field of the MADT.
pub const MAX_VCPUS: u8 = 64;
/// Least guest memory, MiB: below it no kernel of ours unpacks itself.
pub const MIN_MEMORY_MIB: u32 = 32;
/// Most guest memory, MiB (1 TiB).
pub const MAX_MEMORY_MIB: u32 = 1024 * 1024;
/// Most disks plus network interfaces. Bus 0 has 31 free slots; console, rng, vsock and balloon take four.
pub const MAX_DEVICES: usize = 27;
/// Longest kernel command line, bytes (x86 `COMMAND_LINE_SIZE` less the terminating zero).
pub const MAX_CMDLINE: usize = 2047;

mod balloon;
mod console;
mod disk;
mod machine;
mod net;
mod vsock;

pub use balloon::BalloonConfig;
pub use console::{ConsoleConfig, PortConfig, SerialConfig};
pub use disk::DiskConfig;
pub use machine::{HostCpus, Timer, TraceConfig, check_host_cpus};
pub use net::{LinkRef, MacAddress, NetConfig, NetLimits, TapRef, UnixRef, VhostRef};
pub use vsock::{MAX_CID, MIN_CID, VsockConfig};

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
    /// Host CPUs of each vCPU; wherever the host's scheduler likes when empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cpus: Vec<HostCpus>,
    /// Pages that guest memory is made of.
    #[serde(default)]
    pub hugepages: PageSize,
    /// Touch all of guest memory at start, so that the guest never waits for a page.
    #[serde(default)]
    pub prefault: bool,
    /// What the guest's timer interrupts come from.
    #[serde(default)]
    pub timer: Timer,
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
    /// Reach PCI configuration space by ports 0xCF8 to 0xCFF as well: for kernels without MCFG support, and firmware. A
    /// kernel that finds these ports uses them, at two exits for each access.
    #[serde(default)]
    pub pci_ports: bool,
    /// Block devices in PCI order: the first is `/dev/vda`.
    #[serde(default)]
    pub disks: Vec<DiskConfig>,
    /// Network interfaces in PCI order.
    #[serde(default)]
    pub nets: Vec<NetConfig>,
    /// virtio entropy device.
    #[serde(default = "yes")]
    pub rng: bool,
    /// virtio console: `hvc0` and named ports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub console: Option<ConsoleConfig>,
    /// virtio sockets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vsock: Option<VsockConfig>,
    /// virtio memory balloon.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub balloon: Option<BalloonConfig>,
    /// 16550 at 0x3f8 (`ttyS0`), for kernel debugging: each byte costs an exit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<SerialConfig>,
    /// Listening `SOCK_SEQPACKET` socket (fd), or the path to make one at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub control: Option<FileRef>,
    /// Close the jail before the guest runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jail: Option<JailConfig>,
    /// What is printed on stderr when the VM ends.
    #[serde(default)]
    pub trace: TraceConfig,
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
    /// A VM of one vCPU and 128 MiB that boots `kernel` with the default command line and has no device but the entropy
    /// device.
    pub fn new(name: impl Into<String>, kernel: FileRef) -> Self {
        Self {
            name: name.into(),
            vcpus: 1,
            memory_mib: 128,
            cpus: Vec::new(),
            hugepages: PageSize::default(),
            prefault: false,
            timer: Timer::default(),
            kernel,
            initrd: None,
            cmdline: default_cmdline(),
            kvm: default_kvm(),
            pci_ports: false,
            disks: Vec::new(),
            nets: Vec::new(),
            rng: true,
            console: None,
            vsock: None,
            balloon: None,
            serial: None,
            control: None,
            jail: None,
            trace: TraceConfig::default(),
        }
    }

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
        machine::validate(self)?;
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
            disk.validate(&format!("disks[{n}]"), ids.insert(disk.id.as_str()))?;
        }
        for (n, net) in self.nets.iter().enumerate() {
            net.validate(&format!("nets[{n}]"), self.vcpus)?;
        }
        if let Some(vsock) = &self.vsock {
            vsock.validate("vsock")?;
        }
        if let Some(console) = &self.console {
            console.validate("console")?;
        }
        if let Some(jail) = &self.jail {
            range("jail.uid", &jail.uid, "not 0 (root)", jail.uid != 0)?;
            range("jail.gid", &jail.gid, "not 0 (root)", jail.gid != 0)?;
        }
        self.fds_are_used_once()
    }

    /// Every inherited descriptor with the name of its user, in config order.
    pub fn inherited_fds(&self) -> Vec<(RawFd, String)> {
        let mut fds = FdList::default();
        fds.add("kernel", Some(&self.kernel));
        fds.add("initrd", self.initrd.as_ref());
        fds.add("kvm", Some(&self.kvm));
        fds.add("control", self.control.as_ref());
        if let Some(console) = &self.console {
            console.list_fds("console", &mut fds);
        }
        if let Some(serial) = &self.serial {
            serial.list_fds("serial", &mut fds);
        }
        for (n, disk) in self.disks.iter().enumerate() {
            disk.list_fds(&format!("disks[{n}]"), &mut fds);
        }
        for (n, net) in self.nets.iter().enumerate() {
            net.list_fds(&format!("nets[{n}]"), &mut fds);
        }
        if let Some(vsock) = &self.vsock {
            vsock.list_fds("vsock", &mut fds);
        }
        fds.0
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

/// A quiet command line that avoids what only costs time: no i8042 or 8250 probing, console on `hvc0`, reboot at once on panic,
/// and no rewriting of the 7000 locked instructions of a kernel with a single vCPU, which is 7 % of its boot (in emulation) and
/// saves some nanoseconds each later. PCI needs no words: without `pci=noearly` the kernel reads the MCFG before its first access.
pub fn default_cmdline() -> String {
    "console=hvc0 quiet loglevel=4 panic=-1 reboot=a,w 8250.nr_uarts=0 i8042.noaux i8042.nokbd \
     cryptomgr.notests no_timer_check noreplace-smp random.trust_cpu=on"
        .to_string()
}

/// Inherited descriptors with the names of their users.
#[derive(Debug, Default)]
struct FdList(Vec<(RawFd, String)>);

impl FdList {
    fn add(&mut self, user: &str, file: Option<&FileRef>) {
        if let Some(FileRef::Fd(fd)) = file {
            self.0.push((*fd, user.to_string()));
        }
    }
}

fn range(field: &str, found: &dyn fmt::Display, expected: &str, ok: bool) -> Result<(), ConfigError> {
    if ok {
        return Ok(());
    }
    Err(ConfigError::Range { field: field.into(), found: found.to_string(), expected: expected.into() })
}

/// Checks the rate limits of a device.
fn check_limits(name: &str, limits: Option<&Limits>) -> Result<(), ConfigError> {
    match limits.and_then(Limits::fault) {
        None => Ok(()),
        Some(fault) => range(&format!("{name}.{}", fault.field), &fault.found, &fault.expected, false),
    }
}

fn default_kvm() -> FileRef {
    FileRef::Path("/dev/kvm".into())
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
        "vsock": {"cid": 3, "vhost": {"fd": 12}}, "balloon": {},
        "console": {"ports": [{"name": "agent", "output": {"fd": 13}, "input": {"fd": 13}}]}, "control": {"fd": 11},
        "jail": {"uid": 1000, "gid": 1000}
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
        assert_eq!(config.balloon, Some(BalloonConfig::default()));
        assert!(config.rng && config.jail.as_ref().unwrap().pid_namespace);
        assert!(config.disks[0].lock && config.disks[0].limits.is_none());
        assert_eq!(VmConfig::from_json(&config.to_json()).unwrap(), config);
    }

    #[test]
    fn faults_name_the_field() {
        type Change = Box<dyn Fn(&mut serde_json::Value)>;
        let cases: [(&str, Change); 22] = [
            ("vcpus", Box::new(|v| v["vcpus"] = 0.into())),
            ("memory_mib", Box::new(|v| v["memory_mib"] = 0.into())),
            ("name", Box::new(|v| v["name"] = "".into())),
            ("cmdline", Box::new(|v| v["cmdline"] = "a\nb".into())),
            ("disks[0].id", Box::new(|v| v["disks"][0]["id"] = "x".repeat(21).into())),
            ("mac", Box::new(|v| v["nets"][0]["mac"] = "03:00:00:00:00:01".into())),
            ("mtu", Box::new(|v| v["nets"][0]["mtu"] = 10.into())),
            ("jail.uid", Box::new(|v| v["jail"]["uid"] = 0.into())),
            ("vsock.cid", Box::new(|v| v["vsock"]["cid"] = 2.into())),
            ("vsock.cid", Box::new(|v| v["vsock"]["cid"] = u32::MAX.into())),
            ("vsock.vhost", Box::new(|v| v["vsock"]["vhost"]["fd"] = 8.into())),
            ("free", Box::new(|v| v["balloon"]["free"] = true.into())),
            ("colour", Box::new(|v| v["colour"] = "blue".into())),
            ("fd 8", Box::new(|v| v["nets"][0]["tap"]["fd"] = 8.into())),
            ("vmdk", Box::new(|v| v["disks"][0]["format"] = "vmdk".into())),
            (
                "disks[0].limits.ops_per_second is 0",
                Box::new(|v| v["disks"][0]["limits"] = serde_json::json!({"ops_per_second": 0})),
            ),
            (
                "disks[0].limits.burst_bytes is alone, expected to come with bytes_per_second",
                Box::new(|v| v["disks"][0]["limits"] = serde_json::json!({"burst_bytes": 5})),
            ),
            ("speed", Box::new(|v| v["disks"][0]["limits"] = serde_json::json!({"speed": 5}))),
            ("console.ports[0].name", Box::new(|v| v["console"]["ports"][0]["name"] = "serial".into())),
            ("console.ports[0].name", Box::new(|v| v["console"]["ports"][0]["name"] = "a/b".into())),
            (
                "console.ports is 16",
                Box::new(|v| v["console"]["ports"] = vec![serde_json::json!({"name": "p"}); 16].into()),
            ),
            ("console.ports[0].input", Box::new(|v| v["console"]["ports"][0]["input"]["fd"] = 8.into())),
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
    }
}
