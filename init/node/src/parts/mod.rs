//! The parts of the agent, one folder for each domain.

pub mod app;
pub mod base_os;
pub mod content;
pub mod controller;
pub mod device;
pub mod logs;
pub mod network;
pub mod volume;

#[cfg(test)]
mod tests;
