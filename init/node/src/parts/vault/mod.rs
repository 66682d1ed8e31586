//! The vault: how its key is kept, and recovery when this boot cannot unseal it.
//!
//! Principles:
//! 1. Recovery is the same kernel with fewer parts. It ends when the vault is open; then the agent starts with all of them.
//! 2. A key from escrow is tried off the loop. One that does not fit changes nothing, and the controller is asked again.
//! 3. Why the vault is closed is said in the same words on the console, in the log and in the device's info.
//!
//! Reading order: [`facts`], here, [`escrow`] (keys tried on the vault of this machine).

pub mod escrow;
pub mod facts;

use self::facts::Closed;
use crate::part::{Event, Part, Turn};
use crate::setup::Setup;
use crate::trust::{self, VaultState};
use crate::world::Local;
use holdfast_controller_client::identity::EscrowKey;
use holdfast_model::observed::{Observed, TrustStatus};
use std::rc::Rc;

/// Opens a closed vault.
pub trait Opener {
    /// Tries keys in order until one fits; what is wrong with all of them otherwise.
    fn open(&self, keys: Vec<EscrowKey>) -> Local<Result<(), String>>;
}

/// News: keys that the controller keeps for this device.
#[derive(Debug)]
pub struct Keys(pub Vec<EscrowKey>);

/// News: keys were tried.
struct Tried(Result<(), String>);

/// TPM and vault as they are reported; the argument says why the vault is closed. Reads no device.
pub type Trust = Box<dyn Fn(Option<&str>) -> TrustStatus>;

/// The part.
pub struct VaultPart {
    trust: Trust,
    /// `None` while the vault is open.
    locked: Option<Locked>,
}

struct Locked {
    opener: Rc<dyn Opener>,
    /// Why this boot cannot unseal it.
    reason: String,
    /// The same, with what is wrong with the keys that were tried last.
    text: String,
    opening: bool,
    said: bool,
}

/// The part on a real machine.
///
/// # Errors
/// Never.
pub fn new(setup: &Setup, _kept: Option<&[u8]>) -> anyhow::Result<Box<dyn Part>> {
    let (boot, device) = (setup.boot.clone(), setup.device.clone());
    let trust = move |closed: Option<&str>| {
        let state = closed.map_or_else(|| device.vault().clone(), |why| VaultState::Closed { why: why.to_owned() });
        trust::status(&boot, &device.identity().strength(), &state, device.pcrs())
    };
    Ok(Box::new(VaultPart::over(Box::new(trust), setup.locked.clone())))
}

impl VaultPart {
    /// A part over an open vault, or over a closed one: what opens it, and why it is closed.
    #[must_use]
    pub fn over(trust: Trust, locked: Option<(Rc<dyn Opener>, String)>) -> Self {
        let locked =
            locked.map(|(opener, reason)| Locked { opener, text: reason.clone(), reason, opening: false, said: false });
        Self { trust, locked }
    }

    fn tried(&mut self, result: &Result<(), String>, turn: &mut Turn<'_>) {
        let Some(locked) = &mut self.locked else { return };
        locked.opening = false;
        match result {
            Ok(()) => self.locked = None,
            Err(text) => {
                let text = format!("{}; {text}", locked.reason);
                // Asked for again and again: said when it changes.
                if text != locked.text {
                    turn.say("warning", text.clone());
                    locked.text = text;
                }
            }
        }
    }
}

impl Part for VaultPart {
    fn name(&self) -> &'static str {
        "vault"
    }

    fn event(&mut self, event: &Event, turn: &mut Turn<'_>) {
        if let Some(Tried(result)) = event.news() {
            self.tried(result, turn);
        } else if let (Some(Keys(keys)), Some(locked)) = (event.news(), &mut self.locked)
            && !std::mem::replace(&mut locked.opening, true)
        {
            let open = locked.opener.open(keys.clone());
            turn.start("open the vault", async move { Tried(open.await) });
        }
    }

    fn turn(&mut self, turn: &mut Turn<'_>) {
        if let Some(locked) = &mut self.locked
            && !std::mem::replace(&mut locked.said, true)
        {
            turn.say("warning", format!("{}; the controller is asked for the key in escrow", locked.reason));
        }
        turn.facts.publish(Closed(self.locked.as_ref().map(|locked| locked.text.clone())));
    }

    fn observe(&self, observed: &mut Observed) {
        let trust = (self.trust)(self.locked.as_ref().map(|locked| locked.text.as_str()));
        observed.device.troubles.extend(trust.trouble());
        observed.device.trust = trust;
    }
}

#[cfg(test)]
mod tests;
