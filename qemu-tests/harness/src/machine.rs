//! The QEMU command line of a device.

use crate::builder::{Boot, Builder, Bus};
use anyhow::{Result, bail};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What executes the device's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accelerator {
    /// QEMU's own translator; its `EPYC` model has nested SVM, so that the device has a working `/dev/kvm`.
    Tcg,
    /// The machine's KVM with nesting.
    Kvm,
}

/// `$HOLDFAST_ACCEL` (`tcg` or `kvm`), else KVM only where processor and module both say that nesting is real: a paravirtual `/dev/kvm`
/// has neither flag and cannot run Linux.
pub fn accelerator() -> Accelerator {
    match std::env::var("HOLDFAST_ACCEL").as_deref() {
        Ok("kvm") => Accelerator::Kvm,
        Ok("tcg") => Accelerator::Tcg,
        _ => {
            let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
            let nested = |module: &str| {
                fs::read_to_string(format!("/sys/module/{module}/parameters/nested")).unwrap_or_default()
            };
            let usable = fs::File::options().read(true).write(true).open("/dev/kvm").is_ok();
            choose(&cpuinfo, &nested("kvm_intel"), &nested("kvm_amd"), usable)
        }
    }
}

/// Processors a device has if nothing else is said: two, but one under TCG.
///
/// With two under TCG one boot of fifteen died while the kernel patched its own code ("int3" in a function with a static key): a
/// processor may still run the breakpoint that another has taken out (seen with QEMU 7.2).
/// Each system management interrupt of the firmware's variable store also waits seconds for the others (11 s for a boot's variables
/// instead of 0.3 s), and two devices do not fit two cores.
pub fn processors() -> u32 {
    match accelerator() {
        Accelerator::Tcg => 1,
        Accelerator::Kvm => 2,
    }
}

fn choose(cpuinfo: &str, nested_intel: &str, nested_amd: &str, usable: bool) -> Accelerator {
    let flags: Vec<&str> =
        cpuinfo.lines().find(|l| l.starts_with("flags")).map(|l| l.split_whitespace().collect()).unwrap_or_default();
    let on = |text: &str| matches!(text.trim(), "Y" | "1");
    let real = flags.contains(&"vmx") && on(nested_intel) || flags.contains(&"svm") && on(nested_amd);
    if real && usable { Accelerator::Kvm } else { Accelerator::Tcg }
}

/// Firmware code and the matching empty variables of Debian's `ovmf`. With Secure Boot the code without it must not be used: it makes
/// variables volatile without saying so.
pub(crate) fn firmware(secure_boot: bool) -> Result<(PathBuf, PathBuf)> {
    let folder = Path::new("/usr/share/OVMF");
    let (code, variables) = if secure_boot {
        ("OVMF_CODE_4M.secboot.fd", "OVMF_VARS_4M.snakeoil.fd")
    } else {
        ("OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd")
    };
    let pair = (folder.join(code), folder.join(variables));
    for file in [&pair.0, &pair.1] {
        if !file.is_file() {
            bail!("firmware {} is missing; apt-get install ovmf", file.display());
        }
    }
    Ok(pair)
}

/// Capture of the port on which a guest's init says how it ended, beside that of hvc0.
pub(crate) fn guest_end(hvc: &Path) -> PathBuf {
    hvc.with_extension("end")
}

/// Where the parts of one running device are.
pub(crate) struct Places<'a> {
    /// Writable firmware variables.
    pub(crate) variables: &'a Path,
    /// The overlay of the system disk.
    pub(crate) disk: Option<&'a Path>,
    /// Control socket of swtpm.
    pub(crate) tpm: Option<&'a Path>,
    /// QMP socket to open.
    pub(crate) qmp: &'a Path,
    /// Capture of COM1.
    pub(crate) serial: &'a Path,
    /// Capture of hvc0.
    pub(crate) hvc: Option<&'a Path>,
    /// Host ports in the order of all forwards of all NICs.
    pub(crate) ports: &'a [u16],
}

