//! Scenario tests of the whole device
