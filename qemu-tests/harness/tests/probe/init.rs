//! A PID 1 that says what the kernel offers, one `probe: NAME VALUE` line each, then powers off. Standard library only: the test compiles it
//! with one call of rustc.

use std::ffi::{c_char, c_int, c_ulong, c_void};
use std::fs::{self, File};
use std::os::fd::AsRawFd;

unsafe extern "C" {
    fn mount(source: *const c_char, target: *const c_char, kind: *const c_char, flags: c_ulong, data: *const c_void) -> c_int;
    fn ioctl(fd: c_int, request: c_ulong, argument: c_ulong) -> c_int;
    fn reboot(command: c_int) -> c_int;
    fn sync();
}

const KVM_GET_API_VERSION: c_ulong = 0xAE00;
const KVM_CREATE_VM: c_ulong = 0xAE01;
/// `_IOWR('W', 6, int)`: seconds until the reset.
const WDIOC_SETTIMEOUT: c_ulong = 0xC004_5706;
const RB_POWER_OFF: c_int = 0x4321_fedc;

fn mount_at(kind: &str, at: &str, data: &str) -> bool {
    let text = |t: &str| std::ffi::CString::new(t).unwrap();
    let (kind, target, data) = (text(kind), text(at), text(data));
    fs::create_dir_all(at).ok();
    // SAFETY: all four pointers are NUL-terminated strings that live until the call returns.
    unsafe { mount(kind.as_ptr(), target.as_ptr(), kind.as_ptr(), 0, data.as_ptr().cast()) == 0 }
}

fn say(name: &str, value: impl std::fmt::Display) {
    println!("probe: {name} {value}");
}

/// Arms the watchdog and hangs.
fn hang() -> ! {
    let watchdog = File::options().write(true).open("/dev/watchdog0").expect("no watchdog");
    let seconds: c_int = 2;
    // SAFETY: the ioctl reads and writes one int, which lives until the call returns.
    let result = unsafe { ioctl(watchdog.as_raw_fd(), WDIOC_SETTIMEOUT, (&raw const seconds).addr() as c_ulong) };
    say("armed", result == 0);
    loop {
        std::thread::park();
    }
}

fn main() {
    mount_at("devtmpfs", "/dev", "");
    mount_at("proc", "/proc", "");
    let cmdline = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    if cmdline.contains("probe.hang") {
        hang();
    }
    // USB and MMC are probed at leisure.
    if let Some(last) = cmdline.split_whitespace().find_map(|w| w.strip_prefix("probe.await=")) {
        for _ in 0..200 {
            if last.split(',').all(|name| fs::exists(format!("/dev/{name}")).unwrap_or(false)) {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
    }
    mount_at("sysfs", "/sys", "");
    let uptime = fs::read_to_string("/proc/uptime").unwrap_or_default();
    say("uptime", uptime.split(' ').next().unwrap_or_default());
    say("release", fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim());
    for (kind, at, data) in [
        ("cgroup2", "/sys/fs/cgroup", "favordynmods"),
        ("securityfs", "/sys/kernel/security", ""),
        ("pstore", "/sys/fs/pstore", ""),
        ("tmpfs", "/run", ""),
    ] {
        say(&format!("mount-{kind}"), mount_at(kind, at, data));
    }
    say("controllers", fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap_or_default().trim());
    say("lsm", fs::read_to_string("/sys/kernel/security/lsm").unwrap_or_default());
    say("modules", fs::exists("/proc/modules").unwrap_or(true));
    let filesystems = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    say("filesystems", filesystems.split_whitespace().filter(|w| *w != "nodev").collect::<Vec<_>>().join(","));
    let crypto = fs::read_to_string("/proc/crypto").unwrap_or_default();
    let drivers: Vec<&str> = crypto.lines().filter_map(|l| l.strip_prefix("driver")).filter_map(|l| l.split(": ").nth(1)).collect();
    say("crypto", drivers.join(","));
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    for line in memory.lines().take(3) {
        say("memory", line);
    }
    for device in [
        "kvm",
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
        "nvme0n1",
        "sda",
        "sdb",
        "mmcblk0",
        "ttyUSB0",
        "hvc0",
        "ttyS0",
    ] {
        say(device, fs::exists(format!("/dev/{device}")).unwrap_or(false));
    }
    let mut cards: Vec<String> = fs::read_dir("/sys/class/net").map(|d| d.filter_map(|e| e.ok()?.file_name().into_string().ok()).collect()).unwrap_or_default();
    cards.sort();
    say("cards", cards.join(","));
    if let Ok(kvm) = File::options().read(true).write(true).open("/dev/kvm") {
        // SAFETY: both ioctls take an integer; the second gives a new file descriptor that lives until power off.
        let (version, vm) = unsafe { (ioctl(kvm.as_raw_fd(), KVM_GET_API_VERSION, 0), ioctl(kvm.as_raw_fd(), KVM_CREATE_VM, 0)) };
        say("kvm-version", version);
        say("kvm-vm", vm >= 0);
    }
    say("done", "");
    // SAFETY: neither call takes a pointer.
    unsafe {
        sync();
        reboot(RB_POWER_OFF);
    }
}