/// The whole command.
///
/// # Errors
/// When the firmware is not installed.
pub(crate) fn command(builder: &Builder, places: &Places<'_>) -> Result<Command> {
    let mut args = Args(Vec::new());
    let accelerator = accelerator();
    args.add(["-nodefaults", "-no-user-config", "-display", "none", "-name", &builder.name]);
    match accelerator {
        // A thread for each virtual processor: with one thread for all of them (`thread=single`) VMs inside the device stop after some
        // seconds, spinning with interrupts off while the device's own timer interrupt waits for ever (QEMU 7.2).
        Accelerator::Tcg => args.add(["-accel", "tcg,thread=multi", "-cpu", &builder.cpu]),
        Accelerator::Kvm => args.add(["-accel", "kvm", "-cpu", "host"]),
    }
    args.add(["-m", &builder.memory_mib.to_string(), "-smp", &builder.cpus.to_string()]);
    match &builder.boot {
        Boot::Firmware => {
            let (code, _) = firmware(builder.secure_boot)?;
            if builder.secure_boot {
                args.add(["-machine", "q35,smm=on", "-global", "driver=cfi.pflash01,property=secure,value=on"]);
            } else {
                args.add(["-machine", "q35"]);
            }
            args.add(["-drive", &format!("if=pflash,unit=0,format=raw,readonly=on,file={}", escaped(&code))]);
            args.add(["-drive", &format!("if=pflash,unit=1,format=raw,file={}", escaped(places.variables))]);
        }
        Boot::Direct { kernel, initrd, cmdline } => {
            args.add(["-machine", "q35"]);
            args.add([OsString::from("-kernel"), kernel.into()]);
            if let Some(initrd) = initrd {
                args.add([OsString::from("-initrd"), initrd.into()]);
            }
            args.add(["-append", cmdline]);
        }
    }
    if let Some(socket) = places.tpm {
        args.add([
            "-chardev",
            &format!("socket,id=tpm,path={}", escaped(socket)),
            "-tpmdev",
            "emulator,id=tpm0,chardev=tpm",
            "-device",
            "tpm-crb,tpmdev=tpm0",
        ]);
    }
    // No bootindex anywhere: OVMF would rewrite BootOrder at each boot.
    if let Some(disk) = places.disk {
        args.disk("system", &format!("file={},format=qcow2", escaped(disk)), builder.bus, "holdfast-system", false);
    }
    for (index, disk) in builder.disks.iter().enumerate() {
        args.disk(
            &format!("extra{index}"),
            &format!("file={},format=raw", escaped(&disk.path)),
            Bus::VirtioBlk,
            &disk.serial,
            disk.read_only,
        );
    }
    let mut ports = places.ports.iter();
    for (index, nic) in builder.nics.iter().enumerate() {
        let mut netdev = format!("user,id=net{index},ipv6=off,net={}", nic.network(index));
        for guest_port in &nic.forwards {
            let host_port = ports.next().copied().unwrap_or_default();
            for protocol in ["tcp", "udp"] {
                netdev.push_str(&format!(",hostfwd={protocol}:127.0.0.1:{host_port}-:{guest_port}"));
            }
        }
        if nic.isolated {
            netdev.push_str(",restrict=on");
        }
        // No option ROM: the firmware must not spend its time on network boot.
        let device = format!("{},id=nic{index},netdev=net{index},mac={},romfile=", nic.model, nic.mac(index));
        args.add(["-netdev", &netdev, "-device", &device]);
    }
    args.add(["-chardev", &format!("file,id=serial,path={}", escaped(places.serial)), "-serial", "chardev:serial"]);
    if let Some(hvc) = places.hvc {
        args.add([
            "-chardev",
            &format!("file,id=hvc,path={}", escaped(hvc)),
            "-device",
            "virtio-serial-pci",
            "-device",
            "virtconsole,chardev=hvc",
            "-chardev",
            &format!("file,id=end,path={}", escaped(&guest_end(hvc))),
            "-device",
            "virtserialport,chardev=end,name=holdfast.end",
        ]);
    }
    args.add(["-device", "virtio-rng-pci"]);
    if builder.watchdog {
        args.add(["-device", "i6300esb", "-action", "watchdog=reset"]);
    }
    if !builder.reboots {
        args.add(["-no-reboot"]);
    }
    args.add(["-smbios", &format!("type=1,manufacturer=Holdfast,product=QEMU,serial={}", builder.serial_number)]);
    args.add(["-qmp", &format!("unix:{},server=on,wait=off", escaped(places.qmp))]);
    args.0.extend(builder.extra_args.iter().map(OsString::from));
    let mut command = Command::new("qemu-system-x86_64");
    command.args(args.0);
    Ok(command)
}

