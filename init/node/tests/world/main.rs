//! The whole agent on a simulated machine, in virtual time: config in, effects and reports out, in milliseconds.
//!
//! The kernel and the parts are the real ones. [`machine`] is PID 1, the disk and the registry, [`ends`] are the traits that parts act
//! through, [`effects`] lets each of them take time, fail, hang or be cut, [`wish`] is the controller's side, [`device`] puts it together.
//! What an agent must never do is noted by the machine itself, whatever a test looks at.

mod device;
mod effects;
mod ends;
mod machine;
mod random;
mod stories;
mod wish;
