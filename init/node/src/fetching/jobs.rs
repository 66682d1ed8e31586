//! `fetch` jobs: one unit of PID 1 each, reports read back through a pipe.

use crate::supervisor::Supervisor;
use anyhow::{Context, Result, bail};
use holdfast_model::contract::fetch::{Job, Report, Server, Task};
use holdfast_model::contract::{self, Version};
use holdfast_supervise::{Limits, UnitName, UnitSpec};
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::fs::File;
use std::io::{Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::unix::pipe;
use tokio::sync::mpsc;

/// uid of `fetch` units.
pub const FETCH_UID: u32 = 1000;
/// Descriptors of a unit begin here; the job document is the first.
const FIRST_FD: RawFd = 3;
/// Longest report line; a longer one ends the job.
const MAX_REPORT: usize = 64 * 1024;

/// What a job told, and whose job it is.
#[derive(Debug)]
pub struct JobEvent {
    /// The key given to [`start`].
    pub key: String,
    /// The report; `None` when the reports ended without a last one (the job died).
    pub report: Option<Report>,
}

/// A memfd with these bytes, rewound.
///
/// # Errors
/// When the kernel has no memory for it.
pub fn memfd(name: &str, content: &[u8]) -> Result<OwnedFd> {
    let fd = memfd_create(name, MFdFlags::MFD_CLOEXEC).with_context(|| format!("memfd {name}"))?;
    let mut file = File::from(fd);
    file.write_all(content)?;
    file.rewind()?;
    Ok(file.into())
}

/// Starts a job. `files` follow the job document and the report pipe, so they are descriptors 5, 6, ... in the
/// task: use [`task_fd`] to name them.
///
/// # Errors
/// When PID 1 refuses or a descriptor cannot be made.
pub fn start(
    supervisor: &mut Supervisor,
    key: &str,
    unit: &UnitName,
    server: Server,
    task: Task,
    files: &[BorrowedFd<'_>],
    events: &mpsc::Sender<JobEvent>,
) -> Result<()> {
    let (sender, receiver) = pipe::pipe().context("report pipe")?;
    let writer = sender.into_blocking_fd().context("report pipe")?;
    let job = Job { version: Version, report_fd: FIRST_FD + 1, server, task };
    let document = memfd("job", &contract::write(&job)?)?;
    let mut fds = vec![document.as_fd(), writer.as_fd()];
    fds.extend_from_slice(files);

    let mut spec = UnitSpec::new(unit.clone(), "/bin/fetch", FETCH_UID);
    spec.args = vec!["--config-fd".into(), FIRST_FD.to_string()];
    // The spool is page cache that belongs to this cgroup and can be written back; this bounds the process itself.
    spec.limits = Limits { memory_max_bytes: Some(192 << 20), cpu_weight: Some(50), pids_max: Some(16) };
    // A job of a former agent writes into outputs nobody waits for.
    if let Err(e) = supervisor.remove(unit)
        && !matches!(e, holdfast_supervise::CallError::Refused(_))
    {
        bail!("unit {unit}: {e}");
    }
    supervisor.start(&spec, &fds).with_context(|| format!("unit {unit}"))?;
    drop(writer);
    tokio::task::spawn_local(read_reports(key.to_owned(), receiver, events.clone()));
    Ok(())
}

/// Number of the n-th of `files` in [`start`].
#[must_use]
pub fn task_fd(n: usize) -> RawFd {
    FIRST_FD + 2 + RawFd::try_from(n).unwrap_or(RawFd::MAX - 8)
}

async fn read_reports(key: String, receiver: pipe::Receiver, events: mpsc::Sender<JobEvent>) {
    let mut lines = BufReader::with_capacity(MAX_REPORT, receiver);
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = tokio::io::AsyncReadExt::take(&mut lines, MAX_REPORT as u64).read_until(b'\n', &mut line).await;
        let report = match read {
            Ok(n) if n > 0 => serde_json::from_slice::<Report>(&line).ok(),
            _ => None,
        };
        let last = !matches!(report, Some(Report::Progress { .. }));
        if events.send(JobEvent { key: key.clone(), report }).await.is_err() || last {
            return;
        }
    }
}
