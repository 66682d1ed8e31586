//! The rules against a simulated machine: firmware, two slots, STATE and TPM, with the power cut after any effect.
//!
//! What must hold at every boot, whatever was cut:
//! - something boots: the slot that runs holds an image that starts;
//! - it is the committed image, or the one whose trial was asked for;
//! - the committed slot holds an image that has passed a trial (or was flashed), and no epoch above it was committed;
//! - without further cuts the machine comes to rest within a few reboots.

use crate::record::{Image, Phase, Record};
use crate::step::{BootFacts, Effect, Event, Nvram, step};
use holdfast_model::slot::Slot;
use proptest::prelude::*;

/// How an image behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Quality {
    Good,
    /// Firmware cannot start it (truncated, wrong signature).
    Dead,
    /// PID 1 starts, then it hangs or crashes.
    Hangs,
    /// Starts and gives up by itself.
    Fails,
    /// PID 1 starts and finds that the OS slot does not verify.
    Broken,
}

#[derive(Debug, Clone)]
struct Content {
    image: Image,
    quality: Quality,
    passed: bool,
}

#[derive(Debug, Clone)]
enum Action {
    Update(Quality, u32),
    RetryCounter(u32),
    ForceFallback(u32),
    /// Firmware forgets all variables.
    WipeNvram,
    PowerCycle,
    /// A block of the running slot goes bad.
    Damage,
}

struct Machine {
    slots: [Option<Content>; 2],
    order: Vec<Slot>,
    next: Option<Slot>,
    state: Option<Record>,
    epoch: u32,
    running: Slot,
    /// Power goes when this many more effects were carried out.
    cuts: Vec<usize>,
    cuts_made: usize,
    stuck: bool,
    boots: u32,
    versions: u32,
}

/// The power went.
struct Cut;

fn index(slot: Slot) -> usize {
    usize::from(slot == Slot::B)
}

impl Machine {
    fn flashed(cuts: Vec<usize>) -> Machine {
        let image = Image { version: "v0".into(), epoch: 0 };
        let first = Content { image, quality: Quality::Good, passed: true };
        Machine {
            slots: [Some(first), None],
            order: vec![],
            next: None,
            state: None,
            epoch: 0,
            running: Slot::A,
            cuts,
            cuts_made: 0,
            stuck: false,
            boots: 0,
            versions: 0,
        }
    }

    fn bootable(&self, slot: Slot) -> bool {
        self.slots[index(slot)].as_ref().is_some_and(|c| c.quality != Quality::Dead)
    }

    fn content(&self, slot: Slot) -> &Content {
        self.slots[index(slot)].as_ref().expect("a slot that holds something")
    }

    /// Power on, until the machine rests: committed and stable, or with a trial that passed.
    fn power_on(&mut self) {
        for attempt in 0.. {
            assert!(attempt < 40, "the machine does not come to rest: {:?}", self.state);
            if let Ok(true) = self.boot() {
                return;
            }
        }
    }

    /// One boot; `true` when it stays up.
    fn boot(&mut self) -> Result<bool, Cut> {
        self.boots += 1;
        let mut candidates: Vec<Slot> = self.next.take().into_iter().chain(self.order.clone()).collect();
        // Firmware without entries tries the only partition of ESP type.
        candidates.push(Slot::A);
        let slot = candidates.into_iter().find(|s| self.bootable(*s)).expect("something boots");
        self.running = slot;
        let content = self.content(slot).clone();
        let mut record = self.state.clone().unwrap_or_else(|| Record::initial(slot, content.image.clone()));
        let asked_for = slot == record.committed
            || matches!(&record.phase, Phase::Staged { image, .. } | Phase::Armed(image) | Phase::Trial { image, .. } | Phase::Committing(image) if *image == content.image);
        let wiped = self.order.is_empty();
        assert!(asked_for || wiped || content.passed, "slot {slot} runs unasked: {record:?}");
        let first = (self.order.len() >= 2).then(|| self.order[0]);
        let facts = BootFacts {
            running: slot,
            image: content.image.clone(),
            nvram: Nvram { available: true, first },
            previous_end: String::new(),
        };
        if self.send(&mut record, Event::Boot(facts))? {
            return Ok(false);
        }
        if content.quality == Quality::Broken {
            let broken = Event::SlotBroken { running: slot, reason: "block 7".into() };
            // Refused only when the other slot did not start either, which here takes power cuts in just the wrong
            // moments of two boots on top of the damage. PID 1 then waits for help.
            self.stuck = !self.send(&mut record, broken)?;
            assert!(!self.stuck || self.cuts_made >= 2, "there is another slot to go to: {record:?}");
            return Ok(self.stuck);
        }
        while let Phase::Trial { .. } = record.phase {
            match content.quality {
                Quality::Good => {
                    self.slots[index(slot)].as_mut().unwrap().passed = true;
                    self.send(&mut record, Event::TrialPassed)?;
                }
                Quality::Fails => {
                    return self.send(&mut record, Event::TrialFailed("unhealthy".into())).map(|r| !r);
                }
                Quality::Hangs | Quality::Dead | Quality::Broken => return Ok(false),
            }
        }
        assert!(matches!(record.phase, Phase::Stable | Phase::Staged { .. }), "{record:?}");
        assert_eq!(record.committed, slot);
        Ok(true)
    }

