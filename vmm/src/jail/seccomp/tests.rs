use super::*;
use std::collections::BTreeSet;

/// How a child ended.
#[derive(Debug, PartialEq, Eq)]
enum Ending {
    Code(i32),
    Signal(i32),
}

const JAIL: Ending = Ending::Code(ExitClass::Jail.code() as i32);

/// Runs `act` in a forked child behind a filter.
fn fork(kind: ThreadKind, left_out: Option<libc::c_long>, act: &dyn Fn()) -> libc::pid_t {
    // SAFETY: the child only makes system calls and leaves with `_exit`.
    match unsafe { libc::fork() } {
        0 => {
            let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
            // SAFETY: reads one structure; an abort leaves no core file.
            unsafe { libc::setrlimit(libc::RLIMIT_CORE, &none) };
            if close_without(kind, left_out).is_err() {
                // SAFETY: ends the child.
                unsafe { libc::_exit(99) };
            }
            act();
            // SAFETY: ends the child.
            unsafe { libc::_exit(0) }
        }
        child => child,
    }
}

fn wait(child: libc::pid_t) -> Ending {
    let mut status = 0;
    // SAFETY: our own child.
    unsafe { libc::waitpid(child, &mut status, 0) };
    match libc::WIFEXITED(status) {
        true => Ending::Code(libc::WEXITSTATUS(status)),
        false => Ending::Signal(libc::WTERMSIG(status)),
    }
}

fn in_child(kind: ThreadKind, act: fn()) -> Ending {
    wait(fork(kind, None, &act))
}

/// A page of no file.
fn page(protection: libc::c_int, flags: libc::c_int, fd: libc::c_int) -> *mut libc::c_void {
    // SAFETY: a new mapping.
    unsafe { libc::mmap(std::ptr::null_mut(), 4096, protection, flags, fd, 0) }
}

fn ignore<T>(_: T) {}

const PRIVATE: libc::c_int = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
const READ_WRITE: libc::c_int = libc::PROT_READ | libc::PROT_WRITE;

#[test]
fn table_calls_pass_and_others_end_with_the_jails_code() {
    use ThreadKind::{Device, Vcpu, Waiter};
    // SAFETY: harmless calls, here and below.
    let pid: fn() = || ignore(unsafe { libc::getpid() });
    // SAFETY: as above.
    let socket: fn() = || ignore(unsafe { libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0) });
    // SAFETY: as above.
    let open: fn() = || ignore(unsafe { libc::open(c"/".as_ptr(), libc::O_RDONLY) });
    // SAFETY: as above.
    let epoll: fn() = || ignore(unsafe { libc::epoll_wait(-1, std::ptr::null_mut(), 0, 0) });
    // SAFETY: as above.
    let foreign_ioctl: fn() = || ignore(unsafe { libc::ioctl(0, libc::TIOCSTI, 0) });
    // SAFETY: as above.
    let kvm_run: fn() = || ignore(unsafe { libc::ioctl(-1, 0xae80, 0) });
    for (kind, act, ending) in [
        (Vcpu, pid, Ending::Code(0)),
        (Vcpu, socket, JAIL),
        (Vcpu, open, JAIL),
        (Vcpu, epoll, JAIL),
        (Vcpu, kvm_run, Ending::Code(0)),
        (Device, epoll, Ending::Code(0)),
        (Device, socket, JAIL),
        (Device, open, JAIL),
        (Device, foreign_ioctl, JAIL),
        (Device, kvm_run, JAIL),
        (Waiter, pid, JAIL),
        (Waiter, foreign_ioctl, JAIL),
    ] {
        assert_eq!(in_child(kind, act), ending, "{kind:?}");
    }
}

#[test]
fn calls_of_the_table_end_with_the_jails_code_for_other_arguments() {
    use ThreadKind::{Device, Vcpu, Waiter};
    let executable: fn() = || ignore(page(libc::PROT_EXEC, PRIVATE, -1));
    let of_a_file: fn() = || ignore(page(READ_WRITE, libc::MAP_SHARED, 0));
    let plain: fn() = || ignore(page(READ_WRITE, PRIVATE, -1));
    // SAFETY: harmless calls, here and below.
    let stranger: fn() = || ignore(unsafe { libc::syscall(libc::SYS_tgkill, 1, 1, 0) });
    // SAFETY: as above.
    let kill: fn() = || ignore(unsafe { libc::kill(1, 0) });
    // SAFETY: room for two descriptors.
    let stream: fn() = || ignore(unsafe { libc::socketpair(libc::AF_UNIX, libc::SOCK_STREAM, 0, [0; 2].as_mut_ptr()) });
    // SAFETY: as above.
    let other: fn() = || ignore(unsafe { libc::socketpair(libc::AF_INET, libc::SOCK_STREAM, 0, [0; 2].as_mut_ptr()) });
    // SAFETY: as above.
    let output: fn() = || ignore(unsafe { libc::write(1, std::ptr::null(), 0) });
    // SAFETY: advice on no memory.
    let huge: fn() = || ignore(unsafe { libc::madvise(std::ptr::null_mut(), 0, libc::MADV_HUGEPAGE) });
    // SAFETY: as above.
    let unneeded: fn() = || ignore(unsafe { libc::madvise(std::ptr::null_mut(), 0, libc::MADV_DONTNEED) });
    for (name, kind, act, ending) in [
        ("executable memory", Vcpu, executable, JAIL),
        ("a file's memory", Device, of_a_file, JAIL),
        ("plain memory", Device, plain, Ending::Code(0)),
        ("a signal to a stranger", Device, stranger, JAIL),
        ("a signal to a stranger", Vcpu, stranger, JAIL),
        ("a signal to other than the child", Waiter, kill, JAIL),
        ("a pair of Unix sockets", Device, stream, Ending::Code(0)),
        ("a pair of other sockets", Device, other, JAIL),
        ("the waiter's output", Waiter, output, JAIL),
        ("advice for huge pages", Vcpu, huge, JAIL),
        ("advice of a thread's end", Vcpu, unneeded, Ending::Code(0)),
    ] {
        assert_eq!(in_child(kind, act), ending, "{name}");
    }
}

