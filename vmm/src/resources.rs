//! Opens or adopts every file the configuration names, once, before the jail closes.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use holdfast_links::path::{self, PathError};
use holdfast_links::tap::{self, TapError};
use holdfast_links::{Link, PathLink, Tap, UnixLink};
use thiserror::Error;

use crate::control;
use crate::virtio::block::lock;
use holdfast_model::contract::end::ExitClass;
use holdfast_model::contract::vm::{DiskConfig, FileRef, LinkRef, NetConfig, TapRef, UnixRef, VhostRef, VmConfig};

/// A file of the configuration cannot be used.
#[derive(Debug, Error)]
#[error("{user}: cannot {what} {file}: {source}{hint}")]
pub struct ResourceError {
    user: String,
    what: &'static str,
    file: String,
    source: io::Error,
    hint: &'static str,
}

impl ResourceError {
    /// The class, and so the exit code.
    pub fn class(&self) -> ExitClass {
        if self.user == KVM { ExitClass::Kvm } else { ExitClass::Resource }
    }
}

/// Name of `/dev/kvm` in messages.
const KVM: &str = "kvm";

/// All files of a VM.
pub struct Resources {
    /// `/dev/kvm`.
    pub kvm: OwnedFd,
    /// Kernel image.
    pub kernel: File,
    /// Initial ramdisk.
    pub initrd: Option<File>,
    /// Disk images in config order.
    pub disks: Vec<File>,
    /// Cables in config order.
    pub nets: Vec<Cable>,
    /// `/dev/vhost-vsock`.
    pub vsock: Option<File>,
    /// The console's ends.
    pub console: Option<ConsoleFiles>,
    /// The ends of its further ports, in config order.
    pub ports: Vec<ConsoleFiles>,
    /// The serial port's ends.
    pub serial: Option<ConsoleFiles>,
    /// Listening control socket.
    pub control: Option<OwnedFd>,
}

/// What a network card is plugged into.
pub enum Cable {
    /// One queue of a tap for each queue pair, and as many vhost-nets or none.
    Tap(Vec<Tap>, Vec<File>),
    /// Something else, with one queue pair.
    Other(Box<dyn Link>),
}

impl Resources {
    /// Opens paths and adopts inherited descriptors.
    ///
    /// # Errors
    /// [`ResourceError`] names the first field that cannot be had, and the way out.
    pub fn open(config: &VmConfig) -> Result<Self, ResourceError> {
        let kvm = open(KVM, &config.kvm, Mode::ReadWrite, "; is virtualisation enabled, and may this user open it?")?;
        let kernel = open("kernel", &config.kernel, Mode::Read, "")?;
        let initrd = config.initrd.as_ref().map(|f| open("initrd", f, Mode::Read, "")).transpose()?;
        let mut disks = Vec::new();
        for disk in &config.disks {
            disks.push(open_disk(disk, lock::PATIENCE)?);
        }
        let mut nets = Vec::new();
        for (n, net) in config.nets.iter().enumerate() {
            nets.push(open_cable(&format!("net{n}"), net)?);
        }
        let hint = "; the host's kernel needs vhost-vsock, and this user the right to open it";
        let vsock = match &config.vsock {
            Some(vsock) => Some(open("vsock", &vsock.vhost, Mode::ReadWrite, hint)?),
            None => None,
        };
        let mut ports = Vec::new();
        for port in config.console.iter().flat_map(|c| &c.ports) {
            ports.push(open_console(&port.name, port.output.as_ref(), port.input.as_ref())?);
        }
        let console = config.console.as_ref();
        let console = console.map(|c| open_console("console", Some(&c.output), c.input.as_ref())).transpose()?;
        let serial = config.serial.as_ref();
        let serial = serial.map(|s| open_console("serial", Some(&s.output), s.input.as_ref())).transpose()?;
        let control = match &config.control {
            None => None,
            Some(FileRef::Path(path)) => Some(control::listen(path).map_err(|e| ResourceError {
                user: "control".into(),
                what: "listen at",
                file: path.display().to_string(),
                source: io::Error::other(e),
                hint: "",
            })?),
            Some(file) => Some(open("control", file, Mode::ReadWrite, "")?.into()),
        };
        Ok(Self { kvm: kvm.into(), kernel, initrd, disks, nets, vsock, console, ports, serial, control })
    }
}

/// The ends of one console.
pub struct ConsoleFiles {
    /// Takes its output.
    pub output: Option<OwnedFd>,
    /// Gives it input.
    pub input: Option<OwnedFd>,
}

