//! A VM that runs the payload.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// How long anything may take. Long, since a slow machine is no failure.
pub const LIMIT: Duration = Duration::from_secs(60);

/// What a VM is made of.
#[derive(Debug)]
pub struct Setup {
    /// The `vmm` program.
    pub vmm: PathBuf,
    /// Its name in messages.
    pub name: String,
    /// The payload's command line, see `guest/main.rs`.
    pub words: String,
    /// Memory, at least 32.
    pub memory_mib: u32,
    /// An attached tap for the network card.
    pub tap: Option<OwnedFd>,
    /// An open disk image, to be read only.
    pub disk: Option<OwnedFd>,
    /// More fields of the VMM's configuration.
    pub fields: Value,
}

impl Setup {
    /// A VM with a console, an entropy source and 32 MiB.
    pub fn new(vmm: impl AsRef<Path>, words: &str) -> Self {
        Self {
            vmm: vmm.as_ref().into(),
            name: "payload".into(),
            words: words.into(),
            memory_mib: 32,
            tap: None,
            disk: None,
            fields: json!({}),
        }
    }

    /// With a disk, identified as `data`.
    #[must_use]
    pub fn disk(self, path: &Path) -> Self {
        self.field("disks", json!([{"id": "data", "file": {"path": path}}]))
    }

    /// With a disk that is opened already, `data` again, to be read only.
    #[must_use]
    pub fn disk_file(mut self, file: OwnedFd) -> Self {
        self.disk = Some(file);
        self
    }

    /// With a field of the configuration.
    #[must_use]
    pub fn field(mut self, name: &str, value: Value) -> Self {
        self.fields[name] = value;
        self
    }

    /// With a network card on `tap`, which passes through the VMM.
    #[must_use]
    pub fn tap(mut self, tap: OwnedFd) -> Self {
        self.tap = Some(tap);
        self
    }

    /// In the jail, as user and group 1000. Needs root.
    #[must_use]
    pub fn jailed(self) -> Self {
        self.field("jail", json!({"uid": 1000, "gid": 1000}))
    }

    /// Starts it.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub fn start(self) -> io::Result<Machine> {
        const CONFIG: RawFd = 3;
        const KERNEL: RawFd = 4;
        const TAP: RawFd = 5;
        const DISK: RawFd = 6;
        const WORDS: RawFd = 7;
        let mut config = json!({
            "version": 1, "name": self.name, "vcpus": 1, "memory_mib": self.memory_mib, "kernel": {"fd": KERNEL},
            "cmdline": self.words, "console": {"input": {"fd": 0}}, "rng": true,
        });
        if self.tap.is_some() {
            config["nets"] = json!([{"mac": "02:00:00:00:00:99", "tap": {"fd": TAP}}]);
        }
        if self.disk.is_some() {
            config["disks"] = json!([{"id": "data", "file": {"fd": DISK}, "read_only": true}]);
        }
        for (name, value) in self.fields.as_object().into_iter().flatten() {
            config[name] = value.clone();
        }
        let mut files =
            vec![(CONFIG, memory_file(config.to_string().as_bytes())?), (KERNEL, memory_file(crate::IMAGE)?)];
        files.extend(self.tap.map(|tap| (TAP, tap)));
        files.extend(self.disk.map(|disk| (DISK, disk)));
        let (words, said) = io::pipe()?;
        files.push((WORDS, said.into()));
        // Away from the numbers they will have in the child.
        let files = files
            .into_iter()
            // SAFETY: duplicates a number.
            .map(|(number, fd)| match unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 10) } {
                copy if copy < 0 => Err(io::Error::last_os_error()),
                // SAFETY: a fresh descriptor, owned by nobody else.
                copy => Ok((number, unsafe { OwnedFd::from_raw_fd(copy) })),
            })
            .collect::<io::Result<Vec<_>>>()?;
        let numbers: Vec<(RawFd, RawFd)> = files.iter().map(|(number, fd)| (*number, fd.as_raw_fd())).collect();
        let mut command = Command::new(&self.vmm);
        command.env("HOLDFAST_LAST_WORDS", WORDS.to_string());
        command.args(["--config-fd", "3"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // SAFETY: only async-signal-safe calls between fork and exec.
        unsafe {
            command.pre_exec(move || {
                for (number, fd) in &numbers {
                    if libc::dup2(*fd, *number) < 0 {
                        return Err(io::Error::last_os_error());
                    }
                }
                Ok(())
            });
        }
        let started = Instant::now();
        let mut child = command.spawn()?;
        // The writing end is now the child's alone, so that reading ends when it does.
        drop(files);
        let (lines, errors) = match (child.stdout.take(), child.stderr.take()) {
            (Some(output), Some(errors)) => (read_lines(output), read_text(errors)),
            _ => return Err(io::Error::other("no output")),
        };
        let input = child.stdin.take();
        Ok(Machine {
            child,
            started,
            input,
            lines,
            errors: Some(errors),
            words: Some(read_text(words)),
            guest_bytes: u64::from(self.memory_mib) << 20,
        })
    }
}

