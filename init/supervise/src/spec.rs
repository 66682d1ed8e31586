//! What a unit is: everything PID 1 needs to start, restart and stop it.

use crate::UnitName;
use serde::{Deserialize, Serialize};

/// Largest JSON form of one spec. A [`crate::UnitStatus`] with its spec must always fit into a packet.
pub const MAX_SPEC_BYTES: usize = 24 * 1024;
/// Longest time between the stop signal and SIGKILL.
pub const MAX_STOP_DEADLINE_MS: u64 = 10 * 60 * 1000;

/// One unit.
///
/// The descriptors that travel with [`crate::Request::Start`] become 3, 4, ... in the program, in
/// that order; PID 1 keeps them for restarts and rewinds the seekable ones before each start.
/// Standard input is `/dev/null`; standard output and error are pipes to PID 1.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnitSpec {
    /// Its name, unique among units.
    pub name: UnitName,
    /// Absolute path of the program.
    pub program: String,
    /// Arguments after `argv[0]` (which is `program`).
    #[serde(default)]
    pub args: Vec<String>,
    /// The whole environment as name and value; nothing is inherited.
    #[serde(default)]
    pub env: Vec<(String, String)>,
    /// User id.
    pub uid: u32,
    /// Group id; supplementary groups are always dropped.
    pub gid: u32,
    /// Limits of its cgroup.
    #[serde(default)]
    pub limits: Limits,
    /// When to start it again.
    #[serde(default)]
    pub restart: Restart,
    /// How long to wait before a restart.
    #[serde(default)]
    pub backoff: Backoff,
    /// How to stop it.
    #[serde(default)]
    pub stop: StopPolicy,
    /// What it may not do.
    #[serde(default)]
    pub sandbox: Sandbox,
    /// Free text kept for the caller, at most 256 bytes; e.g. a hash of the configuration, so that a restarted
    /// `node` sees whether a running unit is still the wanted one.
    #[serde(default)]
    pub tag: String,
}

impl UnitSpec {
    /// A unit with the safe defaults: no restart, SIGTERM with 10 s, `no_new_privs`, no capabilities.
    pub fn new(name: UnitName, program: impl Into<String>, uid: u32) -> UnitSpec {
        UnitSpec {
            name,
            program: program.into(),
            args: Vec::new(),
            env: Vec::new(),
            uid,
            gid: uid,
            limits: Limits::default(),
            restart: Restart::default(),
            backoff: Backoff::default(),
            stop: StopPolicy::default(),
            sandbox: Sandbox::default(),
            tag: String::new(),
        }
    }

    /// Checks everything the types do not; PID 1 refuses a spec that fails here.
    pub fn validate(&self) -> Result<(), SpecError> {
        let fault = |field: &'static str, expected: &'static str, found: String| {
            Err(SpecError { unit: self.name.clone(), field, expected, found })
        };
        if !self.program.starts_with('/') {
            return fault("program", "an absolute path", self.program.clone());
        }
        let texts = std::iter::once(&self.program).chain(&self.args);
        if texts.clone().any(|t| t.contains('\0')) {
            return fault("args", "no NUL byte", "one".into());
        }
        if let Some((key, _)) =
            self.env.iter().find(|(k, v)| k.is_empty() || k.contains(['=', '\0']) || v.contains('\0'))
        {
            return fault("env", "a name without '=' and no NUL byte", format!("{key:?}"));
        }
        if self.tag.len() > 256 {
            return fault("tag", "at most 256 bytes", self.tag.len().to_string());
        }
        if self.limits.cpu_weight.is_some_and(|w| !(1..=10_000).contains(&w)) {
            return fault("limits.cpu_weight", "1 to 10000", format!("{:?}", self.limits.cpu_weight));
        }
        if self.limits.pids_max == Some(0) {
            return fault("limits.pids_max", "at least 1", "0".into());
        }
        let Backoff { first_ms, max_ms } = self.backoff;
        if !(10..=max_ms).contains(&first_ms) || max_ms > 3_600_000 {
            return fault("backoff", "10 <= first_ms <= max_ms <= 3600000", format!("{first_ms}, {max_ms}"));
        }
        if !(1..=64).contains(&self.stop.signal) {
            return fault("stop.signal", "1 to 64", self.stop.signal.to_string());
        }
        if self.stop.deadline_ms > MAX_STOP_DEADLINE_MS {
            return fault("stop.deadline_ms", "at most 600000", self.stop.deadline_ms.to_string());
        }
        let size = serde_json::to_vec(self).map_or(usize::MAX, |v| v.len());
        if size > MAX_SPEC_BYTES {
            return fault("(all)", "at most 24576 bytes of JSON", size.to_string());
        }
        Ok(())
    }
}

/// cgroup v2 limits; `None` leaves the kernel's default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// `memory.max` in bytes. A unit over it is killed as a whole (`memory.oom.group`).
    pub memory_max_bytes: Option<u64>,
    /// `cpu.weight`, 1 to 10000, the kernel's default being 100.
    pub cpu_weight: Option<u16>,
    /// `pids.max`, threads included.
    pub pids_max: Option<u32>,
}

/// When a unit that ended by itself is started again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Restart {
    /// Never.
    #[default]
    Never,
    /// After a signal or an exit code other than 0.
    OnFailure,
    /// After every exit.
    Always,
}

