//! The closed vault of this machine, and keys that the controller kept for it.

use super::Opener;
use crate::trust::Locked;
use crate::world::Local;
use anyhow::Result;
use holdfast_controller_client::identity::EscrowKey;
use holdfast_identity::Vault;
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

/// Where the vault is found once it is open.
pub type Opened = Rc<RefCell<Option<Vault>>>;

/// Tries keys on the vault.
pub struct Lock {
    locked: Arc<Locked>,
    opened: Opened,
}

impl Lock {
    /// For this closed vault; once it is open it appears in `opened`.
    #[must_use]
    pub fn new(locked: Arc<Locked>, opened: Opened) -> Self {
        Self { locked, opened }
    }
}

impl Opener for Lock {
    fn open(&self, keys: Vec<EscrowKey>) -> Local<Result<(), String>> {
        let (locked, opened) = (self.locked.clone(), self.opened.clone());
        Box::pin(async move {
            let tried = tokio::task::spawn_blocking(move || first_that_fits(&keys, |key| locked.open_with(key))).await;
            *opened.borrow_mut() = Some(tried.map_err(|e| e.to_string())??);
            Ok(())
        })
    }
}

/// What the first key gives that opens; else what is wrong with all of them.
fn first_that_fits<K, V>(keys: &[K], mut open: impl FnMut(&K) -> Result<V>) -> Result<V, String> {
    let mut refusals = Vec::new();
    for key in keys {
        match open(key) {
            Ok(opened) => return Ok(opened),
            Err(e) => refusals.push(format!("{e:#}")),
        }
    }
    if refusals.is_empty() {
        return Err("the controller keeps no key for this device".into());
    }
    Err(refusals.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_tried_until_one_fits_and_all_that_do_not_are_named() {
        let open = |key: &u8| match key {
            7 => Ok("open"),
            n => Err(anyhow::anyhow!("key {n} is another vault's")),
        };
        assert_eq!(first_that_fits(&[1, 7, 2], open), Ok("open"));
        assert_eq!(first_that_fits(&[1, 2], open), Err("key 1 is another vault's; key 2 is another vault's".into()));
        assert_eq!(first_that_fits(&[], open), Err("the controller keeps no key for this device".into()));
    }
}
