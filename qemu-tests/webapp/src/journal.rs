//! Blocks that say what was written last: what a power cut may not take.
//!
//! A thread writes one generation after the other into a file that never grows. A generation is [`EACH`] blocks; it is confirmed
//! once fsync has returned, and only then does the next one begin. So whatever was confirmed must be there afterwards, and only
//! the newest generation may be there in part.
//!
//! | offset | bytes | of a block |
//! |---|---|---|
//! | 0 | 8 | its number, little-endian like all of them |
//! | 8 | 8 | the generation that wrote it |
//! | 16 | 4072 | filler made of both |
//! | 4088 | 8 | FNV-1a of everything before |

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

const BLOCK: usize = 4096;
/// Blocks of the file.
const BLOCKS: u64 = 64;
/// Blocks of a generation.
const EACH: u64 = 8;
/// Between two generations: other requests want to be answered too.
const PAUSE: Duration = Duration::from_millis(10);

/// The file, and how far it is.
pub struct Journal {
    path: PathBuf,
    confirmed: AtomicU64,
    running: AtomicBool,
}

impl Journal {
    /// A journal in this file, which need not be there yet.
    pub fn new(path: PathBuf) -> Arc<Self> {
        Arc::new(Self { path, confirmed: AtomicU64::new(0), running: AtomicBool::new(false) })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The last generation that was confirmed since this program began; 0 for none.
    pub fn confirmed(&self) -> u64 {
        self.confirmed.load(Ordering::Acquire)
    }

    /// Begins to write, unless it does already, where an earlier run ended.
    ///
    /// # Errors
    /// What the file system says, or what is wrong with the file.
    pub fn start(self: &Arc<Self>) -> io::Result<()> {
        if self.running.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        let begin = || -> io::Result<()> {
            let (file, newest) = self.open()?;
            let journal = Arc::clone(self);
            std::thread::Builder::new().stack_size(256 * 1024).spawn(move || {
                // The newest generation may be there in part: it is written again.
                let outcome = (newest.max(1)..).try_for_each(|generation| {
                    write_generation(&file, generation)?;
                    journal.confirmed.store(generation, Ordering::Release);
                    std::thread::sleep(PAUSE);
                    Ok::<(), io::Error>(())
                });
                if let Err(error) = outcome {
                    crate::say(&format!("journal: {}: {error}", journal.path.display()));
                }
                journal.running.store(false, Ordering::Release);
            })?;
            Ok(())
        };
        begin().inspect_err(|_| self.running.store(false, Ordering::Release))
    }

    /// Looks at what is in the file: the newest generation.
    ///
    /// # Errors
    /// The first block that is not what the generations up to `confirmed`, or up to the newest but one, left there.
    pub fn verify(&self, confirmed: u64) -> io::Result<u64> {
        verify(&std::fs::read(&self.path)?, confirmed).map_err(io::Error::other)
    }

    /// The file and its newest generation; an empty one is made full size first, so that later only content changes.
    fn open(&self) -> io::Result<(File, u64)> {
        if let Some(folder) = self.path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&self.path)?;
        if file.metadata()?.len() < BLOCKS * BLOCK as u64 {
            file.write_all_at(&vec![0; BLOCKS as usize * BLOCK], 0)?;
            file.sync_all()?;
            if let Some(folder) = self.path.parent() {
                File::open(folder)?.sync_all()?;
            }
        }
        let newest = self.verify(0)?;
        Ok((file, newest))
    }
}

fn write_generation(file: &File, generation: u64) -> io::Result<()> {
    for number in blocks_of(generation) {
        file.write_all_at(&pattern(number, generation), number * BLOCK as u64)?;
    }
    file.sync_all()
}

/// Blocks that a generation writes: seven is prime to their number, so that they wander all over the file.
fn blocks_of(generation: u64) -> impl Iterator<Item = u64> {
    (0..EACH).map(move |n| generation.wrapping_mul(EACH).wrapping_add(n).wrapping_mul(7) % BLOCKS)
}

/// The last generation up to `last` that wrote block `number`; 0 for none.
fn writer_of(number: u64, last: u64) -> u64 {
    // Every block has its turn once in BLOCKS / EACH generations.
    let turns = last.saturating_sub(BLOCKS / EACH)..=last;
    turns.rev().find(|generation| blocks_of(*generation).any(|block| block == number)).unwrap_or(0)
}

/// A block as this generation writes it.
fn pattern(number: u64, generation: u64) -> Vec<u8> {
    if generation == 0 {
        return vec![0; BLOCK];
    }
    let mut block = Vec::with_capacity(BLOCK);
    block.extend(number.to_le_bytes());
    block.extend(generation.to_le_bytes());
    let mut state = number << 32 ^ generation;
    while block.len() < BLOCK - 8 {
        // Knuth's MMIX generator.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        block.extend(state.to_le_bytes());
    }
    let sum = block
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |sum: u64, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3));
    block.extend(sum.to_le_bytes());
    block
}

