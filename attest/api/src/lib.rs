//! EVE device API v2: the messages, the signed envelope around them, and what they mean in the device model.

#![forbid(unsafe_code)]

pub mod proto;
