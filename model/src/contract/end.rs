//! How a program ends: a class that a supervisor decides by without reading text, and the sentence for people.
//!
//! The sentence is written once, where the cause is known best, and arrives at the controller unchanged.

use std::fmt;
use std::process::ExitCode;

use serde::{Deserialize, Serialize};

/// Why a program ended.
///
/// Where a class has an exit code ([`ExitClass::code`]), the number never changes meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ExitClass {
    /// The work is complete.
    Done,
    /// The work failed; the sentence says why.
    Failed,
    /// The command line was wrong.
    Usage,
    /// The guest powered itself off (ACPI S5).
    PowerOff,
    /// The guest asked for a reset: start it again. No failure.
    GuestReset,
    /// The guest misused a device or crashed its CPU (triple fault).
    GuestFault,
    /// The container's process ended with this exit code, and the guest powered off.
    GuestExit {
        /// Exit code, 0 to 255.
        code: i32,
    },
    /// The container's process was ended by this signal, and the guest powered off.
    GuestSignal {
        /// Linux signal number.
        signal: i32,
    },
    /// The guest's init could not run the container.
    GuestError,
    /// Stopped from outside: `stop` reached its deadline, or a signal.
    Stopped,
    /// The document cannot be used as written.
    Config,
    /// A file, device or descriptor that the document names is missing or unusable.
    Resource,
    /// The kernel or initrd image cannot be booted.
    Image,
    /// KVM refused, or lacks something this VM needs.
    Kvm,
    /// The sandbox could not be closed.
    Jail,
    /// The host failed while the program ran.
    HostFault,
    /// The program left with this exit code and without last words.
    Exited {
        /// Exit code.
        code: i32,
    },
    /// The program was ended by a signal of its own fault (SIGSEGV, SIGABRT, SIGSYS, ...).
    Crashed {
        /// Linux signal number.
        signal: i32,
    },
    /// The program was ended by a signal from outside.
    Killed {
        /// Linux signal number.
        signal: i32,
    },
    /// The kernel ended the program because its memory limit was reached.
    OutOfMemory,
}

impl ExitClass {
    /// The exit code of a program that ends with this class itself. The classes that only a supervisor can find (`Exited`,
    /// `Crashed`, `Killed`, `OutOfMemory`) have none of their own and give 1.
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            Self::Done | Self::PowerOff | Self::GuestExit { code: 0 } => 0,
            Self::Failed | Self::Exited { .. } | Self::Crashed { .. } | Self::Killed { .. } | Self::OutOfMemory => 1,
            Self::Usage => 2,
            Self::GuestReset => 10,
            Self::GuestFault => 11,
            Self::Stopped => 12,
            Self::GuestExit { .. } => 13,
            Self::GuestSignal { .. } => 14,
            Self::GuestError => 15,
            Self::Config => 20,
            Self::Resource => 21,
            Self::Image => 22,
            Self::Kvm => 23,
            Self::Jail => 24,
            Self::HostFault => 25,
        }
    }

    /// Whether something went wrong. Work that is complete, a guest that powers off or resets itself, a container whose
    /// process exits with 0, and an ordered stop are no failures.
    #[must_use]
    pub fn is_failure(self) -> bool {
        !matches!(
            self,
            Self::Done
                | Self::PowerOff
                | Self::GuestReset
                | Self::GuestExit { code: 0 }
                | Self::Stopped
                | Self::Exited { code: 0 }
        )
    }
}

impl From<ExitClass> for ExitCode {
    fn from(class: ExitClass) -> Self {
        ExitCode::from(class.code())
    }
}

/// How one program ended: the class and the sentence that names what happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct End {
    /// The class, and with it the exit code.
    pub class: ExitClass,
    /// What happened, naming the object.
    pub reason: String,
}

impl End {
    /// An end of `class` for `reason`.
    pub fn new(class: ExitClass, reason: impl Into<String>) -> Self {
        Self { class, reason: reason.into() }
    }

    /// The guest did something no correct driver does.
    pub fn guest_fault(reason: impl Into<String>) -> Self {
        Self::new(ExitClass::GuestFault, reason)
    }

    /// The host failed under a running program.
    pub fn host_fault(reason: impl Into<String>) -> Self {
        Self::new(ExitClass::HostFault, reason)
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

impl std::error::Error for End {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_that_others_rely_on_do_not_change() {
        use ExitClass::*;
        let table = [
            (PowerOff, 0),
            (Usage, 2),
            (GuestReset, 10),
            (GuestFault, 11),
            (Stopped, 12),
            (GuestExit { code: 7 }, 13),
            (GuestSignal { signal: 9 }, 14),
            (GuestError, 15),
            (Config, 20),
            (Resource, 21),
            (Image, 22),
            (Kvm, 23),
            (Jail, 24),
            (HostFault, 25),
        ];
        for (class, code) in table {
            assert_eq!(class.code(), code, "{class:?}");
        }
    }

    #[test]
    fn a_guest_that_resets_or_powers_off_has_not_failed() {
        for class in [ExitClass::GuestReset, ExitClass::PowerOff, ExitClass::GuestExit { code: 0 }, ExitClass::Stopped]
        {
            assert!(!class.is_failure(), "{class:?}");
        }
        for class in [ExitClass::GuestFault, ExitClass::GuestExit { code: 1 }, ExitClass::OutOfMemory] {
            assert!(class.is_failure(), "{class:?}");
        }
    }

    #[test]
    fn an_end_is_its_sentence_for_people_and_json_for_programs() {
        let end = End::new(ExitClass::GuestExit { code: 3 }, "exit code 3");
        assert_eq!(end.to_string(), "exit code 3");
        let text = serde_json::to_string(&end).unwrap();
        assert_eq!(text, r#"{"class":{"guest-exit":{"code":3}},"reason":"exit code 3"}"#);
        assert_eq!(serde_json::from_str::<End>(&text).unwrap(), end);
        assert_eq!(serde_json::to_string(&ExitClass::PowerOff).unwrap(), r#""power-off""#);
    }
}
