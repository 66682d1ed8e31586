//! Virtual machines as operations: started, stopped and dropped through PID 1.

use super::vm::unit::prepare;
use super::vm::{Nic, Plan, unit_of};
use crate::world::Local;
use holdfast_supervise::{AsyncClient, CallError, RefusalKind};
use std::fs;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::rc::Rc;
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

/// The real ones.
pub struct Units {
    /// PID 1.
    pub supervisor: Rc<AsyncClient>,
    /// Folder of control sockets.
    pub control: PathBuf,
}

impl Machines for Units {
    fn start(&self, plan: Plan) -> Local<Result<(), String>> {
        let (supervisor, control) = (self.supervisor.clone(), self.control.clone());
        let (name, unit) = (plan.app.name.clone(), unit_of(plan.app.id));
        Box::pin(async move {
            let open_tap = |nic: &Nic| Ok(holdfast_links::tap::attach(&nic.tap, nic.queue_pairs)?);
            let prepared = tokio::task::spawn_blocking(move || prepare(&plan, &control, &open_tap)).await;
            let (spec, fds) = prepared.map_err(|e| format!("app {name}: {e}"))?.map_err(|e| format!("{e:#}"))?;
            let borrowed: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
            let started = supervisor.start(&spec, &borrowed).await;
            started.map(drop).map_err(|e| format!("app {name}: unit {unit}: {e}"))
        })
    }

    fn stop(&self, app: Uuid) -> Local<Result<bool, String>> {
        let (supervisor, unit) = (self.supervisor.clone(), unit_of(app));
        Box::pin(async move {
            match supervisor.stop(&unit, None).await {
                Ok(()) => Ok(true),
                Err(CallError::Refused(refused)) if refused.kind == RefusalKind::Unknown => Ok(false),
                Err(e) => Err(e.to_string()),
            }
        })
    }

    fn remove(&self, app: Uuid) -> Local<Result<(), String>> {
        let (supervisor, unit) = (self.supervisor.clone(), unit_of(app));
        let socket = self.control.join(format!("{unit}.sock"));
        Box::pin(async move {
            match supervisor.remove(&unit).await {
                Err(CallError::Refused(refused)) if refused.kind == RefusalKind::Unknown => {}
                other => other.map_err(|e| e.to_string())?,
            }
            let _ = fs::remove_file(socket);
            Ok(())
        })
    }
}
