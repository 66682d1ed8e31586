//! The device model: the nouns every room shares
pub mod slot;
