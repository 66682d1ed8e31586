//! System calls that each kind of thread may make once the guest runs: one table, a filter for each kind.
//!
//! A call outside the table ends the process with the call's number on stderr and the jail's exit code.

use std::collections::BTreeMap;

use holdfast_links::tap;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};

use super::JailError;
use crate::exit::ExitClass;
use crate::virtio::net::vhost as vhost_net;
use crate::virtio::vhost;
use crate::virtio::vsock::vhost as vhost_vsock;

/// Kinds of threads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ThreadKind {
    /// Runs the guest and answers its exits.
    Vcpu,
    /// Owns the devices and the control socket.
    Device,
    /// The parent of a pid namespace: waits for its child.
    Waiter,
}

impl ThreadKind {
    fn name(self) -> &'static str {
        match self {
            ThreadKind::Vcpu => "vCPU",
            ThreadKind::Device => "device",
            ThreadKind::Waiter => "waiting",
        }
    }
}

const BOTH: &[ThreadKind] = &[ThreadKind::Vcpu, ThreadKind::Device];
const ALL: &[ThreadKind] = &[ThreadKind::Vcpu, ThreadKind::Device, ThreadKind::Waiter];
const WAITER: &[ThreadKind] = &[ThreadKind::Waiter];
const DEVICE: &[ThreadKind] = &[ThreadKind::Device];

/// Calls allowed with any arguments, who makes them, and why.
const TABLE: &[(libc::c_long, &[ThreadKind], &str)] = &[
    (libc::SYS_read, BOTH, "eventfds; console input"),
    (libc::SYS_write, ALL, "eventfds; console output; last words on stderr"),
    (libc::SYS_poll, BOTH, "output that may stall; pending bits of MSI-X"),
    (libc::SYS_futex, BOTH, "locks and channels"),
    (libc::SYS_brk, BOTH, "allocator"),
    (libc::SYS_munmap, BOTH, "allocator; thread stacks"),
    (libc::SYS_madvise, BOTH, "thread end; the balloon gives memory back"),
    (libc::SYS_mremap, BOTH, "allocator"),
    (libc::SYS_rt_sigreturn, ALL, "after a kick"),
    (libc::SYS_rt_sigprocmask, BOTH, "thread end, abort"),
    (libc::SYS_sigaltstack, BOTH, "thread end"),
    (libc::SYS_clock_gettime, BOTH, "where the vDSO cannot"),
    (libc::SYS_getpid, BOTH, "kick, abort"),
    (libc::SYS_gettid, BOTH, "abort"),
    (libc::SYS_tgkill, BOTH, "kick, abort"),
    (libc::SYS_getrandom, BOTH, "entropy device; hash seeds"),
    (libc::SYS_restart_syscall, ALL, "after a stop signal"),
    (libc::SYS_exit, BOTH, "thread end"),
    (libc::SYS_exit_group, ALL, "process end"),
    (libc::SYS_wait4, WAITER, "the VM's end"),
    (libc::SYS_kill, WAITER, "SIGTERM goes on to the VM"),
    (libc::SYS_close, BOTH, "control connections; eventfds; a vCPU that ends"),
    (libc::SYS_epoll_wait, DEVICE, "event loop"),
    (libc::SYS_epoll_pwait, DEVICE, "event loop"),
    (libc::SYS_epoll_ctl, DEVICE, "devices come and go"),
    (libc::SYS_eventfd2, DEVICE, "vhost errors"),
    (libc::SYS_readv, DEVICE, "frames of a tap or unix link"),
    (libc::SYS_writev, DEVICE, "frames of a tap or unix link"),
    (libc::SYS_io_uring_enter, DEVICE, "block"),
    (libc::SYS_preadv, DEVICE, "block without io_uring"),
    (libc::SYS_pwritev2, DEVICE, "block without io_uring"),
    (libc::SYS_fdatasync, DEVICE, "block without io_uring"),
    (libc::SYS_fallocate, DEVICE, "block without io_uring: discard and write zeroes"),
    (libc::SYS_accept4, DEVICE, "control socket"),
    (libc::SYS_recvfrom, DEVICE, "control socket; consoles' clients"),
    (libc::SYS_sendmsg, DEVICE, "control socket: a reply, perhaps with a console's stream"),
];

/// KVM requests on vCPU threads (linux/kvm.h): KVM_RUN, KVM_GET_REGS, KVM_GET_SREGS, KVM_IRQ_LINE,
/// KVM_SET_GSI_ROUTING, KVM_IRQFD, KVM_IOEVENTFD.
const VCPU_IOCTLS: [u64; 7] = [0xae80, 0x8090_ae81, 0x8138_ae83, 0x4008_ae61, 0x4008_ae6a, 0x4020_ae76, 0x4040_ae79];
/// On the device thread: KVM_IRQ_LINE.
const DEVICE_IOCTLS: [u64; 1] = [0x4008_ae61];

/// Closes the calling thread's filter. Calls outside it end the process.
///
/// # Errors
/// [`JailError::Seccomp`].
pub fn close(kind: ThreadKind) -> Result<(), JailError> {
    install_reporter();
    let fail = |reason: String| JailError::Seccomp { thread: kind.name(), reason };
    let program = compile(kind).map_err(fail)?;
    seccompiler::apply_filter(&program).map_err(|e| fail(e.to_string()))
}

