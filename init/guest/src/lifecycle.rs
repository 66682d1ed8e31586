//! The guest's life as PID 1: set up, run the app, pass on the wish to stop, report, power off.

use crate::account::{self, Account};
use crate::console::{self, Console};
use crate::document;
use crate::{app, ends, inroot, network, power, root};
use holdfast_model::contract::end::{End, ExitClass};
use holdfast_model::contract::guest::AppDocument;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::reboot::{RebootMode, reboot, set_cad_enabled};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long processes that got SIGKILL may take to be gone.
const KILL_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the last output may take to reach the console.
const OUTPUT_TIMEOUT: Duration = Duration::from_secs(2);
/// Exit code when the app was never reached.
const SETUP_FAILED: i32 = 125;

/// How the app ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// It returned this code.
    Code(i32),
    /// This signal ended it.
    Signal(i32),
}

impl Exit {
    /// For the VMM: class and sentence.
    fn end(self) -> End {
        match self {
            Exit::Code(code) => {
                End::new(ExitClass::GuestExit { code }, format!("the program ended with exit code {code}"))
            }
            Exit::Signal(signal) => {
                End::new(ExitClass::GuestSignal { signal }, format!("the program was ended by signal {signal}"))
            }
        }
    }
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Exit::Code(code) => write!(f, "exit code={code}"),
            Exit::Signal(signal) => write!(f, "exit signal={signal}"),
        }
    }
}

/// A failure before the app ran: its text, and the exit code that stands for it.
struct Failure {
    text: String,
    code: i32,
}

impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Self {
        Self { text: error.to_string(), code: SETUP_FAILED }
    }
}

/// The whole life. Returns only if the VM cannot be powered off.
pub fn live() -> ExitCode {
    let mounted = root::mount_own();
    let console = ["/dev/hvc0", "/dev/console", "/dev/null"].iter().find_map(|p| Console::open(Path::new(p)).ok());
    let Some(console) = console.map(Arc::new) else {
        power_off();
        return ExitCode::FAILURE;
    };
    let at_panic = Arc::clone(&console);
    std::panic::set_hook(Box::new(move |info| {
        let text = format!("panic: {info}");
        at_panic.say(&format!("error: {text}"));
        finish(&at_panic, Exit::Code(SETUP_FAILED), &guest_error(&text));
    }));
    let (exit, end) = match mounted.map_err(Failure::from).and_then(|()| run(&console)) {
        Ok(exit) => (exit, exit.end()),
        Err(failure) => {
            console.say(&format!("error: {}", failure.text));
            (Exit::Code(failure.code), guest_error(&failure.text))
        }
    };
    for at in root::dismantle() {
        console.say(&format!("error: {at}: busy at the end, not unmounted"));
    }
    finish(&console, exit, &end);
    ExitCode::FAILURE
}

fn guest_error(text: &str) -> End {
    End::new(ExitClass::GuestError, format!("guest: {text}"))
}

fn finish(console: &Console, exit: Exit, end: &End) {
    console.say(&exit.to_string());
    if let Err(error) = ends::say(end) {
        console.say(&format!("error: the VMM was not told how the guest ended: {error}"));
    }
    console.drain();
    power_off();
}

fn power_off() {
    nix::unistd::sync();
    // Returns only on failure; the kernel then panics when PID 1 ends, which resets the VM.
    let _ = reboot(RebootMode::RB_POWER_OFF);
}

fn run(console: &Arc<Console>) -> Result<Exit, Failure> {
    // Before any thread: all inherit the mask, so that only the main loop sees these signals.
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGCHLD, Signal::SIGINT, Signal::SIGTERM] {
        signals.add(signal);
    }
    sigprocmask(SigmaskHow::SIG_BLOCK, Some(&signals), None)?;
    let signals = SignalFd::with_flags(&signals, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
    // Ctrl-Alt-Del of a VMM becomes SIGINT: a wish to stop, not an instant reset.
    let _ = set_cad_enabled(false);
    let _ = fs::write("/proc/self/oom_score_adj", "-1000");

    let document = root::document()?;
    let root = root::assemble(&document.mounts)?;
    tune();
    nix::unistd::sethostname(&document.hostname)?;
    let network = network::start(root.try_clone()?, &document.hostname, console)?;
    let account = account(&root, &document)?;
    if !document.cwd.is_empty() {
        inroot::folder(&root, &document.cwd)
            .map_err(|e| Failure { text: format!("working directory {}: {e}", document.cwd), code: SETUP_FAILED })?;
    }
    let buttons = power::buttons(Path::new("/sys/class/input"), Path::new("/dev/input")).unwrap_or_default();
    if buttons.is_empty() {
        console.say("error: no power button: the app can only be ended by force");
    }
    let (pid, outputs) =
        app::start(&document, &account).map_err(|e| Failure { code: e.exit_code(), text: e.to_string() })?;
    drop(root);
    let pump = console::pump(Arc::clone(console), outputs)?;
    let stop_signal = document::signal(&document.stop_signal).unwrap_or(libc::SIGTERM);
    let exit = watch(pid, stop_signal, Duration::from_secs(document.grace_seconds.into()), &signals, buttons, console);
    end_all(&pump);
    drop(network);
    Ok(exit)
}

