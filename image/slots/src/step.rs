//! The rules of A/B updates, as a pure function.
//!
//! ```text
//!            BeginStage      Staged        Activate        boot of the other slot     TrialPassed
//!   Stable ------------> Dirty ---> Staged --------> Armed -----------------------> Trial ----------> Committing --> Stable
//!     ^                                                |                              |                     (other slot committed)
//!     +---- boot of the committed slot: Failure -------+------------------------------+
//! ```
//! `Activate` points firmware at the other slot for one boot (BootNext); the boot order keeps the committed slot first
//! until the trial has passed. So giving up, crashing, hanging and losing power all do the same: the next boot is the
//! committed slot, which finds `Armed` or `Trial` in the record and notes the failure.
//!
//! Every step can be cut off after any of its effects and entered again from what is in STATE then.

use crate::record::{Failure, Image, Phase, Record};
use holdfast_model::observed::BootReason;
use holdfast_model::slot::Slot;

/// Reboots in a row that may be spent on getting firmware to start the right slot.
pub const MAX_REPAIRS: u32 = 2;
/// The same when firmware kept the boot order with the committed slot first, and started the other one all the same: somebody may have
/// chosen it by hand, once. If it does so again, it has tried the committed slot and cannot start it; a second repair would set what is
/// set already.
pub const MAX_REPAIRS_OF_A_KEPT_ORDER: u32 = 1;

/// What firmware's variables say about our two slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Nvram {
    /// There are boot variables at all.
    pub available: bool,
    /// The slot named first in the boot order, if the order begins with our two entries.
    pub first: Option<Slot>,
}

/// What a boot found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootFacts {
    /// The slot that runs.
    pub running: Slot,
    /// Its image, from the measured command line.
    pub image: Image,
    /// Boot variables.
    pub nvram: Nvram,
    /// How the boot before ended, from the diary; empty when nothing is known.
    pub previous_end: String,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The system has started. PID 1 sends it once per boot, before anything else.
    Boot(BootFacts),
    /// The other slot is about to be overwritten with this image.
    BeginStage(Image),
    /// It was written, synced and read back with the right hash.
    Staged,
    /// Writing it failed; the other slot holds nothing useful.
    StageFailed(String),
    /// Reboot into the staged image.
    Activate,
    /// The trial has proved itself ([`crate::trial`]).
    TrialPassed,
    /// The trial has failed, in its own words. Also sent by PID 1 when the slot is unreadable.
    TrialFailed(String),
    /// The running slot's image is damaged: it cannot be verified or mounted, or a bad block was met while it ran. Sent by
    /// PID 1, after [`Event::Boot`]. On a trial this fails the trial; the committed slot is given up for the other one,
    /// whatever that holds, as there is nothing left to lose.
    SlotBroken {
        /// Which slot.
        running: Slot,
        /// What is wrong with it.
        reason: String,
    },
    /// `retry_update` counter of the controller.
    RetryCounter(u32),
    /// `force.fallback.counter` of the controller.
    ForceFallback(u32),
}

/// What to do, in this order. The record that [`step`] returns is the one after all of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Make this durable in STATE.
    WriteRecord(Record),
    /// Make sure that both slots have a boot entry.
    EnsureEntries,
    /// Boot order = this slot, the other, then whatever else was there.
    SetBootOrder(Slot),
    /// Boot this slot next time, once.
    SetBootNext(Slot),
    /// Set the epoch's bit in the TPM; without a TPM nothing.
    CommitEpoch(u32),
    /// Stop in an orderly way and restart. Always last.
    Reboot {
        /// Class, for the diary and the controller.
        reason: BootReason,
        /// Text.
        text: String,
    },
}

/// An event that cannot be followed now. The record stays as it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It failed before.
    #[error("version {version} failed before ({reason}); it is tried again when the controller raises retry_update")]
    FailedBefore {
        /// The version.
        version: String,
        /// Why it failed.
        reason: String,
    },
    /// A downgrade below the committed epoch: the vault would not open.
    #[error(
        "version {version} has security epoch {found}, this machine has committed epoch {committed}: downgrade refused"
    )]
    Downgrade {
        /// The version.
        version: String,
        /// Its epoch.
        found: u32,
        /// Committed epoch.
        committed: u32,
    },
    /// Not in this phase.
    #[error("cannot {event} while {phase}")]
    Phase {
        /// What was asked for.
        event: &'static str,
        /// What is under way.
        phase: &'static str,
    },
    /// There is no good image to go back to.
    #[error("slot {slot} holds no good image to fall back to")]
    NoFallback {
        /// The other slot.
        slot: Slot,
    },
}

