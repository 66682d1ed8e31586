//! Requests, replies and events.

use crate::{SpecError, UnitName, UnitSpec};
use holdfast_model::contract::end::End;
use serde::{Deserialize, Serialize};

/// What a client asks. Each request gets exactly one [`Reply`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// Start a unit; the packet's descriptors become its 3, 4, ... A unit of that name that has ended is
    /// replaced (its log lines stay); one that lives makes the request fail with [`RefusalKind::Busy`].
    /// [`RefusalKind::Failed`] says that the first start failed; the unit is listed with the reason all the same, and
    /// its restart policy goes on trying.
    Start(Box<UnitSpec>),
    /// Stop a unit and do not restart it. Answered at once; the end comes as an [`Event::Unit`].
    Stop {
        /// The unit.
        name: UnitName,
        /// Instead of the spec's own deadline; 0 kills at once.
        deadline_ms: Option<u64>,
    },
    /// Forget an ended unit and its log lines; one that is being stopped is forgotten when it has ended.
    Remove {
        /// The unit.
        name: UnitName,
    },
    /// Units in order of name, from the first one after `after`, as many as fit into one packet.
    List {
        /// Last name already seen.
        after: Option<UnitName>,
    },
    /// Log lines after a cursor, oldest first.
    Logs {
        /// Cursor of the last line already seen; 0 for all that is kept.
        after: u64,
        /// Only this unit's lines.
        unit: Option<UnitName>,
        /// At most this many lines; PID 1 may send fewer.
        max: u32,
    },
    /// `node` is well. Only the connection's sender matters, so this is answered for anyone with the socket.
    Heartbeat,
    /// Stop all units in reverse order of their start, close the disks, and reset the machine.
    Reboot {
        /// Recorded in the boot diary, shown on the console, reported after the next start.
        reason: String,
    },
    /// The same, then power off.
    PowerOff {
        /// As in `Reboot`.
        reason: String,
    },
    /// The newest part of this boot's kernel log, as text.
    KernelLogTail {
        /// At most this many bytes; PID 1 sends at most 32 KiB.
        max_bytes: u32,
    },
    /// Turn this connection into a stream of [`Event`]s: one [`Reply::Done`], then events, no more requests.
    Subscribe,
}

/// PID 1's answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Reply {
    /// Done (or begun, for stop, reboot and power off).
    Done,
    /// To `Start`: the process runs.
    Started {
        /// Its process id in PID 1's namespace.
        pid: u32,
    },
    /// To `List`.
    Units {
        /// In order of name.
        units: Vec<UnitStatus>,
        /// True when more units follow the last one.
        more: bool,
    },
    /// To `Logs`.
    Logs(Logs),
    /// To `KernelLogTail`.
    KernelLog {
        /// Whole lines, UTF-8 with replacement characters.
        text: String,
    },
    /// The request was not carried out.
    Refused(Refused),
}

/// Sent by PID 1 on a subscribed connection. A subscriber that does not read is disconnected
/// when its socket buffer is full; it subscribes again and calls [`crate::Client::list`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Event {
    /// A unit's state changed. The spec is left out.
    Unit(Box<UnitStatus>),
    /// A unit was forgotten.
    Removed {
        /// The unit.
        name: UnitName,
    },
    /// There are new log lines; at most ten such events a second.
    Logs {
        /// Cursor of the newest line.
        newest: u64,
    },
    /// The machine goes down; units are being stopped.
    Shutdown {
        /// Why.
        reason: String,
    },
}

/// One unit as PID 1 sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnitStatus {
    /// Its name.
    pub name: UnitName,
    /// What it does now.
    pub state: UnitState,
    /// `CLOCK_MONOTONIC` in milliseconds when `state` was entered.
    pub since_ms: u64,
    /// Starts after the first one since the unit was asked for.
    pub restarts: u32,
    /// How the last run ended, if one has.
    pub exit: Option<Exit>,
    /// Why the last run ended: the unit's last words, or what PID 1 makes of the exit when it left without any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<End>,
    /// As given to `Start`; left out in events.
    pub spec: Option<Box<UnitSpec>>,
}

/// The state of a unit.
///
/// ```text
///  Start --> Running --exit, no restart--------------> Ended
///             |  ^  \--exit, restart--> Backoff --Stop--^
///           Stop  \-------timer---------/               |
///             v                                         |
///          Stopping --exit------------------------------+
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum UnitState {
    /// The process lives.
    Running {
        /// Its process id.
        pid: u32,
    },
    /// It ended and will be started again.
    Backoff {
        /// `CLOCK_MONOTONIC` in milliseconds of the next start.
        until_ms: u64,
    },
    /// Told to stop.
    Stopping {
        /// Its process id.
        pid: u32,
    },
    /// Ended; only `Start` or `Remove` change that.
    Ended,
}