    /// Carries an event out; `true` when it ends in a reboot.
    fn send(&mut self, record: &mut Record, event: Event) -> Result<bool, Cut> {
        let Ok((after, effects)) = step(record, event) else {
            return Ok(false);
        };
        for effect in effects {
            if let Some(left) = self.cuts.first_mut() {
                if *left == 0 {
                    self.cuts.remove(0);
                    self.cuts_made += 1;
                    return Err(Cut);
                }
                *left -= 1;
            }
            match effect {
                Effect::WriteRecord(r) => {
                    let committed = self.content(r.committed);
                    assert!(committed.passed, "an image that has not passed is committed: {r:?}");
                    let booting = match r.phase {
                        Phase::Committing(_) => self.content(r.target()),
                        _ => committed,
                    };
                    assert!(booting.image.epoch >= self.epoch, "the committed image could not open the vault: {r:?}");
                    self.state = Some(r.clone());
                    *record = r;
                }
                Effect::EnsureEntries => {}
                Effect::SetBootOrder(first) => self.order = vec![first, first.other()],
                Effect::SetBootNext(slot) => self.next = Some(slot),
                Effect::CommitEpoch(e) => self.epoch = self.epoch.max(e),
                Effect::Reboot { .. } => return Ok(true),
            }
        }
        assert_eq!(*record, after, "the last record written is the one returned");
        Ok(false)
    }

    fn act(&mut self, action: &Action) {
        let mut record = self.state.clone().expect("a machine that has booted");
        let outcome = match action {
            Action::Update(quality, epoch) => self.update(&mut record, *quality, *epoch),
            Action::RetryCounter(n) => self.send(&mut record, Event::RetryCounter(*n)),
            Action::ForceFallback(n) => self.send(&mut record, Event::ForceFallback(*n)),
            // With slot A broken as well this is a double fault: firmware then finds nothing of ESP type to start.
            Action::WipeNvram if !self.bootable(Slot::A) => Ok(false),
            Action::WipeNvram => {
                self.order.clear();
                self.next = None;
                Err(Cut)
            }
            Action::PowerCycle => Err(Cut),
            Action::Damage => {
                // Only where there is something to go to: two damaged slots cannot be helped.
                let other = self.slots[index(self.running.other())].as_ref();
                let known = record.image(self.running.other()).is_some();
                let helped = known && other.is_some_and(|c| c.quality == Quality::Good && c.image.epoch >= self.epoch);
                match helped {
                    true => {
                        self.slots[index(self.running)].as_mut().unwrap().quality = Quality::Broken;
                        Err(Cut)
                    }
                    false => Ok(false),
                }
            }
        };
        match outcome {
            Ok(false) => {}
            Ok(true) | Err(Cut) => self.power_on(),
        }
    }

    fn update(&mut self, record: &mut Record, quality: Quality, epoch: u32) -> Result<bool, Cut> {
        self.versions += 1;
        let image = Image { version: format!("v{}", self.versions), epoch };
        let target = record.target();
        let before = record.clone();
        self.send(record, Event::BeginStage(image.clone()))?;
        if *record == before || !matches!(record.phase, Phase::Dirty(_)) {
            return Ok(false);
        }
        self.slots[index(target)] = None;
        // Power may go while the slot is written.
        if self.cuts.first() == Some(&0) {
            self.cuts.remove(0);
            return Err(Cut);
        }
        self.slots[index(target)] = Some(Content { image, quality, passed: false });
        self.send(record, Event::Staged)?;
        self.send(record, Event::Activate)
    }
}