type Outcome = Result<(Record, Vec<Effect>), Refused>;

/// Decides what follows from an event.
///
/// # Errors
/// [`Refused`]; nothing is to be done then.
pub fn step(record: &Record, event: Event) -> Outcome {
    let r = record.clone();
    match event {
        Event::Boot(facts) => Ok(boot(r, facts)),
        Event::BeginStage(image) => begin_stage(r, image),
        Event::Staged => match r.phase.clone() {
            Phase::Dirty(image) => Ok(saved(Record { phase: Phase::Staged { image, forced: false }, ..r })),
            phase => refused("finish staging", &phase),
        },
        Event::StageFailed(reason) => match r.phase.clone() {
            // The slot's contents are lost, but the version is not at fault: it may be fetched again.
            Phase::Dirty(image) => {
                let failure = Some(Failure { version: image.version, reason, tried: false });
                Ok(saved(Record { phase: Phase::Stable, failure, ..r }))
            }
            phase => refused("fail staging", &phase),
        },
        Event::Activate => match r.phase.clone() {
            Phase::Staged { image, forced } => Ok(arm(r, image, forced)),
            phase => refused("activate", &phase),
        },
        Event::TrialPassed => match r.phase.clone() {
            Phase::Trial { image, reason: None } => Ok(commit(r, image)),
            Phase::Committing(image) => Ok(commit(r, image)),
            phase => refused("commit", &phase),
        },
        Event::TrialFailed(reason) => match r.phase.clone() {
            Phase::Trial { image, reason: earlier } => Ok(give_up(r, image, earlier.unwrap_or(reason))),
            phase => refused("give up a trial", &phase),
        },
        Event::SlotBroken { running, reason } => slot_broken(r, running, reason),
        Event::RetryCounter(counter) => Ok(match counter == r.retry_counter {
            true => (r, vec![]),
            false => saved(Record { retry_counter: counter, failure: None, ..r }),
        }),
        Event::ForceFallback(counter) => force_fallback(r, counter),
    }
}

fn begin_stage(r: Record, image: Image) -> Outcome {
    match &r.phase {
        Phase::Stable | Phase::Dirty(_) | Phase::Staged { .. } => {}
        phase => return refused("overwrite the other slot", phase),
    }
    if let Some(f) = r.failure.as_ref().filter(|f| f.tried && f.version == image.version) {
        return Err(Refused::FailedBefore { version: f.version.clone(), reason: f.reason.clone() });
    }
    if image.epoch < r.committed_epoch {
        return Err(Refused::Downgrade { version: image.version, found: image.epoch, committed: r.committed_epoch });
    }
    let mut r = Record { phase: Phase::Dirty(image), ..r };
    *r.image_mut(r.target()) = None;
    Ok(saved(r))
}

