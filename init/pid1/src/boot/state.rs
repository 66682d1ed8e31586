//! STATE: who boots, why the last boot ended. The rules are those of `holdfast_slots::step`; here is only the plumbing.
#![forbid(unsafe_code)]

use super::cmdline::Cmdline;
use holdfast_format::gpt::Table;
use holdfast_model::observed::BootReason;
use holdfast_model::slot::Slot;
use holdfast_slots::diary::{self, Diary};
use holdfast_slots::firmware::{BootError, EfiBoot};
use holdfast_slots::run::{RebootDue, RunError, no_epoch, run};
use holdfast_slots::store::StoreError;
use holdfast_slots::{BootFacts, Event, Image, Phase, Record, Refused};
use std::fs::{File, OpenOptions};
use std::io;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// Part of the kernel log that is kept when a boot ends badly.
const KEPT_LOG_BYTES: usize = 128 * 1024;
/// After this many boots in a row that gave a slot up, the next change of slot waits: both are bad.
const PATIENCE: usize = 3;
/// Before 2025 a clock is not set.
const FIRST_TIME: u64 = 1_735_689_600;

/// Why STATE or the boot variables could not be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The partition.
    #[error("STATE {device}: {source}")]
    Open {
        /// Its device.
        device: String,
        /// Why.
        source: io::Error,
    },
    /// Its contents.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The way to the other slot.
    #[error(transparent)]
    Run(#[from] RunError<BootError>),
    /// The boot variables do not fit this disk.
    #[error(transparent)]
    Firmware(#[from] BootError),
}

/// What STATE says at the start of a boot.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Begin {
    /// The other slot must boot instead, and will; this is why.
    pub leave: Option<String>,
    /// Boots of this machine, this one included.
    pub boot_count: u64,
    /// This boot tries an image that is not committed.
    pub trial: bool,
    /// Why the boot before this one ended; empty when nobody could write it down.
    pub previous_end: String,
    /// The class of that end.
    pub previous_reason: Option<BootReason>,
    /// Why the other slot was given up, when that is why this one runs.
    pub fallback_reason: String,
    /// What could not be done.
    pub notes: Vec<String>,
}

/// What follows when the running slot is bad.
#[derive(Debug, PartialEq, Eq)]
pub enum Way {
    /// The other slot boots next. With `patiently`, wait first: it has gone back and forth already.
    Other {
        /// For the diary and the console.
        text: String,
        /// Both slots are bad.
        patiently: bool,
    },
    /// There is none to go to.
    Nowhere(String),
}

/// The open STATE partition, and the firmware's variables.
#[derive(Debug)]
pub struct State {
    store: File,
    firmware: Option<EfiBoot>,
    record: Option<Record>,
}

impl State {
    /// Opens the partition at `device`; with the disk's table also the boot variables.
    pub fn open(device: &Path, table: Option<&Table>) -> Result<State, StateError> {
        let store = OpenOptions::new()
            .read(true)
            .write(true)
            .open(device)
            .map_err(|source| StateError::Open { device: device.display().to_string(), source })?;
        let firmware = table.map(EfiBoot::new).transpose()?;
        Ok(State { store, firmware, record: None })
    }

    /// Records that `running` boots and lets the rules decide. `kernel_log` is what the previous kernel left when it died.
    pub fn begin(&mut self, running: Slot, cmdline: &Cmdline, kernel_log: &str) -> Result<Begin, StateError> {
        let mut begin = Begin::default();
        let mut diary = Diary::load(&self.store).unwrap_or_else(|error| {
            begin.notes.push(format!("{error}; the diary begins anew"));
            Diary::default()
        });
        begin.boot_count = diary.begin(Some(running), &cmdline.version);
        let crash = last_words(kernel_log);
        (begin.previous_end, begin.previous_reason) = match (&crash, diary.previous().and_then(|e| e.end.as_ref())) {
            (Some(crash), _) => (crash.clone(), Some(BootReason::Kernel)),
            (None, Some(end)) => (end.text.clone(), Some(end.reason)),
            (None, None) => (String::new(), None),
        };
        diary.save(&mut self.store)?;
        if !kernel_log.is_empty() {
            diary::save_kernel_log(&mut self.store, begin.boot_count.saturating_sub(1), kernel_log.as_bytes())?;
        }

        let image = Image { version: cmdline.version.clone(), epoch: cmdline.epoch };
        let before = match Record::load(&self.store) {
            Ok(record) => record,
            Err(error @ StoreError::Contents { .. }) => {
                begin.notes.push(format!("{error}; the running slot counts as committed"));
                None
            }
            Err(error) => return Err(error.into()),
        };
        let before = before.unwrap_or_else(|| Record::initial(running, image.clone()));
        let mut record = before.clone();
        let facts = BootFacts {
            running,
            image,
            nvram: self.firmware.as_ref().map(EfiBoot::nvram).unwrap_or_default(),
            previous_end: begin.previous_end.clone(),
        };
        match self.run(&mut record, Event::Boot(facts)) {
            Ok(Some(due)) => {
                self.write_end(due.reason, &due.text)?;
                begin.leave = Some(due.text);
            }
            Ok(None) => {}
            // Without its variables, or without the TPM's part of a commit, the machine still runs; node goes on from there.
            Err(error @ (RunError::Firmware(_) | RunError::Epoch { .. })) => begin.notes.push(error.to_string()),
            Err(error) => return Err(error.into()),
        }
        begin.trial = matches!(record.phase, Phase::Trial { .. });
        begin.fallback_reason = fallback_reason(&before, &record, running);
        self.record = Some(record);
        Ok(begin)
    }

