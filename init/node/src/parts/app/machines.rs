//! Virtual machines as operations: started, stopped and dropped through PID 1.

use super::vm::Plan;
use crate::world::Local;
use uuid::Uuid;

/// Starts and stops the virtual machines of apps. How they end comes as events of their units.
pub trait Machines {
    /// Starts one: opens what the plan names and asks PID 1 for the unit.
    fn start(&self, plan: Plan) -> Local<Result<(), String>>;
    /// Begins to stop one; `false` when PID 1 knows none.
    fn stop(&self, app: Uuid) -> Local<Result<bool, String>>;
    /// Drops one that has ended; one that PID 1 does not know is no error.
    fn remove(&self, app: Uuid) -> Local<Result<(), String>>;
}
