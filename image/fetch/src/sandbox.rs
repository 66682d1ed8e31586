//! What the process gives up before the first packet: new privileges, files, programs, most system calls.
//!
//! The job's own descriptors stay open; by name only the resolver's files can be read. PID 1 has already taken root and
//! capabilities away. Layers that the kernel lacks are left out: each stands for itself.

use std::io;

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, PathBeneath, PathFd, Ruleset, RulesetAttr as _, RulesetCreatedAttr as _,
};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

use crate::failure::Failure;

/// What `getaddrinfo` reads (resolv.conf(5), hosts(5), nsswitch.conf(5), gai.conf(5), host.conf(5)).
const RESOLVER_FILES: [&str; 5] =
    ["/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf", "/etc/gai.conf", "/etc/host.conf"];
/// Descriptors that a job can have open: its files, one connection, the resolver's sockets.
const DESCRIPTORS: libc::rlim_t = 64;

/// Locks this process in. Call while it has one thread: those made later inherit it.
///
/// # Errors
/// When a layer that the kernel has cannot be applied.
pub fn enter() -> Result<(), Failure> {
    let failed = |what: &str, e: String| Failure::local(format!("sandbox: {what}: {e}"));
    no_new_privileges().map_err(|e| failed("no_new_privs", e.to_string()))?;
    limits().map_err(|e| failed("rlimits", e.to_string()))?;
    files().map_err(|e| failed("landlock", e.to_string()))?;
    let filter = system_calls().map_err(|e| failed("seccomp", e.to_string()))?;
    seccompiler::apply_filter(&filter).map_err(|e| failed("seccomp", e.to_string()))
}

