//! What the VMMs count: asked of each running app's VM when a metrics message is due, folded into the sample.
//!
//! Processor time and memory come from cgroups, packets from taps ([`crate::gauges`]); only the VMM knows what went to
//! which disk. A VM that does not answer costs its own counters and a bounded wait, nothing else.

use crate::parts::app::vm as vms;
use holdfast_model::contract::vm::{Reply, Request, Stats};
use holdfast_model::gauges::{DiskCounters, Gauges};
use holdfast_model::observed::Observed;
use holdfast_unit::AsyncChannel;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;
use tokio::time::timeout;
use uuid::Uuid;

/// How long one VM has to answer.
const ANSWER: Duration = Duration::from_millis(500);
/// How long all of them have together.
const ANSWERS: Duration = Duration::from_secs(3);

/// The counters of each running app whose VM answers; `folder` holds the control sockets.
pub async fn collect(folder: &Path, observed: &Observed) -> BTreeMap<Uuid, Stats> {
    let mut found = BTreeMap::new();
    let all = async {
        for app in observed.apps.iter().filter(|app| app.activated) {
            let socket = folder.join(format!("{}.sock", vms::unit_of(app.id)));
            let Ok(mut channel) = AsyncChannel::connect(&socket) else { continue };
            if let Ok(Reply::Stats(stats)) = channel.ask(&Request::Stats, ANSWER).await {
                found.insert(app.id, *stats);
            }
        }
    };
    let _ = timeout(ANSWERS, all).await;
    found
}

/// Adds the counters of disks to those of the volumes that they are.
pub fn fold(observed: &Observed, gauges: &mut Gauges, stats: &BTreeMap<Uuid, Stats>) {
    for app in &observed.apps {
        for (device, counters) in stats.get(&app.id).into_iter().flat_map(|stats| &stats.devices) {
            let Some(volume) = disk_volume(device).and_then(|n| app.volumes.get(n)) else { continue };
            if observed.volumes.iter().any(|v| v.id == *volume) {
                let sample = gauges.volumes.entry(*volume).or_default();
                let DiskCounters { read_bytes, written_bytes, reads, writes } = &mut sample.counters;
                *read_bytes += counters.in_bytes;
                *written_bytes += counters.out_bytes;
                *reads += counters.in_ops;
                *writes += counters.out_ops;
            }
        }
    }
}

/// Which of the app's volumes a VM's disk belongs to, by the name that [`vms::unit::prepare`] gave it: image and writable layer
/// are the first volume; the app document is none.
fn disk_volume(device: &str) -> Option<usize> {
    match device.strip_prefix("disk ")? {
        "rootfs" | "overlay" => Some(0),
        id => id.strip_prefix("vol")?.parse::<usize>().ok()?.checked_add(1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_model::contract::vm::{DeviceStats, RunState};
    use holdfast_model::observed::{AppStatus, VolumeStatus};
    use holdfast_vmm::control::ControlServer;

    fn stats(devices: &[(&str, u64)]) -> Stats {
        let counted = |n: u64| DeviceStats { in_bytes: n, in_ops: 1, out_bytes: 10 * n, out_ops: 2, errors: 0 };
        Stats {
            state: RunState::Running,
            uptime_ms: 1,
            setup_cpu_us: 0,
            vcpus: vec![],
            devices: devices.iter().map(|(name, n)| ((*name).to_owned(), counted(*n))).collect(),
            memory: None,
            consoles: vec![],
        }
    }

    fn observed() -> Observed {
        let [app, image, data] = [1, 2, 3].map(Uuid::from_u128);
        let mut observed = Observed::default();
        observed.apps.push(AppStatus { id: app, activated: true, volumes: vec![image, data], ..AppStatus::default() });
        observed.volumes = [image, data].map(|id| VolumeStatus { id, ..VolumeStatus::default() }).into();
        observed
    }

    #[test]
    fn disks_count_for_the_volumes_they_are() {
        let (observed, mut gauges) = (observed(), Gauges::default());
        let devices = [("disk rootfs", 1), ("disk overlay", 2), ("disk vol0", 5), ("disk config", 100), ("net0", 1000)];
        fold(&observed, &mut gauges, &BTreeMap::from([(Uuid::from_u128(1), stats(&devices))]));
        let counters = |n: u128| gauges.volumes[&Uuid::from_u128(n)].counters;
        assert_eq!(counters(2), DiskCounters { read_bytes: 3, written_bytes: 30, reads: 2, writes: 4 });
        assert_eq!(counters(3), DiskCounters { read_bytes: 5, written_bytes: 50, reads: 1, writes: 2 });
    }

    #[test]
    fn strange_names_and_volumes_that_are_not_there_count_nowhere() {
        let (observed, mut gauges) = (observed(), Gauges::default());
        let devices = [("disk vol7", 1), ("disk vol18446744073709551615", 1), ("disk volx", 1), ("vol0", 1), ("", 1)];
        fold(&observed, &mut gauges, &BTreeMap::from([(Uuid::from_u128(1), stats(&devices))]));
        assert_eq!(gauges, Gauges::default());
    }

    #[tokio::test]
    async fn running_vms_are_asked_and_silent_ones_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let mut observed = observed();
        let [silent, halted] = [8, 9].map(Uuid::from_u128);
        observed.apps.push(AppStatus { id: silent, activated: true, ..AppStatus::default() });
        observed.apps.push(AppStatus { id: halted, ..AppStatus::default() });
        let socket = |app: Uuid| folder.path().join(format!("{}.sock", vms::unit_of(app)));
        // A VM that hangs: its socket listens, nobody answers.
        let hung = holdfast_unit::packet::listen(&socket(silent), 4).unwrap();
        let mut server =
            ControlServer::new(holdfast_unit::packet::listen(&socket(Uuid::from_u128(1)), 4).unwrap()).unwrap();
        let answer = std::thread::spawn(move || {
            loop {
                let _ = server.accept();
                if let Some(request) = server.receive(0) {
                    server.send(0, &Reply::Stats(Box::new(stats(&[("disk rootfs", 4)]))), None);
                    return request;
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let found = collect(folder.path(), &observed).await;
        assert_eq!(answer.join().unwrap(), Ok(Request::Stats));
        assert_eq!(found.keys().copied().collect::<Vec<_>>(), [Uuid::from_u128(1)]);
        drop(hung);
    }
}