struct Args(Vec<OsString>);

impl Args {
    fn add<T: Into<OsString>, const N: usize>(&mut self, args: [T; N]) {
        self.0.extend(args.map(Into::into));
    }

    fn disk(&mut self, id: &str, source: &str, bus: Bus, serial: &str, read_only: bool) {
        let read_only = if read_only { ",readonly=on" } else { "" };
        self.add(["-drive", &format!("if=none,id={id},{source},discard=unmap{read_only}")]);
        let device = match bus {
            Bus::VirtioBlk => format!("virtio-blk-pci,drive={id},serial={serial}"),
            Bus::Nvme => format!("nvme,drive={id},serial={serial}"),
            Bus::Ahci => format!("ide-hd,drive={id},serial={serial}"),
        };
        self.add(["-device", &device]);
    }
}

/// A path inside a QEMU option: a comma is written twice.
fn escaped(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Device;
    use crate::builder::{Disk, Nic};

    #[test]
    fn kvm_is_chosen_only_where_nesting_is_real() {
        let cases = [
            ("flags : fpu svm lm", "", "1", true, Accelerator::Kvm),
            ("flags : fpu vmx lm", "Y\n", "", true, Accelerator::Kvm),
            ("flags : fpu lm", "Y", "1", true, Accelerator::Tcg),
            ("flags : fpu vmx", "N", "", true, Accelerator::Tcg),
            ("flags : fpu vmx", "", "1", true, Accelerator::Tcg),
            ("flags : fpu svm", "", "1", false, Accelerator::Tcg),
            ("", "", "", true, Accelerator::Tcg),
        ];
        for (cpuinfo, intel, amd, usable, expected) in cases {
            assert_eq!(choose(cpuinfo, intel, amd, usable), expected, "{cpuinfo} {intel} {amd} {usable}");
        }
    }

    #[test]
    fn the_command_line_holds_what_was_asked_for() {
        let builder = Device::builder("t")
            .memory_mib(777)
            .cpus(3)
            .bus(Bus::Nvme)
            .nic(Nic::user().forward(80).forward(443))
            .nic(Nic::user().isolated())
            .disk(Disk::new("/x/root,1", "rootfs").read_only())
            .direct("/k", None::<&str>, "console=ttyS0");
        let places = Places {
            variables: Path::new("/v"),
            disk: Some(Path::new("/d")),
            tpm: None,
            qmp: Path::new("/q"),
            serial: Path::new("/s"),
            hvc: None,
            ports: &[1111, 2222],
        };
        let command = command(&builder, &places).unwrap();
        let line: Vec<String> = command.get_args().map(|a| a.to_string_lossy().into_owned()).collect();
        let line = line.join(" ");
        for expected in [
            "-m 777 -smp 3",
            "hostfwd=tcp:127.0.0.1:1111-:80",
            "hostfwd=udp:127.0.0.1:2222-:443",
            "restrict=on",
            "nvme,drive=system",
            "file=/x/root,,1,format=raw,discard=unmap,readonly=on",
            "virtio-blk-pci,drive=extra0,serial=rootfs",
            "-kernel /k -append console=ttyS0",
        ] {
            assert!(line.contains(expected), "{expected} is not in {line}");
        }
        assert!(!line.contains("bootindex") && !line.contains("pflash"), "{line}");
    }
}
