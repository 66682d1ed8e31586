//! From an app to its virtual machine: the disks, the app document, the VMM's configuration, the unit.

use crate::jobs::memfd;
use crate::supervisor::Supervisor;
use crate::volumes;
use anyhow::{Context, Result, bail};
use holdfast_fetch::job::ImageConfig;
use holdfast_model::app::App;
use holdfast_model::guest::{AppDocument, Mount};
use holdfast_model::net::Mac;
use holdfast_supervise::{Capabilities, Capability, Limits, Sandbox, StopPolicy, UnitName, UnitSpec};
use holdfast_vmm::config::{
    BalloonConfig, ConsoleConfig, DiskConfig, FileRef, JailConfig, MacAddress, NetConfig, TapRef, VhostRef, VmConfig,
};
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket};
use sha2::{Digest, Sha256};
use std::fs::{self, File, OpenOptions};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::time::Duration;
use uuid::Uuid;

/// uid of the first app's VMM.
pub const FIRST_UID: u32 = 2000;
/// What a VMM may use beyond its guest's memory before the kernel ends it; the budget for what it does use is 3 MiB.
const OVERHEAD_LIMIT_BYTES: u64 = 48 << 20;
/// Between the power button and SIGKILL.
const STOP_DEADLINE: Duration = Duration::from_secs(20);
/// Grace of the app inside its guest: less than the above, so that the guest can unmount.
const APP_GRACE_SECONDS: u32 = 10;
/// Where the unit finds its configuration: PID 1 places descriptors from 3 on, in order.
const CONFIG_FD: RawFd = 3;
/// The config disk's sectors.
const SECTOR: usize = 512;

/// A disk of an app.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Disk {
    /// Container image with its writable layer.
    Container {
        /// The flattened image.
        rootfs: PathBuf,
        /// The writable layer.
        layer: PathBuf,
        /// How to run it.
        image: ImageConfig,
    },
    /// A volume mounted in the guest.
    Volume {
        /// The file.
        file: PathBuf,
        /// Where.
        mount: String,
        /// Read-only.
        read_only: bool,
    },
}

/// A NIC of an app.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nic {
    /// Tap interface.
    pub tap: String,
    /// MAC of the guest's end.
    pub mac: Mac,
    /// MTU in bytes.
    pub mtu: u16,
    /// Queue pairs, 1 to 16 and at most one for each vCPU; the tap is for several queues when there are several.
    pub queue_pairs: u16,
}

/// Everything that a start needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The app.
    pub app: App,
    /// Its number, for the uid.
    pub number: u32,
    /// Disks in order; the first is the container.
    pub disks: Vec<Disk>,
    /// NICs in order.
    pub nics: Vec<Nic>,
}

/// Name of an app's unit.
///
/// # Panics
/// Never: a UUID is a valid part of a unit name.
#[must_use]
pub fn unit_of(app: Uuid) -> UnitName {
    UnitName::new(format!("vmm-{app}")).expect("a UUID has only characters that unit names allow")
}

/// The app of a unit, if it is one's.
#[must_use]
pub fn app_of(unit: &UnitName) -> Option<Uuid> {
    unit.as_str().strip_prefix("vmm-").and_then(|u| u.parse().ok())
}

impl Plan {
    /// Hash of all that a running VM cannot take in: another hash needs a restart.
    #[must_use]
    pub fn tag(&self) -> String {
        let App { vcpus, memory_bytes, user_data, .. } = &self.app;
        let text = format!("{vcpus} {memory_bytes} {user_data} {:?} {:?}", self.disks, self.nics);
        hex::encode(&Sha256::digest(text.as_bytes())[..16])
    }

