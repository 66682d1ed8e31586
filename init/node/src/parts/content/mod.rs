//! Contents: images that apps start from.

pub mod kept;
pub mod state;
