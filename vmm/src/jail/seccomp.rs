//! System calls that each kind of thread may make once the guest runs: one table, a filter for each kind.
//!
//! A call outside the table ends the process with the call's number on stderr and the jail's exit code. No entry is here
//! for luck: the nested test records what every kind of thread calls under load and fails for an entry that is never
//! used; what no load can provoke is named in [`NOT_BY_LOAD`], and the unit tests make each of those calls instead.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicI32, Ordering};

use holdfast_links::tap;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};

use super::JailError;
use crate::signal;
use crate::virtio::net::vhost as vhost_net;
use crate::virtio::vhost;
use crate::virtio::vsock::vhost as vhost_vsock;
use holdfast_model::contract::end::ExitClass;

/// Kinds of threads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ThreadKind {
    /// Runs the guest and answers its exits.
    Vcpu,
    /// Owns the devices and the control socket.
    Device,
    /// The parent of a pid namespace: waits for its child.
    Waiter,
}

impl ThreadKind {
    /// Every kind.
    pub const ALL: [ThreadKind; 3] = [ThreadKind::Vcpu, ThreadKind::Device, ThreadKind::Waiter];

    fn name(self) -> &'static str {
        match self {
            ThreadKind::Vcpu => "vCPU",
            ThreadKind::Device => "device",
            ThreadKind::Waiter => "waiting",
        }
    }
}

const BOTH: &[ThreadKind] = &[ThreadKind::Vcpu, ThreadKind::Device];
const ALL: &[ThreadKind] = &ThreadKind::ALL;
const WAITER: &[ThreadKind] = &[ThreadKind::Waiter];
const VCPU: &[ThreadKind] = &[ThreadKind::Vcpu];
const DEVICE: &[ThreadKind] = &[ThreadKind::Device];

/// Calls that are allowed, who makes them, and why. [`ARGUMENTS`] narrows some of them.
const TABLE: &[(libc::c_long, &[ThreadKind], &str)] = &[
    (libc::SYS_read, BOTH, "eventfds; console input"),
    (libc::SYS_write, ALL, "eventfds; console output; last words on stderr"),
    (libc::SYS_poll, BOTH, "output that may stall; pending bits of MSI-X"),
    (libc::SYS_futex, BOTH, "locks and channels"),
    (libc::SYS_brk, BOTH, "allocator"),
    (libc::SYS_mmap, BOTH, "allocator"),
    (libc::SYS_munmap, BOTH, "allocator; thread and process end"),
    (libc::SYS_mremap, BOTH, "allocator"),
    (libc::SYS_madvise, BOTH, "thread end; the balloon gives memory back"),
    (libc::SYS_rt_sigreturn, ALL, "after a kick or SIGTERM"),
    (libc::SYS_rt_sigprocmask, BOTH, "kick, thread end, abort"),
    (libc::SYS_sigaltstack, BOTH, "thread and process end"),
    (libc::SYS_clock_gettime, BOTH, "where the vDSO cannot"),
    (libc::SYS_getpid, BOTH, "kick, abort"),
    (libc::SYS_gettid, BOTH, "abort"),
    (libc::SYS_tgkill, BOTH, "kick, abort"),
    (libc::SYS_getrandom, DEVICE, "entropy device"),
    (libc::SYS_restart_syscall, BOTH, "a wait with a limit, after a stop signal"),
    (libc::SYS_exit, VCPU, "thread end"),
    (libc::SYS_exit_group, ALL, "process end"),
    (libc::SYS_wait4, WAITER, "the VM's end"),
    (libc::SYS_kill, WAITER, "SIGTERM goes on to the VM"),
    (libc::SYS_close, BOTH, "control connections; eventfds; a vCPU that ends"),
    (libc::SYS_epoll_wait, DEVICE, "event loop"),
    (libc::SYS_epoll_ctl, DEVICE, "devices and partners on cables come and go"),
    (libc::SYS_eventfd2, DEVICE, "vhost errors"),
    (libc::SYS_readv, DEVICE, "frames of a tap or unix link"),
    (libc::SYS_writev, DEVICE, "frames of a tap or unix link"),
    (libc::SYS_pread64, DEVICE, "the kernel's counters of vCPUs"),
    (libc::SYS_io_uring_enter, DEVICE, "block"),
    (libc::SYS_preadv, DEVICE, "block without io_uring"),
    (libc::SYS_pwritev2, DEVICE, "block without io_uring"),
    (libc::SYS_fdatasync, DEVICE, "block without io_uring"),
    (libc::SYS_fallocate, DEVICE, "block without io_uring: discard and write zeroes"),
    (libc::SYS_accept4, DEVICE, "control socket; a cable by path"),
    (libc::SYS_recvfrom, DEVICE, "control socket; consoles' clients"),
    (libc::SYS_sendmsg, DEVICE, "control socket: a reply, perhaps with a console's stream"),
    (libc::SYS_socketpair, DEVICE, "a console's stream"),
];

