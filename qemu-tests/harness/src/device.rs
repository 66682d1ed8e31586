//! A device: what it keeps without power, and its power switch.

use crate::builder::Builder;
use crate::machine::{self, Places};
use crate::process::Process;
use crate::qmp::Qmp;
use crate::serial::Serial;
use crate::{ports, secs, tpm};
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Tries to start QEMU when another process takes a port that was free a moment ago.
const PORT_TRIES: u32 = 5;

/// A device. Dropped, its processes end; its folder goes too unless it was given, a test has failed, or `$HOLDFAST_KEEP` is set.
#[derive(Debug)]
pub struct Device {
    builder: Builder,
    folder: PathBuf,
    temporary: Option<TempDir>,
    /// Sockets lie in a folder of their own with a short name: a socket's path has at most 107 bytes.
    sockets: TempDir,
    ports: Vec<u16>,
    boots: u32,
    power: Power,
    serial: Serial,
    hvc: Serial,
}

#[derive(Debug)]
enum Power {
    Off,
    On(Box<Running>),
}

#[derive(Debug)]
struct Running {
    qemu: Process,
    qmp: Qmp,
    tpm: Option<Process>,
    since: Instant,
}

/// A copy of everything a device keeps without power.
#[derive(Debug)]
pub struct Snapshot(TempDir);

impl Device {
    /// Starts the description of a device; `name` appears in file names and messages.
    pub fn builder(name: &str) -> Builder {
        Builder::new(name)
    }

