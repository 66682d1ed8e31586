//! Start, time, memory, reset, stop.

use std::time::{Duration, Instant};

use holdfast_model::contract::vm::{ConsoleConfig, FileRef, JailConfig, SerialConfig, Timer};
use holdfast_vmm::control::ControlClient;

use crate::guest::{Role, say};
use crate::host::{CONTROL, Lines, Outcome, Scenario, config, expect_code, pipe, spawn_with, text};
use crate::support::power_off;

pub const SCENARIOS: &[Scenario] = &[
    Scenario { name: "timers_fire_on_time_and_memory_above_4_gib_is_found", run: timers },
    Scenario { name: "guest_boots_without_a_pit", run: no_pit },
    Scenario { name: "bzimage_guest_that_resets_exits_10", run: resets },
    Scenario { name: "guest_that_ignores_the_button_is_stopped_at_the_deadline", run: stubborn },
];

pub const ROLES: &[Role] = &[
    Role { name: "sleep", play: sleep },
    Role { name: "reboot", play: reboot },
    Role { name: "ignore", play: || say("ignoring") },
];

fn timers() -> Outcome {
    Ok(format!("PIT: {}; chosen: {}", timers_by(Timer::Pit)?, timers_by(Timer::Auto)?))
}

fn timers_by(timer: Timer) -> Outcome {
    let (reader, writer) = pipe()?;
    let mut config = config("timers", "sleep");
    (config.memory_mib, config.timer) = (4096, timer);
    config.console = Some(ConsoleConfig::to(FileRef::Fd(4)));
    let (mut child, _errors) = spawn_with(&config, vec![writer.into()])?;
    let lines = Lines::of(reader);
    let memory = lines.wait("guest: memory")?;
    if memory.parse::<u64>().unwrap_or(0) < 3900 << 10 {
        return Err(format!("guest has {memory} KiB"));
    }
    // The TSC of this machine has no mark of an invariant one.
    expect_deadlines(&lines, false)?;
    lines.wait("guest: sleeping")?;
    let started = Instant::now();
    let inside = lines.wait("guest: slept")?;
    let outside = started.elapsed();
    let latest = lines.wait("guest: latest")?;
    expect_code(&mut child, 0)?;
    if !inside.ends_with("kvm-clock") {
        return Err(format!("guest measures time by another clock: {inside}"));
    }
    // Ten sleeps of 100 ms; emulation is slow, a lost timer is slower.
    if outside > Duration::from_secs(4) {
        return Err(format!("1 s of sleep took {} ms outside, {inside} inside", outside.as_millis()));
    }
    if latest.parse::<u64>().map_err(text)? > 1000 {
        return Err(format!("a sleep of 1 to 20 ms ended {latest} ms late"));
    }
    Ok(format!("1 s of sleep {} ms outside, {inside} inside, short sleeps {latest} ms late", outside.as_millis()))
}

/// Linux comes up on the timer that guests have on real hosts, without a PIT. It is stopped before it sleeps: emulation
/// loses a deadline now and then.
fn no_pit() -> Outcome {
    let (reader, writer) = pipe()?;
    let mut config = config("deadlines", "sleep");
    config.timer = Timer::TscDeadline;
    config.control = Some(FileRef::Path(CONTROL.into()));
    config.console = Some(ConsoleConfig::to(FileRef::Fd(4)));
    let (mut child, _errors) = spawn_with(&config, vec![writer.into()])?;
    expect_deadlines(&Lines::of(reader), true)?;
    ControlClient::connect(CONTROL).map_err(text)?.stop(Duration::ZERO).map_err(text)?;
    expect_code(&mut child, 12)?;
    Ok(String::new())
}

fn expect_deadlines(lines: &Lines, expected: bool) -> Result<(), String> {
    match lines.wait("guest: deadline")? {
        found if found == expected.to_string() => Ok(()),
        found => Err(format!("the guest has a TSC-deadline timer: {found}, expected {expected}")),
    }
}

fn resets() -> Outcome {
    let path = if std::path::Path::new("/guest-bzimage").exists() { "/guest-bzimage" } else { "/guest-kernel" };
    let (reader, writer) = pipe()?;
    let mut config = config("reset", "reboot");
    config.kernel = FileRef::Path(path.into());
    config.cmdline = config.cmdline.replace("8250.nr_uarts=0 ", "") + " console=ttyS0";
    config.console = Some(ConsoleConfig::to(FileRef::Fd(4)));
    config.jail = Some(JailConfig { uid: 1000, gid: 1000, pid_namespace: false });
    config.serial = Some(SerialConfig::to(FileRef::Path("/run/serial".into())));
    let (mut child, _errors) = spawn_with(&config, vec![writer.into()])?;
    Lines::of(reader).wait("guest: rebooting")?;
    expect_code(&mut child, 10)?;
    Ok(path.trim_start_matches('/').to_string())
}

fn stubborn() -> Outcome {
    let (reader, writer) = pipe()?;
    let mut config = config("stubborn", "ignore");
    config.control = Some(FileRef::Path(CONTROL.into()));
    config.console = Some(ConsoleConfig::to(FileRef::Fd(4)));
    let (mut child, _errors) = spawn_with(&config, vec![writer.into()])?;
    Lines::of(reader).wait("guest: ignoring")?;
    ControlClient::connect(CONTROL).map_err(text)?.stop(Duration::from_millis(500)).map_err(text)?;
    expect_code(&mut child, 12)?;
    Ok(String::new())
}

fn sleep() {
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    say(&format!("memory {}", memory.split_whitespace().nth(1).unwrap_or("")));
    let cpus = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    say(&format!("deadline {}", cpus.split_whitespace().any(|flag| flag == "tsc_deadline_timer")));
    say("sleeping");
    let started = Instant::now();
    for _ in 0..10 {
        std::thread::sleep(Duration::from_millis(100));
    }
    let clock = std::fs::read_to_string("/sys/devices/system/clocksource/clocksource0/current_clocksource");
    say(&format!("slept {} ms by {}", started.elapsed().as_millis(), clock.unwrap_or_default().trim()));
    // One timer that is lost among many shows as a sleep that ends late.
    let late = (0..100u64).map(|n| {
        let (wanted, started) = (Duration::from_millis(1 + n % 20), Instant::now());
        std::thread::sleep(wanted);
        started.elapsed().saturating_sub(wanted)
    });
    say(&format!("latest {}", late.max().unwrap_or_default().as_millis()));
    power_off();
}

fn reboot() {
    say("rebooting");
    std::thread::sleep(Duration::from_millis(200));
    // SAFETY: numbers only.
    unsafe { libc::reboot(libc::RB_AUTOBOOT) };
}