/// What an argument must be.
#[derive(Debug, Clone, Copy)]
enum Must {
    /// This 32-bit number.
    Be(u32),
    /// Without these bits.
    Lack(u32),
    /// This process's number.
    BeThisProcess,
    /// The child that a waiting parent has.
    BeTheChild,
}

/// A call, who makes it, and what its arguments must be, by position.
type Narrow = (libc::c_long, &'static [ThreadKind], &'static [(u8, Must)]);

/// Entries of the table that pass only with these arguments; several lines for a call are alternatives.
const ARGUMENTS: &[Narrow] = &[
    // Memory of no file, and never executable.
    (libc::SYS_mmap, BOTH, &[(2, Must::Lack(libc::PROT_EXEC as u32)), (4, Must::Be(NO_FILE))]),
    (libc::SYS_madvise, BOTH, &[(2, Must::Be(libc::MADV_DONTNEED as u32))]),
    (libc::SYS_madvise, DEVICE, &[(2, Must::Be(libc::MADV_REMOVE as u32))]),
    (libc::SYS_tgkill, BOTH, &[(0, Must::BeThisProcess)]),
    (libc::SYS_kill, WAITER, &[(0, Must::BeTheChild), (1, Must::Be(libc::SIGTERM as u32))]),
    (libc::SYS_write, WAITER, &[(0, Must::Be(libc::STDERR_FILENO as u32))]),
    // No other kind of socket can be made.
    (libc::SYS_socketpair, DEVICE, &[(0, Must::Be(libc::AF_UNIX as u32))]),
];

/// The descriptor -1.
const NO_FILE: u32 = u32::MAX;

/// Entries that no load can be made to use for certain, and why. The unit tests make each of these calls in a child and
/// see it end by the filter when the entry is left out.
pub const NOT_BY_LOAD: &[(libc::c_long, &[ThreadKind], &str)] = &[
    (libc::SYS_brk, BOTH, "when the heap grows or shrinks is the allocator's choice"),
    (libc::SYS_mmap, BOTH, "as brk"),
    (libc::SYS_munmap, BOTH, "as brk"),
    (libc::SYS_mremap, BOTH, "as brk"),
    (libc::SYS_gettid, BOTH, "abort is a mistake of ours; it must still end in SIGABRT"),
    (libc::SYS_getpid, VCPU, "as gettid"),
    (libc::SYS_tgkill, VCPU, "as gettid"),
    (libc::SYS_exit_group, VCPU, "the last act of the filter itself, see `on_violation`"),
    (libc::SYS_restart_syscall, BOTH, "needs a stop signal within a wait that has a limit"),
];

/// KVM requests on vCPU threads (linux/kvm.h): KVM_RUN, KVM_GET_REGS, KVM_GET_SREGS, KVM_IRQ_LINE,
/// KVM_SET_GSI_ROUTING, KVM_IRQFD, KVM_IOEVENTFD, and KVM_SET_USER_MEMORY_REGION for a driver that needs configuration
/// reads to exit.
const VCPU_IOCTLS: [u64; 8] =
    [0xae80, 0x8090_ae81, 0x8138_ae83, 0x4008_ae61, 0x4008_ae6a, 0x4020_ae76, 0x4040_ae79, 0x4020_ae46];
/// On the device thread: KVM_IRQ_LINE.
const DEVICE_IOCTLS: [u64; 1] = [0x4008_ae61];

/// Requests of the ioctls that a kind of thread may make.
fn ioctls(kind: ThreadKind) -> Vec<u64> {
    match kind {
        ThreadKind::Vcpu => VCPU_IOCTLS.to_vec(),
        ThreadKind::Device => {
            let mut all = DEVICE_IOCTLS.to_vec();
            all.extend(tap::ioctl_numbers().map(|(number, _)| number));
            all.extend(vhost::ioctl_numbers());
            all.extend(vhost_net::ioctl_numbers());
            all.extend(vhost_vsock::ioctl_numbers());
            all
        }
        ThreadKind::Waiter => Vec::new(),
    }
}

/// One thing that a kind of thread may do: a system call, or one request of `ioctl`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Allowance {
    /// Who.
    pub kind: ThreadKind,
    /// The system call.
    pub call: libc::c_long,
    /// The request of an `ioctl`.
    pub request: Option<u64>,
}

