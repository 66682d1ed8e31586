//! The reports of a job: lines in a file that outlives the agent, so that the agent after it goes on reading.
//!
//! The job's end of the file carries a lock for as long as somebody holds it: PID 1 and the job. When the lock is free nobody
//! writes any more.

use super::Reports;
use crate::world::Local;
use holdfast_model::contract::fetch::Report;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::unistd::{Whence, lseek};
use std::cell::RefCell;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;
use tokio::time::sleep;

/// Between two looks.
const LOOK: Duration = Duration::from_millis(200);
/// Longest line; a longer one ends the reports.
const MAX_LINE: usize = 64 * 1024;
/// So much that was read is given back to the system at once.
const GIVE_BACK: u64 = 256 * 1024;

/// Makes an empty file of reports, in place of one that an earlier job left; returns the job's end.
///
/// # Errors
/// The file system's.
pub fn create(path: &Path) -> io::Result<File> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    // Another file, not the old one emptied: a job that still ends writes into that.
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let file = OpenOptions::new().append(true).create_new(true).mode(0o600).open(path)?;
    file.lock()?;
    Ok(file)
}

/// The agent's end.
pub struct ReportFile(Rc<RefCell<Tail>>);

impl ReportFile {
    /// Opens the reports of a job.
    ///
    /// # Errors
    /// When there are none.
    pub fn open(path: &Path) -> io::Result<Self> {
        // Writable for giving back what was read.
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        // What an agent before this one has read is a hole.
        let offset = lseek(&file, 0, Whence::SeekData).ok().and_then(|o| u64::try_from(o).ok()).unwrap_or(0);
        Ok(Self(Rc::new(RefCell::new(Tail { file, offset, buffer: Vec::new(), given: offset }))))
    }
}

impl Reports for ReportFile {
    fn next(&self) -> Local<Option<Report>> {
        let tail = self.0.clone();
        Box::pin(async move {
            loop {
                // First whether somebody may write more, then what was written: so nothing is missed in between.
                let ended = tail.borrow().writer_ended();
                match tail.borrow_mut().line() {
                    Ok(Some(line)) => return serde_json::from_slice(&line).ok(),
                    Ok(None) if !ended => {}
                    Ok(None) | Err(_) => return None,
                }
                sleep(LOOK).await;
            }
        })
    }
}

struct Tail {
    file: File,
    /// Where `buffer` begins in the file.
    offset: u64,
    buffer: Vec<u8>,
    /// Given back up to here.
    given: u64,
}

impl Tail {
    fn writer_ended(&self) -> bool {
        let free = self.file.try_lock_shared().is_ok();
        if free {
            let _ = self.file.unlock();
        }
        free
    }

    /// The next whole line.
    fn line(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            if let Some(end) = self.buffer.iter().position(|b| *b == b'\n') {
                // Zeros are the end of what was given back.
                let line: Vec<u8> = self.buffer.drain(..=end).take(end).skip_while(|b| *b == 0).collect();
                self.give_back();
                self.offset += end as u64 + 1;
                return Ok(Some(line));
            }
            if self.buffer.len() > MAX_LINE {
                return Err(io::Error::other("a line of a report is too long"));
            }
            let mut more = [0; 4096];
            match self.file.read(&mut more)? {
                0 => return Ok(None),
                n => self.buffer.extend_from_slice(&more[..n]),
            }
        }
    }

    /// Gives back what lies before the line that is now handed out: that line itself stays for the agent after this one, which may
    /// have to act on it.
    fn give_back(&mut self) {
        let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        if self.offset - self.given >= GIVE_BACK
            && let Ok(length) = i64::try_from(self.offset)
        {
            let _ = fallocate(&self.file, punch, 0, length);
            self.given = self.offset;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_model::contract::fetch::Phase;
    use std::io::Write;

    fn progress(bytes: u64) -> Report {
        Report::Progress { phase: Phase::Downloading, bytes, total: 10 }
    }

    fn write(file: &mut File, report: &Report) {
        let mut line = serde_json::to_vec(report).unwrap();
        line.push(b'\n');
        file.write_all(&line).unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn reports_are_read_by_one_agent_after_another_until_the_job_ends() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("jobs/fetch-1");
        let mut job = create(&path).unwrap();
        write(&mut job, &progress(1));
        let first = ReportFile::open(&path).unwrap();
        assert_eq!(first.next().await, Some(progress(1)));
        let waits = tokio::time::timeout(Duration::from_secs(60), first.next()).await;
        assert!(waits.is_err(), "the job lives");
        drop(first);

        let second = ReportFile::open(&path).unwrap();
        assert_eq!(second.next().await, Some(progress(1)), "from the beginning");
        write(&mut job, &progress(2));
        job.write_all(b"{\"half").unwrap();
        drop(job);
        assert_eq!(second.next().await, Some(progress(2)));
        assert_eq!(second.next().await, None, "it ended in the middle of a line");
    }

    #[tokio::test(start_paused = true)]
    async fn a_long_job_does_not_fill_the_memory_and_its_end_can_still_be_read() {
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let path = dir.path().join("fetch-1");
        let mut job = create(&path).unwrap();
        let reports = ReportFile::open(&path).unwrap();
        for n in 0..20_000 {
            write(&mut job, &progress(n));
            assert_eq!(reports.next().await, Some(progress(n)));
        }
        use std::os::unix::fs::MetadataExt;
        let (length, taken) = (fs::metadata(&path).unwrap().len(), fs::metadata(&path).unwrap().blocks() * 512);
        assert!(length > 1_000_000 && taken < 600_000, "{length} bytes long, {taken} taken");
        drop(job);
        let next = ReportFile::open(&path).unwrap();
        let mut last = None;
        while let Some(report) = next.next().await {
            last = Some(report);
        }
        assert_eq!(last, Some(progress(19_999)));
    }
}
