//! Init inside container guests

fn main() {}
