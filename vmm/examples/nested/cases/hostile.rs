//! Guests that misuse their devices.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use holdfast_model::contract::vm::{ConsoleConfig, DiskConfig, FileRef};
use holdfast_vmm::control::ControlClient;

use crate::guest::{Role, registers, say};
use crate::host::{
    CONTROL, DISK, JAIL, Lines, Outcome, Scenario, config, disk, exit_code, expect_code, pipe, spawn_with, text,
};
use crate::support::power_off;

pub const SCENARIOS: &[Scenario] = &[
    Scenario { name: "random_register_writes_never_crash_the_vmm", run: random_registers },
    Scenario { name: "hostile_guest_ends_itself_with_a_reason", run: hostile },
];

pub const ROLES: &[Role] =
    &[Role { name: "hostile", play: write_a_wrong_queue_size }, Role { name: "random", play: random }];

fn random_registers() -> Outcome {
    let (reader, writer) = pipe()?;
    let mut config = config("random", "random");
    config.console = Some(ConsoleConfig::to(FileRef::Fd(4)));
    config.jail = JAIL;
    config.control = Some(FileRef::Path(CONTROL.into()));
    disk()?;
    config.disks = vec![DiskConfig::new("data", FileRef::Path(DISK.into()))];
    let (mut child, _errors) = spawn_with(&config, vec![writer.into()])?;
    let lines = Lines::of(reader);
    lines.wait("guest: random")?;
    std::thread::sleep(Duration::from_secs(2));
    if child.try_wait().map_err(text)?.is_none() {
        ControlClient::connect(CONTROL).map_err(text)?.stop(Duration::from_millis(100)).map_err(text)?;
    }
    // The guest may hang in its own nonsense, reset, or be ended for it; nothing else.
    match exit_code(&mut child)? {
        code @ (0 | 10 | 11 | 12) => Ok(format!("exit code {code}")),
        code => Err(format!("exit code {code}")),
    }
}

fn hostile() -> Outcome {
    let (reader, writer) = pipe()?;
    let mut config = config("hostile", "hostile");
    config.cmdline.push_str(" iomem=relaxed");
    config.console = Some(ConsoleConfig::to(FileRef::Fd(4)));
    let (mut child, errors) = spawn_with(&config, vec![writer.into()])?;
    Lines::of(reader).wait("guest: hostile")?;
    let reason = errors.wait("vmm hostile:")?;
    expect_code(&mut child, 11)?;
    Ok(reason)
}

fn write_a_wrong_queue_size() {
    say("hostile");
    std::thread::sleep(Duration::from_millis(200));
    registers("0x1044", |map| map.write(0x18, 3));
}

fn random() {
    say("random");
    std::thread::sleep(Duration::from_millis(200));
    random_writes();
    power_off();
}

/// Random writes to the registers and configuration space of the disk and the entropy device.
fn random_writes() {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for id in ["0x1044", "0x1042"] {
        let writes: Vec<(usize, u16)> = (0..2000).map(|_| (random() as usize % 0x3ffc * 2, random() as u16)).collect();
        // Table, notify and status registers; not the sizes that are known to end the VM at once.
        registers(id, |map| {
            writes.iter().filter(|(at, _)| *at >= 0x1000).for_each(|(at, value)| map.write(*at, *value))
        });
        for entry in std::fs::read_dir("/sys/bus/pci/devices").into_iter().flatten().flatten() {
            let Ok(config) = OpenOptions::new().write(true).open(entry.path().join("config")) else { continue };
            for _ in 0..200 {
                let _ = config.write_at(&(random() as u32).to_le_bytes(), random() % 64 * 4);
            }
        }
        registers(id, |map| writes.iter().for_each(|(at, value)| map.write(at % 0x40, *value)));
    }
}