fn boot(mut r: Record, facts: BootFacts) -> (Record, Vec<Effect>) {
    let (running, other) = (facts.running, facts.running.other());
    let mut fx = Vec::new();
    if running == r.committed {
        *r.image_mut(running) = Some(facts.image.clone());
        match r.phase.clone() {
            Phase::Stable => {}
            // Cut off while writing: the target is neither the old nor the new image.
            Phase::Dirty(_) => r.phase = Phase::Stable,
            Phase::Staged { image, forced: true } => return arm(r, image, true),
            Phase::Staged { .. } => {}
            Phase::Armed(image) => {
                let seen =
                    format!("slot {other} did not start: firmware came back to slot {running} before PID 1 ran there");
                fail(&mut r, image, seen);
            }
            Phase::Trial { image, reason } => {
                let own = reason.unwrap_or_else(|| "it ended without saying why (power loss, crash or hang)".into());
                let end = if facts.previous_end.is_empty() {
                    String::new()
                } else {
                    format!("; last boot: {}", facts.previous_end)
                };
                let seen = format!("trial in slot {other} failed: {own}; slot {running} runs again{end}");
                fail(&mut r, image, seen);
            }
            Phase::Committing(image) => {
                // The new image has proved itself; only the boot order was not changed before the power went.
                if r.repairs < MAX_REPAIRS && facts.nvram.available {
                    r.repairs += 1;
                    let text = format!("slot {other} is being committed, firmware started slot {running}");
                    return redirect(r, other, text);
                }
                // With a raised epoch this slot may be locked out already: keep trying, without rebooting by ourselves.
                if image.epoch > r.committed_epoch {
                    fx.push(Effect::WriteRecord(r.clone()));
                    order(&mut fx, &facts.nvram, other);
                    return (r, fx);
                }
                let seen = format!("slot {other} passed its trial, but firmware keeps starting slot {running}");
                fail(&mut r, image, seen);
            }
        }
        r.repairs = 0;
        fx.push(Effect::WriteRecord(r.clone()));
        order(&mut fx, &facts.nvram, r.committed);
        return (r, fx);
    }
    match r.phase.clone() {
        Phase::Committing(image) => commit(r, image),
        // Staged, not Armed: the power went after BootNext was set and before the record was written.
        Phase::Armed(image) | Phase::Staged { image, .. } => {
            if image != facts.image && !is_unknown(&image) {
                let found = format!(
                    "slot {running} holds {} epoch {}, {} epoch {} was staged",
                    facts.image.version, facts.image.epoch, image.version, image.epoch
                );
                return give_up(r, image, found);
            }
            begin_trial(r, facts)
        }
        // Back in a trial that was over, or in a slot that nothing asked for.
        phase => {
            let kept = facts.nvram.first == Some(r.committed);
            let allowed = if kept { MAX_REPAIRS_OF_A_KEPT_ORDER } else { MAX_REPAIRS };
            if r.repairs < allowed && facts.nvram.available {
                r.repairs += 1;
                if let Phase::Trial { image, reason: None } = phase {
                    let reason = Some("it was started again without having been asked for".into());
                    r.phase = Phase::Trial { image, reason };
                }
                let to = r.committed;
                return redirect(r, to, format!("slot {running} runs though slot {to} is committed"));
            }
            // Firmware cannot be brought to start the committed slot: this one has to prove itself instead.
            begin_trial(r, facts)
        }
    }
}

/// Stands for "whatever that slot holds" in [`Phase::Armed`]: no valid version is empty.
fn unknown() -> Image {
    Image { version: String::new(), epoch: 0 }
}

fn is_unknown(image: &Image) -> bool {
    image.version.is_empty()
}

fn slot_broken(mut r: Record, running: Slot, reason: String) -> Outcome {
    if running != r.committed {
        return match r.phase.clone() {
            Phase::Trial { image, reason: earlier } => Ok(give_up(r, image, earlier.unwrap_or(reason))),
            phase => refused("leave the damaged slot", &phase),
        };
    }
    let to = r.target();
    let image = match (&r.phase, r.image(to), &r.failure) {
        (Phase::Staged { image, .. }, _, _) => image.clone(),
        (Phase::Stable, Some(good), _) => good.clone(),
        // It was tried blindly and did not even start.
        (Phase::Stable, None, Some(f)) if f.tried && f.version.is_empty() => {
            return Err(Refused::NoFallback { slot: to });
        }
        (Phase::Stable, None, _) => unknown(),
        (phase, _, _) => return refused("leave the damaged slot", phase),
    };
    let version = r.image_mut(running).take().map(|i| i.version).unwrap_or_default();
    let text = format!("{version} in slot {running} is damaged: {reason}; slot {to} boots instead");
    // Damage is not the version's fault: it may be written again.
    r.failure = Some(Failure { version, reason, tried: false });
    r.phase = Phase::Armed(image);
    let fx = vec![
        Effect::EnsureEntries,
        Effect::SetBootOrder(running),
        Effect::SetBootNext(to),
        Effect::WriteRecord(r.clone()),
        Effect::Reboot { reason: BootReason::Fallback, text },
    ];
    Ok((r, fx))
}

fn begin_trial(r: Record, facts: BootFacts) -> (Record, Vec<Effect>) {
    let r = Record { phase: Phase::Trial { image: facts.image, reason: None }, ..r };
    let mut fx = vec![Effect::WriteRecord(r.clone())];
    // Without the committed slot first in the order, a failing trial would not end.
    order(&mut fx, &facts.nvram, r.committed);
    (r, fx)
}

