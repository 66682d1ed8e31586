//! What a device is made of.

use crate::device::Device;
use anyhow::Result;
use std::path::{Path, PathBuf};

/// How the device boots.
#[derive(Debug, Clone)]
pub enum Boot {
    /// OVMF starts what the disk holds.
    Firmware,
    /// QEMU loads a kernel: seconds faster, no firmware, no variables.
    Direct {
        /// bzImage, or ELF image with a PVH note.
        kernel: PathBuf,
        /// Initramfs.
        initrd: Option<PathBuf>,
        /// Kernel command line.
        cmdline: String,
    },
}

/// How the system disk is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bus {
    /// virtio-blk over PCI.
    VirtioBlk,
    /// NVMe.
    Nvme,
    /// SATA.
    Ahci,
}

/// A further disk: a raw file, used as it is.
#[derive(Debug, Clone)]
pub struct Disk {
    pub(crate) path: PathBuf,
    pub(crate) serial: String,
    pub(crate) read_only: bool,
}

impl Disk {
    /// The raw image `path` as a virtio-blk disk with this serial number (at most 20 bytes).
    pub fn new(path: impl AsRef<Path>, serial: &str) -> Self {
        Self { path: path.as_ref().into(), serial: serial.into(), read_only: false }
    }

    /// Not to be written.
    #[must_use]
    pub fn read_only(self) -> Self {
        Self { read_only: true, ..self }
    }
}

/// A network card on a network of its own, made by QEMU without privileges: the card gets an address by DHCP, the host's loopback is
/// reached at the gateway's address ([`Nic::gateway`]).
#[derive(Debug, Clone)]
pub struct Nic {
    pub(crate) model: String,
    pub(crate) forwards: Vec<u16>,
    pub(crate) isolated: bool,
}

impl Nic {
    /// A virtio card.
    pub fn user() -> Self {
        Self { model: "virtio-net-pci".into(), forwards: Vec::new(), isolated: false }
    }

    /// Another card model: `e1000e`, `igb`, ...
    #[must_use]
    pub fn model(self, model: &str) -> Self {
        Self { model: model.into(), ..self }
    }

    /// A free port on 127.0.0.1 leads to this port of the device, TCP and UDP; see [`Device::forwarded`].
    #[must_use]
    pub fn forward(mut self, guest_port: u16) -> Self {
        self.forwards.push(guest_port);
        self
    }

    /// No way out of the network: DHCP answers, but neither the host nor the world can be reached.
    #[must_use]
    pub fn isolated(self) -> Self {
        Self { isolated: true, ..self }
    }

    /// Network of the card with this index: 10.`index`.2.0/24.
    pub(crate) fn network(&self, index: usize) -> String {
        format!("10.{index}.2.0/24")
    }

    pub(crate) fn mac(&self, index: usize) -> String {
        format!("52:54:00:12:34:{:02x}", 0x56 + index)
    }

    /// Address at which the card with this index reaches the host's loopback.
    pub fn gateway(index: usize) -> std::net::Ipv4Addr {
        std::net::Ipv4Addr::new(10, u8::try_from(index).unwrap_or(u8::MAX), 2, 2)
    }
}

/// A device to be made; see [`Device::builder`].
#[derive(Debug, Clone)]
pub struct Builder {
    pub(crate) name: String,
    pub(crate) folder: Option<PathBuf>,
    pub(crate) image: Option<PathBuf>,
    pub(crate) disk_bytes: Option<u64>,
    pub(crate) bus: Bus,
    pub(crate) disks: Vec<Disk>,
    pub(crate) memory_mib: u32,
    pub(crate) cpus: u32,
    pub(crate) cpu: String,
    pub(crate) boot: Boot,
    pub(crate) secure_boot: bool,
    pub(crate) tpm: bool,
    pub(crate) watchdog: bool,
    pub(crate) hvc: bool,
    pub(crate) reboots: bool,
    pub(crate) nics: Vec<Nic>,
    pub(crate) serial_number: String,
    pub(crate) extra_args: Vec<String>,
}

