//! Init inside container guests