/// Points firmware at the other slot for one boot. The record says `Armed` only after BootNext is set, so that "armed
/// and back here" always means that the slot did not start.
fn arm(r: Record, image: Image, forced: bool) -> (Record, Vec<Effect>) {
    let to = r.target();
    let (reason, text) = match forced {
        true => {
            (BootReason::Fallback, format!("fallback to {} in slot {to}, ordered by the controller", image.version))
        }
        false => (BootReason::Update, format!("update to {} in slot {to}", image.version)),
    };
    let committed = r.committed;
    let r = Record { phase: Phase::Armed(image), ..r };
    let fx = vec![
        Effect::EnsureEntries,
        Effect::SetBootOrder(committed),
        Effect::SetBootNext(to),
        Effect::WriteRecord(r.clone()),
        Effect::Reboot { reason, text },
    ];
    (r, fx)
}

fn commit(r: Record, image: Image) -> (Record, Vec<Effect>) {
    let new = r.target();
    let committing = Record { phase: Phase::Committing(image.clone()), ..r };
    let mut fx = vec![Effect::WriteRecord(committing.clone()), Effect::EnsureEntries, Effect::SetBootOrder(new)];
    let mut done = committing;
    if image.epoch > done.committed_epoch {
        fx.push(Effect::CommitEpoch(image.epoch));
        done.committed_epoch = image.epoch;
    }
    done.committed = new;
    *done.image_mut(new) = Some(image);
    done.phase = Phase::Stable;
    // What is wrong with the slot that was left stays known until something is written there.
    if done.image(new.other()).is_some() {
        done.failure = None;
    }
    done.repairs = 0;
    fx.push(Effect::WriteRecord(done.clone()));
    (done, fx)
}

fn give_up(r: Record, image: Image, reason: String) -> (Record, Vec<Effect>) {
    let text = format!("trial of {} in slot {} failed: {reason}", image.version, r.target());
    let r = Record { phase: Phase::Trial { image, reason: Some(reason) }, ..r };
    let fx = vec![Effect::WriteRecord(r.clone()), Effect::Reboot { reason: BootReason::Fallback, text }];
    (r, fx)
}

fn fail(r: &mut Record, image: Image, reason: String) {
    let target = r.target();
    *r.image_mut(target) = None;
    r.failure = Some(Failure { version: image.version, reason, tried: true });
    r.phase = Phase::Stable;
}

/// Reboots into another slot. The repair counts only once the variables are set, so that it is firmware that is counted
/// and not power cuts.
fn redirect(r: Record, to: Slot, text: String) -> (Record, Vec<Effect>) {
    let fx = vec![
        Effect::EnsureEntries,
        Effect::SetBootOrder(to),
        Effect::SetBootNext(to),
        Effect::WriteRecord(r.clone()),
        Effect::Reboot { reason: BootReason::Fallback, text },
    ];
    (r, fx)
}

fn force_fallback(r: Record, counter: u32) -> Outcome {
    match r.fallback_counter {
        Some(seen) if seen == counter => return Ok((r, vec![])),
        // The first value ever seen is where counting starts.
        None => {
            return Ok(saved(Record { fallback_counter: Some(counter), ..r }));
        }
        Some(_) => {}
    }
    let slot = r.target();
    let good = r.image(slot).filter(|i| i.epoch >= r.committed_epoch).cloned();
    match (&r.phase, good) {
        (Phase::Stable, Some(image)) => {
            // The counter first: the order is carried out once, also when the power goes now.
            let r = Record {
                fallback_counter: Some(counter),
                phase: Phase::Staged { image: image.clone(), forced: true },
                ..r
            };
            let first = Effect::WriteRecord(r.clone());
            let (r, mut fx) = arm(r, image, true);
            fx.insert(0, first);
            Ok((r, fx))
        }
        (Phase::Stable, None) => Err(Refused::NoFallback { slot }),
        (phase, _) => refused("fall back", phase),
    }
}

fn order(fx: &mut Vec<Effect>, nvram: &Nvram, first: Slot) {
    if nvram.available && nvram.first != Some(first) {
        fx.extend([Effect::EnsureEntries, Effect::SetBootOrder(first)]);
    }
}

fn saved(r: Record) -> (Record, Vec<Effect>) {
    (r.clone(), vec![Effect::WriteRecord(r)])
}