fn no_new_privileges() -> io::Result<()> {
    for (option, value) in [(libc::PR_SET_NO_NEW_PRIVS, 1), (libc::PR_SET_DUMPABLE, 0)] {
        // SAFETY: numbers only; the unused arguments are zero as no_new_privs demands.
        if unsafe {
            libc::prctl(option, value as libc::c_ulong, 0 as libc::c_ulong, 0 as libc::c_ulong, 0 as libc::c_ulong)
        } < 0
        {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

fn limits() -> io::Result<()> {
    for (resource, most) in [(libc::RLIMIT_CORE, 0), (libc::RLIMIT_NOFILE, DESCRIPTORS)] {
        let limit = libc::rlimit { rlim_cur: most, rlim_max: most };
        // SAFETY: the structure lives through the call.
        if unsafe { libc::setrlimit(resource, &limit) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// No file by name but the resolver's; no listening.
fn files() -> Result<(), landlock::RulesetError> {
    let abi = ABI::V4;
    let mut rules =
        Ruleset::default().handle_access(AccessFs::from_all(abi))?.handle_access(AccessNet::BindTcp)?.create()?;
    for path in RESOLVER_FILES {
        if let Ok(file) = PathFd::new(path) {
            rules = rules.add_rule(PathBeneath::new(file, AccessFs::ReadFile))?;
        }
    }
    rules.restrict_self()?;
    Ok(())
}

/// What a downloader needs; anything else answers EPERM.
fn system_calls() -> Result<BpfProgram, seccompiler::BackendError> {
    use libc::{
        SYS_bind, SYS_brk, SYS_clock_getres, SYS_clock_gettime, SYS_clock_nanosleep, SYS_clone, SYS_clone3, SYS_close,
        SYS_connect, SYS_epoll_create1, SYS_epoll_ctl, SYS_epoll_pwait, SYS_epoll_pwait2, SYS_eventfd2, SYS_exit,
        SYS_exit_group, SYS_fadvise64, SYS_fallocate, SYS_fcntl, SYS_fdatasync, SYS_fstat, SYS_fstatfs, SYS_fsync,
        SYS_ftruncate, SYS_futex, SYS_getegid, SYS_geteuid, SYS_getgid, SYS_getpeername, SYS_getpid, SYS_getrandom,
        SYS_getsockname, SYS_getsockopt, SYS_gettid, SYS_getuid, SYS_ioctl, SYS_lseek, SYS_madvise, SYS_mmap,
        SYS_mprotect, SYS_mremap, SYS_munmap, SYS_newfstatat, SYS_openat, SYS_ppoll, SYS_prctl, SYS_pread64,
        SYS_prlimit64, SYS_pwrite64, SYS_read, SYS_readv, SYS_recvfrom, SYS_recvmsg, SYS_restart_syscall, SYS_rseq,
        SYS_rt_sigaction, SYS_rt_sigprocmask, SYS_rt_sigreturn, SYS_sched_getaffinity, SYS_sched_yield, SYS_sendmmsg,
        SYS_sendmsg, SYS_sendto, SYS_set_robust_list, SYS_setsockopt, SYS_shutdown, SYS_sigaltstack, SYS_socket,
        SYS_statx, SYS_tgkill, SYS_uname, SYS_write, SYS_writev,
    };
    let plain = [
        SYS_bind,
        SYS_brk,
        SYS_clock_getres,
        SYS_clock_gettime,
        SYS_clock_nanosleep,
        SYS_clone,
        SYS_clone3,
        SYS_close,
        SYS_connect,
        SYS_epoll_create1,
        SYS_epoll_ctl,
        SYS_epoll_pwait,
        SYS_epoll_pwait2,
        SYS_eventfd2,
        SYS_exit,
        SYS_exit_group,
        SYS_fadvise64,
        SYS_fallocate,
        SYS_fcntl,
        SYS_fdatasync,
        SYS_fstat,
        SYS_fstatfs,
        SYS_fsync,
        SYS_ftruncate,
        SYS_futex,
        SYS_getpeername,
        SYS_getpid,
        SYS_getrandom,
        SYS_getsockname,
        SYS_getsockopt,
        SYS_gettid,
        SYS_getuid,
        SYS_geteuid,
        SYS_getgid,
        SYS_getegid,
        SYS_ioctl,
        SYS_lseek,
        SYS_madvise,
        SYS_mremap,
        SYS_munmap,
        SYS_newfstatat,
        SYS_openat,
        SYS_ppoll,
        SYS_prctl,
        SYS_pread64,
        SYS_prlimit64,
        SYS_pwrite64,
        SYS_read,
        SYS_readv,
        SYS_recvfrom,
        SYS_recvmsg,
        SYS_restart_syscall,
        SYS_rseq,
        SYS_rt_sigaction,
        SYS_rt_sigprocmask,
        SYS_rt_sigreturn,
        SYS_sched_getaffinity,
        SYS_sched_yield,
        SYS_sendmmsg,
        SYS_sendmsg,
        SYS_sendto,
        SYS_set_robust_list,
        SYS_setsockopt,
        SYS_shutdown,
        SYS_sigaltstack,
        SYS_statx,
        SYS_tgkill,
        SYS_uname,
        SYS_write,
        SYS_writev,
    ];
    let mut rules: std::collections::BTreeMap<i64, Vec<SeccompRule>> =
        plain.into_iter().map(|call| (call, Vec::new())).collect();
    #[cfg(target_arch = "x86_64")]
    for call in [libc::SYS_epoll_wait, libc::SYS_poll, libc::SYS_stat, libc::SYS_open, libc::SYS_access, libc::SYS_time]
    {
        rules.insert(call, Vec::new());
    }

    // Memory that is code stays what it is: nothing new becomes executable.
    let not_executable = || -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
        let exec = libc::PROT_EXEC.unsigned_abs().into();
        let condition = SeccompCondition::new(2, SeccompCmpArgLen::Dword, SeccompCmpOp::MaskedEq(exec), 0)?;
        Ok(vec![SeccompRule::new(vec![condition])?])
    };
    rules.insert(SYS_mmap, not_executable()?);
    rules.insert(SYS_mprotect, not_executable()?);

    // Internet sockets, and the netlink one with which the resolver looks at the machine's own addresses.
    let mut families = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK] {
        let family = u64::from(family.unsigned_abs());
        let condition = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, family)?;
        families.push(SeccompRule::new(vec![condition])?);
    }
    rules.insert(SYS_socket, families);

    let filter = SeccompFilter::new(
        rules,
        SeccompAction::Errno(libc::EPERM.unsigned_abs()),
        SeccompAction::Allow,
        std::env::consts::ARCH.try_into()?,
    )?;
    filter.try_into()
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_filter_compiles() {
        assert!(super::system_calls().unwrap().len() > 50);
    }
}
