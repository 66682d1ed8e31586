//! A turn of one direction of a queue pair, the same for both.

use holdfast_links::Link;

use crate::rate::Limiter;
use crate::virtio::queue::VirtQueue;
use crate::virtio::{DeviceFault, Progress};

/// Frames handled in one go before other devices have their turn.
const BUDGET: usize = 256;

/// One direction of a queue pair that this process works.
pub(super) trait Direction {
    /// The queue.
    fn queue(&mut self) -> &mut VirtQueue;

    /// One frame; `false` when there is none or no room. Whoever must hear of the next doorbell asks for it.
    ///
    /// # Errors
    /// The fault ends the VM.
    fn step(&mut self, link: &dyn Link, limiter: &mut Option<Limiter>) -> Result<bool, DeviceFault>;

    /// Steps until there is no frame, no room on the other side, the limit has none left, or the share is used up; then
    /// tells the driver.
    ///
    /// # Errors
    /// The fault ends the VM.
    fn run(&mut self, link: &dyn Link, limiter: &mut Option<Limiter>) -> Result<Progress, DeviceFault> {
        self.queue().disable_kicks();
        let mut progress = Progress::Again;
        for _ in 0..BUDGET {
            if !self.step(link, limiter)? {
                progress = Progress::Drained;
                break;
            }
        }
        self.queue().notify();
        Ok(progress)
    }

    /// [`Direction::run`] outside a turn of this queue's doorbell: rings it when more is there.
    ///
    /// # Errors
    /// The fault ends the VM.
    fn run_beside(&mut self, link: &dyn Link, limiter: &mut Option<Limiter>) -> Result<(), DeviceFault> {
        if self.run(link, limiter)? == Progress::Again {
            self.queue().ring_self();
        }
        Ok(())
    }
}
