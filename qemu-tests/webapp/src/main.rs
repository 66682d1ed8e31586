//! The demo's app: a small web server

fn main() {}
