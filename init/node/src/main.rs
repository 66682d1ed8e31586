//! `node`: the agent of a Holdfast device. A table of contents: this boot, the keys and the vault, the loop.

use anyhow::{Context, Result};
use holdfast_node::agent::{self, Parts};
use holdfast_node::boot::{self, Boot, Paths};
use holdfast_node::logs::Waiting;
use holdfast_node::recovery;
use holdfast_node::supervisor::Supervisor;
use holdfast_node::trust::{self, Device, Opening};
use holdfast_node::update::Update;
use std::cell::RefCell;
use std::process::ExitCode;
use std::rc::Rc;

fn main() -> ExitCode {
    match start() {
        Ok(never) => match never {},
        Err(error) => {
            // PID 1 keeps the line, shows it on the console and starts the agent anew.
            eprintln!("node: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start() -> Result<std::convert::Infallible> {
    let paths = Paths::default();
    let boot = boot::load(&paths)?;
    eprintln!("node {} in slot {}, boot {}", boot.release.version, boot.facts.slot, boot.facts.boot_count);
    for warning in &boot.facts.warnings {
        eprintln!("boot: {warning}");
    }
    let supervisor = Rc::new(RefCell::new(Supervisor::new(&paths.supervise())));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("event loop")?;
    let opened = trust::open(&boot, &paths).and_then(|opening| match opening {
        Opening::Open(opened) => Ok(opened),
        Opening::Locked(locked) => {
            let local = tokio::task::LocalSet::new();
            let vault = local.block_on(&runtime, recovery::run(&boot, &paths, &supervisor, &locked))?;
            Ok(locked.opened(vault, &paths))
        }
    });
    let opened = match opened {
        Ok(opened) => opened,
        Err(error) => return Err(vault_failed(&boot, &paths, &supervisor, error)),
    };
    eprintln!("identity: {}", opened.identity.strength());
    eprintln!("vault open{}", if opened.vault.created { ", made new" } else { "" });
    if !opened.note.is_empty() {
        eprintln!("vault: {}", opened.note);
    }
    let device = Rc::new(Device::new(opened, &boot, &paths).context("device certificates")?);

    let local = tokio::task::LocalSet::new();
    let logs = Rc::new(RefCell::new(Waiting::default()));
    local.block_on(&runtime, agent::run(Parts { boot, paths, device, supervisor, logs }))
}

/// In a trial a vault that does not open means that the image is not good: back to the other one, with the reason.
fn vault_failed(
    boot: &Boot,
    paths: &Paths,
    supervisor: &Rc<RefCell<Supervisor>>,
    error: anyhow::Error,
) -> anyhow::Error {
    let text = format!("{error:#}");
    match Update::open(boot, paths).and_then(|mut update| update.give_up_trial(&text)) {
        Ok(Some(due)) => {
            if let Err(e) = supervisor.borrow_mut().reboot(&due.text) {
                eprintln!("node: reboot: {e}");
            }
            // PID 1 stops this process; the wait keeps it from trying again meanwhile.
            std::thread::sleep(std::time::Duration::from_secs(60));
        }
        Ok(None) => {}
        Err(e) => eprintln!("node: {e:#}"),
    }
    error
}
