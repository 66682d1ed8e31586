//! Child processes that cannot outlive us.
//!
//! Each child asks the kernel to be killed when its parent dies (`PR_SET_PDEATHSIG`), so that nothing is left even after SIGKILL.
//! That signal is tied to the *thread* that forked: children are therefore started by one thread that lives as long as this process, not
//! by test threads that come and go. Each child leads its own process group, so that Ctrl-C at a terminal reaches us first.

use anyhow::{Context, Result, bail};
use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

type Job = (Command, Sender<io::Result<Child>>);

/// A running program; killed when dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    ended: Option<ExitStatus>,
}

impl Process {
    /// Starts `command`; its standard output and error go to the end of `log`.
    ///
    /// # Errors
    /// When the program is not installed.
    pub fn start(name: &str, mut command: Command, log: &Path) -> Result<Self> {
        let file = File::options()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("cannot write {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file).process_group(0);
        let program = command.get_program().to_string_lossy().into_owned();
        let child = spawn(command).with_context(|| format!("cannot start {program}; is its package installed?"))?;
        Ok(Self { name: name.into(), child, log: log.into(), ended: None })
    }

    /// Process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().ok().flatten();
        }
        self.ended
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it still runs at the deadline.
    pub fn wait(&mut self, timeout: Duration) -> Result<ExitStatus> {
        let started = Instant::now();
        loop {
            if let Some(status) = self.ended() {
                return Ok(status);
            }
            if started.elapsed() >= timeout {
                bail!(
                    "{} still runs after {} s; its messages are in {}",
                    self.name,
                    timeout.as_secs(),
                    self.log.display()
                );
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Fails when it has ended, showing its last messages.
    ///
    /// # Errors
    /// When it has ended.
    pub fn check(&mut self) -> Result<()> {
        match self.ended() {
            None => Ok(()),
            Some(status) => {
                let text = std::fs::read_to_string(&self.log).unwrap_or_default();
                bail!("{} ended with {status}; {}:\n{}", self.name, self.log.display(), last_lines(&text, 10))
            }
        }
    }

    /// Ends it at once, as a power cut would.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait().map(|status| self.ended = Some(status));
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The last `count` lines of `text`.
pub(crate) fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

fn spawn(command: Command) -> Result<Child> {
    static SPAWNER: OnceLock<Sender<Job>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (sender, jobs) = channel::<Job>();
        std::thread::spawn(move || {
            for (mut command, answer) in jobs {
                let parent = std::process::id();
                let die_with_parent = move || {
                    // SAFETY: prctl with integers only; async-signal-safe.
                    nix::errno::Errno::result(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) })?;
                    // The parent may have died before the call above.
                    if nix::unistd::getppid().as_raw().cast_unsigned() != parent {
                        return Err(io::ErrorKind::NotConnected.into());
                    }
                    Ok(())
                };
                // SAFETY: the closure makes two system calls and neither allocates nor locks.
                unsafe { command.pre_exec(die_with_parent) };
                let _ = answer.send(command.spawn());
            }
        });
        sender
    });
    let (answer, result) = channel();
    spawner.send((command, answer)).ok().context("the thread that starts processes is gone")?;
    Ok(result.recv().context("the thread that starts processes is gone")??)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    fn alive(pid: u32) -> bool {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid.cast_signed()), None).is_ok()
    }

    #[test]
    fn a_dropped_process_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let process = Process::start("sleep", sh("exec sleep 600"), &dir.path().join("log")).unwrap();
        let pid = process.id();
        assert!(alive(pid));
        drop(process);
        assert!(!alive(pid));
    }

    #[test]
    fn a_process_outlives_the_thread_that_asked_for_it() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let mut process =
            std::thread::spawn(move || Process::start("sleep", sh("exec sleep 600"), &log).unwrap()).join().unwrap();
        std::thread::sleep(Duration::from_millis(100));
        assert!(process.ended().is_none());
    }

    #[test]
    fn an_early_end_is_told_with_its_messages() {
        let dir = tempfile::tempdir().unwrap();
        let mut process =
            Process::start("thing", sh("echo no such device >&2; exit 3"), &dir.path().join("log")).unwrap();
        process.wait(Duration::from_secs(5)).unwrap();
        let text = process.check().unwrap_err().to_string();
        assert!(text.contains("thing") && text.contains("no such device") && text.contains("log"), "{text}");
    }

    #[test]
    fn waiting_has_a_deadline() {
        let dir = tempfile::tempdir().unwrap();
        let mut process = Process::start("sleep", sh("exec sleep 600"), &dir.path().join("log")).unwrap();
        assert!(process.wait(Duration::from_millis(50)).is_err());
    }

    #[test]
    fn a_missing_program_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let error = Process::start("x", Command::new("no-such-program"), &dir.path().join("log")).unwrap_err();
        assert!(error.to_string().contains("no-such-program"));
    }
}
