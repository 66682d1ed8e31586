//! Starting one process: `clone3` into its namespaces and cgroup, descriptors in place, powers dropped, `execve`.
//!
//! Everything that needs memory is prepared before the clone; the child only makes system calls, so this is
//! sound also where the parent has threads (tests). The child reports the step that failed through a pipe that a
//! successful `execve` closes.

use holdfast_supervise::{Capabilities, MAX_FDS, UnitSpec};
use holdfast_unit::last_words;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{Whence, lseek, pipe2};
use std::ffi::{CString, c_char, c_int, c_long};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

/// A process that was started.
#[derive(Debug)]
pub struct Spawned {
    /// In our PID namespace.
    pub pid: u32,
    /// Readable when it has ended.
    pub pidfd: OwnedFd,
    /// Read end of its standard output, non-blocking.
    pub out: OwnedFd,
    /// Read end of its standard error, non-blocking.
    pub err: OwnedFd,
    /// Read end of its last words, non-blocking.
    pub words: OwnedFd,
}

/// A process that was not.
#[derive(Debug, thiserror::Error)]
#[error("{step}: {errno}")]
pub struct SpawnError {
    step: &'static str,
    errno: Errno,
}

/// Longest wait for the child to reach `execve` or fail.
const EXEC_DEADLINE_MS: u16 = 10_000;
/// Inherited descriptors are first moved above this number, so that placing one never overwrites another.
const PARKING: RawFd = 256;
const _: () = assert!(3 + MAX_FDS < PARKING as usize, "streams, inherited descriptors and last words lie below it");
/// Steps of the child, as sent in its failure report.
const STEPS: [&str; 14] = [
    "session",
    "signals",
    "park descriptors",
    "place descriptors",
    "close descriptors",
    "mount namespace",
    "proc of the pid namespace",
    "bounding set",
    "group",
    "user",
    "capabilities",
    "no_new_privs",
    "execve",
    "cgroup",
];

/// Starts the unit's program. `fds` become 3, 4, ..., the descriptor of its last words follows them; `cgroup` is an open
/// `cgroup.procs`.
pub fn spawn(spec: &UnitSpec, fds: &[OwnedFd], cgroup: Option<&File>) -> Result<Spawned, SpawnError> {
    let at = |step| move |errno| SpawnError { step, errno };
    let pipe = |step| pipe2(OFlag::O_CLOEXEC).map_err(at(step));
    let (out, out_child) = pipe("output pipe")?;
    let (err, err_child) = pipe("error pipe")?;
    let (words, words_child) = pipe("last words")?;
    let (report, report_child) = pipe("report pipe")?;
    let null: OwnedFd =
        File::open("/dev/null").map(Into::into).map_err(|e| SpawnError { step: "/dev/null", errno: io_errno(&e) })?;
    for fd in fds {
        // A configuration in a memfd is read again by the next run; sockets and pipes answer ESPIPE.
        let _ = lseek(fd, 0, Whence::SeekSet);
    }
    let mut child = Child::prepare(
        spec,
        [&null, &out_child, &err_child].into_iter().chain(fds).chain([&words_child]),
        &report_child,
        cgroup,
    )
    .map_err(at("arguments"))?;

    let sandbox = &spec.sandbox;
    let mut flags = libc::CLONE_PIDFD as u64;
    for (wanted, flag) in [
        (sandbox.new_net, libc::CLONE_NEWNET),
        (sandbox.new_pid, libc::CLONE_NEWPID),
        (sandbox.new_mount, libc::CLONE_NEWNS),
        (sandbox.new_ipc, libc::CLONE_NEWIPC),
    ] {
        if wanted {
            flags |= flag as u64;
        }
    }
    let mut pidfd: c_int = -1;
    // SAFETY: `clone_args` is plain integers for which zero means "not used".
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.pidfd = ptr::from_mut(&mut pidfd) as u64;
    args.exit_signal = libc::SIGCHLD as u64;
    args.flags = flags;
    // SAFETY: without CLONE_VM this is a fork: the child has its own copy of all memory. It runs only
    // `Child::run`, which makes system calls on prepared memory and never returns.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, ptr::from_ref(&args), size_of::<libc::clone_args>()) };
    if pid == 0 {
        // SAFETY: we are the child of the clone above.
        unsafe { child.run() }
    }
    Errno::result(pid).map_err(at("clone3"))?;
    // SAFETY: the kernel has just made this descriptor for us.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    drop(report_child);
    if let Some(error) = read_report(report) {
        // SAFETY: a plain system call; the pid is our unreaped child, so it cannot be anyone else's.
        unsafe { libc::kill(pid as libc::pid_t, libc::SIGKILL) };
        let _ = nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(pid as i32), None);
        return Err(error);
    }
    for fd in [&out, &err, &words] {
        nix::fcntl::fcntl(fd, nix::fcntl::FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map_err(at("output pipe"))?;
    }
    Ok(Spawned { pid: pid as u32, pidfd, out, err, words })
}

