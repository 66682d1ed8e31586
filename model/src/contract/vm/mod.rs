//! The virtual machine (`vmm`): [`VmConfig`], everything a VM is made of, and the messages of its control socket.
//!
//! Every file may be given as a path (stand-alone use) or as the number of an inherited descriptor (production, where
//! the parent opens all and the VMM opens nothing).

mod console;
mod control;
mod devices;
mod machine;
mod net;
mod stats;

use std::fmt;
use std::os::fd::RawFd;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use console::{ConsoleConfig, GUEST_END_PORT, PortConfig, SerialConfig, WindowSize};
pub use control::{MAX_STOP_MS, Reply, Request, RunState, Stats, VcpuStats};
pub use devices::{BalloonConfig, DiskConfig, ImageType, Limits, MAX_CID, MIN_CID, VsockConfig};
pub use machine::{HostCpus, PageSize, Timer, TraceConfig};
pub use net::{LinkRef, MacAddress, MacFault, NetConfig, NetLimits, TapRef, UnixRef, VhostRef};
pub use stats::{ConsoleStats, DeviceStats, GuestMemory, Hot, MemoryStats, Space};

use super::{Document, Version};

/// One VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmConfig {
    /// Version of this shape.
    pub version: Version<1>,
    /// Name in messages and thread names; not seen by the guest.
    pub name: String,
    /// Number of vCPUs, 1..=64.
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

impl Document for VmConfig {
    const KIND: &'static str = "VM configuration";
    const VERSION: u32 = 1;
    const MAX_BYTES: usize = 256 * 1024;
}

impl VmConfig {
    /// A VM of one vCPU and 128 MiB that boots `kernel` with the default command line and has no device but the entropy
    /// device.
    pub fn new(name: impl Into<String>, kernel: FileRef) -> Self {
        Self {
            version: Version,
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

fn default_kvm() -> FileRef {
    FileRef::Path("/dev/kvm".into())
}

fn yes() -> bool {
    true
}