/// One file may be both ends; then it is opened once.
fn open_console(user: &str, output: Option<&FileRef>, input: Option<&FileRef>) -> Result<ConsoleFiles, ResourceError> {
    let both = output.is_some() && output == input;
    let mode = if both { Mode::ReadWrite } else { Mode::Append };
    let output = output.map(|file| open(user, file, mode, "")).transpose()?;
    let input = match (&output, input) {
        (Some(output), Some(file)) if both => Some(output.try_clone().map_err(|source| ResourceError {
            user: user.into(),
            what: "duplicate",
            file: file.to_string(),
            source,
            hint: "",
        })?),
        (_, Some(file)) => Some(open(user, file, Mode::Read, "")?),
        (_, None) => None,
    };
    Ok(ConsoleFiles { output: output.map(OwnedFd::from), input: input.map(OwnedFd::from) })
}

#[derive(Clone, Copy)]
enum Mode {
    Read,
    ReadWrite,
    Append,
}

fn open(user: &str, file: &FileRef, mode: Mode, hint: &'static str) -> Result<File, ResourceError> {
    let fail =
        |what| move |source| ResourceError { user: user.to_string(), what, file: file.to_string(), source, hint };
    match file {
        FileRef::Fd(fd) => adopt(*fd).map_err(fail("use")),
        FileRef::Path(path) => open_path(path, mode).map_err(fail("open")),
    }
}

fn open_path(path: &Path, mode: Mode) -> io::Result<File> {
    let mut options = OpenOptions::new();
    match mode {
        Mode::Read => options.read(true),
        Mode::ReadWrite => options.read(true).write(true),
        Mode::Append => options.append(true).create(true),
    };
    options.custom_flags(libc::O_CLOEXEC | libc::O_NOCTTY).open(path)
}

/// Opens an image and locks it, waiting for the lock as long as `patience`.
fn open_disk(disk: &DiskConfig, patience: Duration) -> Result<File, ResourceError> {
    let user = format!("disk {}", disk.id);
    let mode = if disk.read_only { Mode::Read } else { Mode::ReadWrite };
    let file = open(&user, &disk.file, mode, "")?;
    leave_access_time(&file);
    if !disk.lock {
        return Ok(file);
    }
    match lock::lock(&file, disk.read_only, patience) {
        Ok(()) => Ok(file),
        Err(e) => {
            let (source, hint) = if e.kind() == io::ErrorKind::WouldBlock {
                let hint =
                    "; stop the VM that has it, or give it to all of them \"read_only\"; \"lock\": false does without";
                (io::Error::other("another process or disk uses it"), hint)
            } else {
                (e, "; \"lock\": false does without")
            };
            Err(ResourceError { user, what: "lock", file: disk.file.to_string(), source, hint })
        }
    }
}

/// Reads leave the image's time of last access alone: the guest keeps its own times, and to look whether a note is due costs a
/// read from the page cache a twelfth of its processor time. Only the file's owner may ask for it (open(2), `O_NOATIME`), so
/// before the jail; for others reads go on as they do.
fn leave_access_time(file: &File) {
    let fd = file.as_raw_fd();
    // SAFETY: numbers only.
    unsafe {
        let flags = libc::fcntl(fd, libc::F_GETFL);
        if flags >= 0 {
            libc::fcntl(fd, libc::F_SETFL, flags | libc::O_NOATIME);
        }
    }
}

fn open_cable(user: &str, net: &NetConfig) -> Result<Cable, ResourceError> {
    match &net.link {
        Some(LinkRef::Unix(UnixRef::Fd(fd))) => {
            let fail = |source| resource(user, "use as a cable", format!("inherited fd {fd}"), source, "");
            let link = adopt(*fd).and_then(|file| UnixLink::adopt(file.into())).map_err(fail)?;
            return Ok(Cable::Other(Box::new(link)));
        }
        Some(LinkRef::Unix(UnixRef::Path(path))) => return plug(user, path, path::PATIENCE),
        None => {}
    }
    let taps = match &net.tap {
        Some(TapRef::Name(name)) => {
            let fail = |hint| move |source| resource(user, "attach to tap", name.clone(), source, hint);
            let fds = tap::attach(name, net.queue_pairs).map_err(|e| fail(way_out(&e))(io::Error::other(e)))?;
            let adopted: io::Result<Vec<Tap>> = fds.into_iter().map(|fd| Tap::adopt(fd, net.queue_pairs > 1)).collect();
            adopted.map_err(fail(""))?
        }
        Some(TapRef::Fd(fd)) => vec![adopt_tap(user, *fd, false)?],
        Some(TapRef::Fds(fds)) => {
            fds.iter().map(|fd| adopt_tap(user, *fd, fds.len() > 1)).collect::<Result<Vec<_>, _>>()?
        }
        None => Vec::new(),
    };
    let hint = "; without \"vhost\" frames pass through the VMM instead";
    let open_vhost = |file: &FileRef| open(user, file, Mode::ReadWrite, hint);
    let vhosts: Result<Vec<File>, ResourceError> = match &net.vhost {
        None => Ok(Vec::new()),
        Some(VhostRef::Path(path)) => taps.iter().map(|_| open_vhost(&FileRef::Path(path.clone()))).collect(),
        Some(VhostRef::Fd(fd)) => open_vhost(&FileRef::Fd(*fd)).map(|file| vec![file]),
        Some(VhostRef::Fds(fds)) => fds.iter().map(|fd| open_vhost(&FileRef::Fd(*fd))).collect(),
    };
    Ok(Cable::Tap(taps, vhosts?))
}

