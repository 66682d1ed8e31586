//! The boot diary and the last kernel log: what earlier boots left for this one to report.

use crate::store::{DIARY, KERNEL_LOG, Store, StoreError};
use holdfast_model::observed::BootReason;
use holdfast_model::slot::Slot;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// Boots that are remembered.
pub const MAX_ENTRIES: usize = 48;
/// Longest text kept, bytes (EVE's limit for a reboot stack is 1600).
pub const MAX_TEXT: usize = 2000;

/// The diary.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Diary {
    /// Boots of this machine so far.
    pub boots: u64,
    /// The last ones, oldest first.
    pub entries: VecDeque<Entry>,
}

/// One boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Number of the boot, from 1.
    pub boot: u64,
    /// The slot that ran; none when it was not known.
    pub slot: Option<Slot>,
    /// Version text.
    pub version: String,
    /// Seconds since 1970 at the start, once the clock was known.
    #[serde(default)]
    pub started: Option<u64>,
    /// How it ended; none while it runs, and for ever when nobody could write it down.
    #[serde(default)]
    pub end: Option<End>,
}

/// The end of a boot, written before it comes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// Class.
    pub reason: BootReason,
    /// Text.
    pub text: String,
    /// Seconds since 1970, if the clock was known.
    #[serde(default)]
    pub time: Option<u64>,
}

impl Diary {
    /// Reads the diary; an empty one when there is none that is intact.
    ///
    /// # Errors
    /// [`StoreError`]; a caller may go on with an empty diary.
    pub fn load(store: &(impl Store + ?Sized)) -> Result<Diary, StoreError> {
        let Some(bytes) = DIARY.read(store)? else {
            return Ok(Diary::default());
        };
        let mut diary: Diary = serde_json::from_slice(&bytes).map_err(|e| DIARY.contents_error(e))?;
        diary.trim();
        Ok(diary)
    }

    /// Writes the diary.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn save(&self, store: &mut (impl Store + ?Sized)) -> Result<(), StoreError> {
        let bytes = serde_json::to_vec(self).map_err(|e| DIARY.contents_error(e))?;
        DIARY.write(store, &bytes)
    }

    /// A boot begins; gives its number.
    pub fn begin(&mut self, slot: Option<Slot>, version: &str) -> u64 {
        self.boots = self.boots.saturating_add(1);
        let version = cut(version, 64);
        self.entries.push_back(Entry { boot: self.boots, slot, version, started: None, end: None });
        self.trim();
        self.boots
    }

    /// The clock of this boot is known: `now` seconds since 1970, `uptime` seconds since its start.
    pub fn clock_known(&mut self, now: u64, uptime: u64) {
        if let Some(e) = self.entries.back_mut() {
            e.started = Some(now.saturating_sub(uptime));
        }
    }

    /// This boot is about to end. The first reason stays: what follows from it is not the cause.
    pub fn end(&mut self, reason: BootReason, text: &str, time: Option<u64>) {
        if let Some(e) = self.entries.back_mut().filter(|e| e.end.is_none()) {
            e.end = Some(End { reason, text: cut(text, MAX_TEXT), time });
        }
    }

    /// The boot before this one.
    #[must_use]
    pub fn previous(&self) -> Option<&Entry> {
        self.entries.iter().rev().nth(1)
    }

    /// How the boot before this one ended, for reports: class, text, time. `pstore` says that a kernel crash was found.
    #[must_use]
    pub fn previous_end(&self, kernel_crash: Option<&str>) -> End {
        let end = |reason, text: &str| End { reason, text: text.into(), time: None };
        match (self.previous(), kernel_crash) {
            (_, Some(text)) => end(BootReason::Kernel, &cut(text, MAX_TEXT)),
            (None, None) => end(BootReason::First, "first boot"),
            (Some(Entry { end: Some(e), .. }), None) => e.clone(),
            (Some(_), None) => end(BootReason::PowerFail, "no reason was recorded: power loss, reset button or hang"),
        }
    }

    fn trim(&mut self) {
        while self.entries.len() > MAX_ENTRIES {
            self.entries.pop_front();
        }
    }
}

/// Keeps the tail of a kernel log with the number of the boot it is from.
///
/// # Errors
/// [`StoreError`].
pub fn save_kernel_log(store: &mut (impl Store + ?Sized), boot: u64, log: &[u8]) -> Result<(), StoreError> {
    let room = KERNEL_LOG.capacity() - 8;
    let tail = &log[log.len().saturating_sub(room)..];
    KERNEL_LOG.write(store, &[&boot.to_le_bytes(), tail].concat())
}

/// The kept kernel log: number of the boot, and text.
///
/// # Errors
/// [`StoreError`].
pub fn load_kernel_log(store: &(impl Store + ?Sized)) -> Result<Option<(u64, Vec<u8>)>, StoreError> {
    let split = |b: Vec<u8>| b.split_first_chunk::<8>().map(|(n, log)| (u64::from_le_bytes(*n), log.to_vec()));
    Ok(KERNEL_LOG.read(store)?.and_then(split))
}

/// At most `limit` bytes, without control characters other than line breaks: those would swell in JSON.
fn cut(text: &str, limit: usize) -> String {
    let mut end = text.len().min(limit);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].chars().map(|c| if c.is_control() && c != '\n' { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tests_support::Memory;

    #[test]
    fn the_next_boot_learns_how_the_last_one_ended() {
        let mut store = Memory::new(vec![0; 3 << 20]);
        let mut d = Diary::load(&store).unwrap();
        assert_eq!(d.begin(Some(Slot::A), "1"), 1);
        assert_eq!(d.previous_end(None).reason, BootReason::First);
        d.clock_known(1_000_100, 100);
        d.end(BootReason::Update, "update to 2", Some(1_000_200));
        d.end(BootReason::Fatal, "later, not the cause", None);
        d.save(&mut store).unwrap();

        let mut d = Diary::load(&store).unwrap();
        assert_eq!(d.begin(Some(Slot::B), "2"), 2);
        assert_eq!(d.previous().unwrap().started, Some(1_000_000));
        assert_eq!(d.previous_end(None).text, "update to 2");
        assert_eq!(d.previous_end(Some("Oops")).reason, BootReason::Kernel);
        d.begin(Some(Slot::B), "2");
        assert_eq!(d.previous_end(None).reason, BootReason::PowerFail);
    }

    #[test]
    fn the_diary_is_bounded_and_always_fits_its_place() {
        let mut store = Memory::new(vec![0; 3 << 20]);
        let mut d = Diary::default();
        for _ in 0..200 {
            d.begin(Some(Slot::A), &"\u{1}ä".repeat(4000));
            d.end(BootReason::Fatal, &"\u{1}\"€".repeat(4000), None);
        }
        d.save(&mut store).unwrap();
        let d = Diary::load(&store).unwrap();
        assert_eq!((d.boots, d.entries.len()), (200, MAX_ENTRIES));
    }

    #[test]
    fn the_tail_of_a_long_kernel_log_is_kept() {
        let mut store = Memory::new(vec![0; 3 << 20]);
        assert_eq!(load_kernel_log(&store).unwrap(), None);
        let log: Vec<u8> = (0..3_000_000u32).map(|i| (i / 7) as u8).collect();
        save_kernel_log(&mut store, 7, &log).unwrap();
        let (boot, kept) = load_kernel_log(&store).unwrap().unwrap();
        assert_eq!(boot, 7);
        assert!(log.ends_with(&kept) && kept.len() > 1_000_000);
    }
}