/// What containers may expect of the kernel: low ports and ping for every user, as common container engines set them.
fn tune() {
    for (name, value) in [("net/ipv4/ip_unprivileged_port_start", "0"), ("net/ipv4/ping_group_range", "0 2147483647")] {
        let _ = fs::write(Path::new("/proc/sys").join(name), value);
    }
}

fn account(root: &OwnedFd, document: &AppDocument) -> Result<Account, Failure> {
    let passwd = inroot::read(root, "/etc/passwd")?.unwrap_or_default();
    let group = inroot::read(root, "/etc/group")?.unwrap_or_default();
    Ok(account::resolve(&document.user, &passwd, &group)?)
}

/// Waits for the app to end; on a wish to stop sends `stop_signal`, and SIGKILL after `grace`.
fn watch(
    pid: i32,
    stop_signal: i32,
    grace: Duration,
    signals: &SignalFd,
    mut buttons: Vec<File>,
    console: &Console,
) -> Exit {
    let mut kill_at: Option<Instant> = None;
    loop {
        if let Some(exit) = reap(pid) {
            return exit;
        }
        let mut fds = vec![PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        fds.extend(buttons.iter().map(|b| PollFd::new(b.as_fd(), PollFlags::POLLIN)));
        // Without a wish to stop there is no deadline: the app runs as long as it likes.
        let timeout = kill_at.map_or(PollTimeout::NONE, |at| {
            PollTimeout::try_from(at.saturating_duration_since(Instant::now()) + Duration::from_millis(1))
                .unwrap_or(PollTimeout::MAX)
        });
        let _ = poll(&mut fds, timeout);
        let mut stop = false;
        while let Ok(Some(info)) = signals.read_signal() {
            stop |= info.ssi_signo != libc::SIGCHLD.cast_unsigned();
        }
        stop |= buttons.iter_mut().fold(false, |any, button| power::pressed(button) | any);
        if stop && kill_at.is_none() {
            console.say(&format!("stop asked for: signal {stop_signal}, then {} s", grace.as_secs()));
            send(pid, stop_signal);
            kill_at = Some(Instant::now() + grace);
        }
        if kill_at.is_some_and(|at| Instant::now() >= at) {
            console.say("the app did not end in time; killing it");
            send(-1, libc::SIGKILL);
            kill_at = Some(Instant::now() + KILL_TIMEOUT);
        }
    }
}

fn send(pid: i32, signal: i32) {
    // SAFETY: kill takes two integers. nix's wrapper cannot name real-time signals.
    unsafe { libc::kill(pid, signal) };
}

/// Collects every process that has ended; how the app ended, if it is among them.
fn reap(app: i32) -> Option<Exit> {
    let mut exit = None;
    loop {
        match wait() {
            Waited::Ended(pid, how) if pid == app => exit = Some(how),
            Waited::Ended(..) => {}
            Waited::Running => return exit,
            // The app is our child: none left, and its end not seen, cannot happen; it must not hang us if it does.
            Waited::NoChild => return exit.or(Some(Exit::Signal(libc::SIGKILL))),
        }
    }
}

enum Waited {
    Ended(i32, Exit),
    Running,
    NoChild,
}

/// One `waitpid` for any child. nix's wrapper fails on real-time signals after the process is gone, so this is the call itself.
fn wait() -> Waited {
    let mut status = 0;
    // SAFETY: waitpid writes one int, which lives until the call returns.
    let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
    match pid {
        0 => Waited::Running,
        -1 if Errno::last() == Errno::EINTR => Waited::Running,
        -1 => Waited::NoChild,
        pid if libc::WIFSIGNALED(status) => Waited::Ended(pid, Exit::Signal(libc::WTERMSIG(status))),
        pid => Waited::Ended(pid, Exit::Code(libc::WEXITSTATUS(status))),
    }
}

/// The container ends with its first process: the rest is killed, and what they had still to say passed on.
fn end_all(pump: &JoinHandle<()>) {
    send(-1, libc::SIGKILL);
    let started = Instant::now();
    while started.elapsed() < KILL_TIMEOUT {
        match wait() {
            Waited::NoChild => break,
            Waited::Running => std::thread::sleep(Duration::from_millis(2)),
            Waited::Ended(..) => {}
        }
    }
    let started = Instant::now();
    while !pump.is_finished() && started.elapsed() < OUTPUT_TIMEOUT {
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exit_line_is_the_contract_with_the_host() {
        assert_eq!(Exit::Code(3).to_string(), "exit code=3");
        assert_eq!(Exit::Signal(9).to_string(), "exit signal=9");
    }
}