/// Waits for the end of the report pipe: empty when `execve` succeeded.
fn read_report(pipe: OwnedFd) -> Option<SpawnError> {
    let mut slots = [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)];
    let ready = loop {
        match poll(&mut slots, PollTimeout::from(EXEC_DEADLINE_MS)) {
            Err(Errno::EINTR) => {}
            other => break other,
        }
    };
    if !matches!(ready, Ok(n) if n > 0) {
        return Some(SpawnError { step: "execve", errno: Errno::ETIMEDOUT });
    }
    let mut report = [0u8; 5];
    match File::from(pipe).read(&mut report) {
        Ok(5) => Some(SpawnError {
            step: STEPS.get(usize::from(report[0])).copied().unwrap_or("start"),
            errno: Errno::from_raw(i32::from_ne_bytes([report[1], report[2], report[3], report[4]])),
        }),
        _ => None,
    }
}

fn io_errno(error: &std::io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO))
}

/// All that the child needs, ready made.
struct Child {
    // The pointers of the two arrays point into these; a CString's bytes do not move with it.
    _texts: Vec<CString>,
    program: *const c_char,
    argv: Vec<*const c_char>,
    envp: Vec<*const c_char>,
    /// Descriptors for 0, 1, 2, 3, ...
    fds: Vec<RawFd>,
    report: RawFd,
    cgroup: Option<RawFd>,
    uid: u32,
    gid: u32,
    /// `None` leaves all powers; else a bit per capability to keep.
    keep_caps: Option<u64>,
    no_new_privs: bool,
    own_mounts: bool,
    own_pids: bool,
}