/// Takes an end of the cable that two VMs know by `path`.
fn plug(user: &str, path: &Path, patience: Duration) -> Result<Cable, ResourceError> {
    let link = PathLink::plug(path, patience).map_err(|e| {
        let hint = match e {
            PathError::Taken => "; end one of them, or give this VM a cable of another path",
            PathError::Deaf { .. } => "; end that VM, or let it run",
            PathError::Io { .. } => "; the folder must exist, and this user may make files in it",
        };
        resource(user, "plug into the cable", path.display().to_string(), io::Error::other(e), hint)
    })?;
    Ok(Cable::Other(Box::new(link)))
}

fn way_out(e: &TapError) -> &'static str {
    match e {
        TapError::Absent { .. } => "; make it with `ip tuntap add NAME mode tap vnet_hdr`",
        TapError::Kind { .. } => {
            "; it must be a tap, made with `multi_queue` for several queue pairs and without for one"
        }
        TapError::Busy { .. } => "; end that program, or give this VM a tap of its own",
        TapError::Io { .. } => "; attaching to another user's tap needs CAP_NET_ADMIN",
    }
}

fn adopt_tap(user: &str, fd: RawFd, multi_queue: bool) -> Result<Tap, ResourceError> {
    let hint =
        "; it must be attached with IFF_TAP, IFF_NO_PI, IFF_VNET_HDR, and IFF_MULTI_QUEUE if it is one of several";
    adopt(fd)
        .and_then(|file| Tap::adopt(file.into(), multi_queue))
        .map_err(|source| resource(user, "use as a tap", format!("inherited fd {fd}"), source, hint))
}

fn resource(user: &str, what: &'static str, file: String, source: io::Error, hint: &'static str) -> ResourceError {
    ResourceError { user: user.to_string(), what, file, source, hint }
}

/// Takes an inherited descriptor. Standard streams are duplicated, since others use them too.
fn adopt(fd: RawFd) -> io::Result<File> {
    if fd <= 2 {
        // SAFETY: duplicates a number; no memory involved.
        let copy = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) };
        if copy < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a fresh descriptor, owned by nobody else.
        return Ok(unsafe { File::from_raw_fd(copy) });
    }
    // SAFETY: asks and changes a flag of a number; fails for one that is not open.
    if unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is open, the parent gave it to us for this one use (the configuration names it once), and nothing else
    // in this process knows it.
    Ok(unsafe { File::from_raw_fd(fd) })
}

