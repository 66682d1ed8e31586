//! The unit of a VM: its VMM's configuration, limits and sandbox, and the descriptors it gets.

use super::{Disk, FIRST_UID, Nic, Plan, host_name, unit_of};
use crate::fetching::jobs::memfd;
use anyhow::{Context, Result};
use holdfast_model::contract;
use holdfast_model::contract::vm::{
    BalloonConfig, ConsoleConfig, DiskConfig, FileRef, GUEST_END_PORT, JailConfig, MacAddress, NetConfig, PortConfig,
    TapRef, VhostRef, VmConfig,
};
use holdfast_supervise::{Capabilities, Capability, Limits, Sandbox, StopPolicy, UnitSpec};
use holdfast_unit::packet;
use std::fs::{File, OpenOptions};
use std::os::fd::{OwnedFd, RawFd};
use std::path::Path;
use std::time::Duration;

/// Connections that may wait at a VM's control socket.
const CONTROL_BACKLOG: u8 = 4;
/// What a VMM may use beyond its guest's memory before the kernel ends it; the budget for what it does use is 3 MiB.
const OVERHEAD_LIMIT_BYTES: u64 = 48 << 20;
/// Between the power button and SIGKILL.
const STOP_DEADLINE: Duration = Duration::from_secs(20);
/// Where the unit finds its configuration: PID 1 places descriptors from 3 on, in order.
const CONFIG_FD: RawFd = 3;
/// The config disk's sectors.
const SECTOR: usize = 512;

/// What the configuration names, in the order in which the unit gets it behind the configuration itself. The list to hand over exists
/// only with the configuration in front, so a number that [`Fds::add`] gave is never off by one.
#[derive(Default)]
struct Fds(Vec<OwnedFd>);

impl Fds {
    /// Takes a descriptor; gives the number that the unit will know it by.
    fn add(&mut self, fd: impl Into<OwnedFd>) -> RawFd {
        self.0.push(fd.into());
        CONFIG_FD + RawFd::try_from(self.0.len()).unwrap_or(RawFd::MAX - CONFIG_FD)
    }

    /// All that the unit gets: the configuration at [`CONFIG_FD`], then what was added.
    fn behind(self, config: OwnedFd) -> Vec<OwnedFd> {
        std::iter::once(config).chain(self.0).collect()
    }
}

/// The unit of a VM and the descriptors it gets; `open_tap` attaches to the tap of a NIC of the network plan, once for each
/// queue pair. Opens files and devices, so it blocks for as long as they do.
///
/// # Errors
/// A file, device or tap that is missing, named.
pub fn prepare(
    plan: &Plan,
    control_folder: &Path,
    open_tap: &dyn Fn(&Nic) -> Result<Vec<OwnedFd>>,
) -> Result<(UnitSpec, Vec<OwnedFd>)> {
    let name = &plan.app.name;
    let unit = unit_of(plan.app.id);
    let mut fds = Fds::default();
    let read = |path: &Path| File::open(path).with_context(|| format!("app {name}: {}", path.display()));
    let write = |path: &Path| {
        OpenOptions::new().read(true).write(true).open(path).with_context(|| format!("app {name}: {}", path.display()))
    };

    let socket = control_folder.join(format!("{unit}.sock"));
    let control = packet::listen(&socket, CONTROL_BACKLOG)
        .with_context(|| format!("app {name}: control socket {}", socket.display()))?;
    let control = FileRef::Fd(fds.add(control));
    let kvm = FileRef::Fd(fds.add(write(Path::new("/dev/kvm"))?));
    let kernel = FileRef::Fd(fds.add(read(Path::new("/guest/vmlinux"))?));
    let initrd = FileRef::Fd(fds.add(read(Path::new("/guest/initrd"))?));

    let mut document = contract::write(&plan.document()?)?;
    document.resize(document.len().next_multiple_of(SECTOR), 0);
    let mut disks = Vec::new();
    for (n, disk) in plan.disks.iter().enumerate() {
        match disk {
            Disk::Container { rootfs, layer, .. } => {
                let rootfs = DiskConfig::new("rootfs", FileRef::Fd(fds.add(read(rootfs)?)));
                disks.push(DiskConfig { read_only: true, ..rootfs });
                disks.push(DiskConfig::new("overlay", FileRef::Fd(fds.add(write(layer)?))));
            }
            Disk::Volume { file, read_only, .. } => {
                let fd = if *read_only { read(file)? } else { write(file)? };
                let volume = DiskConfig::new(format!("vol{}", n - 1), FileRef::Fd(fds.add(fd)));
                disks.push(DiskConfig { read_only: *read_only, ..volume });
            }
        }
    }
    let document = DiskConfig::new("config", FileRef::Fd(fds.add(memfd("config", &document)?)));
    disks.push(DiskConfig { read_only: true, ..document });

    let mut nets = Vec::new();
    for nic in &plan.nics {
        let taps = open_tap(nic)?;
        // Without vhost the frames go through the VMM: slower, and still right.
        let vhosts = taps.iter().map(|_| write(Path::new("/dev/vhost-net")).ok()).collect();
        nets.push(card(nic, taps, vhosts, &mut fds));
    }

    let uid = FIRST_UID + plan.number;
    // Where the guest's init says how it ended; only the VMM listens.
    let end_port = PortConfig { name: GUEST_END_PORT.into(), output: None, input: None };
    let config = VmConfig {
        vcpus: u8::try_from(plan.app.vcpus).with_context(|| format!("app {name}: {} vCPUs", plan.app.vcpus))?,
        memory_mib: u32::try_from(plan.app.memory_bytes >> 20)
            .with_context(|| format!("app {name}: {} bytes of memory", plan.app.memory_bytes))?,
        initrd: Some(initrd),
        kvm,
        disks,
        nets,
        console: Some(ConsoleConfig { ports: vec![end_port], ..ConsoleConfig::to(FileRef::Fd(1)) }),
        control: Some(control),
        // What the app frees comes back by itself; nothing inflates the balloon unasked.
        balloon: Some(BalloonConfig::default()),
        // PID 1 makes the pid namespace, so the VMM needs no waiting parent of its own.
        jail: Some(JailConfig { uid, gid: uid, pid_namespace: false }),
        ..VmConfig::new(host_name(name), kernel)
    };
    let fds = fds.behind(memfd("vm", &contract::write(&config)?)?);

    let mut spec = UnitSpec::new(unit.clone(), "/bin/vmm", 0);
    spec.args = vec!["--config-fd".into(), CONFIG_FD.to_string()];
    spec.limits = Limits {
        memory_max_bytes: Some(plan.app.memory_bytes + OVERHEAD_LIMIT_BYTES),
        cpu_weight: None,
        pids_max: Some(64 + plan.app.vcpus),
    };
    // The stop signal is the power button: the VMM turns it into an ACPI event.
    spec.stop = StopPolicy { signal: 15, deadline_ms: u64::try_from(STOP_DEADLINE.as_millis())? };
    spec.sandbox = Sandbox {
        new_pid: true,
        // What building the jail takes; the VMM drops it with its uid before the guest runs.
        capabilities: Capabilities::Only(vec![
            Capability::SysAdmin,
            Capability::SysChroot,
            Capability::Setuid,
            Capability::Setgid,
            Capability::Setpcap,
        ]),
        ..Sandbox::default()
    };
    spec.tag = plan.tag();
    Ok((spec, fds))
}

