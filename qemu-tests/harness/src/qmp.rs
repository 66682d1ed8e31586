//! QEMU's machine protocol (QMP): one JSON object per line over a Unix socket, answers and events on the same stream.

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long QEMU may take to answer a command; snapshots of memory are not among those used.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// Longest answer line.
const LINE_LIMIT: usize = 4 << 20;

/// A connection to a running QEMU.
#[derive(Debug)]
pub struct Qmp {
    writer: UnixStream,
    reader: BufReader<UnixStream>,
    events: Vec<Value>,
    log: File,
    log_path: PathBuf,
    partial: Vec<u8>,
}

impl Qmp {
    /// Connects and shakes hands; `alive` is asked while the socket is not there yet. Everything said is kept in `log_path`.
    ///
    /// # Errors
    /// At the deadline, or when `alive` fails.
    pub fn connect(
        socket: &Path,
        log_path: &Path,
        timeout: Duration,
        mut alive: impl FnMut() -> Result<()>,
    ) -> Result<Self> {
        let started = Instant::now();
        let stream = loop {
            match UnixStream::connect(socket) {
                Ok(stream) => break stream,
                Err(e) => {
                    alive()?;
                    if started.elapsed() >= timeout {
                        return Err(e).with_context(|| {
                            format!("QEMU did not open {} within {} s", socket.display(), timeout.as_secs())
                        });
                    }
                    std::thread::sleep(Duration::from_millis(10));
                }
            }
        };
        let log = File::options()
            .create(true)
            .append(true)
            .open(log_path)
            .with_context(|| format!("cannot write {}", log_path.display()))?;
        let reader = BufReader::new(stream.try_clone()?);
        let mut qmp =
            Self { writer: stream, reader, events: Vec::new(), log, log_path: log_path.into(), partial: Vec::new() };
        let greeting = qmp.message(Instant::now() + ANSWER_TIMEOUT)?.context("QMP: no greeting")?;
        if greeting.get("QMP").is_none() {
            bail!("QMP: expected a greeting, found {greeting}");
        }
        qmp.execute("qmp_capabilities", &json!({}))?;
        Ok(qmp)
    }

    /// Runs a command and gives its result.
    ///
    /// # Errors
    /// When QEMU refuses it, does not answer in time or is gone.
    pub fn execute(&mut self, command: &str, arguments: &Value) -> Result<Value> {
        let line = format!("{}\n", json!({ "execute": command, "arguments": arguments }));
        self.log.write_all(line.as_bytes())?;
        self.writer.write_all(line.as_bytes()).with_context(|| format!("QMP {command}: QEMU is gone"))?;
        let deadline = Instant::now() + ANSWER_TIMEOUT;
        loop {
            let message = self.message(deadline)?.with_context(|| {
                format!(
                    "QMP {command}: no answer within {} s, see {}",
                    ANSWER_TIMEOUT.as_secs(),
                    self.log_path.display()
                )
            })?;
            if let Some(result) = message.get("return") {
                return Ok(result.clone());
            }
            if let Some(error) = message.get("error") {
                bail!(
                    "QMP {command} {arguments}: {}",
                    error.get("desc").and_then(Value::as_str).unwrap_or("refused without a reason")
                );
            }
            self.events.push(message);
        }
    }