    /// The running slot is damaged: `reason` says how. Points firmware at the other one if the rules allow it.
    pub fn slot_broken(&mut self, running: Slot, reason: &str) -> Result<Way, StateError> {
        // node may have changed the record meanwhile.
        let stored = Record::load(&self.store)?;
        let Some(mut record) = stored.or_else(|| self.record.clone()) else {
            return Ok(Way::Nowhere("no slot record".into()));
        };
        let patiently = falls_in_a_row(&Diary::load(&self.store)?) >= PATIENCE;
        let way = match self.run(&mut record, Event::SlotBroken { running, reason: reason.to_owned() }) {
            Ok(Some(RebootDue { reason, text })) => {
                self.write_end(reason, &text)?;
                Way::Other { text, patiently }
            }
            Ok(None) => Way::Nowhere("the rules name no other slot".into()),
            Err(RunError::Refused(refused @ (Refused::NoFallback { .. } | Refused::Phase { .. }))) => {
                self.write_end(BootReason::Fatal, reason)?;
                Way::Nowhere(refused.to_string())
            }
            Err(error) => return Err(error.into()),
        };
        self.keep_kernel_log()?;
        Ok(way)
    }

    /// An end of this boot is decided. The first reason that is written stays. For a bad end the kernel log is kept.
    pub fn end(&mut self, reason: BootReason, text: &str) -> Result<(), StateError> {
        self.write_end(reason, text)?;
        match reason {
            BootReason::RebootCommand | BootReason::Update | BootReason::Fallback => Ok(()),
            _ => self.keep_kernel_log(),
        }
    }

    fn run(&mut self, record: &mut Record, event: Event) -> Result<Option<RebootDue>, RunError<BootError>> {
        match &mut self.firmware {
            Some(firmware) => run(record, event, &mut self.store, firmware, &mut no_epoch),
            None => Ok(None),
        }
    }

    fn write_end(&mut self, reason: BootReason, text: &str) -> Result<(), StateError> {
        let mut diary = Diary::load(&self.store)?;
        diary.end(reason, text, wall_time());
        Ok(diary.save(&mut self.store)?)
    }

    fn keep_kernel_log(&mut self) -> Result<(), StateError> {
        let boot = Diary::load(&self.store)?.boots;
        let log = crate::kernel_log::tail(KEPT_LOG_BYTES);
        Ok(diary::save_kernel_log(&mut self.store, boot, log.as_bytes())?)
    }
}

/// Set when this boot is here because another slot failed.
fn fallback_reason(before: &Record, after: &Record, running: Slot) -> String {
    let back_from_trial = running == before.committed && matches!(before.phase, Phase::Armed(_) | Phase::Trial { .. });
    let instead_of_damaged = running != before.committed && before.image(before.committed).is_none();
    let failure = after.failure.as_ref().filter(|_| back_from_trial || instead_of_damaged);
    failure.map(|f| f.reason.clone()).unwrap_or_default()
}

/// Boots at the end of the diary, this one not counted, that gave their slot up.
fn falls_in_a_row(diary: &Diary) -> usize {
    let fell = |end: &diary::End| end.reason == BootReason::Fallback;
    diary.entries.iter().rev().skip(1).take_while(|e| e.end.as_ref().is_some_and(fell)).count()
}

/// The line of a dying kernel that says why.
fn last_words(kernel_log: &str) -> Option<String> {
    let line = kernel_log
        .lines()
        .find(|l| l.contains("Kernel panic"))
        .or_else(|| kernel_log.lines().find(|l| l.contains("Oops")));
    line.map(|l| l.split_once("] ").map_or(l, |(_, text)| text).trim().to_owned())
}