/// The VMM's view of a NIC: its queues of the tap, and as many vhost-nets or none.
fn card(nic: &Nic, taps: Vec<OwnedFd>, vhosts: Option<Vec<File>>, fds: &mut Fds) -> NetConfig {
    let taps = taps.into_iter().map(|fd| fds.add(fd)).collect();
    let vhost = vhosts.map(|list| VhostRef::Fds(list.into_iter().map(|file| fds.add(file)).collect()));
    NetConfig {
        vhost,
        queue_pairs: nic.queue_pairs,
        mtu: Some(nic.mtu),
        ..NetConfig::new(MacAddress(nic.mac), TapRef::Fds(taps))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_has_a_tap_queue_and_a_vhost_for_each_pair() {
        let null = || File::open("/dev/null").unwrap();
        let nic = |queue_pairs| Nic { tap: "tap-x".into(), mac: [2, 0, 0, 0, 0, 1], mtu: 1400, queue_pairs };
        let mut fds = Fds::default();
        let several = card(&nic(2), vec![null().into(), null().into()], Some(vec![null(), null()]), &mut fds);
        assert_eq!((several.queue_pairs, several.mtu), (2, Some(1400)));
        assert_eq!((several.tap, several.vhost), (Some(TapRef::Fds(vec![4, 5])), Some(VhostRef::Fds(vec![6, 7]))));
        let one = card(&nic(1), vec![null().into()], None, &mut fds);
        assert_eq!((one.queue_pairs, one.tap, one.vhost), (1, Some(TapRef::Fds(vec![8])), None));
    }

    #[test]
    fn the_most_cards_and_disks_fit_into_one_packet_of_the_unit_protocol() {
        // Configuration, control socket, KVM, kernel, initrd, three disks of the app itself.
        let own = 8;
        let pairs = (1..=16).map(|nics| nics * usize::from(holdfast_plan::queue_pairs(64, nics))).max().unwrap();
        assert_eq!(pairs, 16);
        assert!(own + 2 * pairs <= holdfast_supervise::MAX_FDS);
    }

    #[test]
    fn descriptors_are_known_by_their_place_behind_the_configuration() {
        use std::io::Read as _;
        let mut fds = Fds::default();
        let names = ["kernel", "disk", "tap"];
        let numbers = names.map(|name| fds.add(memfd(name, name.as_bytes()).unwrap()));
        assert_eq!(numbers, [4, 5, 6]);
        let list = fds.behind(memfd("vm", b"config").unwrap());
        let found: Vec<String> = list
            .into_iter()
            .map(|fd| {
                let mut text = String::new();
                File::from(fd).read_to_string(&mut text).unwrap();
                text
            })
            .collect();
        assert_eq!(found[0], "config");
        for (name, number) in names.into_iter().zip(numbers) {
            assert_eq!(found[usize::try_from(number - CONFIG_FD).unwrap()], name);
        }
    }
}
