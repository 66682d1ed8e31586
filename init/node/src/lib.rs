//! The agent: one config in, the machine made to match, reports out