impl Child {
    fn prepare<'a>(
        spec: &UnitSpec,
        fds: impl Iterator<Item = &'a OwnedFd>,
        report: &OwnedFd,
        cgroup: Option<&File>,
    ) -> Result<Child, Errno> {
        let text = |s: &str| CString::new(s).map_err(|_| Errno::EINVAL);
        let mut texts = vec![text(&spec.program)?];
        for arg in &spec.args {
            texts.push(text(arg)?);
        }
        let arguments = texts.len();
        let fds: Vec<RawFd> = fds.map(AsRawFd::as_raw_fd).collect();
        // The last one is that of the last words.
        texts.push(text(&format!("{}={}", last_words::VARIABLE, fds.len() - 1))?);
        for (key, value) in &spec.env {
            texts.push(text(&format!("{key}={value}"))?);
        }
        let pointers =
            |part: &[CString]| -> Vec<*const c_char> { part.iter().map(|t| t.as_ptr()).chain([ptr::null()]).collect() };
        Ok(Child {
            program: texts[0].as_ptr(),
            argv: pointers(&texts[..arguments]),
            envp: pointers(&texts[arguments..]),
            _texts: texts,
            fds,
            report: report.as_raw_fd(),
            cgroup: cgroup.map(AsRawFd::as_raw_fd),
            uid: spec.uid,
            gid: spec.gid,
            keep_caps: match &spec.sandbox.capabilities {
                Capabilities::All => None,
                Capabilities::Only(list) => Some(list.iter().fold(0, |set, c| set | 1 << c.number())),
            },
            no_new_privs: spec.sandbox.no_new_privs,
            own_mounts: spec.sandbox.new_mount,
            own_pids: spec.sandbox.new_pid,
        })
    }

    /// Becomes the program.
    ///
    /// # Safety
    /// Only in a fresh child that owns its address space: changes credentials, closes descriptors, does not return.
    unsafe fn run(&mut self) -> ! {
        // SAFETY: per this function's contract; all pointers are into memory owned by `self`.
        let (step, errno) = match unsafe { self.steps() } {
            Ok(never) => match never {},
            Err(fault) => fault,
        };
        let mut report = [step, 0, 0, 0, 0];
        report[1..].copy_from_slice(&(errno as i32).to_ne_bytes());
        // SAFETY: a write from a local buffer, then the end of the process.
        unsafe {
            libc::write(self.report, report.as_ptr().cast(), report.len());
            libc::_exit(127)
        }
    }

    /// # Safety
    /// As [`Child::run`].
    unsafe fn steps(&mut self) -> Result<std::convert::Infallible, (u8, Errno)> {
        let ok = |step: u8, result: c_long| Errno::result(result).map(drop).map_err(|e| (step, e));
        // SAFETY: plain system calls on integers and on memory owned by `self` or this frame. Credentials are changed
        // by the raw calls, because the C library's own would look for threads that this copy does not have.
        unsafe {
            if let Some(procs) = self.cgroup {
                ok(13, libc::write(procs, c"0".as_ptr().cast(), 1) as c_long)?;
            }
            ok(0, libc::setsid().into())?;
            let empty: libc::sigset_t = std::mem::zeroed();
            for signal in 1..=64 {
                // Fails for SIGKILL, SIGSTOP and the C library's own; those have their default anyway.
                libc::signal(signal, libc::SIG_DFL);
            }
            ok(1, libc::sigprocmask(libc::SIG_SETMASK, &empty, ptr::null_mut()).into())?;

            self.report = libc::fcntl(self.report, libc::F_DUPFD_CLOEXEC, PARKING);
            ok(2, self.report.into())?;
            for fd in &mut self.fds {
                *fd = libc::fcntl(*fd, libc::F_DUPFD_CLOEXEC, PARKING);
                ok(2, (*fd).into())?;
            }
            for (target, fd) in (0..).zip(&self.fds) {
                ok(3, libc::dup2(*fd, target).into())?;
            }
            let first = self.fds.len() as c_long;
            ok(4, libc::syscall(libc::SYS_close_range, first, c_long::from(u32::MAX), libc::CLOSE_RANGE_CLOEXEC))?;

            if self.own_mounts {
                let root = c"/".as_ptr();
                let private = libc::MS_REC | libc::MS_PRIVATE;
                ok(5, libc::mount(ptr::null(), root, ptr::null(), private, ptr::null()).into())?;
                if self.own_pids {
                    let proc = c"proc".as_ptr();
                    let safe = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
                    ok(6, libc::mount(proc, c"/proc".as_ptr(), proc, safe, ptr::null()).into())?;
                }
            }
            self.drop_powers(&ok)?;
            libc::umask(0o022);
            libc::chdir(c"/".as_ptr());
            libc::execve(self.program, self.argv.as_ptr(), self.envp.as_ptr());
        }
        Err((12, Errno::last()))
    }

    /// # Safety
    /// As [`Child::run`].
    unsafe fn drop_powers(&self, ok: &impl Fn(u8, c_long) -> Result<(), (u8, Errno)>) -> Result<(), (u8, Errno)> {
        // SAFETY: plain system calls; `capset` gets the header and the two words it expects.
        unsafe {
            if let Some(keep) = self.keep_caps {
                for capability in 0..64 {
                    if keep & (1 << capability) == 0 && libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) != 0 {
                        if Errno::last() == Errno::EINVAL {
                            break; // past the last one that this kernel knows
                        }
                        ok(7, -1)?;
                    }
                }
            }
            ok(8, libc::syscall(libc::SYS_setgroups, 0, ptr::null::<u32>()))?;
            ok(8, libc::syscall(libc::SYS_setresgid, self.gid, self.gid, self.gid))?;
            if self.keep_caps.is_some() {
                ok(9, libc::prctl(libc::PR_SET_KEEPCAPS, 1, 0, 0, 0).into())?;
            }
            ok(9, libc::syscall(libc::SYS_setresuid, self.uid, self.uid, self.uid))?;
            if let Some(keep) = self.keep_caps {
                // _LINUX_CAPABILITY_VERSION_3, this process; then (effective, permitted, inheritable) twice.
                let header: [u32; 2] = [0x2008_0522, 0];
                let (low, high) = (keep as u32, (keep >> 32) as u32);
                let data: [u32; 6] = [low, low, low, high, high, high];
                ok(10, libc::syscall(libc::SYS_capset, header.as_ptr(), data.as_ptr()))?;
                for capability in (0..64u32).filter(|c| keep & (1 << c) != 0) {
                    let raise = libc::PR_CAP_AMBIENT_RAISE;
                    ok(10, libc::prctl(libc::PR_CAP_AMBIENT, raise, capability, 0, 0).into())?;
                }
            }
            if self.no_new_privs {
                ok(11, libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0).into())?;
            }
        }
        Ok(())
    }
}
