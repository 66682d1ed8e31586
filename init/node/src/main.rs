//! `node`: the agent of a Holdfast device. A table of contents: this boot, the keys and the vault, the kernel with its parts.

use anyhow::{Context, Result, bail};
use holdfast_node::boot::{self, Boot, Paths};
use holdfast_node::parts::base_os::slots::give_up_trial;
use holdfast_node::parts::logs::Shared;
use holdfast_node::parts::vault::escrow::{Lock, Opened};
use holdfast_node::parts::vault::facts::Closed;
use holdfast_node::setup::Setup;
use holdfast_node::trust::{self, Device, Locked, Opening};
use holdfast_supervise::Client;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::process::ExitCode;
use std::rc::Rc;
use std::sync::Arc;
use tokio::runtime::{Builder, Runtime};
use tokio::task::LocalSet;

fn main() -> ExitCode {
    match start() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // PID 1 keeps the line, shows it on the console and restarts the agent.
            eprintln!("node: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start() -> Result<()> {
    let paths = Paths::default();
    let boot = boot::load(&paths)?;
    eprintln!("node {} in slot {}, boot {}", boot.release.version, boot.facts.slot, boot.facts.boot_count);
    for warning in &boot.facts.warnings {
        eprintln!("boot: {warning}");
    }
    fs::create_dir_all(paths.control()).context("folder of control sockets")?;
    let runtime = Builder::new_current_thread().enable_all().build().context("event loop")?;
    let logs = Shared::default();
    let opened = trust::open(&boot, &paths).and_then(|opening| match opening {
        Opening::Open(opened) => Ok(opened),
        Opening::Locked(locked) => recover(&runtime, &boot, &paths, &logs, Arc::new(locked)),
    });
    let opened = opened.inspect_err(|error| vault_failed(&boot, &paths, error))?;
    eprintln!("identity: {}", opened.identity.strength());
    eprintln!("vault open{}", if opened.vault.created { ", made new" } else { "" });
    if !opened.note.is_empty() {
        eprintln!("vault: {}", opened.note);
    }
    let device = Arc::new(Device::new(opened, &boot, &paths).context("device certificates")?);
    folders(&paths)?;
    LocalSet::new().block_on(&runtime, Setup::new(boot, paths, device, logs, None).run(|_| false))
}

/// Makes the folders of the vault.
fn folders(paths: &Paths) -> Result<()> {
    for folder in ["config", "identity", "volumes", "images", "status"] {
        let path = paths.data(folder);
        fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        fs::set_permissions(&path, Permissions::from_mode(0o700))?;
    }
    Ok(())
}

/// Runs the parts that work without the vault until a key from escrow opens it.
fn recover(runtime: &Runtime, boot: &Boot, paths: &Paths, logs: &Shared, locked: Arc<Locked>) -> Result<trust::Opened> {
    let device = Arc::new(Device::locked(&locked, boot).context("the vault stays closed")?);
    let opened = Opened::default();
    let lock = Rc::new(Lock::new(locked.clone(), opened.clone()));
    let setup = Setup::new(boot.clone(), paths.clone(), device, logs.clone(), Some((lock, locked.why.clone())));
    LocalSet::new().block_on(runtime, setup.run(|facts| facts.get() == Some(&Closed(None))))?;
    match opened.take() {
        Some(vault) => Ok(locked.opened(vault, paths)),
        None => bail!("the vault is said to be open, and is not"),
    }
}

/// In a trial a vault that does not open means that the image is not good: back to the other one, with the reason.
fn vault_failed(boot: &Boot, paths: &Paths, error: &anyhow::Error) {
    match give_up_trial(boot, &format!("{error:#}")) {
        Ok(Some(due)) => {
            if let Err(e) = Client::connect(paths.supervise()).and_then(|mut init| init.reboot(&*due.text)) {
                eprintln!("node: reboot: {e}");
            }
            // PID 1 stops this process; the wait keeps it from trying again meanwhile.
            std::thread::sleep(std::time::Duration::from_secs(60));
        }
        Ok(None) => {}
        Err(e) => eprintln!("node: {e:#}"),
    }
}
