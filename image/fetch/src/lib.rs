//! One short-lived, unprivileged, sandboxed process per download, unpack or verify job.
//!
//! Modules in reading order: [`job`].
#![forbid(unsafe_code)]

pub mod job;
