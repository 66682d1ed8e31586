//! Unit protocol between PID 1 and node, and its client
