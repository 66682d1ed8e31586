//! The device model: the nouns every room shares