    /// What the guest's init is told.
    ///
    /// # Errors
    /// When no disk is a container image or the image names no program.
    pub fn document(&self) -> Result<AppDocument> {
        let name = &self.app.name;
        let Some(Disk::Container { image, .. }) = self.disks.first() else {
            bail!("app {name}: expected a container image as first disk");
        };
        let argv: Vec<String> = image.entrypoint.iter().chain(&image.cmd).cloned().collect();
        if argv.is_empty() {
            bail!("app {name}: expected Entrypoint or Cmd in the image, found neither");
        }
        let mut env = image.env.clone();
        env.extend(user_data_env(&self.app.user_data));
        let mounts = self.disks[1..]
            .iter()
            .enumerate()
            .filter_map(|(n, d)| match d {
                Disk::Volume { mount, read_only, .. } => {
                    Some(Mount { disk: format!("vol{n}"), at: mount.clone(), read_only: *read_only })
                }
                Disk::Container { .. } => None,
            })
            .collect();
        Ok(AppDocument {
            hostname: host_name(name),
            argv,
            env,
            user: image.user.clone(),
            cwd: image.working_dir.clone(),
            stop_signal: image.stop_signal.clone(),
            grace_seconds: APP_GRACE_SECONDS,
            mounts,
        })
    }
}

/// `KEY=VALUE` lines of user data; other lines (a cloud-config, comments) are not environment.
fn user_data_env(text: &str) -> Vec<String> {
    let is_name = |n: &str| {
        !n.is_empty()
            && !n.starts_with(|c: char| c.is_ascii_digit())
            && n.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
    };
    text.lines()
        .map(str::trim)
        .filter(|l| l.split_once('=').is_some_and(|(n, _)| is_name(n)))
        .map(str::to_owned)
        .collect()
}

/// The display name as a host name: letters, digits and hyphens, at most 63.
#[must_use]
pub fn host_name(name: &str) -> String {
    let text: String =
        name.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' }).take(63).collect();
    let text = text.trim_matches('-');
    if text.is_empty() { "app".into() } else { text.into() }
}

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