    /// Runs a command of the human monitor, for what QMP lacks.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub fn human(&mut self, line: &str) -> Result<String> {
        let result = self.execute("human-monitor-command", &json!({ "command-line": line }))?;
        Ok(result.as_str().unwrap_or_default().to_owned())
    }

    /// Waits for the next event called `name` (also one that came earlier and was not asked for yet) and gives its data.
    ///
    /// # Errors
    /// At the deadline, or when QEMU is gone.
    pub fn wait_event(&mut self, name: &str, timeout: Duration) -> Result<Value> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(at) = self.events.iter().position(|e| e["event"] == name) {
                // What came before it is past.
                let event = self.events.drain(..=at).next_back().unwrap_or_default();
                return Ok(event["data"].clone());
            }
            match self.message(deadline)? {
                Some(message) => self.events.push(message),
                None => bail!(
                    "QMP event {name} did not come within {} s; see {}",
                    timeout.as_secs(),
                    self.log_path.display()
                ),
            }
        }
    }

    /// Forgets the events that came so far.
    ///
    /// # Errors
    /// When QEMU is gone.
    pub fn forget_events(&mut self) -> Result<()> {
        while self.message(Instant::now())?.is_some() {}
        self.events.clear();
        Ok(())
    }

    /// The next object; `None` at the deadline.
    fn message(&mut self, deadline: Instant) -> Result<Option<Value>> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
            self.reader.get_ref().set_read_timeout(Some(left))?;
            match self.reader.read_until(b'\n', &mut self.partial) {
                Ok(0) => bail!("QMP: QEMU has closed the connection; see {}", self.log_path.display()),
                Ok(_) if self.partial.ends_with(b"\n") => {
                    let line = std::mem::take(&mut self.partial);
                    self.log.write_all(&line)?;
                    return Ok(Some(
                        serde_json::from_slice(&line)
                            .with_context(|| format!("QMP: not JSON: {}", String::from_utf8_lossy(&line)))?,
                    ));
                }
                Ok(_) => {}
                Err(e) if matches!(e.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {
                    if Instant::now() >= deadline {
                        return Ok(None);
                    }
                }
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e).context("QMP: QEMU is gone"),
            }
            if self.partial.len() > LINE_LIMIT {
                bail!("QMP: a line of more than {LINE_LIMIT} bytes");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    /// A QEMU that greets, then says `lines`, one after each line it reads.
    fn fake(lines: &'static [&'static str]) -> (tempfile::TempDir, Result<Qmp>) {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("qmp");
        let listener = UnixListener::bind(&socket).unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(b"{\"QMP\": {}}\n").unwrap();
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let mut line = String::new();
            for answer in [&["{\"return\": {}}"], lines].concat() {
                if reader.read_line(&mut line).unwrap_or(0) == 0 {
                    return;
                }
                stream.write_all(format!("{answer}\n").as_bytes()).unwrap();
            }
            reader.read_line(&mut line).ok();
        });
        let qmp = Qmp::connect(&socket, &dir.path().join("log"), Duration::from_secs(5), || Ok(()));
        (dir, qmp)
    }

    #[test]
    fn events_between_command_and_answer_are_kept() {
        let (_dir, qmp) = fake(&[
            "{\"event\": \"RESET\", \"data\": {\"guest\": true}}\n{\"event\": \"STOP\"}\n{\"return\": {\"status\": \"running\"}}",
        ]);
        let mut qmp = qmp.unwrap();
        assert_eq!(qmp.execute("query-status", &json!({})).unwrap()["status"], "running");
        assert_eq!(qmp.wait_event("RESET", Duration::ZERO).unwrap()["guest"], true);
        assert!(qmp.wait_event("RESET", Duration::from_millis(20)).is_err());
        qmp.wait_event("STOP", Duration::ZERO).unwrap();
    }

    #[test]
    fn a_refusal_is_told_in_qemus_words() {
        let (_dir, qmp) = fake(&["{\"error\": {\"class\": \"GenericError\", \"desc\": \"no such link\"}}"]);
        let text = qmp.unwrap().execute("set_link", &json!({})).unwrap_err().to_string();
        assert!(text.contains("set_link") && text.contains("no such link"), "{text}");
    }

    #[test]
    fn a_qemu_that_dies_before_its_socket_is_there_ends_the_wait() {
        let dir = tempfile::tempdir().unwrap();
        let error = Qmp::connect(&dir.path().join("none"), &dir.path().join("log"), Duration::from_secs(60), || {
            bail!("qemu ended")
        })
        .unwrap_err();
        assert!(error.to_string().contains("qemu ended"));
    }
}
