//! What other threads hold of the device thread: where they report an end, and their way to its devices.

use std::collections::VecDeque;
use std::io;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use vmm_sys_util::eventfd::EventFd;

use crate::pci::virtio::DeviceLoop;
use crate::virtio::Activation;
use holdfast_model::contract::end::End;

/// How long a vCPU waits for the device thread: longer than a drain of the host's storage.
const COMMAND_DEADLINE: Duration = Duration::from_secs(40);

/// Where an end is reported. The first one counts.
#[derive(Debug)]
pub struct EndSlot {
    end: Mutex<Option<End>>,
    pub(super) eventfd: EventFd,
}

impl EndSlot {
    /// Nothing has ended.
    ///
    /// # Errors
    /// When eventfds run out.
    pub fn new() -> io::Result<Arc<Self>> {
        let eventfd = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        Ok(Arc::new(Self { end: Mutex::new(None), eventfd }))
    }

    /// Ends the VM, unless it has ended already.
    pub fn finish(&self, end: End) {
        self.end.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(end);
        let _ = self.eventfd.write(1);
    }

    /// How it ended, if it has.
    pub(super) fn take(&self) -> Option<End> {
        self.end.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// What a vCPU thread asks for; it waits for the reply.
pub(super) enum Command {
    Activate { slot: usize, activation: Activation, reply: SyncSender<Result<(), End>> },
    Reset { slot: usize, reply: SyncSender<Result<(), End>> },
}

/// The vCPU threads' way to the device thread.
pub struct LoopHandle {
    commands: Mutex<VecDeque<Command>>,
    pub(super) wake: EventFd,
}

impl LoopHandle {
    /// A handle; give it to [`EventLoop::new`] as well.
    ///
    /// # Errors
    /// When eventfds run out.
    pub fn new() -> io::Result<Arc<Self>> {
        let wake = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        Ok(Arc::new(Self { commands: Mutex::new(VecDeque::new()), wake }))
    }

    fn send(&self, command: impl FnOnce(SyncSender<Result<(), End>>) -> Command) -> Result<(), End> {
        let (reply, answer) = sync_channel(1);
        self.commands.lock().unwrap_or_else(PoisonError::into_inner).push_back(command(reply));
        let _ = self.wake.write(1);
        answer
            .recv_timeout(COMMAND_DEADLINE)
            .unwrap_or_else(|_| Err(End::host_fault("the device thread does not answer")))
    }

    /// The command that waits the longest.
    pub(super) fn next(&self) -> Option<Command> {
        self.commands.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }
}

impl DeviceLoop for LoopHandle {
    fn activate(&self, slot: usize, activation: Activation) -> Result<(), End> {
        self.send(|reply| Command::Activate { slot, activation, reply })
    }

    fn reset(&self, slot: usize) -> Result<(), End> {
        self.send(|reply| Command::Reset { slot, reply })
    }
}