#[test]
fn each_call_is_listed_once_and_the_side_tables_name_calls_of_the_table() {
    let mut seen = BTreeSet::new();
    for (call, kinds, why) in TABLE {
        assert!(!kinds.is_empty() && !why.is_empty(), "{call}");
        for kind in *kinds {
            assert!(seen.insert((*call, *kind)), "{call} is listed twice for {kind:?}");
        }
    }
    let narrowed = ARGUMENTS.iter().map(|(call, kinds, _)| (call, kinds));
    let excused = NOT_BY_LOAD.iter().map(|(call, kinds, _)| (call, kinds));
    for (call, kinds) in narrowed.chain(excused) {
        assert!(kinds.iter().all(|kind| seen.contains(&(*call, *kind))), "{call} is not in the table for {kinds:?}");
    }
    let all = allowances();
    assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len(), "a request of ioctl is listed twice");
}

/// Makes the call once, as the program would.
fn provoke(call: libc::c_long) {
    // SAFETY: each only concerns memory made here, or this child.
    unsafe {
        match call {
            libc::SYS_brk => ignore(libc::sbrk(4096)),
            libc::SYS_mmap => ignore(page(READ_WRITE, PRIVATE, -1)),
            libc::SYS_munmap => ignore(libc::munmap(page(READ_WRITE, PRIVATE, -1), 4096)),
            libc::SYS_mremap => {
                let page = page(READ_WRITE, PRIVATE, -1);
                libc::mremap(page, 4096, 8192, libc::MREMAP_MAYMOVE);
            }
            libc::SYS_exit_group => ignore(libc::open(c"/".as_ptr(), libc::O_RDONLY)),
            libc::SYS_gettid | libc::SYS_getpid | libc::SYS_tgkill => libc::abort(),
            _ => libc::_exit(98),
        }
    }
}

#[test]
fn what_no_load_provokes_is_needed_all_the_same() {
    for (call, kinds, _) in NOT_BY_LOAD {
        if *call == libc::SYS_restart_syscall {
            continue;
        }
        let (whole, without) = match *call {
            libc::SYS_gettid | libc::SYS_getpid | libc::SYS_tgkill => (Ending::Signal(libc::SIGABRT), JAIL),
            // A violation that cannot even be reported.
            libc::SYS_exit_group => (JAIL, Ending::Signal(libc::SIGSYS)),
            _ => (Ending::Code(0), JAIL),
        };
        for kind in *kinds {
            assert_eq!(wait(fork(*kind, None, &|| provoke(*call))), whole, "{kind:?} call {call}");
            assert_eq!(wait(fork(*kind, Some(*call), &|| provoke(*call))), without, "{kind:?} without call {call}");
        }
    }
}

/// Stops and continues a child within a futex wait that has a limit.
fn stop_within_a_wait(kind: ThreadKind, left_out: Option<libc::c_long>) -> Ending {
    let word = page(READ_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS, -1);
    let limit = libc::timespec { tv_sec: 60, tv_nsec: 0 };
    let child = fork(kind, left_out, &|| {
        // SAFETY: a word and a limit that stay; 0 is what the word holds.
        unsafe { libc::syscall(libc::SYS_futex, word, libc::FUTEX_WAIT, 0, &limit) };
    });
    let state = || std::fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
    let is = |letter: &str| state().rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with(letter));
    // The only place where the child sleeps is the wait.
    for (letter, signal) in [("S", libc::SIGSTOP), ("T", libc::SIGCONT)] {
        while !is(letter) {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        // SAFETY: our own child.
        unsafe { libc::kill(child, signal) };
    }
    loop {
        // SAFETY: wakes whoever waits; looks whether our own child has ended.
        let ended = unsafe {
            libc::syscall(libc::SYS_futex, word, libc::FUTEX_WAKE, 1);
            let mut info: libc::siginfo_t = std::mem::zeroed();
            libc::waitid(libc::P_PID, child as libc::id_t, &mut info, libc::WEXITED | libc::WNOHANG | libc::WNOWAIT);
            info.si_signo != 0
        };
        if ended {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    // SAFETY: our own mapping.
    unsafe { libc::munmap(word, 4096) };
    wait(child)
}

#[test]
fn stopped_wait_with_a_limit_carries_on_only_by_restart_syscall() {
    for kind in [ThreadKind::Vcpu, ThreadKind::Device] {
        assert_eq!(stop_within_a_wait(kind, None), Ending::Code(0), "{kind:?}");
        assert_eq!(stop_within_a_wait(kind, Some(libc::SYS_restart_syscall)), JAIL, "{kind:?}");
    }
}