/// The whole table, call by call.
pub fn allowances() -> Vec<Allowance> {
    let mut all = Vec::new();
    for kind in ThreadKind::ALL {
        let calls = TABLE.iter().filter(|(_, kinds, _)| kinds.contains(&kind));
        all.extend(calls.map(|(call, ..)| Allowance { kind, call: *call, request: None }));
        let requests = ioctls(kind).into_iter().map(Some);
        all.extend(requests.map(|request| Allowance { kind, call: libc::SYS_ioctl, request }));
    }
    all
}

/// Closes the calling thread's filter. Calls outside it end the process.
///
/// # Errors
/// [`JailError::Seccomp`].
pub fn close(kind: ThreadKind) -> Result<(), JailError> {
    close_without(kind, None)
}

/// [`close`] with one entry left out, so that tests see that it is needed.
fn close_without(kind: ThreadKind, left_out: Option<libc::c_long>) -> Result<(), JailError> {
    install_reporter();
    let fail = |reason: String| JailError::Seccomp { thread: kind.name(), reason };
    let program = compile(kind, left_out).map_err(fail)?;
    seccompiler::apply_filter(&program).map_err(|e| fail(e.to_string()))
}

fn compile(kind: ThreadKind, left_out: Option<libc::c_long>) -> Result<BpfProgram, String> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    let calls = TABLE.iter().filter(|(call, kinds, _)| kinds.contains(&kind) && Some(*call) != left_out);
    for (call, ..) in calls {
        let narrow = ARGUMENTS.iter().filter(|(other, kinds, _)| other == call && kinds.contains(&kind));
        let alternatives = narrow.map(|(.., arguments)| rule(arguments));
        rules.insert(*call, alternatives.collect::<Result<_, _>>()?);
    }
    let requests = ioctls(kind).into_iter().map(|request| {
        // Request numbers are 32 bits wide: the kernel looks at no more.
        rule(&[(1, Must::Be(request as u32))])
    });
    let requests = requests.collect::<Result<Vec<_>, _>>()?;
    if !requests.is_empty() {
        rules.insert(libc::SYS_ioctl, requests);
    }
    SeccompFilter::new(rules, SeccompAction::Trap, SeccompAction::Allow, TargetArch::x86_64)
        .and_then(BpfProgram::try_from)
        .map_err(|e| e.to_string())
}

/// All of `arguments` must hold.
fn rule(arguments: &[(u8, Must)]) -> Result<SeccompRule, String> {
    let conditions = arguments.iter().map(|(position, must)| {
        let (width, operator, value) = match must {
            Must::Be(value) => (SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, u64::from(*value)),
            Must::Lack(bits) => (SeccompCmpArgLen::Dword, SeccompCmpOp::MaskedEq(u64::from(*bits)), 0),
            Must::BeThisProcess => (SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, std::process::id().into()),
            Must::BeTheChild => (SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, signal::child().unsigned_abs().into()),
        };
        SeccompCondition::new(*position, width, operator, value)
    });
    conditions.collect::<Result<Vec<_>, _>>().and_then(SeccompRule::new).map_err(|e| e.to_string())
}

/// Offset of `si_syscall` in `siginfo_t` (x86-64: after signo, errno, code, padding, call address).
const SI_SYSCALL: usize = 24;

/// Where a violation is told beside stderr; -1 for nowhere.
static LAST_WORDS: AtomicI32 = AtomicI32::new(-1);

/// From now on a violation is told on this descriptor too, as the last words of this unit.
pub fn report_to(last_words: Option<RawFd>) {
    LAST_WORDS.store(last_words.unwrap_or(-1), Ordering::Relaxed);
}

/// Writes a system call's number over the question marks of a text.
fn put_number(text: &mut [u8], mut number: u32) {
    for slot in text.iter_mut().rev().filter(|byte| **byte == b'?') {
        *slot = b'0' + (number % 10) as u8;
        number /= 10;
    }
}

extern "C" fn on_violation(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel passes a full `siginfo_t` with SIGSYS.
    let number = unsafe { info.cast::<u8>().add(SI_SYSCALL).cast::<i32>().read_unaligned() };
    let mut text = *b"vmm: jail: system call ???? is not in this thread's table\n";
    put_number(&mut text, number.unsigned_abs());
    let mut words = *br#"{"class":"jail","reason":"jail: system call ???? is not in this thread's table"}"#;
    put_number(&mut words, number.unsigned_abs());
    // SAFETY: all calls are async-signal-safe and allowed to every thread that has the descriptor.
    unsafe {
        libc::write(2, text.as_ptr().cast(), text.len());
        let listener = LAST_WORDS.load(Ordering::Relaxed);
        if listener >= 0 {
            libc::write(listener, words.as_ptr().cast(), words.len());
        }
        libc::_exit(i32::from(ExitClass::Jail.code()))
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
