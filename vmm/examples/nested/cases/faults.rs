//! Configurations that cannot work: one error that names the thing and the way out, the right exit code, nothing left
//! running. What needs no privileges is in `tests/bad_input.rs`.

use std::fs;
use std::os::fd::OwnedFd;

use holdfast_model::contract::vm::{ConsoleConfig, DiskConfig, FileRef, NetConfig, TapRef, VhostRef, VmConfig};

use crate::host::{INITRD, KERNEL, Outcome, Scenario, config, expect_code, open, processes, spawn_with, tap, text};

pub const SCENARIOS: &[Scenario] = &[
    Scenario { name: "missing_tap_is_named_and_leaves_nothing", run: missing_tap },
    Scenario { name: "what_cannot_work_is_named_with_its_exit_code", run: table },
];

fn missing_tap() -> Outcome {
    let mut config = config("bad", "");
    let mac = "02:00:00:00:00:04".parse().map_err(text)?;
    config.nets = vec![NetConfig::new(mac, TapRef::Fd(77))];
    let (mut child, errors) = spawn_with(&config, vec![])?;
    let reason = errors.wait("vmm bad: net0:")?;
    expect_code(&mut child, 21)?;
    Ok(reason)
}

/// What is wrong, the exit code, words of the message, the change to a good configuration and its files.
type Row = (&'static str, i32, &'static [&'static str], fn(&mut VmConfig) -> Result<Vec<OwnedFd>, String>);

const TABLE: &[Row] = &[
    ("truncated kernel", 22, &["kernel /run/bad"], |c| kernel(c, |image| image.truncate(image.len() / 2))),
    ("kernel that needs more memory", 22, &["kernel /run/bad", "memory"], |c| {
        // The address and size of the first segment.
        kernel(c, |image| image[88..96].copy_from_slice(&(200u64 << 20).to_le_bytes()))
    }),
    ("initrd larger than memory", 22, &["initrd /run/bad", "memory_mib"], |c| {
        let file = fs::File::create("/run/bad").map_err(text)?;
        file.set_len(1 << 30).map_err(text)?;
        c.initrd = Some(FileRef::Path("/run/bad".into()));
        Ok(vec![])
    }),
    ("something else as /dev/kvm", 23, &["kvm", "/dev/zero"], |c| {
        c.kvm = FileRef::Path("/dev/zero".into());
        Ok(vec![])
    }),
    ("no vhost", 21, &["net0", "/dev/no-vhost", "without \"vhost\""], |c| {
        net(c, TapRef::Fd(4), Some("/dev/no-vhost"))?;
        Ok(vec![tap("tap0")?.into()])
    }),
    ("something else as vhost", 21, &["net0", "vhost"], |c| {
        net(c, TapRef::Fd(4), Some("/dev/zero"))?;
        Ok(vec![tap("tap0")?.into()])
    }),
    ("something else as a tap", 21, &["net0", "IFF_TAP"], |c| {
        net(c, TapRef::Fd(4), None)?;
        Ok(vec![open("/dev/zero", true)?.into()])
    }),
    ("tap that another VM has", 21, &["net0", "tap9", "another program"], |c| {
        // Held by us until the VM has ended: the file outlives the call on purpose.
        std::mem::forget(tap("tap9")?);
        net(c, TapRef::Name("tap9".into()), None)?;
        Ok(vec![])
    }),
    ("folder as a disk", 21, &["disk data", "/run"], |c| disk(c, "/run")),
    ("empty disk", 21, &["disk data", "/run/bad"], |c| {
        fs::write("/run/bad", "").map_err(text)?;
        disk(c, "/run/bad")
    }),
    ("disk of odd size", 21, &["disk data", "/run/bad", "512"], |c| {
        fs::write("/run/bad", vec![0; 1000]).map_err(text)?;
        disk(c, "/run/bad")
    }),
    ("console in no folder", 21, &["console", "/proc/no-such-thing/version"], |c| {
        c.console = Some(ConsoleConfig::to(FileRef::Path("/proc/no-such-thing/version".into())));
        Ok(vec![])
    }),
    ("control socket in no folder", 21, &["control", "/nowhere/control"], |c| {
        c.control = Some(FileRef::Path("/nowhere/control".into()));
        Ok(vec![])
    }),
];

fn table() -> Outcome {
    let mut wrong = Vec::new();
    for (what, code, words, change) in TABLE {
        let mut config = config("bad", "");
        let files = change(&mut config).map_err(|e| format!("{what}: {e}"))?;
        let (mut child, errors) = spawn_with(&config, files)?;
        let running = processes(&child);
        let ended = expect_code(&mut child, *code);
        let said = errors.remaining();
        if let Err(e) = ended {
            wrong.push(format!("{what}: {e}: {said}"));
        } else if said.matches("vmm bad: ").count() != 1 || !words.iter().all(|word| said.contains(word)) {
            wrong.push(format!("{what}: {said:?}, expected one sentence with {words:?}"));
        }
        if running.iter().any(|id| fs::read_to_string(format!("/proc/{id}/comm")).is_ok_and(|name| name == "vmm\n")) {
            wrong.push(format!("{what}: left a process running"));
        }
    }
    if wrong.is_empty() { Ok(format!("{} faults", TABLE.len())) } else { Err(wrong.join("; ")) }
}

/// The guest kernel with a change.
fn kernel(config: &mut VmConfig, change: fn(&mut Vec<u8>)) -> Result<Vec<OwnedFd>, String> {
    let mut image = fs::read(KERNEL).map_err(text)?;
    change(&mut image);
    fs::write("/run/bad", image).map_err(text)?;
    (config.kernel, config.initrd) = (FileRef::Path("/run/bad".into()), Some(FileRef::Path(INITRD.into())));
    Ok(vec![])
}

fn net(config: &mut VmConfig, tap: TapRef, vhost: Option<&str>) -> Result<(), String> {
    let mut net = NetConfig::new("02:00:00:00:00:04".parse().map_err(text)?, tap);
    net.vhost = vhost.map(|path| VhostRef::Path(path.into()));
    config.nets = vec![net];
    Ok(())
}

fn disk(config: &mut VmConfig, path: &str) -> Result<Vec<OwnedFd>, String> {
    config.disks = vec![DiskConfig::new("data", FileRef::Path(path.into()))];
    Ok(vec![])
}
