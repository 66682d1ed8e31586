//! virtio console (virtio 1.3 §5.3): one port, the guest's `hvc0`.
//!
//! Output goes to a host descriptor that may stall without the guest noticing ([`crate::output`]); input comes from a
//! descriptor if one is configured.

mod active;
mod device;
#[cfg(test)]
mod tests;

pub use device::Console;

/// Fuzz entry: a hostile driver against both queues.
#[doc(hidden)]
pub fn fuzz_console(data: &[u8]) {
    let Ok(null) = std::fs::OpenOptions::new().write(true).open("/dev/null") else {
        return;
    };
    super::fuzzing::drive(Box::new(Console::new("console".into(), null.into(), None)), data);
}