impl UnitState {
    /// The process id while a process lives.
    pub fn pid(self) -> Option<u32> {
        match self {
            UnitState::Running { pid } | UnitState::Stopping { pid } => Some(pid),
            UnitState::Backoff { .. } | UnitState::Ended => None,
        }
    }
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Exit {
    /// By itself, with this code.
    Code(i32),
    /// By this signal.
    Signal(i32),
    /// It could not be started; the text names the step and the error.
    NotStarted(String),
}

impl Exit {
    /// True for code 0.
    pub fn is_success(&self) -> bool {
        *self == Exit::Code(0)
    }
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Exit::Code(code) => write!(f, "exit code {code}"),
            Exit::Signal(signal) => write!(f, "killed by signal {signal}"),
            Exit::NotStarted(why) => write!(f, "not started: {why}"),
        }
    }
}

/// Answer to [`Request::Logs`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Logs {
    /// Oldest first.
    pub lines: Vec<LogLine>,
    /// Pass as `after` next time. It may be newer than the last line when lines of other units were skipped.
    pub next: u64,
    /// True when more lines are ready now.
    pub more: bool,
}

/// A line that a unit wrote.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogLine {
    /// Position among the lines of all units, from 1, never used twice in one boot.
    pub cursor: u64,
    /// The unit.
    pub unit: UnitName,
    /// Position among the unit's lines, from 1; a gap tells how many were dropped.
    pub number: u64,
    /// Where it was written.
    pub stream: Stream,
    /// `CLOCK_MONOTONIC` in milliseconds at which PID 1 read it.
    pub at_ms: u64,
    /// The line without its end, at most 4 KiB, UTF-8 with replacement characters. A longer line is cut into several.
    pub text: String,
}

/// Origin of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stream {
    /// Standard output.
    Out,
    /// Standard error.
    Err,
    /// PID 1 about the unit: starts, ends, restarts.
    Supervisor,
}

/// Why a request was not carried out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(deny_unknown_fields)]
#[error("{text}")]
pub struct Refused {
    /// For the program.
    pub kind: RefusalKind,
    /// For people: names the unit, what was expected and found.
    pub text: String,
}

impl Refused {
    /// A refusal of this kind.
    pub fn new(kind: RefusalKind, text: impl Into<String>) -> Refused {
        Refused { kind, text: text.into() }
    }
}

impl From<SpecError> for Refused {
    fn from(error: SpecError) -> Refused {
        Refused::new(RefusalKind::Invalid, error.to_string())
    }
}

/// Kinds of [`Refused`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RefusalKind {
    /// The request or spec makes no sense.
    Invalid,
    /// No unit of that name.
    Unknown,
    /// The unit lives.
    Busy,
    /// A bound is reached (units, connections).
    Full,
    /// The kernel refused; the text has the step and the error.
    Failed,
    /// The machine is going down.
    ShuttingDown,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Both programs come from one image, but a trial of a new image starts from files of the old one only in
    /// memory; still the form is pinned, because people read it in captures.
    #[test]
    fn json_forms_are_stable() {
        let name = UnitName::new("node").unwrap();
        let table = [
            (
                serde_json::to_string(&Request::Stop { name: name.clone(), deadline_ms: Some(5) }).unwrap(),
                r#"{"stop":{"name":"node","deadline_ms":5}}"#,
            ),
            (serde_json::to_string(&Request::Heartbeat).unwrap(), r#""heartbeat""#),
            (
                serde_json::to_string(&Reply::Refused(Refused::new(RefusalKind::ShuttingDown, "x"))).unwrap(),
                r#"{"refused":{"kind":"shutting-down","text":"x"}}"#,
            ),
            (
                serde_json::to_string(&Event::Unit(Box::new(UnitStatus {
                    name,
                    state: UnitState::Running { pid: 7 },
                    since_ms: 1,
                    restarts: 0,
                    exit: Some(Exit::Signal(9)),
                    end: Some(End::new(holdfast_model::contract::end::ExitClass::Killed { signal: 9 }, "x")),
                    spec: None,
                })))
                .unwrap(),
                r#"{"unit":{"name":"node","state":{"running":{"pid":7}},"since_ms":1,"restarts":0,"exit":{"signal":9},"end":{"class":{"killed":{"signal":9}},"reason":"x"},"spec":null}}"#,
            ),
        ];
        for (found, expected) in table {
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn unknown_fields_of_a_variant_are_refused() {
        assert!(serde_json::from_str::<Request>(r#"{"stop":{"name":"node","deadline_ms":null}}"#).is_ok());
        assert!(serde_json::from_str::<Request>(r#"{"stop":{"name":"node","deadline_ms":null,"x":1}}"#).is_err());
        assert!(serde_json::from_str::<Request>(r#"{"explode":{}}"#).is_err());
    }
}
