//! Fetching for whoever wants bytes from a server: [`source`] says where from, [`jobs`] runs one `fetch` unit for each.

pub mod jobs;
pub mod source;
