//! PID 1: boots the slot, supervises units, powers off

fn main() {}