/// Starts the VM; `open_tap` attaches to the tap of a NIC of the network plan, once for each queue pair.
///
/// # Errors
/// A file, device or tap that is not there, named; PID 1's refusal.
pub fn start(
    supervisor: &mut Supervisor,
    plan: &Plan,
    control_folder: &Path,
    open_tap: &dyn Fn(&Nic) -> Result<Vec<OwnedFd>>,
) -> Result<()> {
    let name = &plan.app.name;
    let unit = unit_of(plan.app.id);
    let mut fds = Fds::default();
    let read = |path: &Path| File::open(path).with_context(|| format!("app {name}: {}", path.display()));
    let write = |path: &Path| {
        OpenOptions::new().read(true).write(true).open(path).with_context(|| format!("app {name}: {}", path.display()))
    };

    let control = FileRef::Fd(fds.add(listen_at(&control_folder.join(format!("{unit}.sock")))?));
    let kvm = FileRef::Fd(fds.add(write(Path::new("/dev/kvm"))?));
    let kernel = FileRef::Fd(fds.add(read(Path::new("/guest/vmlinux"))?));
    let initrd = FileRef::Fd(fds.add(read(Path::new("/guest/initrd"))?));

    let mut document = serde_json::to_vec(&plan.document()?)?;
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
    let config = VmConfig {
        vcpus: u8::try_from(plan.app.vcpus).with_context(|| format!("app {name}: {} vCPUs", plan.app.vcpus))?,
        memory_mib: u32::try_from(plan.app.memory_bytes >> 20)
            .with_context(|| format!("app {name}: {} bytes of memory", plan.app.memory_bytes))?,
        initrd: Some(initrd),
        kvm,
        disks,
        nets,
        console: Some(ConsoleConfig::to(FileRef::Fd(1))),
        control: Some(control),
        // What the app frees comes back by itself; nothing inflates the balloon unasked.
        balloon: Some(BalloonConfig::default()),
        // PID 1 makes the pid namespace, so the VMM needs no waiting parent of its own.
        jail: Some(JailConfig { uid, gid: uid, pid_namespace: false }),
        ..VmConfig::new(host_name(name), kernel)
    };
    let fds = fds.behind(memfd("vm", &serde_json::to_vec(&config)?)?);

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
    let borrowed: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
    supervisor.start(&spec, &borrowed).with_context(|| format!("app {name}: unit {unit}"))?;
    Ok(())
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

/// Makes (or makes again) the writable layers and blank volumes that the plan names.
///
/// # Errors
/// No space, mostly.
pub fn make_volumes(plan: &Plan, seed: &Path, sizes: &dyn Fn(&Path) -> u64) -> Result<()> {
    for disk in &plan.disks {
        let file = match disk {
            Disk::Container { layer, .. } => layer,
            Disk::Volume { file, .. } => file,
        };
        volumes::ensure(file, seed, sizes(file))
            .with_context(|| format!("app {}: volume {}", plan.app.name, file.display()))?;
    }
    Ok(())
}

/// A listening socket at `path`; one that an earlier run left there is replaced.
///
/// # Errors
/// When the folder is not there.
pub fn listen_at(path: &Path) -> Result<OwnedFd> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            return Err(e).with_context(|| format!("cannot replace {}", path.display()));
        }
        _ => {}
    }
    let fd = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)?;
    bind(fd.as_raw_fd(), &UnixAddr::new(path)?).with_context(|| format!("cannot bind {}", path.display()))?;
    listen(&fd, Backlog::new(4)?)?;
    Ok(fd)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> Plan {
        Plan {
            app: App {
                id: Uuid::from_u128(7),
                version: "1".into(),
                name: "Web Shop_1".into(),
                activate: true,
                vcpus: 1,
                memory_bytes: 64 << 20,
                volumes: vec![],
                interfaces: vec![],
                user_data: "#cloud-config\nGREETING=hello world\n1BAD=x\nA_B=\n".into(),
                restart_counter: 0,
                purge_counter: 0,
                start_delay_seconds: 0,
                disable_logs: false,
            },
            number: 0,
            disks: vec![
                Disk::Container {
                    rootfs: "/r".into(),
                    layer: "/l".into(),
                    image: ImageConfig {
                        entrypoint: vec!["/bin/web".into()],
                        cmd: vec!["-v".into()],
                        env: vec!["PATH=/bin".into()],
                        user: "www".into(),
                        ..ImageConfig::default()
                    },
                },
                Disk::Volume { file: "/v".into(), mount: "/data".into(), read_only: false },
            ],
            nics: vec![],
        }
    }

    #[test]
    fn the_document_merges_image_and_user_data() {
        let d = plan().document().unwrap();
        assert_eq!(d.argv, ["/bin/web", "-v"]);
        assert_eq!(d.env, ["PATH=/bin", "GREETING=hello world", "A_B="]);
        assert_eq!(d.hostname, "web-shop-1");
        assert_eq!(d.mounts, [Mount { disk: "vol0".into(), at: "/data".into(), read_only: false }]);
    }

    #[test]
    fn an_image_without_a_program_is_refused_by_name() {
        let mut p = plan();
        p.disks[0] = Disk::Container { rootfs: "/r".into(), layer: "/l".into(), image: ImageConfig::default() };
        assert!(p.document().unwrap_err().to_string().contains("Web Shop_1"));
    }

    #[test]
    fn the_tag_changes_with_what_a_running_vm_cannot_take_in() {
        let a = plan();
        let mut b = plan();
        b.app.memory_bytes *= 2;
        let mut c = plan();
        c.app.restart_counter = 9;
        assert_ne!(a.tag(), b.tag());
        assert_eq!(a.tag(), c.tag());
    }

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

    #[test]
    fn unit_names_lead_back_to_their_app() {
        let id = Uuid::from_u128(0xabcd);
        assert_eq!(app_of(&unit_of(id)), Some(id));
        assert_eq!(app_of(&UnitName::new("node").unwrap()), None);
    }
}
