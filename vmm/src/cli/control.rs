//! `vmm --control`: one request, its reply as a sentence, a table, or JSON.
#![forbid(unsafe_code)]

use std::fmt::Write;
use std::io::ErrorKind;
use std::path::Path;

use holdfast_model::contract::end::{End, ExitClass};
use holdfast_model::contract::vm::{Reply, Request, RunState, Stats};
use holdfast_vmm::control::{ControlClient, ControlError};

use super::Action;

/// What to print.
///
/// # Errors
/// [`ExitClass::Resource`] with the way out.
pub fn run(socket: &Path, action: Action, json: bool) -> Result<String, End> {
    let mut client = ControlClient::connect(socket).map_err(|e| end(&e))?;
    let request = match action {
        Action::Ping => Request::Ping,
        Action::Stats => Request::Stats,
        Action::Pause => Request::Pause,
        Action::Resume => Request::Resume,
        Action::PowerButton => Request::PowerButton,
        Action::Stop(deadline) => {
            Request::Stop { deadline_ms: u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX) }
        }
    };
    let reply = client.request(&request).map_err(|e| end(&e))?;
    if json {
        let text = serde_json::to_string_pretty(&reply);
        return text.map(|text| text + "\n").map_err(|e| End::host_fault(format!("cannot print the reply: {e}")));
    }
    Ok(match (reply, action) {
        (Reply::Pong { version, state }, _) => format!("{}, vmm {version}\n", word(state)),
        (Reply::Stats(stats), _) => tables(&stats),
        (Reply::Done, Action::Pause) => "paused\n".into(),
        (Reply::Done, Action::Resume) => "running\n".into(),
        (Reply::Done, Action::PowerButton) => "power button pressed\n".into(),
        (Reply::Done, Action::Stop(deadline)) => {
            format!("power button pressed; the VM ends by force after {} s\n", deadline.as_secs_f32())
        }
        (other, _) => return Err(End::host_fault(format!("control socket: unexpected reply {other:?}"))),
    })
}

/// A failure with what to do about it.
pub fn end(error: &ControlError) -> End {
    let hint = match error {
        ControlError::Io { source, .. } => match source.kind() {
            ErrorKind::NotFound => "; is the VM running, with \"control\" in its configuration?",
            ErrorKind::ConnectionRefused => "; the VM that made it has ended",
            ErrorKind::PermissionDenied => "; ask as the user who started the VM, or as root",
            ErrorKind::WouldBlock | ErrorKind::TimedOut => "; the VM does not answer: look at its process",
            _ => "",
        },
        ControlError::Reply { .. } => "; is it the control socket of a vmm of this version?",
        ControlError::Closed { .. } | ControlError::Refused { .. } => "",
    };
    End::new(ExitClass::Resource, format!("{error}{hint}"))
}

fn word(state: RunState) -> &'static str {
    match state {
        RunState::Running => "running",
        RunState::Paused => "paused",
        RunState::Stopping => "stopping",
    }
}

fn tables(stats: &Stats) -> String {
    let seconds = |ms: u64| format!("{}.{} s", ms / 1000, ms % 1000 / 100);
    let mut out = format!("{} for {}\n", word(stats.state), seconds(stats.uptime_ms));
    let vcpus = stats.vcpus.iter().enumerate().map(|(n, v)| {
        vec![n.to_string(), seconds(v.cpu_ns / 1_000_000), v.pio_exits.to_string(), v.mmio_exits.to_string()]
    });
    table(&mut out, ["vCPU", "CPU time", "port exits", "memory exits"], vcpus);
    let devices = stats.devices.iter().map(|(name, d)| {
        let ops = [d.in_ops, d.out_ops, d.errors].map(|n| n.to_string());
        [name.clone(), bytes(d.in_bytes), bytes(d.out_bytes)].into_iter().chain(ops).collect()
    });
    table(&mut out, ["device", "to guest", "from guest", "requests in", "out", "errors"], devices);
    let consoles = stats.consoles.iter().map(|(name, c)| {
        vec![name.clone(), bytes(c.in_bytes), bytes(c.out_bytes), bytes(c.lost_bytes), c.attached.to_string()]
    });
    table(&mut out, ["console", "to guest", "from guest", "lost", "attached"], consoles);
    out
}

/// Appends a table, or nothing when it has no rows; the first column to the left, numbers to the right.
fn table<const N: usize>(out: &mut String, heads: [&str; N], rows: impl Iterator<Item = Vec<String>>) {
    let rows: Vec<Vec<String>> = rows.collect();
    if rows.is_empty() {
        return;
    }
    let heads = heads.map(str::to_owned).to_vec();
    let lines = || std::iter::once(&heads).chain(&rows);
    let width = |n: usize| lines().map(|line| line[n].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..N).map(width).collect();
    out.push('\n');
    for line in lines() {
        let _ = write!(out, "{:<1$}", line[0], widths[0]);
        for (cell, width) in line.iter().zip(&widths).skip(1) {
            let _ = write!(out, "  {cell:>width$}");
        }
        out.push('\n');
    }
}

fn bytes(count: u64) -> String {
    let units = [("GiB", 30), ("MiB", 20), ("KiB", 10)];
    match units.into_iter().find(|(_, shift)| count >> shift > 0) {
        Some((unit, shift)) => format!("{:.1} {unit}", count as f64 / f64::from(1u32 << shift)),
        None => format!("{count} B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_model::contract::vm::ConsoleStats;
    use holdfast_model::contract::vm::DeviceStats;
    use holdfast_model::contract::vm::VcpuStats;

    #[test]
    fn stats_are_aligned_tables() {
        let stats = Stats {
            setup_cpu_us: 6100,
            state: RunState::Running,
            uptime_ms: 61_250,
            vcpus: vec![VcpuStats { pio_exits: 7, mmio_exits: 1234, cpu_ns: 2_500_000_000, ..Default::default() }],
            devices: vec![("block root".into(), DeviceStats { in_bytes: 3 << 20, in_ops: 12, ..Default::default() })],
            memory: None,
            consoles: vec![("console".into(), ConsoleStats { out_bytes: 1536, ..Default::default() })],
        };
        let expected = "\
running for 61.2 s

vCPU  CPU time  port exits  memory exits
0        2.5 s           7          1234

device      to guest  from guest  requests in  out  errors
block root   3.0 MiB         0 B           12    0       0

console  to guest  from guest  lost  attached
console       0 B     1.5 KiB   0 B         0
";
        assert_eq!(tables(&stats), expected);
    }

    #[test]
    fn socket_that_is_not_there_comes_with_the_way_out() {
        let end = run(Path::new("/nonexistent/c"), Action::Ping, false).unwrap_err();
        assert_eq!(end.class, ExitClass::Resource);
        assert!(end.reason.contains("/nonexistent/c") && end.reason.contains("\"control\""), "{end}");
    }
}
