//! The device itself.

pub mod facts;
