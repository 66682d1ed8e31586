//! Client of the EVE controller: requests, retry, queues

#![forbid(unsafe_code)]

pub mod identity;
