//! What waits to be sent, as pure values: info by key, logs in order. Time and chance come in as arguments.

mod info;
mod logs;

pub use info::{InfoQueue, Taken};
pub use logs::{LogFile, LogQueue};