/// Waits before restarts: doubled from `first_ms` to `max_ms`, reset once a run lasted longer than `max_ms`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Backoff {
    /// First wait in milliseconds.
    pub first_ms: u64,
    /// Longest wait in milliseconds.
    pub max_ms: u64,
}

impl Default for Backoff {
    fn default() -> Backoff {
        Backoff { first_ms: 200, max_ms: 30_000 }
    }
}

/// How a unit is stopped: `signal` to its main process, and after the deadline SIGKILL to its cgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StopPolicy {
    /// Signal number.
    pub signal: i32,
    /// Milliseconds from the signal to SIGKILL, at most [`MAX_STOP_DEADLINE_MS`].
    pub deadline_ms: u64,
}

impl Default for StopPolicy {
    fn default() -> StopPolicy {
        StopPolicy { signal: 15, deadline_ms: 10_000 }
    }
}

/// What PID 1 takes away before the program starts. A program may take more from itself (seccomp, landlock).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sandbox {
    /// `PR_SET_NO_NEW_PRIVS`.
    pub no_new_privs: bool,
    /// An empty network namespace (loopback down).
    pub new_net: bool,
    /// A PID namespace in which the program is process 1.
    pub new_pid: bool,
    /// A private copy of the mount table.
    pub new_mount: bool,
    /// Own System V and POSIX queue namespace.
    pub new_ipc: bool,
    /// What it keeps of root's powers.
    pub capabilities: Capabilities,
}

impl Default for Sandbox {
    fn default() -> Sandbox {
        Sandbox {
            no_new_privs: true,
            new_net: false,
            new_pid: false,
            new_mount: false,
            new_ipc: false,
            capabilities: Capabilities::Only(Vec::new()),
        }
    }
}

/// Which capabilities a unit has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Capabilities {
    /// All that its uid gives it: everything for uid 0, nothing for others.
    All,
    /// Exactly these, whatever the uid: bounding, inheritable, permitted, effective and ambient sets.
    Only(Vec<Capability>),
}

/// A capability of capabilities(7) that a unit may be given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs, reason = "the names are those of capabilities(7)")]
pub enum Capability {
    Chown,
    DacOverride,
    Fowner,
    Setgid,
    Setuid,
    Setpcap,
    NetBindService,
    NetAdmin,
    NetRaw,
    IpcLock,
    SysChroot,
    SysAdmin,
    SysNice,
    SysResource,
    Mknod,
}

impl Capability {
    /// The kernel's number (`linux/capability.h`).
    pub const fn number(self) -> u8 {
        match self {
            Capability::Chown => 0,
            Capability::DacOverride => 1,
            Capability::Fowner => 3,
            Capability::Setgid => 6,
            Capability::Setuid => 7,
            Capability::Setpcap => 8,
            Capability::NetBindService => 10,
            Capability::NetAdmin => 12,
            Capability::NetRaw => 13,
            Capability::IpcLock => 14,
            Capability::SysChroot => 18,
            Capability::SysAdmin => 21,
            Capability::SysNice => 23,
            Capability::SysResource => 24,
            Capability::Mknod => 27,
        }
    }
}

/// A spec that PID 1 will not run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unit {unit}: {field}: expected {expected}, found {found}")]
pub struct SpecError {
    /// The unit.
    pub unit: UnitName,
    /// The field at fault.
    pub field: &'static str,
    /// What it must be.
    pub expected: &'static str,
    /// What it was.
    pub found: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> UnitSpec {
        UnitSpec::new(UnitName::new("fetch.1").unwrap(), "/bin/fetch", 1000)
    }

    #[test]
    fn each_field_out_of_range_is_named() {
        type Change = fn(&mut UnitSpec);
        let table: &[(&str, Change)] = &[
            ("program", |s| s.program = "fetch".into()),
            ("args", |s| s.args.push("a\0b".into())),
            ("env", |s| s.env.push(("A=B".into(), String::new()))),
            ("env", |s| s.env.push((String::new(), String::new()))),
            ("tag", |s| s.tag = "x".repeat(257)),
            ("limits.cpu_weight", |s| s.limits.cpu_weight = Some(0)),
            ("limits.pids_max", |s| s.limits.pids_max = Some(0)),
            ("backoff", |s| s.backoff = Backoff { first_ms: 1, max_ms: 5 }),
            ("backoff", |s| s.backoff = Backoff { first_ms: 100, max_ms: 50 }),
            ("stop.signal", |s| s.stop.signal = 0),
            ("stop.deadline_ms", |s| s.stop.deadline_ms = MAX_STOP_DEADLINE_MS + 1),
            ("(all)", |s| s.args = vec!["y".repeat(MAX_SPEC_BYTES)]),
        ];
        assert_eq!(spec().validate(), Ok(()));
        for (field, change) in table {
            let mut broken = spec();
            change(&mut broken);
            assert_eq!(broken.validate().expect_err(field).field, *field);
        }
    }

    #[test]
    fn unknown_fields_are_refused_at_every_level() {
        let good = serde_json::to_value(spec()).unwrap();
        assert_eq!(serde_json::from_value::<UnitSpec>(good.clone()).unwrap(), spec());
        for path in ["", "limits", "backoff", "stop", "sandbox"] {
            let mut bad = good.clone();
            let object = if path.is_empty() { &mut bad } else { &mut bad[path] };
            object["surprise"] = 1.into();
            assert!(serde_json::from_value::<UnitSpec>(bad).is_err(), "unknown field in {path:?}");
        }
    }
}