fn wall_time() -> Option<u64> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?.as_secs();
    (now >= FIRST_TIME).then_some(now)
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_format::layout;
    use holdfast_format::verity::Root;
    use holdfast_slots::efivars::EfiVars;

    struct Bench {
        dir: tempfile::TempDir,
    }

    impl Bench {
        fn new() -> Bench {
            let dir = tempfile::tempdir().unwrap();
            File::create(dir.path().join("state")).unwrap().set_len(16 << 20).unwrap();
            std::fs::create_dir(dir.path().join("vars")).unwrap();
            // Firmware's variables always hold something of their own.
            std::fs::write(dir.path().join("vars/Other-8be4df61-93ca-11d2-aa0d-00e098032b8c"), [7, 0, 0, 0, 1])
                .unwrap();
            Bench { dir }
        }

        fn state(&self) -> State {
            let mut state = State::open(&self.dir.path().join("state"), None).unwrap();
            let table = layout::table(layout::image_bytes(0)).unwrap();
            state.firmware = Some(EfiBoot::over(EfiVars::plain(&self.dir.path().join("vars")), &table).unwrap());
            state
        }

        /// A boot of that slot, up to the decision.
        fn boot(&self, slot: Slot, version: &str, log: &str) -> (State, Begin) {
            let root = Root { hash: [0; 32], blocks: 1 };
            let cmdline = Cmdline { root, version: version.into(), epoch: 0 };
            let mut state = self.state();
            let begin = state.begin(slot, &cmdline, log).unwrap();
            (state, begin)
        }

        fn boot_next(&self) -> Option<Slot> {
            let vars = EfiVars::plain(&self.dir.path().join("vars"));
            let next = *vars.numbers("BootNext").unwrap().first()?;
            let order = vars.numbers("BootOrder").unwrap();
            let first = self.state().firmware.unwrap().nvram().first?;
            Some(if order[0] == next { first } else { first.other() })
        }
    }

    #[test]
    fn boots_are_counted_and_ends_are_told_to_the_next_one() {
        let bench = Bench::new();
        let (mut state, begin) = bench.boot(Slot::A, "1", "");
        assert_eq!(begin, Begin { boot_count: 1, ..Begin::default() });
        state.end(BootReason::RebootCommand, "by order").unwrap();
        state.end(BootReason::Fatal, "later").unwrap();
        let (_, begin) = bench.boot(Slot::A, "1", "");
        assert_eq!((begin.boot_count, begin.previous_end.as_str()), (2, "by order"));
        assert_eq!(begin.previous_reason, Some(BootReason::RebootCommand));
        let (_, begin) = bench.boot(Slot::A, "1", "");
        assert_eq!(begin.previous_end, "");
        let (_, begin) = bench.boot(Slot::A, "1", "<6>[ 1.0] fine\n<0>[ 2.5] Kernel panic - not syncing: oh\n");
        assert_eq!(begin.previous_end, "Kernel panic - not syncing: oh");
    }

    #[test]
    fn damaged_slot_hands_over_and_the_other_knows_why() {
        let bench = Bench::new();
        let (mut state, _) = bench.boot(Slot::A, "2", "");
        let way = state.slot_broken(Slot::A, "block 7 fails").unwrap();
        assert!(matches!(&way, Way::Other { text, patiently: false } if text.contains("block 7 fails")), "{way:?}");
        assert_eq!(bench.boot_next(), Some(Slot::B));
        let (_, begin) = bench.boot(Slot::B, "1", "");
        assert!(begin.trial && begin.leave.is_none());
        assert_eq!(begin.fallback_reason, "block 7 fails");
        assert!(begin.previous_end.contains("block 7 fails"));
    }

    #[test]
    fn two_damaged_slots_are_tried_in_turn_but_patiently() {
        let bench = Bench::new();
        let mut slot = Slot::A;
        let mut seen = Vec::new();
        for _ in 0..6 {
            let (mut state, begin) = bench.boot(slot, if slot == Slot::A { "1" } else { "2" }, "");
            assert_eq!(begin.leave, None);
            match state.slot_broken(slot, "bad").unwrap() {
                Way::Other { patiently, .. } => seen.push(patiently),
                Way::Nowhere(why) => panic!("{why}"),
            }
            slot = slot.other();
        }
        assert_eq!(seen, [false, false, false, true, true, true]);
    }

    #[test]
    fn wrong_slot_is_left_for_the_committed_one() {
        let bench = Bench::new();
        bench.boot(Slot::A, "1", "");
        let (_, begin) = bench.boot(Slot::B, "0", "");
        assert!(begin.leave.is_some_and(|why| why.contains("slot A is committed")));
        assert_eq!(bench.boot_next(), Some(Slot::A));
    }

    #[test]
    fn state_of_garbage_is_begun_anew_and_says_so() {
        let bench = Bench::new();
        bench.boot(Slot::A, "1", "");
        std::fs::write(bench.dir.path().join("state"), vec![0xA5; 4 << 20]).unwrap();
        let (_, begin) = bench.boot(Slot::A, "1", "");
        assert_eq!((begin.boot_count, begin.leave), (1, None));
    }
}