fn refused(event: &'static str, phase: &Phase) -> Outcome {
    let phase = match phase {
        Phase::Stable => "no update is under way",
        Phase::Dirty(_) => "the other slot is being written",
        Phase::Staged { .. } => "an update waits to be activated",
        Phase::Armed(_) => "the reboot into an update is due",
        Phase::Trial { .. } => "an update is on trial",
        Phase::Committing(_) => "an update is being committed",
    };
    Err(Refused::Phase { event, phase })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(version: &str) -> Image {
        Image { version: version.into(), epoch: 0 }
    }

    fn boots(record: &Record, running: Slot, version: &str) -> Record {
        let nvram = Nvram { available: true, first: Some(record.committed) };
        let facts = BootFacts { running, image: image(version), nvram, previous_end: String::new() };
        step(record, Event::Boot(facts)).unwrap().0
    }

    fn broken(record: &Record, running: Slot) -> Outcome {
        step(record, Event::SlotBroken { running, reason: "block 7".into() })
    }

    #[test]
    fn damaged_committed_slot_is_left_for_the_other_which_must_prove_itself() {
        for known in [true, false] {
            let mut record = Record::initial(Slot::A, image("2"));
            record.image_b = known.then(|| image("1"));
            let (record, fx) = broken(&record, Slot::A).unwrap();
            assert!(fx.contains(&Effect::SetBootNext(Slot::B)));
            assert!(
                matches!(fx.last(), Some(Effect::Reboot { reason: BootReason::Fallback, text }) if text.contains("block 7"))
            );
            let trial = boots(&record, Slot::B, "1");
            assert!(
                matches!(&trial.phase, Phase::Trial { image, reason: None } if image.version == "1"),
                "{:?}",
                trial.phase
            );
            let (done, _) = step(&trial, Event::TrialPassed).unwrap();
            assert_eq!((done.committed, done.image_a.as_ref()), (Slot::B, None));
            // The reason stays, and the same version may be written again.
            assert_eq!(done.failure.as_ref().map(|f| f.reason.as_str()), Some("block 7"));
            assert!(step(&done, Event::BeginStage(image("2"))).is_ok());
        }
    }

    #[test]
    fn damaged_slot_on_trial_fails_the_trial() {
        let mut record = Record::initial(Slot::A, image("1"));
        record.phase = Phase::Trial { image: image("2"), reason: None };
        let (record, _) = broken(&record, Slot::B).unwrap();
        let back = boots(&record, Slot::A, "1");
        assert!(back.failure.is_some_and(|f| f.tried && f.version == "2" && f.reason.contains("block 7")));
    }

    /// Boots slot B of a machine that has A committed until B proves itself; gives the number of reboots before. `first` is what firmware
    /// makes of the boot order each time.
    fn repairs_before_a_trial(first: Option<Slot>) -> usize {
        let mut record = Record { image_b: Some(image("1")), ..Record::initial(Slot::A, image("2")) };
        for boot in 0..10 {
            let nvram = Nvram { available: true, first };
            let facts = BootFacts { running: Slot::B, image: image("1"), nvram, previous_end: String::new() };
            let (next, fx) = step(&record, Event::Boot(facts)).unwrap();
            let reboots = matches!(fx.last(), Some(Effect::Reboot { reason: BootReason::Fallback, .. }));
            assert_eq!(reboots, fx.contains(&Effect::SetBootNext(Slot::A)));
            if !reboots {
                assert!(matches!(next.phase, Phase::Trial { reason: None, .. }), "{:?}", next.phase);
                return boot;
            }
            record = next;
        }
        panic!("it reboots for ever");
    }

    #[test]
    fn committed_slot_that_does_not_start_costs_one_repair_and_firmware_that_forgets_two() {
        assert_eq!(repairs_before_a_trial(Some(Slot::A)), 1, "the order was kept: the slot itself is at fault");
        assert_eq!(repairs_before_a_trial(Some(Slot::B)), 2, "the order was changed: it may hold the second time");
        assert_eq!(repairs_before_a_trial(None), 2);
    }

    #[test]
    fn slot_that_did_not_start_blindly_is_not_tried_again() {
        let record = Record::initial(Slot::A, image("1"));
        let (record, _) = broken(&record, Slot::A).unwrap();
        let back = boots(&record, Slot::A, "1");
        assert_eq!(broken(&back, Slot::A), Err(Refused::NoFallback { slot: Slot::B }));
    }
}
