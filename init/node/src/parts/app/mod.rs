//! Apps: each runs in its own virtual machine.

pub mod decide;
pub mod facts;
pub mod vm;