fn compile(kind: ThreadKind) -> Result<BpfProgram, String> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for (number, ..) in TABLE.iter().filter(|(_, kinds, _)| kinds.contains(&kind)) {
        rules.insert(*number, Vec::new());
    }
    let rule = |argument, length, operator, value| {
        SeccompCondition::new(argument, length, operator, value)
            .and_then(|condition| SeccompRule::new(vec![condition]))
            .map_err(|e| e.to_string())
    };
    let mut ioctls: Vec<u64> = match kind {
        ThreadKind::Vcpu => VCPU_IOCTLS.to_vec(),
        ThreadKind::Device => DEVICE_IOCTLS.to_vec(),
        ThreadKind::Waiter => return finish(rules),
    };
    if kind == ThreadKind::Device {
        ioctls.extend(tap::ioctl_numbers().map(|(number, _)| number));
        ioctls.extend(vhost::ioctl_numbers());
        ioctls.extend(vhost_net::ioctl_numbers());
        ioctls.extend(vhost_vsock::ioctl_numbers());
    }
    let ioctls = ioctls.into_iter().map(|number| rule(1, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, number));
    rules.insert(libc::SYS_ioctl, ioctls.collect::<Result<_, _>>()?);
    if kind == ThreadKind::Device {
        // A console's stream; no other kind of socket can be made.
        let unix = rule(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, libc::AF_UNIX as u64)?;
        rules.insert(libc::SYS_socketpair, vec![unix]);
    }
    // Memory, but never executable memory.
    let not_executable = SeccompCmpOp::MaskedEq(libc::PROT_EXEC as u64);
    for number in [libc::SYS_mmap, libc::SYS_mprotect] {
        rules.insert(number, vec![rule(2, SeccompCmpArgLen::Dword, not_executable.clone(), 0)?]);
    }
    finish(rules)
}

fn finish(rules: BTreeMap<i64, Vec<SeccompRule>>) -> Result<BpfProgram, String> {
    SeccompFilter::new(rules, SeccompAction::Trap, SeccompAction::Allow, TargetArch::x86_64)
        .and_then(BpfProgram::try_from)
        .map_err(|e| e.to_string())
}

/// Offset of `si_syscall` in `siginfo_t` (x86-64: after signo, errno, code, padding, call address).
const SI_SYSCALL: usize = 24;

extern "C" fn on_violation(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel passes a full `siginfo_t` with SIGSYS.
    let number = unsafe { info.cast::<u8>().add(SI_SYSCALL).cast::<i32>().read_unaligned() };
    let mut text = *b"vmm: jail: system call ???? is not in this thread's table\n";
    let mut rest = number.unsigned_abs();
    for slot in text[23..27].iter_mut().rev() {
        *slot = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    // SAFETY: both calls are async-signal-safe and allowed to every thread.
    unsafe {
        libc::write(2, text.as_ptr().cast(), text.len());
        libc::_exit(ExitClass::Jail as i32)
    }
}

fn install_reporter() {
    // SAFETY: all zeros is a valid `sigaction`.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction =
        on_violation as extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) as libc::sighandler_t;
    action.sa_flags = libc::SA_SIGINFO;
    // SAFETY: the handler is async-signal-safe. Without it SIGSYS kills silently, which is as tight.
    unsafe { libc::sigaction(libc::SIGSYS, &action, std::ptr::null_mut()) };
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs `act` in a forked child behind the filter; its exit code.
    fn in_child(kind: ThreadKind, act: fn()) -> i32 {
        // SAFETY: the child only makes system calls and leaves with `_exit`.
        match unsafe { libc::fork() } {
            0 => {
                // SAFETY: numbers only; lets an ordinary user install filters.
                unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
                if close(kind).is_err() {
                    // SAFETY: ends the child.
                    unsafe { libc::_exit(99) };
                }
                act();
                // SAFETY: ends the child.
                unsafe { libc::_exit(0) }
            }
            child => {
                let mut status = 0;
                // SAFETY: our own child.
                unsafe { libc::waitpid(child, &mut status, 0) };
                if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { -1 }
            }
        }
    }

    #[test]
    fn table_calls_pass_and_others_end_with_the_jails_code() {
        let allowed: fn() = || {
            // SAFETY: harmless calls.
            unsafe { libc::getpid() };
        };
        let socket: fn() = || {
            // SAFETY: harmless calls.
            unsafe { libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0) };
        };
        let epoll: fn() = || {
            // SAFETY: harmless calls.
            unsafe { libc::epoll_wait(-1, std::ptr::null_mut(), 0, 0) };
        };
        let foreign_ioctl: fn() = || {
            // SAFETY: harmless calls.
            unsafe { libc::ioctl(0, libc::TIOCSTI, 0) };
        };
        let executable: fn() = || {
            // SAFETY: a new mapping.
            unsafe {
                libc::mmap(std::ptr::null_mut(), 4096, libc::PROT_EXEC, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0)
            };
        };
        let jail = ExitClass::Jail as i32;
        for (kind, act, code) in [
            (ThreadKind::Vcpu, allowed, 0),
            (ThreadKind::Vcpu, socket, jail),
            (ThreadKind::Vcpu, epoll, jail),
            (ThreadKind::Device, epoll, 0),
            (ThreadKind::Device, socket, jail),
            (ThreadKind::Device, foreign_ioctl, jail),
            (ThreadKind::Vcpu, executable, jail),
        ] {
            assert_eq!(in_child(kind, act), code, "{kind:?}");
        }
    }

    #[test]
    fn each_call_is_listed_once() {
        let mut numbers: Vec<_> = TABLE.iter().map(|(number, ..)| *number).collect();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), TABLE.len());
    }
}
