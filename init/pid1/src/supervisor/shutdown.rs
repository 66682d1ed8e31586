//! The way down: all units but `node` at once, in reverse order of their start, each with its deadline; then `node`.
//!
//! `node` goes last because it may still report, and because it holds what the others stand on (networks, volumes).
#![forbid(unsafe_code)]

use super::unit::Unit;
use holdfast_supervise::{UnitName, UnitState};

/// No unit gets longer than this on the way down, whatever its own deadline.
pub const MAX_UNIT_DEADLINE_MS: u64 = 120_000;

/// The whole way down; then the machine ends whatever still runs (a process that the kernel cannot kill).
pub const DOWN_DEADLINE_MS: u64 = 300_000;

/// How the machine ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DownKind {
    /// Reset.
    Reboot,
    /// Power off.
    PowerOff,
}

/// What kind of reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// Somebody wants it: `node`, the power button, ctrl-alt-del.
    Order,
    /// `node` has been silent for too long.
    NoHeartbeat,
    /// A lasting fault of the machine.
    Fault,
}

/// A decided end of this boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Down {
    /// How.
    pub kind: DownKind,
    /// What kind of reason.
    pub cause: Cause,
    /// Why, for the diary, the console and the controller.
    pub reason: String,
}

/// The next units to stop, in order; empty while earlier ones are still ending or when all have ended.
pub fn next_to_stop<'a>(units: impl Iterator<Item = &'a Unit>, last: Option<&UnitName>) -> Vec<UnitName> {
    let alive: Vec<&Unit> = units.filter(|u| u.is_alive()).collect();
    let is_last = |unit: &&&Unit| Some(&unit.spec.name) == last;
    let mut wave: Vec<&Unit> = alive.iter().filter(|u| !is_last(u)).copied().collect();
    if wave.is_empty() {
        wave = alive;
    }
    wave.retain(|u| !matches!(u.state(), UnitState::Stopping { .. }));
    wave.sort_by_key(|u| std::cmp::Reverse(u.order));
    wave.into_iter().map(|u| u.spec.name.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_model::contract::end::{End, ExitClass};
    use holdfast_supervise::{Exit, UnitSpec};

    fn unit(name: &str, order: u64) -> Unit {
        let mut unit = Unit::new(UnitSpec::new(UnitName::new(name).unwrap(), "/x", 0), order, 0);
        unit.started(0, 100);
        unit
    }

    #[test]
    fn apps_stop_in_reverse_order_and_node_only_after_them() {
        let node = UnitName::new("node").unwrap();
        let mut units = [unit("node", 0), unit("netsvc.1", 1), unit("vmm.1", 2)];
        let names = |units: &[Unit]| -> Vec<String> {
            next_to_stop(units.iter(), Some(&node)).into_iter().map(Into::into).collect()
        };
        assert_eq!(names(&units), ["vmm.1", "netsvc.1"]);
        units[1].stop(0, None);
        units[2].stop(0, None);
        assert_eq!(names(&units), [] as [&str; 0]);
        units[1].exited(1, Exit::Code(0), End::new(ExitClass::Done, ""));
        assert_eq!(names(&units), [] as [&str; 0]);
        units[2].exited(2, Exit::Code(0), End::new(ExitClass::Done, ""));
        assert_eq!(names(&units), ["node"]);
        units[0].stop(2, None);
        units[0].exited(3, Exit::Code(0), End::new(ExitClass::Done, ""));
        assert_eq!(names(&units), [] as [&str; 0]);
    }
}
