//! A/B slots on the device: which image boots, which one is on trial, and what is remembered about both.
//!
//! 1. One set of rules: [`step`] is a pure function `(record, event) -> (record, effects)`; PID 1 and `node` both use it.
//! 2. A power cut between any two effects leaves a machine whose next boot is the old good image or the new one, and
//!    an image that did not prove itself is never committed. A model test cuts after every effect.
//! 3. Whatever is written to STATE is written to the older of two copies, with generation and CRC ([`store`]).
//! 4. The boot order always names both slots, the committed one first. What firmware forgets is repaired, and every
//!    repair is bounded by a counter in STATE.
//! 5. A failed version is not tried again until somebody asks for it, and both sides say why it failed.
//!
//! Reading order: [`record`] (what is remembered), [`step`] (the rules), [`run`] (carrying effects out), [`trial`] (when
//! a trial has passed or failed), [`status`] (what the controller is told), [`store`] (STATE's layout), [`diary`] (boots
//! and the last kernel log), [`efivars`] and [`firmware`] (boot variables).

#![forbid(unsafe_code)]

pub mod diary;
pub mod efivars;
pub mod firmware;
pub mod record;
pub mod run;
pub mod status;
pub mod step;
pub mod store;
pub mod trial;

pub use record::{Failure, Image, Phase, Record};
pub use step::{BootFacts, Effect, Event, Nvram, Refused, step};

#[cfg(test)]
mod model_test;
