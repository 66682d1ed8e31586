//! From the kernel's first call to the start of `node`, in the order in which it happens.
//!
//! [`console`] and [`mounts`], [`watchdog`], [`tpm`], [`cmdline`], [`disk`], [`state`] (who boots),
//! [`slot`] (verity, erofs, the new root), [`facts`]. [`sequence`] is the order itself; [`crash`] and [`halt`] are
//! the two ways out.

pub mod cmdline;
pub mod console;
pub mod crash;
pub mod disk;
pub mod facts;
pub mod halt;
pub mod mounts;
pub mod power;
pub mod sequence;
pub mod slot;
pub mod state;
pub mod tpm;
pub mod watchdog;
