//! A sample of everything that changes all the time, for the objects that are observed: taken when a metrics message is due.

use crate::boot::Paths;
use crate::machine;
use crate::parts::app::vm as vms;
use crate::parts::volume::files as volumes;
use holdfast_model::gauges::{AppGauges, DeviceGauges, Gauges, VolumeGauges};
use holdfast_model::observed::{AppStatus, Observed, VolumeStatus};
use holdfast_supervise::cgroup_path;

/// Takes the sample. What only VMMs know (traffic of disks) is added by [`crate::vmstats`].
#[must_use]
pub fn sample(observed: &Observed, paths: &Paths) -> Gauges {
    let (_, memory_used_bytes) = machine::memory();
    let (_, storage_used_bytes) = machine::storage(&paths.data);
    Gauges {
        device: DeviceGauges {
            memory_used_bytes,
            storage_used_bytes,
            uptime_seconds: machine::now().as_secs(),
            cpu_total_ns: machine::cpu_total_ns(),
        },
        ports: observed.ports.iter().map(|p| (p.name.clone(), machine::counters(&p.interface))).collect(),
        instances: observed.instances.iter().map(|i| (i.id, machine::counters(&i.bridge))).collect(),
        volumes: observed.volumes.iter().map(|v| (v.id, volume(v, observed, paths))).collect(),
        apps: observed.apps.iter().filter(|a| a.activated).map(|a| (a.id, app(a))).collect(),
    }
}

fn volume(volume: &VolumeStatus, observed: &Observed, paths: &Paths) -> VolumeGauges {
    let file = volumes::file_of(&paths.data("volumes"), volume.id, volume.generation);
    let image = observed.contents.iter().find(|c| volume.content == Some(c.id));
    let used_bytes = volumes::used_bytes(&file) + image.map_or(0, |image| image.size_bytes);
    VolumeGauges { used_bytes, ..VolumeGauges::default() }
}

fn app(app: &AppStatus) -> AppGauges {
    let (memory_used_bytes, cpu_total_ns) = machine::cgroup_usage(&cgroup_path(&vms::unit_of(app.id)));
    let counters = |tap: &str| machine::counters(tap).from_the_other_end();
    AppGauges {
        memory_used_bytes,
        cpu_total_ns,
        interfaces: app.interfaces.iter().map(|nic| (nic.name.clone(), counters(&nic.tap))).collect(),
    }
}
