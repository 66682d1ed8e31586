//! The parts of the agent, one folder for each domain.

pub mod app;
pub mod content;
pub mod device;
pub mod network;
pub mod volume;
