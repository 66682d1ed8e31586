//! Both kernels boot under QEMU and offer what their users need.
//!
//! Wrong ways to see it: reading the configuration (an option can be on and its driver unusable), or looking at the kernel's own messages
//! (they change, and `quiet` hides them). A probe as PID 1 opens the devices and says what happened.

use holdfast_format::cpio::Archive;
use holdfast_harness::{Bus, Device, Disk, Nic, secs};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use xtask::kernel::{Kernel, KernelArtifacts, build};

fn kernel(which: Kernel) -> KernelArtifacts {
    build(which, &|line| eprintln!("{line}")).unwrap()
}

/// An initramfs whose init is the probe.
fn probe(folder: &Path) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/probe/init.rs");
    let program = folder.join("init");
    let status = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()))
        .args([
            "--edition=2024",
            "-O",
            "-C",
            "target-feature=+crt-static",
            "-C",
            "panic=abort",
            "-C",
            "strip=symbols",
            "-o",
        ])
        .args([&program, &source])
        .status()
        .unwrap();
    assert!(status.success());
    let mut archive = Archive::new();
    archive
        .dir("dev", 0o755)
        .char_device("dev/console", 0o600, 5, 1)
        .dir("proc", 0o755)
        .dir("sys", 0o755)
        .dir("run", 0o755);
    archive.file("init", 0o755, &std::fs::read(program).unwrap());
    let path = folder.join("initrd");
    std::fs::write(&path, archive.finish()).unwrap();
    path
}

/// Waits for the probe's end; its findings by name (the last of a name).
fn findings(device: &mut Device, console: &str) -> BTreeMap<String, String> {
    match console {
        "hvc" => device.wait_for_hvc("probe: done", secs(60)).unwrap(),
        _ => device.wait_for("probe: done", secs(60)).unwrap(),
    };
    device.wait_off(secs(20)).unwrap();
    let text = if console == "hvc" { device.hvc().text() } else { device.serial().text() };
    eprintln!("{text}");
    let findings = text.lines().filter_map(|l| l.split_once("probe: ")?.1.split_once(' '));
    findings.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect()
}

fn require(found: &BTreeMap<String, String>, name: &str, parts: &[&str]) {
    let value = found.get(name).unwrap_or_else(|| panic!("the probe says nothing about {name}"));
    let words: Vec<&str> = value.split([',', ' ']).collect();
    for part in parts {
        assert!(words.contains(part), "{name}: expected {part}, found {value}");
    }
}

#[test]
fn the_host_kernel_has_kvm_and_every_device_the_programs_open() {
    let folder = tempfile::tempdir().unwrap();
    let initrd = probe(folder.path());
    let device = Device::builder("host-kernel")
        .direct(kernel(Kernel::Host).bzimage, Some(&initrd), "console=ttyS0 panic=-1 quiet lockdown=integrity")
        .tpm(true)
        .disk_bytes(64 << 20)
        .memory_mib(512)
        .hvc()
        .nic(Nic::user())
        .nic(Nic::user().model("e1000e"))
        .nic(Nic::user().model("e1000"))
        .no_reboot();
    let found = findings(&mut device.start().unwrap(), "serial");
    for name in [
        "kvm",
        "kvm-vm",
        "vhost-net",
        "vhost-vsock",
        "net/tun",
        "mapper/control",
        "vfio/vfio",
        "watchdog0",
        "rtc0",
        "hwrng",
        "tpmrm0",
        "vda",
        "hvc0",
        "mount-cgroup2",
        "mount-securityfs",
        "mount-pstore",
    ] {
        assert_eq!(found.get(name).map(String::as_str), Some("true"), "{name}");
    }
    assert_eq!(found["kvm-version"], "12");
    assert_eq!(found["modules"], "false");
    require(&found, "controllers", &["cpuset", "cpu", "io", "memory", "pids"]);
    require(&found, "lsm", &["lockdown", "landlock"]);
    require(&found, "filesystems", &["erofs", "ext4", "overlay", "tmpfs", "cgroup2"]);
    require(&found, "cards", &["eth0", "eth1", "eth2"]);
    assert!(found["crypto"].contains("aesni"), "{}", found["crypto"]);
}

#[test]
fn disks_and_adapters_of_every_bus_are_found() {
    let folder = tempfile::tempdir().unwrap();
    let initrd = probe(folder.path());
    let devices = ["nvme0n1", "sda", "sdb", "mmcblk0", "ttyUSB0"];
    let cmdline = format!("console=ttyS0 panic=-1 quiet probe.await={}", devices.join(","));
    let mut builder = Device::builder("buses")
        .direct(kernel(Kernel::Host).bzimage, Some(&initrd), &cmdline)
        .disk_bytes(64 << 20)
        .bus(Bus::Nvme)
        .memory_mib(512)
        .no_reboot();
    for disk in ["sata", "usb", "mmc"] {
        let path = folder.path().join(disk);
        std::fs::File::create(&path).unwrap().set_len(64 << 20).unwrap();
        builder = builder.arg("-drive").arg(&format!("if=none,id={disk},format=raw,file={}", path.display()));
    }
    for device in [
        "ide-hd,drive=sata",
        "qemu-xhci",
        "usb-storage,drive=usb",
        "sdhci-pci",
        "sd-card,drive=mmc",
        "usb-serial,chardev=usbserial,always-plugged=on",
    ] {
        builder = builder.arg("-device").arg(device);
    }
    let found = findings(&mut builder.arg("-chardev").arg("null,id=usbserial").start().unwrap(), "serial");
    for name in devices {
        assert_eq!(found.get(name).map(String::as_str), Some("true"), "{name}");
    }
}

#[test]
fn a_hung_device_is_reset_by_its_watchdog() {
    let folder = tempfile::tempdir().unwrap();
    let initrd = probe(folder.path());
    let cmdline = "console=ttyS0 panic=-1 quiet probe.hang";
    let mut device = Device::builder("watchdog")
        .direct(kernel(Kernel::Host).bzimage, Some(&initrd), cmdline)
        .memory_mib(256)
        .cpus(1)
        .start()
        .unwrap();
    device.wait_for("probe: armed true", secs(60)).unwrap();
    assert_eq!(device.wait_reset(secs(60)).unwrap(), "guest-reset");
    device.wait_for("probe: armed true", secs(60)).unwrap();
}

#[test]
fn the_guest_kernel_boots_from_its_elf_image_and_from_its_bzimage() {
    let folder = tempfile::tempdir().unwrap();
    let initrd = probe(folder.path());
    let disk = folder.path().join("disk");
    std::fs::File::create(&disk).unwrap().set_len(1 << 20).unwrap();
    let artifacts = kernel(Kernel::Guest);
    for image in [&artifacts.vmlinux, &artifacts.bzimage] {
        let device = Device::builder("guest-kernel")
            .direct(image, Some(&initrd), "console=hvc0 panic=-1 quiet")
            .memory_mib(128)
            .cpus(1)
            .watchdog(false)
            .hvc()
            .nic(Nic::user())
            .disk(Disk::new(&disk, "config").read_only())
            .no_reboot();
        let found = findings(&mut device.start().unwrap(), "hvc");
        for name in ["vda", "hvc0", "hwrng", "net/tun", "mount-cgroup2"] {
            assert_eq!(found.get(name).map(String::as_str), Some("true"), "{}: {name}", image.display());
        }
        require(&found, "filesystems", &["erofs", "ext4", "overlay", "tmpfs", "cgroup2"]);
        require(&found, "cards", &["eth0", "lo"]);
    }
}
