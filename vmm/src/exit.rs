//! How a VM ends: one exit code per class, so that a supervisor decides without reading text.

use std::fmt;
use std::process::ExitCode;

/// Why the process ends. The number is the process's exit code and never changes meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum ExitClass {
    /// The guest powered itself off (ACPI S5).
    PowerOff = 0,
    /// The command line was wrong.
    Usage = 2,
    /// The guest asked for a reset: start it again.
    GuestReset = 10,
    /// The guest misused a device or crashed its CPU (triple fault); the reason is on stderr.
    GuestFault = 11,
    /// Stopped from outside: `stop` reached its deadline, or a signal.
    Stopped = 12,
    /// The configuration cannot be used as written.
    Config = 20,
    /// A file, device or descriptor that the configuration names is missing or unusable.
    Resource = 21,
    /// The kernel or initrd image cannot be booted.
    Image = 22,
    /// KVM refused, or lacks something this VM needs.
    Kvm = 23,
    /// The jail could not be closed.
    Jail = 24,
    /// The host failed while the VM ran.
    HostFault = 25,
}

impl ExitClass {
    /// The class of a process exit code, if it is one of ours.
    pub fn from_code(code: i32) -> Option<Self> {
        use ExitClass::*;
        [PowerOff, Usage, GuestReset, GuestFault, Stopped, Config, Resource, Image, Kvm, Jail, HostFault]
            .into_iter()
            .find(|class| *class as i32 == code)
    }

    /// The exit code.
    pub fn code(self) -> u8 {
        self as u8
    }
}

impl From<ExitClass> for ExitCode {
    fn from(class: ExitClass) -> Self {
        ExitCode::from(class.code())
    }
}

/// How one VM ended: the class and the sentence that names what happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    /// The class, and so the exit code.
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

    /// The host failed under a running VM.
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
    fn exit_codes_round_trip_and_foreign_codes_are_none() {
        for code in 0..=255 {
            if let Some(class) = ExitClass::from_code(code) {
                assert_eq!(i32::from(class.code()), code);
            }
        }
        assert_eq!(ExitClass::from_code(0), Some(ExitClass::PowerOff));
        assert_eq!(ExitClass::from_code(10), Some(ExitClass::GuestReset));
        assert_eq!(ExitClass::from_code(101), None);
    }
}
