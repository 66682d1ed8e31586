//! Why a run ended: the unit's own words, unless the kernel knows better. Pure.
#![forbid(unsafe_code)]

use holdfast_model::contract::end::{End, ExitClass};
use holdfast_supervise::{Exit, UnitSpec};

/// Signals that a program gets by its own fault, with their names.
const FAULTS: [(i32, &str); 7] = [
    (libc::SIGILL, "SIGILL"),
    (libc::SIGTRAP, "SIGTRAP"),
    (libc::SIGABRT, "SIGABRT"),
    (libc::SIGBUS, "SIGBUS"),
    (libc::SIGFPE, "SIGFPE"),
    (libc::SIGSEGV, "SIGSEGV"),
    (libc::SIGSYS, "SIGSYS"),
];

/// What is known of an end beside the exit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Around {
    /// The kernel has ended a process of the unit for lack of memory (`oom_kill` of its cgroup).
    pub out_of_memory: bool,
    /// The unit had been told to stop.
    pub stopping: bool,
}

/// The end of a run of the unit: what it said in `words`, else what its `exit` tells. The kernel's word of a lack of memory
/// outranks the unit's own, which was written before.
pub fn of(spec: &UnitSpec, exit: &Exit, words: Option<End>, around: Around) -> End {
    let name = &spec.name;
    if around.out_of_memory {
        let limit = match spec.limits.memory_max_bytes {
            Some(bytes) => format!("its limit of {} MiB", bytes >> 20),
            None => "the memory of the machine".into(),
        };
        return End::new(
            ExitClass::OutOfMemory,
            format!("unit {name}: ended by the kernel, which found {limit} used up"),
        );
    }
    if let Some(words) = words {
        return words;
    }
    match exit {
        Exit::Code(code) => {
            End::new(ExitClass::Exited { code: *code }, format!("unit {name}: exit code {code}, without a reason"))
        }
        Exit::Signal(libc::SIGKILL) if around.stopping => {
            End::new(ExitClass::Stopped, format!("unit {name}: stopped by force"))
        }
        Exit::Signal(signal) if around.stopping && *signal == spec.stop.signal => {
            End::new(ExitClass::Stopped, format!("unit {name}: stopped"))
        }
        Exit::Signal(signal) => match FAULTS.iter().find(|(number, _)| number == signal) {
            Some((_, text)) => End::new(
                ExitClass::Crashed { signal: *signal },
                format!("unit {name}: crashed by signal {signal} ({text})"),
            ),
            None => End::new(ExitClass::Killed { signal: *signal }, format!("unit {name}: killed by signal {signal}")),
        },
        Exit::NotStarted(why) => End::new(ExitClass::HostFault, format!("unit {name}: not started: {why}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_supervise::UnitName;

    fn spec() -> UnitSpec {
        let mut spec = UnitSpec::new(UnitName::new("vmm.1").unwrap(), "/bin/vmm", 1);
        spec.limits.memory_max_bytes = Some(64 << 20);
        spec
    }

    #[test]
    fn an_end_without_words_names_unit_and_signal() {
        let table = [
            (Exit::Code(3), ExitClass::Exited { code: 3 }, "exit code 3"),
            (Exit::Code(0), ExitClass::Exited { code: 0 }, "exit code 0"),
            (Exit::Signal(11), ExitClass::Crashed { signal: 11 }, "SIGSEGV"),
            (Exit::Signal(31), ExitClass::Crashed { signal: 31 }, "SIGSYS"),
            (Exit::Signal(9), ExitClass::Killed { signal: 9 }, "signal 9"),
            (Exit::NotStarted("execve: ENOENT".into()), ExitClass::HostFault, "execve: ENOENT"),
        ];
        for (exit, class, words) in table {
            let end = of(&spec(), &exit, None, Around::default());
            assert_eq!(end.class, class);
            assert!(end.reason.starts_with("unit vmm.1: ") && end.reason.contains(words), "{end}");
        }
    }

    #[test]
    fn last_words_arrive_unchanged_whatever_the_exit() {
        let words = End::new(ExitClass::GuestFault, "net0: ring");
        for exit in [Exit::Code(11), Exit::Signal(9)] {
            assert_eq!(of(&spec(), &exit, Some(words.clone()), Around::default()), words);
        }
    }

    #[test]
    fn the_kernels_word_of_lack_of_memory_outranks_the_units() {
        let words = End::new(ExitClass::Done, "all is well");
        let around = Around { out_of_memory: true, ..Around::default() };
        let end = of(&spec(), &Exit::Signal(9), Some(words), around);
        assert_eq!(end.class, ExitClass::OutOfMemory);
        assert!(end.reason.contains("64 MiB"), "{end}");
    }

    #[test]
    fn a_unit_that_was_told_to_stop_has_not_been_killed_by_a_stranger() {
        let around = Around { stopping: true, ..Around::default() };
        for (signal, words) in [(15, "unit vmm.1: stopped"), (9, "unit vmm.1: stopped by force")] {
            let end = of(&spec(), &Exit::Signal(signal), None, around);
            assert_eq!(end, End::new(ExitClass::Stopped, words));
        }
        assert_eq!(of(&spec(), &Exit::Signal(11), None, around).class, ExitClass::Crashed { signal: 11 });
    }
}
