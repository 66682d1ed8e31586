//! What a config asks for against what this machine has.

use super::refuse_apps;
use crate::desired::Desired;
use crate::trouble::{Object, ObjectKind, Trouble};

/// What there is to share out. Zero = not known: nothing is refused for it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Machine {
    /// Bytes of RAM.
    pub memory_bytes: u64,
    /// Bytes of DATA.
    pub storage_bytes: u64,
}

/// Refuses what this machine could not hold even if it were the only thing on it: apps with more memory, volumes of a greater size.
/// Objects that need them fall with them.
pub fn check(desired: &mut Desired, machine: Machine) {
    let fits = |wanted: u64, most: u64| most == 0 || wanted <= most;
    let faults = &mut desired.faults;
    desired.volumes.retain(|volume| {
        let good = fits(volume.max_size_bytes, machine.storage_bytes);
        if !good {
            let (wanted, most) = (volume.max_size_bytes, machine.storage_bytes);
            let text = format!("size: this machine has {most} bytes for data, found {wanted}; the volume is not made");
            faults.push(Trouble::error(Object::new(ObjectKind::Volume, volume.id, &volume.name), text));
        }
        good
    });
    let volumes: Vec<_> = desired.volumes.iter().map(|volume| volume.id).collect();
    refuse_apps(desired, |app| {
        if !fits(app.memory_bytes, machine.memory_bytes) {
            let (wanted, most) = (app.memory_bytes >> 10, machine.memory_bytes >> 10);
            return Some(format!("memory: this machine has {most} KiB, found {wanted} KiB"));
        }
        let missing = app.volumes.iter().find(|reference| !volumes.contains(&reference.volume))?;
        Some(format!("volume {}: not in the config or it has a fault", missing.volume))
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::{App, VolumeRef};
    use crate::storage::{Volume, VolumeOrigin};
    use uuid::Uuid;

    #[test]
    fn what_the_machine_cannot_hold_is_refused_and_what_needs_it_too() {
        let volume = |id: u128, max_size_bytes| Volume {
            id: Uuid::from_u128(id),
            name: format!("v{id}"),
            origin: VolumeOrigin::Blank,
            generation: 0,
            max_size_bytes,
            read_only: false,
        };
        let app = |id: u128, volume: u128, memory_bytes| App {
            id: Uuid::from_u128(id),
            memory_bytes,
            volumes: vec![VolumeRef { volume: Uuid::from_u128(volume), generation: 0, mount_dir: String::new() }],
            ..App::default()
        };
        let asked = Desired {
            volumes: vec![volume(1, 100), volume(2, 101)],
            apps: vec![app(11, 1, 50), app(12, 1, 51), app(13, 2, 50)],
            ..Desired::default()
        };
        let mut desired = asked.clone();
        check(&mut desired, Machine { memory_bytes: 50, storage_bytes: 100 });
        assert_eq!(desired.apps, [app(11, 1, 50)]);
        assert_eq!(desired.volumes, [volume(1, 100)]);
        assert_eq!(desired.faults.len(), 3, "{:#?}", desired.faults);
        let mut unknown = asked.clone();
        check(&mut unknown, Machine::default());
        assert_eq!(unknown, asked, "a machine that is not known refuses nothing");
    }
}
