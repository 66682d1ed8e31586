//! Pure planner from the model to the intended network graph
