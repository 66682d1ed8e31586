//! Runs a long `make`: its output goes to a log, a line about its progress to the caller every few seconds.

use anyhow::{Context, Result, bail};
use std::collections::VecDeque;
use std::fmt;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

/// Between two progress lines.
const INTERVAL: Duration = Duration::from_secs(5);
/// A build that prints nothing for so long hangs: the longest single step (linking) takes a minute on a slow machine.
const SILENCE_LIMIT: Duration = Duration::from_secs(15 * 60);
/// Last lines of the log shown in an error.
const LINES_SHOWN: usize = 20;

/// The build was ended by a signal, not by a fault of its own.
#[derive(Debug)]
struct Interrupted;

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("interrupted; the next run goes on from here")
    }
}

impl std::error::Error for Interrupted {}

/// Whether `error` says that the build was ended from outside.
pub(super) fn interrupted(error: &anyhow::Error) -> bool {
    error.is::<Interrupted>()
}

/// Runs `make` to its end; `steps` is how many lines it is expected to print.
///
/// # Errors
/// When it fails: the error holds the end of the log and its path.
pub(super) fn with_progress(mut make: Command, log_path: &Path, steps: usize, progress: &dyn Fn(&str)) -> Result<()> {
    let mut log = File::create(log_path).with_context(|| format!("cannot write the log {}", log_path.display()))?;
    let (reader, writer) = std::io::pipe().context("cannot make a pipe")?;
    make.stdin(Stdio::null()).stderr(writer.try_clone()?).stdout(writer);
    let mut child = make.spawn().context("cannot start make")?;
    // The command holds the parent's copy of the pipe's writing end: the reader sees the end only when that is closed.
    drop(make);

    let (sender, lines) = sync_channel::<Vec<u8>>(256);
    let reading = std::thread::spawn(move || {
        let mut reader = BufReader::new(reader);
        let mut line = Vec::new();
        while reader.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) && sender.send(std::mem::take(&mut line)).is_ok()
        {
        }
    });

    let started = Instant::now();
    let (mut said, mut heard, mut count) = (Instant::now(), Instant::now(), 0_usize);
    let mut step = String::new();
    let mut last: VecDeque<String> = VecDeque::new();
    loop {
        match lines.recv_timeout(INTERVAL) {
            Ok(line) => {
                heard = Instant::now();
                log.write_all(&line).with_context(|| format!("cannot write the log {}", log_path.display()))?;
                let text = String::from_utf8_lossy(&line).trim_end().to_owned();
                // kbuild prints "  CC      mm/slub.o" per step, indented by two blanks.
                if let Some(target) = text.strip_prefix("  ").and_then(|t| t.split_whitespace().nth(1)) {
                    count += 1;
                    target.clone_into(&mut step);
                }
                last.push_back(text);
                if last.len() > LINES_SHOWN {
                    last.pop_front();
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
        if heard.elapsed() > SILENCE_LIMIT {
            child.kill().ok();
            child.wait().ok();
            bail!(
                "make printed nothing for {} minutes and was ended; its log is {}",
                SILENCE_LIMIT.as_secs() / 60,
                log_path.display()
            );
        }
        if said.elapsed() >= INTERVAL {
            said = Instant::now();
            progress(&status(count, steps, started.elapsed(), &step));
        }
    }
    reading.join().ok();
    let status = child.wait().context("cannot wait for make")?;
    // make turns the signal of Ctrl-C, which it gets too, into exit code 2 only after saying so.
    if status.signal().is_some() || last.iter().any(|l| l.contains("Interrupt") || l.contains("Terminated")) {
        return Err(Interrupted.into());
    }
    if !status.success() {
        let end: Vec<String> = last.into_iter().collect();
        bail!("make ended with {status}; its log is {}\n{}", log_path.display(), end.join("\n"));
    }
    progress(&format!("done, {count} steps in {} s", started.elapsed().as_secs()));
    Ok(())
}

/// `34 %, 3 min 12 s, mm/slub.o`; never more than 99 % while running, the expected number being an estimate.
fn status(count: usize, steps: usize, elapsed: Duration, step: &str) -> String {
    let percent = (count * 100 / steps.max(1)).min(99);
    let seconds = elapsed.as_secs();
    format!("{percent:2} %, {} min {:02} s, {step}", seconds / 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn output_goes_to_the_log_and_steps_are_counted() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let said = RefCell::new(Vec::new());
        with_progress(shell("echo '  CC      a.o'; echo '  CC      b.o' >&2; echo warning"), &log, 2, &|l| {
            said.borrow_mut().push(l.to_owned())
        })
        .unwrap();
        let text = std::fs::read_to_string(&log).unwrap();
        assert!(text.contains("a.o") && text.contains("b.o") && text.contains("warning"), "{text}");
        assert!(said.borrow().last().unwrap().starts_with("done, 2 steps"), "{said:?}");
    }

    #[test]
    fn a_failure_shows_the_end_of_the_log_and_names_it() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let error = with_progress(shell("echo 'a.c:1: error: no such thing'; exit 2"), &log, 1, &|_| {}).unwrap_err();
        assert!(!interrupted(&error));
        let text = error.to_string();
        assert!(text.contains("no such thing") && text.contains(&log.display().to_string()), "{text}");
    }

    #[test]
    fn an_interrupted_build_is_told_from_a_failed_one() {
        let dir = tempfile::tempdir().unwrap();
        let error = with_progress(shell("kill -TERM $$"), &dir.path().join("log"), 1, &|_| {}).unwrap_err();
        assert!(interrupted(&error), "{error}");
    }

    #[test]
    fn progress_never_claims_to_be_done_early() {
        assert_eq!(status(50, 100, Duration::from_secs(61), "a.o"), "50 %, 1 min 01 s, a.o");
        assert!(status(500, 100, Duration::ZERO, "a.o").starts_with("99 %"));
        assert!(status(0, 0, Duration::ZERO, "").starts_with(" 0 %"));
    }
}
