//! A/B slot state machine and its boot variables