impl Builder {
    pub(crate) fn new(name: &str) -> Self {
        Self {
            name: name.into(),
            folder: None,
            image: None,
            disk_bytes: None,
            bus: Bus::VirtioBlk,
            disks: Vec::new(),
            memory_mib: 1024,
            cpus: crate::machine::processors(),
            cpu: "EPYC".into(),
            boot: Boot::Firmware,
            secure_boot: true,
            tpm: true,
            watchdog: true,
            hvc: false,
            reboots: true,
            nics: Vec::new(),
            serial_number: format!("HF-{name}"),
            extra_args: Vec::new(),
        }
    }

    /// Keeps the device's state in this folder, which stays; a device that is in it already is taken over as it is.
    #[must_use]
    pub fn folder(self, folder: impl AsRef<Path>) -> Self {
        Self { folder: Some(folder.as_ref().into()), ..self }
    }

    /// Raw disk image that the system disk starts from; never written.
    #[must_use]
    pub fn image(self, image: impl AsRef<Path>) -> Self {
        Self { image: Some(image.as_ref().into()), ..self }
    }

    /// Size of the system disk, at least that of the image.
    #[must_use]
    pub fn disk_bytes(self, bytes: u64) -> Self {
        Self { disk_bytes: Some(bytes), ..self }
    }

    /// Bus of the system disk; virtio-blk if not said.
    #[must_use]
    pub fn bus(self, bus: Bus) -> Self {
        Self { bus, ..self }
    }

    /// A further disk.
    #[must_use]
    pub fn disk(mut self, disk: Disk) -> Self {
        self.disks.push(disk);
        self
    }

    /// Memory in MiB; 1024 if not said.
    #[must_use]
    pub fn memory_mib(self, memory_mib: u32) -> Self {
        Self { memory_mib, ..self }
    }

    /// Processors; [`processors`](crate::machine::processors) if not said.
    #[must_use]
    pub fn cpus(self, cpus: u32) -> Self {
        Self { cpus, ..self }
    }

    /// Processor model under TCG; `EPYC` if not said.
    #[must_use]
    pub fn cpu(self, model: &str) -> Self {
        Self { cpu: model.into(), ..self }
    }

    /// Boots a kernel directly, without firmware, Secure Boot and TPM (ask for the TPM again if it is needed).
    #[must_use]
    pub fn direct(self, kernel: impl AsRef<Path>, initrd: Option<impl AsRef<Path>>, cmdline: &str) -> Self {
        let boot = Boot::Direct {
            kernel: kernel.as_ref().into(),
            initrd: initrd.map(|i| i.as_ref().into()),
            cmdline: cmdline.into(),
        };
        Self { boot, tpm: false, secure_boot: false, ..self }
    }

    /// Secure Boot with Debian's development keys enrolled; on if not said.
    #[must_use]
    pub fn secure_boot(self, secure_boot: bool) -> Self {
        Self { secure_boot, ..self }
    }

    /// A TPM; on if not said.
    #[must_use]
    pub fn tpm(self, tpm: bool) -> Self {
        Self { tpm, ..self }
    }

    /// A watchdog card (i6300ESB) that resets the machine; on if not said.
    #[must_use]
    pub fn watchdog(self, watchdog: bool) -> Self {
        Self { watchdog, ..self }
    }

    /// A virtio console, captured apart from the serial line: [`Device::hvc`].
    #[must_use]
    pub fn hvc(self) -> Self {
        Self { hvc: true, ..self }
    }

    /// A reset ends the machine instead of starting it again.
    #[must_use]
    pub fn no_reboot(self) -> Self {
        Self { reboots: false, ..self }
    }

    /// A network card.
    #[must_use]
    pub fn nic(mut self, nic: Nic) -> Self {
        self.nics.push(nic);
        self
    }

    /// Serial number in SMBIOS.
    #[must_use]
    pub fn serial_number(self, serial_number: &str) -> Self {
        Self { serial_number: serial_number.into(), ..self }
    }

    /// A further QEMU argument.
    #[must_use]
    pub fn arg(mut self, arg: &str) -> Self {
        self.extra_args.push(arg.into());
        self
    }

    /// Makes the device: disk, variables, TPM. It is off.
    ///
    /// # Errors
    /// A missing image, firmware or tool.
    pub fn build(self) -> Result<Device> {
        Device::make(self)
    }

    /// [`Builder::build`], then power.
    ///
    /// # Errors
    /// As [`Builder::build`] and [`Device::power_on`].
    pub fn start(self) -> Result<Device> {
        let mut device = self.build()?;
        device.power_on()?;
        Ok(device)
    }
}
