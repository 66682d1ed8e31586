//! The jail: what is left to a VMM that a guest has taken over.
//!
//! In order: own network, IPC, UTS, mount and pid namespaces; an empty read-only root; a user without capabilities;
//! no_new_privs; Landlock with no permission; and for each thread, before the first guest instruction, a seccomp filter
//! of what that kind of thread does ([`seccomp`]).

pub mod namespaces;
pub mod seccomp;

use std::io;

use landlock::{ABI, Access, AccessFs, AccessNet, Ruleset, RulesetAttr, RulesetStatus, Scope};
use thiserror::Error;

use holdfast_model::contract::vm::JailConfig;

/// The jail cannot be closed.
#[derive(Debug, Error)]
pub enum JailError {
    /// A step failed.
    #[error("jail: cannot {what}: {source}; the jail needs root to enter")]
    Step {
        /// The step.
        what: &'static str,
        /// How it failed.
        source: io::Error,
    },
    /// Landlock refused.
    #[error("jail: Landlock: {0}")]
    Landlock(#[from] landlock::RulesetError),
    /// A filter was refused.
    #[error("jail: seccomp filter of {thread} threads: {reason}")]
    Seccomp {
        /// Kind of thread.
        thread: &'static str,
        /// The library's words.
        reason: String,
    },
}

pub(crate) fn step(what: &'static str) -> impl FnOnce(io::Error) -> JailError {
    move |source| JailError::Step { what, source }
}

/// Closes all of the jail that concerns the whole process. With a pid namespace this returns in the child only; the
/// parent waits for it and ends with its exit code.
///
/// # Errors
/// [`JailError`] names the step.
pub fn close(jail: &JailConfig) -> Result<(), JailError> {
    let lifeline = namespaces::enter(jail)?;
    drop_privileges(jail.uid, jail.gid)?;
    if let Some(lifeline) = lifeline {
        // After the change of user, which clears the parent-death signal.
        namespaces::die_with_parent(&lifeline)?;
    }
    restrict_files()
}

/// Becomes `uid` and `gid` for good; capabilities go with root.
pub(crate) fn drop_privileges(uid: u32, gid: u32) -> Result<(), JailError> {
    // SAFETY: an empty group list needs no memory.
    check(unsafe { libc::setgroups(0, std::ptr::null()) }).map_err(step("drop supplementary groups"))?;
    // SAFETY: numbers only.
    check(unsafe { libc::setresgid(gid, gid, gid) }).map_err(step("change group"))?;
    // SAFETY: numbers only.
    check(unsafe { libc::setresuid(uid, uid, uid) }).map_err(step("change user"))?;
    drop_capabilities()?;
    // SAFETY: numbers only.
    check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }).map_err(step("set no_new_privs"))?;
    let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: reads one structure. A core file would hold the guest's memory.
    check(unsafe { libc::setrlimit(libc::RLIMIT_CORE, &none) }).map_err(step("forbid core files"))
}

/// Empties all capability sets. A change from root does so too, unless the parent has set secure bits.
fn drop_capabilities() -> Result<(), JailError> {
    // SAFETY: numbers only.
    check(unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) })
        .map_err(step("clear ambient capabilities"))?;
    // _LINUX_CAPABILITY_VERSION_3, this process; effective, permitted, inheritable in two halves.
    let (header, sets) = ([0x2008_0522u32, 0], [0u32; 6]);
    // SAFETY: reads a header of 8 bytes and sets of 24.
    let done = unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), sets.as_ptr()) };
    check(done as libc::c_int).map_err(step("drop capabilities"))
}

/// Forbids every file, TCP and scoped-IPC operation that Landlock knows on this kernel.
fn restrict_files() -> Result<(), JailError> {
    let status = Ruleset::default()
        .handle_access(AccessFs::from_all(ABI::V6))?
        .handle_access(AccessNet::from_all(ABI::V6))?
        .scope(Scope::from_all(ABI::V6))?
        .create()?
        .restrict_self()?;
    if status.ruleset == RulesetStatus::NotEnforced {
        eprintln!("vmm: jail: this kernel has no Landlock; the empty root and seccomp remain");
    }
    Ok(())
}

pub(crate) fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
