//! A small EVE v2 controller for demo and tests

fn main() {}
