//! Networks.

pub mod facts;
