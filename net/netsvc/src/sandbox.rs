//! The cage: no new privileges, no file system (Landlock), only the system calls that the loop needs (seccomp).

use crate::sys;
use landlock::{ABI, Access, AccessFs, CompatLevel, Compatible, Ruleset, RulesetAttr};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};
use std::collections::BTreeMap;
use thiserror::Error;

/// Why the cage could not be closed. The program must not go on.
#[derive(Debug, Error)]
pub enum SandboxError {
    /// prctl failed.
    #[error("no_new_privs: {0}")]
    Privileges(std::io::Error),
    /// Landlock failed.
    #[error("landlock: {0}")]
    Landlock(#[from] landlock::RulesetError),
    /// The filter could not be built.
    #[error("seccomp filter: {0}")]
    Filter(#[from] seccompiler::BackendError),
    /// The filter could not be installed.
    #[error("seccomp: {0}")]
    Install(#[from] seccompiler::Error),
}

/// System calls of the loop, of memory allocation, and of a panic's last words.
const ALLOWED: &[libc::c_long] = &[
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_connect,
    libc::SYS_accept4,
    libc::SYS_fcntl,
    libc::SYS_close,
    libc::SYS_ppoll,
    libc::SYS_clock_gettime,
    libc::SYS_getrandom,
    libc::SYS_mmap,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_mprotect,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_futex,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_sigaltstack,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_tgkill,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_restart_syscall,
];

/// Closes the cage around this process for good.
pub fn enter() -> Result<(), SandboxError> {
    sys::no_new_privileges().map_err(SandboxError::Privileges)?;
    // Handles all file access and allows none. A kernel without Landlock gives less; seccomp below forbids opening anyway.
    Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(ABI::V4))?
        .create()?
        .restrict_self()?;
    let filter = SeccompFilter::new(
        ALLOWED.iter().map(|n| (*n, Vec::new())).collect::<BTreeMap<_, _>>(),
        SeccompAction::KillProcess,
        SeccompAction::Allow,
        std::env::consts::ARCH.try_into()?,
    )?;
    let program: BpfProgram = filter.try_into()?;
    seccompiler::apply_filter(&program)?;
    Ok(())
}
