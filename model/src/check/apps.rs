//! What apps ask for, seen together.

use super::refuse_apps;
use crate::app::App;
use crate::desired::Desired;
use crate::trouble::{Object, ObjectKind, Trouble};
use std::collections::{HashMap, HashSet};

/// Least guest memory in bytes: below it no kernel reaches its init.
pub const MIN_MEMORY_BYTES: u64 = 16 << 20;

/// Refuses apps that cannot run as they are written or beside the ones before them: too little memory, a volume that is used twice,
/// two volumes in one place. What is written and has no effect is a warning.
pub fn check(desired: &mut Desired) {
    let mut users: HashMap<_, String> = HashMap::new();
    refuse_apps(desired, |app| {
        let fault = memory(app).or_else(|| places(app));
        let fault = fault.or_else(|| {
            let taken = app.volumes.iter().find_map(|v| users.get(&v.volume).map(|other| (v.volume, other)));
            taken
                .map(|(volume, other)| format!("volume {volume}: app {other:?} uses it too, expected one app for each"))
        });
        if fault.is_none() {
            users.extend(app.volumes.iter().map(|v| (v.volume, app.name.clone())));
        }
        fault
    });
    for app in &desired.apps {
        let root = app.volumes.first().and_then(|root| desired.volumes.iter().find(|v| v.id == root.volume));
        if root.is_some_and(|root| root.read_only) {
            let text = "readonly of the first volume: not supported by this version; the app can write to its root";
            desired.faults.push(Trouble::warning(Object::new(ObjectKind::App, app.id, &app.name), text));
        }
    }
}

fn memory(app: &App) -> Option<String> {
    (app.memory_bytes < MIN_MEMORY_BYTES).then(|| {
        format!("memory: expected at least {} KiB, found {} KiB", MIN_MEMORY_BYTES >> 10, app.memory_bytes >> 10)
    })
}

fn places(app: &App) -> Option<String> {
    let (mut volumes, mut places) = (HashSet::new(), HashSet::new());
    for reference in &app.volumes {
        if !volumes.insert(reference.volume) {
            return Some(format!("volume {}: expected once in an app, found twice", reference.volume));
        }
        // Without a place of its own a volume gets one by its position.
        if !reference.mount_dir.is_empty() && !places.insert(reference.mount_dir.trim_end_matches('/')) {
            return Some(format!("mount directory {:?}: expected for one volume, found for two", reference.mount_dir));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::VolumeRef;
    use uuid::Uuid;

    fn app(id: u128, volumes: &[(u128, &str)]) -> App {
        let reference = |(volume, place): &(u128, &str)| VolumeRef {
            volume: Uuid::from_u128(*volume),
            generation: 0,
            mount_dir: (*place).to_owned(),
        };
        App {
            id: Uuid::from_u128(id),
            name: format!("app{id}"),
            memory_bytes: MIN_MEMORY_BYTES,
            volumes: volumes.iter().map(reference).collect(),
            ..App::default()
        }
    }

    #[test]
    fn apps_that_cannot_run_together_are_refused_behind_the_first() {
        let small = App { memory_bytes: MIN_MEMORY_BYTES - 1, ..app(5, &[(9, "")]) };
        let mut desired = Desired {
            apps: vec![
                app(1, &[(1, ""), (2, "/data")]),
                app(2, &[(3, ""), (2, "/data")]),
                app(3, &[(4, ""), (4, "")]),
                app(4, &[(5, ""), (6, "/x"), (7, "/x/")]),
                small,
                app(6, &[(3, ""), (8, "")]),
            ],
            ..Desired::default()
        };
        check(&mut desired);
        let left: Vec<&str> = desired.apps.iter().map(|app| app.name.as_str()).collect();
        assert_eq!(left, ["app1", "app6"], "what a refused app asked for is free");
        let expected = [
            ("app2", "app \"app1\" uses it too"),
            ("app3", "found twice"),
            ("app4", "\"/x/\": expected for one volume"),
            ("app5", "expected at least 16384 KiB"),
        ];
        for (fault, (name, words)) in desired.faults.iter().zip(expected) {
            assert_eq!(fault.on.name, name);
            assert!(fault.text.contains(words), "{}", fault.text);
        }
        assert_eq!(desired.faults.len(), expected.len());
    }
}
