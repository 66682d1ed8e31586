//! The control socket of a VM: `SOCK_SEQPACKET`, one JSON message in each packet, one reply to each request.
//!
//! Descriptors go one way only: to a client that attaches to a console.

use serde::{Deserialize, Serialize};

use super::{ConsoleStats, DeviceStats, Hot, MemoryStats, WindowSize, yes};

/// Longest accepted `stop` deadline: one day.
pub const MAX_STOP_MS: u64 = 86_400_000;

/// What an agent asks of a VM. In JSON: `{"do": "stop", "deadline_ms": 10000}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Are you there?
    Ping,
    /// Halt vCPUs and devices. Answered when nothing moves.
    Pause,
    /// Undo a pause.
    Resume,
    /// Press the ACPI power button: the guest is asked to shut down.
    PowerButton,
    /// Press the power button, and end the VM by force at the deadline. Answered at once.
    Stop {
        /// Milliseconds until force, at most [`MAX_STOP_MS`].
        deadline_ms: u64,
    },
    /// Have the guest give up memory: the balloon grows or shrinks to this size. Answered at once; how far the guest has
    /// followed is in the counters.
    Balloon {
        /// MiB taken from the guest, 0 to give all back.
        target_mib: u32,
    },
    /// Give the guest another vsock address. Its open connections end; listening sockets stay.
    VsockCid {
        /// Context id, from 3 on.
        cid: u32,
    },
    /// Counters.
    Stats,
    /// A stream to a console: a connected `SOCK_STREAM` socket comes with the reply (`SCM_RIGHTS`). What the guest writes
    /// can be read from it, what is written to it the guest reads; closing it detaches.
    AttachConsole {
        /// `console` (hvc0), the name of a port, or `serial`; the first that there is when left out.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        console: Option<String>,
        /// Begin with the output that is kept, at most the last 64 KiB.
        #[serde(default = "yes")]
        replay: bool,
    },
    /// The window of the one who looks at a console has this size.
    ResizeConsole {
        /// As in [`Request::AttachConsole`].
        #[serde(default, skip_serializing_if = "Option::is_none")]
        console: Option<String>,
        /// The size.
        size: WindowSize,
    },
}

/// The answer. In JSON: `{"is": "done"}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "snake_case", deny_unknown_fields)]
pub enum Reply {
    /// To [`Request::Ping`].
    Pong {
        /// Version of this program.
        version: String,
        /// What the VM does.
        state: RunState,
    },
    /// It is done (or begun, for a stop).
    Done,
    /// To [`Request::Stats`].
    Stats(Box<Stats>),
    /// To [`Request::AttachConsole`]; the stream comes in the same packet.
    Attached {
        /// Name of the console.
        console: String,
        /// Bytes of earlier output that come first.
        replayed: u64,
    },
    /// It was not done.
    Refused {
        /// Why.
        reason: String,
    },
}

/// What a VM does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunState {
    /// Guest code runs.
    Running,
    /// Halted by `pause`.
    Paused,
    /// Asked to stop, deadline running.
    Stopping,
}

/// Counters of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// What it does.
    pub state: RunState,
    /// Time since the device thread started.
    pub uptime_ms: u64,
    /// CPU time of this process before the first guest instruction.
    #[serde(default)]
    pub setup_cpu_us: u64,
    /// Each vCPU's.
    pub vcpus: Vec<VcpuStats>,
    /// Each device's, by name, in PCI order.
    pub devices: Vec<(String, DeviceStats)>,
    /// The balloon's figures and the guest's of itself; absent without a balloon, and before its driver has started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<MemoryStats>,
    /// Each console's, by name.
    #[serde(default)]
    pub consoles: Vec<(String, ConsoleStats)>,
}

/// Counters of one vCPU.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VcpuStats {
    /// Port accesses that reached this process.
    pub pio_exits: u64,
    /// Memory-mapped accesses that reached this process.
    pub mmio_exits: u64,
    /// Processor time of its thread, in the guest and for its exits.
    #[serde(default)]
    pub cpu_ns: u64,
    /// Other returns to this process: pause, stop, interrupt windows.
    #[serde(default)]
    pub other_exits: u64,
    /// Every exit, most of them answered in the kernel; 0 where the kernel does not tell.
    #[serde(default)]
    pub all_exits: u64,
    /// Of those, the guest's `HLT`: how often this vCPU went idle.
    #[serde(default)]
    pub halt_exits: u64,
    /// Ports and addresses with the most exits, hottest first.
    #[serde(default)]
    pub hottest: Vec<Hot>,
}