    pub(crate) fn make(builder: Builder) -> Result<Self> {
        let (folder, temporary) = match &builder.folder {
            Some(folder) => (folder.clone(), None),
            None => {
                let parent = std::env::var_os("HOLDFAST_TEST_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
                fs::create_dir_all(&parent).with_context(|| format!("cannot make {}", parent.display()))?;
                let temporary =
                    tempfile::Builder::new().prefix(&format!("holdfast-{}-", builder.name)).tempdir_in(&parent)?;
                (temporary.path().to_owned(), Some(temporary))
            }
        };
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let folder = fs::canonicalize(folder)?;
        let sockets = tempfile::Builder::new().prefix("hf-").tempdir_in("/tmp")?;
        let boots = (1..).find(|n| !serial_log(&folder, *n).exists()).unwrap_or(1) - 1;
        let serial = Serial::new(&serial_log(&folder, boots.max(1)));
        let hvc = Serial::new(&folder.join("hvc-1.log"));
        let device =
            Self { builder, folder, temporary, sockets, ports: Vec::new(), boots, power: Power::Off, serial, hvc };
        device.make_disk()?;
        if matches!(device.builder.boot, crate::Boot::Firmware) && !device.variables().exists() {
            let (_, template) = machine::firmware(device.builder.secure_boot)?;
            // Not fs::copy: the template may be read-only, the copy must not.
            fs::write(device.variables(), fs::read(template)?)?;
        }
        if device.builder.tpm {
            tpm::manufacture(&device.folder.join("tpm"))?;
        }
        Ok(device)
    }

    fn make_disk(&self) -> Result<()> {
        let disk = self.disk();
        if disk.exists() || (self.builder.image.is_none() && self.builder.disk_bytes.is_none()) {
            return Ok(());
        }
        let mut command = Command::new("qemu-img");
        command.args(["create", "-q", "-f", "qcow2"]);
        if let Some(image) = &self.builder.image {
            let image = fs::canonicalize(image)
                .with_context(|| format!("image {} is not there; build it first", image.display()))?;
            command.args(["-F", "raw", "-b"]).arg(image);
        }
        command.arg(&disk).args(self.builder.disk_bytes.map(|b| b.to_string()));
        run(command, "qemu-utils")
    }

    /// Folder of the device's files.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The system disk's overlay (qcow2).
    pub fn disk(&self) -> PathBuf {
        self.folder.join("disk.qcow2")
    }

    fn variables(&self) -> PathBuf {
        self.folder.join("variables.fd")
    }

    /// Switches the power on: TPM, then QEMU.
    ///
    /// # Errors
    /// When it is on already, or a program does not start.
    pub fn power_on(&mut self) -> Result<()> {
        if self.is_on() {
            bail!("device {} is on already", self.builder.name);
        }
        // It may have powered itself off unseen: what is left of that run ends now.
        self.power = Power::Off;
        self.boots += 1;
        self.serial = Serial::new(&serial_log(&self.folder, self.boots));
        self.hvc = Serial::new(&self.folder.join(format!("hvc-{}.log", self.boots)));
        let mut tries = 1;
        loop {
            if self.ports.is_empty() {
                let count: usize = self.builder.nics.iter().map(|n| n.forwards.len()).sum();
                self.ports = (0..count).map(|_| ports::free()).collect::<Result<_>>()?;
            }
            match self.start() {
                Ok(running) => {
                    self.power = Power::On(Box::new(running));
                    return Ok(());
                }
                // The ports are kept over power cuts so that a test's URLs stay right; only a lost race changes them.
                Err(e) if tries < PORT_TRIES && e.to_string().contains("host forwarding") => {
                    self.ports.clear();
                    tries += 1;
                }
                Err(e) => return Err(e).with_context(|| self.evidence()),
            }
        }
    }

    fn start(&self) -> Result<Running> {
        let (tpm_socket, qmp_socket) = (self.sockets.path().join("tpm"), self.sockets.path().join("qmp"));
        let tpm = match self.builder.tpm {
            true => Some(tpm::start(&self.folder.join("tpm"), &tpm_socket, &self.folder.join("swtpm.log"))?),
            false => None,
        };
        let _ = fs::remove_file(&qmp_socket);
        let disk = self.disk();
        let places = Places {
            variables: &self.variables(),
            disk: disk.exists().then_some(disk.as_path()),
            tpm: tpm.is_some().then_some(tpm_socket.as_path()),
            qmp: &qmp_socket,
            serial: self.serial.path(),
            hvc: self.builder.hvc.then(|| self.hvc.path()),
            ports: &self.ports,
        };
        let command = machine::command(&self.builder, &places)?;
        let mut qemu = Process::start("qemu", command, &self.folder.join("qemu.log"))?;
        let qmp = Qmp::connect(&qmp_socket, &self.folder.join("qmp.log"), secs(30), || qemu.check())?;
        Ok(Running { qemu, qmp, tpm, since: Instant::now() })
    }

    fn running(&mut self) -> Result<&mut Running> {
        match &mut self.power {
            Power::On(running) => Ok(running),
            Power::Off => bail!("device {} is off", self.builder.name),
        }
    }

    /// Whether QEMU runs.
    pub fn is_on(&mut self) -> bool {
        match &mut self.power {
            Power::On(running) => running.qemu.ended().is_none(),
            Power::Off => false,
        }
    }

    /// Time since power on.
    ///
    /// # Errors
    /// When it is off.
    pub fn uptime(&mut self) -> Result<Duration> {
        Ok(self.running()?.since.elapsed())
    }

    /// The serial line since the last power on.
    pub fn serial(&mut self) -> &mut Serial {
        &mut self.serial
    }

    /// The virtio console since the last power on; empty unless asked for in the builder.
    pub fn hvc(&mut self) -> &mut Serial {
        &mut self.hvc
    }

    /// What a guest's init wrote to console port `holdfast.end` since the last power on; empty when nothing, and without a virtio
    /// console.
    #[must_use]
    pub fn guest_end(&self) -> String {
        fs::read_to_string(machine::guest_end(self.hvc.path())).unwrap_or_default()
    }

    /// Waits for a line on the serial line; unlike [`Serial::wait_for`] it ends at once when the device has died.
    ///
    /// # Errors
    /// At the deadline, or when QEMU has ended.
    pub fn wait_for(&mut self, text: &str, timeout: Duration) -> Result<String> {
        let Power::On(running) = &mut self.power else { bail!("device {} is off", self.builder.name) };
        let result = self.serial.wait_while(text, timeout, || running.qemu.check());
        result.with_context(|| self.evidence())
    }

    /// [`Device::wait_for`] on the virtio console.
    ///
    /// # Errors
    /// As there.
    pub fn wait_for_hvc(&mut self, text: &str, timeout: Duration) -> Result<String> {
        let Power::On(running) = &mut self.power else { bail!("device {} is off", self.builder.name) };
        let result = self.hvc.wait_while(text, timeout, || running.qemu.check());
        result.with_context(|| self.evidence())
    }

    /// Waits until the device has powered itself off.
    ///
    /// # Errors
    /// At the deadline.
    pub fn wait_off(&mut self, timeout: Duration) -> Result<ExitStatus> {
        let status = self.running()?.qemu.wait(timeout);
        let status = status.with_context(|| format!("{}\n{}", self.evidence(), self.serial.shown()))?;
        self.power = Power::Off;
        Ok(status)
    }

    /// Cuts the power: QEMU is killed, nothing is flushed. The TPM loses power too, without a shutdown command.
    ///
    /// # Errors
    /// When it is off already.
    pub fn power_cut(&mut self) -> Result<()> {
        let running = self.running()?;
        running.qemu.kill();
        if let Some(tpm) = &mut running.tpm {
            tpm.kill();
        }
        self.power = Power::Off;
        Ok(())
    }

    /// Presses the power button.
    ///
    /// # Errors
    /// When it is off.
    pub fn press_power_button(&mut self) -> Result<()> {
        self.execute("system_powerdown", &json!({})).map(drop)
    }

    /// Presses the reset button.
    ///
    /// # Errors
    /// When it is off.
    pub fn reset(&mut self) -> Result<()> {
        self.execute("system_reset", &json!({})).map(drop)
    }

    /// Waits until the machine is reset by itself or its watchdog, and says why in QEMU's words (`guest-reset`, ...).
    ///
    /// # Errors
    /// At the deadline.
    pub fn wait_reset(&mut self, timeout: Duration) -> Result<String> {
        let event = self.running()?.qmp.wait_event("RESET", timeout);
        let event = event.with_context(|| format!("{}\n{}", self.evidence(), self.serial.shown()))?;
        Ok(event["reason"].as_str().unwrap_or_default().to_owned())
    }

    /// Plugs the cable of the card with this index in or out.
    ///
    /// # Errors
    /// When there is no such card.
    pub fn set_link(&mut self, nic: usize, up: bool) -> Result<()> {
        self.execute("set_link", &json!({ "name": format!("nic{nic}"), "up": up })).map(drop)
    }

    /// Leads a further free port on 127.0.0.1 to `guest_port` of the card with this index, until the device is off.
    ///
    /// # Errors
    /// When QEMU refuses.
    pub fn forward(&mut self, nic: usize, guest_port: u16) -> Result<SocketAddr> {
        let port = ports::free()?;
        for protocol in ["tcp", "udp"] {
            let answer = self
                .running()?
                .qmp
                .human(&format!("hostfwd_add net{nic} {protocol}:127.0.0.1:{port}-:{guest_port}"))?;
            if !answer.trim().is_empty() {
                bail!("forward port {guest_port}: {}", answer.trim());
            }
        }
        Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
    }

    /// Address on the host that leads to `guest_port` (of the first card that forwards it).
    ///
    /// # Panics
    /// When the builder forwards no such port, or the device was never on.
    pub fn forwarded(&self, guest_port: u16) -> SocketAddr {
        let mut all = self.builder.nics.iter().flat_map(|n| &n.forwards).zip(&self.ports);
        let (_, port) =
            all.find(|(guest, _)| **guest == guest_port).expect("the builder forwards this port and the device was on");
        SocketAddr::from((Ipv4Addr::LOCALHOST, *port))
    }

    /// Runs a QMP command.
    ///
    /// # Errors
    /// When QEMU refuses it.
    pub fn execute(&mut self, command: &str, arguments: &Value) -> Result<Value> {
        let result = self.running()?.qmp.execute(command, arguments);
        result.with_context(|| self.evidence())
    }

    /// Copies disk, variables and TPM state. The device must be off: that is the only time when they belong together.
    ///
    /// # Errors
    /// When it is on, or there is no space.
    pub fn snapshot(&mut self) -> Result<Snapshot> {
        if self.is_on() {
            bail!("device {}: a snapshot is taken with the power off", self.builder.name);
        }
        let snapshot = Snapshot(tempfile::Builder::new().prefix("snapshot-").tempdir_in(&self.folder)?);
        copy_state(&self.folder, snapshot.0.path())?;
        Ok(snapshot)
    }

    /// Puts the state of `snapshot` back.
    ///
    /// # Errors
    /// When it is on, or there is no space.
    pub fn restore(&mut self, snapshot: &Snapshot) -> Result<()> {
        if self.is_on() {
            bail!("device {}: a snapshot is restored with the power off", self.builder.name);
        }
        copy_state(snapshot.0.path(), &self.folder)
    }

    /// Where to look after a failure.
    pub fn evidence(&self) -> String {
        format!(
            "device {}: serial line {}, QEMU's messages {}, QMP {}, disk {}",
            self.builder.name,
            self.serial.path().display(),
            self.folder.join("qemu.log").display(),
            self.folder.join("qmp.log").display(),
            self.disk().display()
        )
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.power = Power::Off;
        if std::thread::panicking() || std::env::var_os("HOLDFAST_KEEP").is_some() {
            if let Some(temporary) = self.temporary.take() {
                let _ = temporary.keep();
            }
            eprintln!("kept for inspection: {}", self.evidence());
        }
    }
}

fn serial_log(folder: &Path, boot: u32) -> PathBuf {
    folder.join(format!("serial-{boot}.log"))
}

fn copy_state(from: &Path, to: &Path) -> Result<()> {
    for name in ["disk.qcow2", "variables.fd", "tpm"] {
        if to.join(name).is_dir() {
            fs::remove_dir_all(to.join(name))?;
        }
        if from.join(name).exists() {
            let mut command = Command::new("cp");
            command.args(["-a", "--sparse=always", "--reflink=auto"]).arg(from.join(name)).arg(to);
            run(command, "coreutils")?;
        }
    }
    Ok(())
}

fn run(mut command: Command, package: &str) -> Result<()> {
    let text = format!("{command:?}");
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {text}; apt-get install {package}"))?;
    if !output.status.success() {
        bail!("{text} ended with {}:\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}
