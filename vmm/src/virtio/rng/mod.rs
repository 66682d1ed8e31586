//! virtio entropy device (virtio 1.3 §5.4): fills guest buffers from the host's random number generator.
#![forbid(unsafe_code)]

mod active;
mod device;
#[cfg(test)]
mod tests;

pub use device::Rng;

/// Fuzz entry: a hostile driver against the request queue.
#[doc(hidden)]
pub fn fuzz_rng(data: &[u8]) {
    super::fuzzing::drive(Box::new(Rng::new("rng".into())), data);
}