/// An anonymous file that holds `content`.
fn memory_file(content: &[u8]) -> io::Result<OwnedFd> {
    // SAFETY: a new anonymous file; the name is a constant.
    let fd = unsafe { libc::memfd_create(c"payload".as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just created, owned by nobody else.
    let mut file = unsafe { File::from_raw_fd(fd) };
    file.write_all(content)?;
    Ok(file.into())
}

fn read_lines(from: impl Read + Send + 'static) -> Receiver<(Instant, String)> {
    let (sender, lines) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(from).split(b'\n').map_while(Result::ok) {
            if sender.send((Instant::now(), String::from_utf8_lossy(&line).into_owned())).is_err() {
                return;
            }
        }
    });
    lines
}

fn read_text(mut from: impl Read + Send + 'static) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let mut text = Vec::new();
        let _ = from.read_to_end(&mut text);
        String::from_utf8_lossy(&text).into_owned()
    })
}

/// A running VM. Dropping it kills it.
#[derive(Debug)]
pub struct Machine {
    child: Child,
    /// When the process was started.
    pub started: Instant,
    input: Option<ChildStdin>,
    lines: Receiver<(Instant, String)>,
    errors: Option<JoinHandle<String>>,
    words: Option<JoinHandle<String>>,
    guest_bytes: u64,
}

/// How a VM ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// The exit code, if it was not a signal.
    pub code: Option<i32>,
    /// What it said on stderr.
    pub errors: String,
    /// Its last words, JSON.
    pub words: String,
    /// When the end was seen.
    pub at: Instant,
}

impl Machine {
    /// Process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Bytes of the guest's memory.
    pub fn guest_bytes(&self) -> u64 {
        self.guest_bytes
    }

    /// Waits for the result `name`: its value as text and when it came. Lines before it are passed over.
    ///
    /// # Panics
    /// When it does not come: what came instead is in the message.
    pub fn wait(&mut self, name: &str) -> (String, Instant) {
        let deadline = Instant::now() + LIMIT;
        let mut seen = Vec::new();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok((at, line)) = self.lines.recv_timeout(left) else {
                let ended = self.stop();
                panic!("the payload did not say {name:?} but {seen:?}; {ended:?}");
            };
            match line.split_once('\t') {
                Some((found, rest)) if found == name => {
                    return (rest.split('\t').next().unwrap_or("").to_string(), at);
                }
                _ => seen.push(line),
            }
        }
    }

    /// As [`Machine::wait`], for a number.
    ///
    /// # Panics
    /// When it does not come or is no number.
    pub fn number(&mut self, name: &str) -> u64 {
        let (text, _) = self.wait(name);
        text.parse().unwrap_or_else(|e| panic!("{name} is {text:?}: {e}"))
    }

    /// Types a line at the console.
    ///
    /// # Errors
    /// When the VM has ended.
    pub fn type_line(&mut self, text: &str) -> io::Result<()> {
        let input = self.input.as_mut().ok_or_else(|| io::Error::other("no input"))?;
        input.write_all(text.as_bytes())?;
        input.write_all(b"\n")
    }

    /// SIGTERM: the power button.
    pub fn press_button(&self) {
        // SAFETY: our own child, not waited for yet, so the id is its.
        unsafe { libc::kill(self.child.id() as libc::pid_t, libc::SIGTERM) };
    }

    /// Waits for the end.
    ///
    /// # Panics
    /// When it does not come.
    pub fn finish(mut self) -> Ended {
        let (sender, ended) = channel();
        let id = self.child.id();
        std::thread::spawn(move || {
            // SAFETY: all zeros is a valid `siginfo_t`.
            let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
            // SAFETY: waits for our own child and leaves it to be reaped by `Child`; writes one `siginfo_t`.
            unsafe { libc::waitid(libc::P_PID, id, &mut info, libc::WEXITED | libc::WNOWAIT) };
            let _ = sender.send(Instant::now());
        });
        let at = ended.recv_timeout(LIMIT).unwrap_or_else(|_| panic!("the VM did not end: {:?}", self.stop()));
        Ended { at, ..self.stop() }
    }

    /// Ends it by force, if it has not ended.
    fn stop(&mut self) -> Ended {
        let _ = self.child.kill();
        let code = self.child.wait().ok().and_then(|status| status.code());
        let errors = self.errors.take().and_then(|thread| thread.join().ok()).unwrap_or_default();
        let words = self.words.take().and_then(|thread| thread.join().ok()).unwrap_or_default();
        Ended { code, errors, words, at: Instant::now() }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
