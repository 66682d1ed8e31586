//! virtio memory balloon (virtio 1.3 §5.5): guest memory that is not needed comes back to the host.
//!
//! - *Free page reporting*: the guest names memory it has just freed, by itself; the host drops it at once. This is what
//!   lets a long-lived guest shrink without anybody deciding anything.
//! - *Inflate and deflate*: the agent sets a target, the guest gives up or takes back that much.
//! - *Deflate on OOM*: the guest takes memory back rather than end a program.
//! - *Statistics*: what the guest says of its own memory; asked for only when the agent asks.
//!
//! A dropped page reads as zeros when it is touched again. So nothing of ours may pin guest memory for longer than a request
//! (registered io_uring buffers, passthrough): it would go on with the page that the guest no longer sees.

mod active;
mod device;
mod discard;
mod stats;
#[cfg(test)]
mod tests;

pub use device::Balloon;

/// Fuzz entry: a hostile driver against all queues and the configuration space.
#[doc(hidden)]
pub fn fuzz_balloon(data: &[u8]) {
    use super::{Device, Order};
    let options = holdfast_model::contract::vm::BalloonConfig::default();
    let device = Balloon::new("balloon".into(), &options, 64);
    let config = device.config_space();
    for (at, value) in super::fuzzing::config_writes(data) {
        config.write(at, value);
    }
    assert_eq!((config.le32(0), config.le32(8)), (0, 0), "a driver cannot change the target");
    super::fuzzing::drive_with(Box::new(device), data, |active| {
        let _ = active.order(Order::BalloonTarget { mib: u32::from(data.first().copied().unwrap_or(0)) });
        let _ = active.memory();
    });
}
