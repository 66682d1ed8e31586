//! The controller's side.

pub mod facts;