/// The generation that a block says it is of, if it is whole.
fn generation_of(number: u64, block: &[u8]) -> Option<u64> {
    let generation = u64::from_le_bytes(block.get(8..16)?.try_into().ok()?);
    (block == pattern(number, generation)).then_some(generation)
}

/// See [`Journal::verify`].
fn verify(file: &[u8], confirmed: u64) -> Result<u64, String> {
    let blocks = || (0u64..).zip(file.chunks(BLOCK));
    if file.len() as u64 != BLOCKS * BLOCK as u64 {
        return Err(format!("{} bytes, expected {}", file.len(), BLOCKS * BLOCK as u64));
    }
    let newest = blocks().filter_map(|(number, block)| generation_of(number, block)).max().unwrap_or(0);
    if newest < confirmed {
        return Err(format!("generation {confirmed} was confirmed, the newest found is {newest}"));
    }
    // All of these were complete before the newest began.
    let complete = confirmed.max(newest.saturating_sub(1));
    for (number, block) in blocks() {
        let under_way = (complete + 1..=newest + 1).any(|generation| blocks_of(generation).any(|b| b == number));
        let expected = writer_of(number, complete);
        let found = generation_of(number, block);
        let good = found == Some(expected) || (under_way && found.is_none_or(|found| found > complete));
        if !good {
            let found = found.map_or("a broken block".into(), |found| format!("generation {found}"));
            return Err(format!("block {number}: expected generation {expected} of {complete}, found {found}"));
        }
    }
    Ok(newest)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file after `last` generations.
    fn written(last: u64) -> Vec<u8> {
        (0..BLOCKS).flat_map(|number| pattern(number, writer_of(number, last))).collect()
    }

    fn put(file: &mut [u8], number: u64, content: &[u8]) {
        let at = number as usize * BLOCK;
        file[at..at + content.len()].copy_from_slice(content);
    }

    #[test]
    fn whole_files_are_good_and_tell_their_newest_generation() {
        for last in [0, 1, 7, 8, 9, 1000] {
            assert_eq!(verify(&written(last), last), Ok(last));
        }
        assert_eq!(verify(&written(9), 3), Ok(9), "more than was reported is no fault");
    }

    #[test]
    fn generation_under_way_may_be_there_in_part_or_torn() {
        let mut file = written(9);
        let under_way: Vec<u64> = blocks_of(10).collect();
        put(&mut file, under_way[0], &pattern(under_way[0], 10));
        put(&mut file, under_way[1], &pattern(under_way[1], 10)[..700]);
        assert_eq!(verify(&file, 9), Ok(10));
        // Nothing of it but a torn block.
        let mut file = written(9);
        put(&mut file, under_way[0], &[0x55; 512]);
        assert_eq!(verify(&file, 9), Ok(9));
    }

    #[test]
    fn lost_torn_and_misplaced_blocks_are_found() {
        assert!(verify(&written(8), 9).unwrap_err().contains("newest found is 8"));
        let confirmed: Vec<u64> = blocks_of(9).collect();
        for damage in [&pattern(confirmed[2], 1)[..], &[0; BLOCK], &[1; 1], &pattern(confirmed[3], 9)] {
            let mut file = written(9);
            put(&mut file, confirmed[2], damage);
            assert!(verify(&file, 9).unwrap_err().contains(&format!("block {}:", confirmed[2])));
        }
        // An older one that nothing has overwritten since.
        let mut file = written(9);
        put(&mut file, blocks_of(4).next().unwrap(), &[1]);
        assert!(verify(&file, 9).is_err());
        assert!(verify(&written(9)[1..], 9).unwrap_err().contains("bytes"));
    }

    #[test]
    fn journal_goes_on_where_an_earlier_run_ended() {
        let folder = std::env::temp_dir().join(format!("webapp-journal-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        let earlier = Journal::new(folder.join("data/journal"));
        let (file, newest) = earlier.open().unwrap();
        assert_eq!((newest, earlier.confirmed()), (0, 0));
        for generation in 1..=5 {
            write_generation(&file, generation).unwrap();
        }
        let later = Journal::new(earlier.path().to_owned());
        assert_eq!(later.verify(5).unwrap(), 5);
        assert!(later.verify(6).is_err());
        later.start().unwrap();
        later.start().unwrap();
        while later.confirmed() < 7 {
            assert!(later.confirmed() == 0 || later.confirmed() >= 5);
            std::thread::sleep(Duration::from_millis(1));
        }
        let _ = std::fs::remove_dir_all(&folder);
    }
}
