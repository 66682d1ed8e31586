//! Contents: images that apps start from.

pub mod facts;
pub mod kept;
pub mod state;
