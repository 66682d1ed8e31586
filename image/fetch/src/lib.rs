//! Sandboxed download, verify and unpack jobs
