//! The part's turn on a bench.

use super::*;
use crate::testing::Bench;
use std::cell::RefCell;
use std::future::{pending, ready};

/// Opens with the key `[7]`; does not answer to `[0]`.
#[derive(Default)]
struct Door(RefCell<Vec<Vec<EscrowKey>>>);

impl Opener for Door {
    fn open(&self, keys: Vec<EscrowKey>) -> Local<Result<(), String>> {
        self.0.borrow_mut().push(keys.clone());
        match keys.first().and_then(|key| key.0.first()) {
            Some(7) => Box::pin(ready(Ok(()))),
            Some(0) => Box::pin(pending()),
            _ => Box::pin(ready(Err("no key fits".into()))),
        }
    }
}

fn keys(first: u8) -> Event {
    Event::News(Rc::new(Keys(vec![EscrowKey(vec![first])])))
}

fn closed() -> (Rc<Door>, VaultPart, Bench) {
    let door = Rc::new(Door::default());
    let trust = |closed: Option<&str>| TrustStatus {
        vault_open: closed.is_none(),
        vault_note: closed.unwrap_or_default().to_owned(),
        ..TrustStatus::default()
    };
    let mut part = VaultPart::over(Box::new(trust), Some((door.clone(), "sealed to another image".into())));
    let mut bench = Bench::default();
    bench.settle(&mut part);
    (door, part, bench)
}

fn trust(part: &VaultPart) -> TrustStatus {
    let mut observed = Observed::default();
    part.observe(&mut observed);
    observed.device.trust
}

#[test]
fn a_closed_vault_says_why_once_and_opens_with_a_key_that_fits() {
    let (_, mut part, mut bench) = closed();
    bench.at(&mut part, 9);
    assert_eq!(bench.said("sealed to another image; the controller is asked for the key in escrow"), 1);
    assert_eq!(bench.facts.get(), Some(&Closed(Some("sealed to another image".into()))));
    assert!(!trust(&part).vault_open);

    bench.event(&mut part, &keys(7));
    assert_eq!(bench.facts.get(), Some(&Closed(None)));
    assert!(trust(&part).vault_open);
}

#[test]
fn keys_that_do_not_fit_are_said_once_and_others_are_tried() {
    let (door, mut part, mut bench) = closed();
    bench.event(&mut part, &keys(3));
    bench.event(&mut part, &keys(3));
    assert_eq!(bench.said("sealed to another image; no key fits"), 1);
    assert_eq!(trust(&part).vault_note, "sealed to another image; no key fits");
    bench.event(&mut part, &keys(7));
    assert_eq!(door.0.borrow().len(), 3);
    assert_eq!(bench.facts.get(), Some(&Closed(None)));
}

#[test]
fn one_attempt_goes_on_at_a_time() {
    let (door, mut part, mut bench) = closed();
    bench.event(&mut part, &keys(0));
    bench.event(&mut part, &keys(7));
    assert_eq!(door.0.borrow().len(), 1, "a TPM that does not answer is not asked twice");
    assert!(!trust(&part).vault_open);
}