/// Closes every descriptor above the standard streams that the configuration does not name, but `also`.
///
/// # Errors
/// When the kernel has no `close_range`.
pub fn close_others(config: &VmConfig, also: Option<RawFd>) -> io::Result<()> {
    let named = config.inherited_fds().into_iter().map(|(fd, _)| fd);
    let mut keep: Vec<u32> = named.chain(also).filter_map(|fd| u32::try_from(fd).ok()).collect();
    keep.retain(|fd| *fd > 2);
    keep.sort_unstable();
    let mut start = 3u32;
    for fd in keep.into_iter().map(Some).chain([None]) {
        let last = fd.map_or(u32::MAX, |fd| fd.saturating_sub(1));
        // SAFETY: called before this process opens anything of its own, so no owner loses a descriptor.
        if start <= last && unsafe { libc::syscall(libc::SYS_close_range, start, last, 0) } < 0 {
            return Err(io::Error::last_os_error());
        }
        start = fd.map_or(u32::MAX, |fd| fd + 1);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(change: impl Fn(&mut VmConfig)) -> VmConfig {
        let text = br#"{"version": 1, "name": "t", "vcpus": 1, "memory_mib": 64, "kernel": {"path": "/dev/null"}, "kvm": {"path": "/dev/null"}}"#;
        let mut config = crate::config::parse(text).unwrap();
        change(&mut config);
        config
    }

    #[test]
    fn missing_files_and_closed_descriptors_name_their_field() {
        type Change = fn(&mut VmConfig);
        let cases: [(&[&str], Change); 5] = [
            (&["kernel", "/nonexistent/k", "open"], |c| c.kernel = FileRef::Path("/nonexistent/k".into())),
            (&["initrd", "inherited fd 9999"], |c| c.initrd = Some(FileRef::Fd(9999))),
            (&["kvm", "/nonexistent/kvm", "virtualisation"], |c| c.kvm = FileRef::Path("/nonexistent/kvm".into())),
            (&["vsock", "/nonexistent/vhost-vsock", "open", "kernel needs vhost-vsock"], |c| {
                let vhost = FileRef::Path("/nonexistent/vhost-vsock".into());
                c.vsock = Some(holdfast_model::contract::vm::VsockConfig { cid: 3, vhost });
            }),
            (&["net0", "inherited fd 9998"], |c| {
                let mac = "02:00:00:00:00:01".parse().unwrap();
                c.nets = vec![holdfast_model::contract::vm::NetConfig::new(mac, TapRef::Fd(9998))];
            }),
        ];
        for (words, change) in cases {
            let error = Resources::open(&config(change)).err().unwrap().to_string();
            assert!(words.iter().all(|word| error.contains(word)), "{words:?} not in {error:?}");
        }
    }

    #[test]
    fn cable_that_cannot_be_had_is_named_with_the_way_out() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cable");
        let plug = |path: &Path| plug("net3", path, Duration::ZERO);
        let _ends = [plug(&path).unwrap(), plug(&path).unwrap()];
        let nowhere = folder.path().join("none/cable");
        for (path, words) in [(&path, ["two VMs", "end one of them"]), (&nowhere, ["none/cable", "folder must exist"])]
        {
            let error = plug(path).err().unwrap();
            assert_eq!(error.class(), ExitClass::Resource);
            let error = error.to_string();
            for word in ["net3: cannot plug into the cable", path.to_str().unwrap(), words[0], words[1]] {
                assert!(error.contains(word), "{word:?} not in {error:?}");
            }
        }
    }

    #[test]
    fn image_in_use_is_named_with_the_way_out_and_readers_share() {
        let image = tempfile::NamedTempFile::new().unwrap();
        let disk = |read_only| DiskConfig { read_only, ..DiskConfig::new("data", FileRef::Path(image.path().into())) };
        let open_disk = |disk: &DiskConfig| open_disk(disk, Duration::ZERO);
        let first = open_disk(&disk(true)).unwrap();
        let second = open_disk(&disk(true)).unwrap();
        let error = open_disk(&disk(false)).unwrap_err().to_string();
        for word in ["disk data", "lock", image.path().to_str().unwrap(), "uses it", "stop the VM", "\"lock\": false"] {
            assert!(error.contains(word), "{word:?} not in {error:?}");
        }
        let unlocked = open_disk(&DiskConfig { lock: false, ..disk(false) }).unwrap();
        drop((first, second, unlocked));
        open_disk(&disk(false)).unwrap();
    }

    #[test]
    fn reads_of_an_image_leave_its_time_of_last_access_alone() {
        use std::os::unix::fs::{FileExt, MetadataExt};
        let image = tempfile::NamedTempFile::new().unwrap();
        let other = image.reopen().unwrap();
        other.set_len(4096).unwrap();
        // Long ago, so that the next read is noted (mount(8), relatime).
        let times = std::fs::FileTimes::new().set_accessed(std::time::UNIX_EPOCH);
        other.set_times(times.set_modified(std::time::SystemTime::now())).unwrap();
        let read = |file: &File| file.read_exact_at(&mut [0; 4096], 0).unwrap();
        let disk = DiskConfig { read_only: true, ..DiskConfig::new("data", FileRef::Path(image.path().into())) };
        read(&open_disk(&disk, Duration::ZERO).unwrap());
        assert_eq!(other.metadata().unwrap().atime(), 0);
        read(&other);
        if other.metadata().unwrap().atime() == 0 {
            println!("SKIPPED: this file system notes no reads at all");
        }
    }
}
