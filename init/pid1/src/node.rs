//! The one unit that PID 1 starts by itself.
#![forbid(unsafe_code)]

use crate::boot::sequence::Machine;
use crate::supervisor::cgroup::Cgroups;
use crate::supervisor::{Options, Supervisor};
use holdfast_supervise::{Backoff, CGROUP_ROOT, Capabilities, Restart, SOCKET_PATH, UnitName, UnitSpec};
use std::path::Path;

/// The program in the slot.
pub const PROGRAM: &str = "/bin/node";

/// `node`: root with all powers, because it configures networks, disks and the TPM; always started again.
pub fn spec(name: UnitName) -> UnitSpec {
    let mut spec = UnitSpec::new(name, PROGRAM, 0);
    spec.env = [("PATH", "/bin"), ("HOME", "/"), ("RUST_BACKTRACE", "1"), ("TSS2_LOG", "all+NONE")]
        .map(|(k, v)| (k.into(), v.into()))
        .into();
    spec.restart = Restart::Always;
    spec.backoff = Backoff { first_ms: 200, max_ms: 10_000 };
    spec.stop.deadline_ms = 20_000;
    spec.sandbox.capabilities = Capabilities::All;
    spec
}

/// The supervisor with `node` started in it. If `node` cannot be started its backoff tries again, and in the end the
/// missing heartbeat resets the machine: on a trial that is the way back.
///
/// # Panics
/// When the socket cannot be made: without it nobody can ask for anything, so the machine resets.
pub fn supervise(mut machine: Machine) -> Supervisor<Machine> {
    let cgroups = match Cgroups::prepare(Path::new(CGROUP_ROOT)) {
        Ok((cgroups, missing)) => {
            if !missing.is_empty() {
                machine.say_line(&format!("pid1: warning: cgroup controllers missing: {}", missing.join(", ")));
            }
            Some(cgroups)
        }
        Err(error) => {
            machine.say_line(&format!("pid1: warning: {error}; units run without limits"));
            None
        }
    };
    let watched = UnitName::new("node").ok();
    let options = Options { socket: SOCKET_PATH.into(), cgroups, init: true, watched: watched.clone() };
    let mut supervisor =
        Supervisor::new(machine, options).unwrap_or_else(|error| panic!("supervisor socket {SOCKET_PATH}: {error}"));
    if let Some(name) = watched {
        // A refusal is on the console and in the log already.
        let _ = supervisor.start(spec(name), Vec::new());
    }
    supervisor
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_spec_of_node_is_one_that_pid_1_accepts() {
        spec(UnitName::new("node").unwrap()).validate().unwrap();
    }
}
