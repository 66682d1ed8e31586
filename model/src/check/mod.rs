//! What a desired state means as a whole: checks over several objects, and what stays in force when an object has a fault.
//!
//! Pure functions over [`Desired`]: the conversion from the wire reads single objects, this decides what of them can be used.
//!
//! Reading order: [`apps`] (what apps ask for, together), [`machine`] (what this machine has), [`last_good`] (what stays in force).

pub mod apps;
mod last_good;
pub mod machine;

pub use last_good::keep_last_good;

use crate::desired::Desired;
use crate::trouble::{Object, ObjectKind, Trouble};
use uuid::Uuid;

/// Takes the apps out of `desired` that `fault` finds something wrong with, each with its trouble.
fn refuse_apps(desired: &mut Desired, mut fault: impl FnMut(&crate::app::App) -> Option<String>) {
    let faults = &mut desired.faults;
    desired.apps.retain(|app| match fault(app) {
        None => true,
        Some(text) => {
            let on = Object::new(ObjectKind::App, app.id, &app.name);
            faults.push(Trouble::error(on, format!("{text}; the app is not run")));
            false
        }
    });
}

/// True when a trouble is about the object of this id: by the id, in any spelling of a UUID, or by the name when the id that the config
/// gives is no UUID.
fn is_about(trouble: &Trouble, kind: ObjectKind, id: Uuid, name: &str) -> bool {
    trouble.on.kind == kind
        && match Uuid::try_parse(&trouble.on.id) {
            Ok(other) => other == id,
            Err(_) => trouble.on.name == name,
        }
}
