//! Pure planner from the model to the intended network graph.
pub mod firewall;
pub mod item;
