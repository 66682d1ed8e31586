//! Namespaces and the empty root.

use std::ffi::CStr;
use std::io::{self, PipeReader};
use std::os::fd::AsRawFd;

use super::seccomp::{self, ThreadKind};
use super::{JailError, check, drop_privileges, step};
use crate::signal;
use holdfast_model::contract::end::ExitClass;
use holdfast_model::contract::vm::JailConfig;

/// Directories that exist on any host; one of them becomes the mount point of the empty root, seen by us only.
const MOUNT_POINTS: [&CStr; 4] = [c"/run", c"/tmp", c"/dev", c"/proc"];

/// Enters fresh namespaces with an empty root. Returns in the child when there is a pid namespace; the lifeline then
/// tells whether the parent still lives.
pub(super) fn enter(jail: &JailConfig) -> Result<Option<PipeReader>, JailError> {
    let mut flags = libc::CLONE_NEWNS | libc::CLONE_NEWNET | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS;
    if jail.pid_namespace {
        flags |= libc::CLONE_NEWPID;
    }
    // SAFETY: flags only; this process has one thread still.
    check(unsafe { libc::unshare(flags) }).map_err(step("make namespaces"))?;
    let lifeline = if jail.pid_namespace { Some(fork(jail)?) } else { None };
    empty_root()?;
    Ok(lifeline)
}

/// Forks into the pid namespace. The parent drops its privileges, waits, and ends as the child ends.
fn fork(jail: &JailConfig) -> Result<PipeReader, JailError> {
    let (lifeline, held) = io::pipe().map_err(step("make a pipe"))?;
    // SAFETY: this process has one thread, so the child's memory is consistent.
    let child = unsafe { libc::fork() };
    check(child).map_err(step("fork"))?;
    if child == 0 {
        drop(held);
        return Ok(lifeline);
    }
    // The child speaks for the unit.
    seccomp::report_to(None);
    // Of all descriptors the parent needs only its end of the lifeline.
    let held_fd = held.as_raw_fd() as u32;
    for (first, last) in [(3, held_fd.saturating_sub(1)), (held_fd + 1, u32::MAX)] {
        if first <= last {
            // SAFETY: the parent uses no descriptor from here on; it leaves with `_exit`, so no owner closes twice.
            unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
        }
    }
    let closed = signal::pass_on_to(child)
        .map_err(step("handle SIGTERM"))
        .and_then(|()| drop_privileges(jail.uid, jail.gid))
        .and_then(|()| seccomp::close(ThreadKind::Waiter));
    if let Err(e) = closed {
        eprintln!("vmm: {e}");
        // SAFETY: our own child.
        unsafe { libc::kill(child, libc::SIGKILL) };
    }
    let mut status = 0;
    // SAFETY: waits for our own child; the status is a valid int.
    while unsafe { libc::waitpid(child, &mut status, 0) } < 0 {
        if io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
            break;
        }
    }
    let code = if libc::WIFEXITED(status) {
        libc::WEXITSTATUS(status)
    } else {
        eprintln!("vmm: ended by signal {}", libc::WTERMSIG(status));
        i32::from(ExitClass::HostFault.code())
    };
    // SAFETY: ends this process without running destructors of what the child owns.
    unsafe { libc::_exit(code) }
}

/// Has the kernel kill this process when its parent goes.
pub(super) fn die_with_parent(lifeline: &PipeReader) -> Result<(), JailError> {
    // SAFETY: numbers only.
    check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0) }).map_err(step("tie to the parent"))?;
    let mut poll = libc::pollfd { fd: lifeline.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one valid pollfd, no waiting.
    if unsafe { libc::poll(&mut poll, 1, 0) } != 0 {
        return Err(step("live without the parent")(io::ErrorKind::BrokenPipe.into()));
    }
    Ok(())
}

/// Replaces everything mounted by one empty read-only directory.
fn empty_root() -> Result<(), JailError> {
    let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
    mount(c"none", c"/", None, libc::MS_REC | libc::MS_PRIVATE, None).map_err(step("keep mounts private"))?;
    let place = MOUNT_POINTS
        .iter()
        .find(|dir| mount(c"empty", dir, Some(c"tmpfs"), flags, Some(c"size=4k,nr_inodes=2,mode=0555")).is_ok());
    let Some(place) = place else {
        return Err(step("mount an empty directory")(io::Error::last_os_error()));
    };
    // SAFETY: a constant string.
    check(unsafe { libc::chdir(place.as_ptr()) }).map_err(step("enter the empty directory"))?;
    let here = c".".as_ptr();
    // The old root ends up mounted over the new one and is detached from there.
    // SAFETY: constant strings.
    let pivoted = unsafe { libc::syscall(libc::SYS_pivot_root, here, here) } == 0;
    if pivoted {
        // SAFETY: a constant string.
        check(unsafe { libc::umount2(here, libc::MNT_DETACH) }).map_err(step("detach the old root"))?;
    } else {
        // The root of an initramfs cannot be pivoted away: move over it instead.
        mount(c".", c"/", None, libc::MS_MOVE, None).map_err(step("move the empty directory to the root"))?;
        // SAFETY: a constant string.
        check(unsafe { libc::chroot(here) }).map_err(step("make the empty directory the root"))?;
    }
    // SAFETY: a constant string.
    check(unsafe { libc::chdir(c"/".as_ptr()) }).map_err(step("enter the empty root"))?;
    let flags = flags | libc::MS_REMOUNT | libc::MS_BIND | libc::MS_RDONLY;
    mount(c"none", c"/", None, flags, None).map_err(step("make the empty root read-only"))
}

fn mount(
    source: &CStr,
    target: &CStr,
    kind: Option<&CStr>,
    flags: libc::c_ulong,
    options: Option<&CStr>,
) -> io::Result<()> {
    let null = std::ptr::null();
    let (kind, options) = (kind.map_or(null, CStr::as_ptr), options.map_or(null, CStr::as_ptr));
    // SAFETY: valid C strings or null.
    check(unsafe { libc::mount(source.as_ptr(), target.as_ptr(), kind, flags, options.cast()) })
}