fn quality() -> impl Strategy<Value = Quality> {
    prop_oneof![3 => Just(Quality::Good), 1 => Just(Quality::Dead), 1 => Just(Quality::Hangs), 1 => Just(Quality::Fails), 1 => Just(Quality::Broken)]
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        5 => (quality(), 0u32..4).prop_map(|(q, e)| Action::Update(q, e)),
        1 => (0u32..3).prop_map(Action::RetryCounter),
        2 => (0u32..4).prop_map(Action::ForceFallback),
        1 => Just(Action::WipeNvram),
        1 => Just(Action::PowerCycle),
        1 => Just(Action::Damage),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]
    #[test]
    fn whatever_is_cut_the_machine_boots_what_it_should(
        actions in prop::collection::vec(action(), 1..8),
        cuts in prop::collection::vec(0usize..25, 0..5),
    ) {
        let mut m = Machine::flashed(cuts);
        m.power_on();
        for a in &actions {
            m.act(a);
            if m.stuck {
                return Ok(());
            }
        }
        m.cuts.clear();
        m.power_on();
        // And it can still be updated.
        m.act(&Action::Update(Quality::Good, 63));
        prop_assert_eq!(m.state.as_ref().map(|r| r.committed), Some(m.running));
        prop_assert_eq!(&m.content(m.running).image.version, &format!("v{}", m.versions));
        prop_assert_eq!(m.epoch, 63);
    }
}

/// Every single cut of one update, exhaustively, for every quality.
#[test]
fn one_update_survives_a_cut_after_each_effect() {
    for quality in [Quality::Good, Quality::Dead, Quality::Hangs, Quality::Fails, Quality::Broken] {
        for cut in 0..30 {
            for second in 0..30 {
                let mut m = Machine::flashed(vec![cut, second]);
                m.power_on();
                m.act(&Action::Update(quality, 1));
                m.cuts.clear();
                m.power_on();
                let record = m.state.clone().unwrap();
                if quality != Quality::Good {
                    assert_eq!(record.committed, Slot::A, "{quality:?} {cut} {second}");
                }
            }
        }
    }
}

#[test]
fn an_update_that_is_not_cut_takes_one_boot_and_a_failing_one_two() {
    for (quality, boots, reason) in [
        (Quality::Good, 2, None),
        (Quality::Dead, 2, Some("did not start")),
        (Quality::Hangs, 3, Some("without saying why")),
        (Quality::Fails, 3, Some("unhealthy")),
        (Quality::Broken, 3, Some("block 7")),
    ] {
        let mut m = Machine::flashed(vec![]);
        m.power_on();
        m.act(&Action::Update(quality, 1));
        let record = m.state.clone().unwrap();
        assert_eq!(m.boots, boots, "{quality:?}");
        assert_eq!(m.epoch, u32::from(quality == Quality::Good));
        // Whatever came of it, the next power-on goes straight to the committed slot.
        m.act(&Action::PowerCycle);
        assert_eq!(m.boots, boots + 1, "{quality:?}");
        match reason {
            None => assert_eq!((record.committed, record.failure), (Slot::B, None)),
            Some(text) => {
                let failure = record.failure.clone().unwrap();
                assert!(failure.reason.contains(text), "{failure:?}");
                // The same version is refused until the counter changes.
                let image = Image { version: "v1".into(), epoch: 1 };
                assert!(step(&record, Event::BeginStage(image.clone())).is_err());
                let (retry, _) = step(&record, Event::RetryCounter(1)).unwrap();
                assert!(step(&retry, Event::BeginStage(image)).is_ok());
            }
        }
    }
}

#[test]
fn a_forced_fallback_goes_back_once_and_only_to_a_good_image() {
    let mut m = Machine::flashed(vec![]);
    m.power_on();
    m.act(&Action::ForceFallback(5));
    m.act(&Action::ForceFallback(6));
    assert_eq!(m.running, Slot::A, "there is nothing to go back to");
    m.act(&Action::Update(Quality::Good, 0));
    assert_eq!(m.running, Slot::B);
    m.act(&Action::ForceFallback(7));
    assert_eq!(m.running, Slot::A);
    let boots = m.boots;
    m.act(&Action::ForceFallback(7));
    assert_eq!(m.boots, boots);
    // An image below the committed epoch could not open the vault.
    m.act(&Action::Update(Quality::Good, 2));
    assert_eq!(m.running, Slot::B);
    m.act(&Action::ForceFallback(8));
    assert_eq!(m.running, Slot::B);
}

#[test]
fn a_downgrade_below_the_committed_epoch_is_refused_by_name() {
    let record = Record { committed_epoch: 3, ..Record::initial(Slot::A, Image { version: "1".into(), epoch: 3 }) };
    let e = step(&record, Event::BeginStage(Image { version: "0".into(), epoch: 2 })).unwrap_err();
    assert_eq!(e.to_string(), "version 0 has security epoch 2, this machine has committed epoch 3: downgrade refused");
}
