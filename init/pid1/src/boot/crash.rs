//! A panic in PID 1: the reason goes to the console, the kernel log (and so to pstore) and STATE, then the machine
//! resets. A kernel whose PID 1 ends would panic as well, but without our words.
#![forbid(unsafe_code)]

use super::console::Console;
use super::halt;
use super::state::State;
use crate::supervisor::DownKind;
use holdfast_model::observed::BootReason;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

/// For people who stand in front of the machine.
const READ_DELAY: Duration = Duration::from_secs(10);

static STATE: OnceLock<PathBuf> = OnceLock::new();

/// From now on a panic can be recorded here.
pub fn remember_state(device: &str) {
    // Set once per boot.
    let _ = STATE.set(device.into());
}

/// Sets the hook.
pub fn install() {
    std::panic::set_hook(Box::new(|info| {
        let mut console = Console::open();
        let reason = format!("pid1 panicked: {info}");
        console.say(&reason);
        if let Some(device) = STATE.get() {
            let recorded = State::open(device, None).and_then(|mut state| state.end(BootReason::Fatal, &reason));
            if let Err(error) = recorded {
                console.say(&format!("pid1: STATE: {error}"));
            }
        }
        console.drain();
        std::thread::sleep(READ_DELAY);
        halt::end(&mut console, DownKind::Reboot)
    }));
}
