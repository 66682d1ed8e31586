//! From [`Gauges`], with names and sizes from [`Observed`], to `ZMetricMsg`: one sample of everything.

use crate::info::{MIB, words::instance_kind};
use crate::proto::metrics::{
    AppCpuMetric, AppDiskMetric, AppMemoryMetric, AppMetric, DeviceMemoryMetric, DeviceMetric, DiskMetric,
    MemoryMetric, NetworkMetric, NetworkStats, UrlcloudMetric, ZMetricMsg, ZMetricNetworkInstance, ZMetricNetworkStats,
    ZMetricVolume, ZedcloudMetric, z_metric_msg::MetricContent,
};
use holdfast_model::gauges::{AppGauges, Gauges, InterfaceCounters, VolumeGauges};
use holdfast_model::observed::{AppStatus, InstanceStatus, Observed, VolumeStatus};
use prost_types::Timestamp;
use std::time::SystemTime;

/// What a sample needs beside the observed state.
#[derive(Debug, Clone, Default)]
pub struct Context {
    /// When the sample is made.
    pub now: Option<SystemTime>,
    /// When the last config came.
    pub last_received_config: Option<SystemTime>,
    /// When the last config was put in force.
    pub last_processed_config: Option<SystemTime>,
    /// Traffic with the controller.
    pub traffic: ControllerTraffic,
}

/// Counters of the traffic with the controller since start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ControllerTraffic {
    /// Port through which it went, as far as known.
    pub interface: String,
    /// Requests without a usable answer.
    pub failures: u64,
    /// Requests with one.
    pub successes: u64,
    /// Last failure.
    pub last_failure: Option<SystemTime>,
    /// Last success.
    pub last_success: Option<SystemTime>,
    /// Envelopes that did not verify.
    pub envelope_failures: u64,
    /// For each path.
    pub paths: Vec<PathTraffic>,
}

/// Counters of one path of the API.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PathTraffic {
    /// URL.
    pub url: String,
    /// Requests begun.
    pub tried: u64,
    /// Requests answered.
    pub answered: u64,
    /// Bytes of bodies sent.
    pub sent_bytes: u64,
    /// Bytes of bodies received.
    pub received_bytes: u64,
    /// Milliseconds spent.
    pub milliseconds: u64,
}

/// The sample.
#[must_use]
pub fn message(observed: &Observed, gauges: &Gauges, context: &Context) -> ZMetricMsg {
    ZMetricMsg {
        dev_id: observed.device.id.to_string(),
        at_time_stamp: context.now.map(Timestamp::from),
        am: observed.apps.iter().map(|status| app(status, &observed.volumes, gauges)).collect(),
        nm: observed
            .instances
            .iter()
            .map(|status| instance(status, &gauges.instances.get(&status.id).copied().unwrap_or_default()))
            .collect(),
        vm: observed.volumes.iter().map(|status| volume(status, volume_gauges(gauges, status))).collect(),
        metric_content: Some(MetricContent::Dm(device(observed, gauges, context))),
        ..ZMetricMsg::default()
    }
}

fn device(observed: &Observed, gauges: &Gauges, context: &Context) -> DeviceMetric {
    let (device, sample) = (&observed.device, &gauges.device);
    let counters = |name: &str| gauges.ports.get(name).copied().unwrap_or_default();
    let apps_bytes: u64 = observed.apps.iter().map(|app| app.memory_bytes).sum();
    let apps_used: u64 = gauges.apps.values().map(|app| app.memory_used_bytes).sum();
    let host_used = mib32(sample.memory_used_bytes.saturating_sub(apps_used));
    DeviceMetric {
        memory: Some(memory(sample.memory_used_bytes, device.memory_bytes)),
        network: observed
            .ports
            .iter()
            .map(|port| network(&port.name, &port.interface, &counters(&port.name)))
            .collect(),
        zedcloud: vec![traffic(&context.traffic)],
        disk: vec![DiskMetric {
            disk: "DATA".to_owned(),
            mount_path: "/data".to_owned(),
            total: device.storage_bytes / MIB,
            used: sample.storage_used_bytes / MIB,
            free: device.storage_bytes.saturating_sub(sample.storage_used_bytes) / MIB,
            ..DiskMetric::default()
        }],
        cpu_metric: Some(cpu(sample.cpu_total_ns, sample.uptime_seconds)),
        device_memory: Some(DeviceMemoryMetric {
            memory_mb: mib32(device.memory_bytes),
            allocated_apps_mb: mib32(apps_bytes),
            allocated_eve_mb: host_used,
            used_eve_mb: host_used,
        }),
        last_received_config: context.last_received_config.map(Timestamp::from),
        last_processed_config: context.last_processed_config.map(Timestamp::from),
        ..DeviceMetric::default()
    }
}

/// Disks of an app are its volumes, in order; their traffic is in the volumes' own metrics, where EVE has fields for it.
fn volume_gauges(gauges: &Gauges, volume: &VolumeStatus) -> VolumeGauges {
    gauges.volumes.get(&volume.id).copied().unwrap_or_default()
}

fn app(app: &AppStatus, volumes: &[VolumeStatus], gauges: &Gauges) -> AppMetric {
    let idle = AppGauges::default();
    let sample = gauges.apps.get(&app.id).unwrap_or(&idle);
    let counters = |name: &str| sample.interfaces.get(name).copied().unwrap_or_default();
    let disks = app.volumes.iter().filter_map(|id| volumes.iter().find(|volume| volume.id == *id));
    AppMetric {
        app_id: app.id.to_string(),
        app_name: app.name.clone(),
        app_version: app.version.clone(),
        cpu: Some(cpu(sample.cpu_total_ns, 0)),
        memory: Some(memory(sample.memory_used_bytes, app.memory_bytes)),
        network: app.interfaces.iter().map(|nic| network(&nic.name, &nic.tap, &counters(&nic.name))).collect(),
        disk: disks
            .map(|volume| (volume, volume_gauges(gauges, volume).used_bytes))
            .map(|(volume, used_bytes)| AppDiskMetric {
                disk: volume.name.clone(),
                provisioned: volume.max_size_bytes / MIB,
                used: used_bytes / MIB,
                dirty: used_bytes > 0,
                ..AppDiskMetric::default()
            })
            .collect(),
        app_memory: Some(AppMemoryMetric {
            allocated_mb: mib32(app.memory_bytes),
            used_mb: mib32(sample.memory_used_bytes),
        }),
        ..AppMetric::default()
    }
}

fn instance(instance: &InstanceStatus, counters: &InterfaceCounters) -> ZMetricNetworkInstance {
    ZMetricNetworkInstance {
        network_id: instance.id.to_string(),
        network_version: instance.version.clone(),
        inst_type: instance_kind(instance.kind),
        displayname: instance.name.clone(),
        activated: instance.activated,
        network: vec![network(&instance.name, &instance.bridge, counters)],
        network_stats: Some(ZMetricNetworkStats {
            rx: Some(NetworkStats {
                total_packets: counters.rx_packets,
                errors: counters.rx_errors,
                drops: counters.rx_drops,
                total_bytes: counters.rx_bytes,
            }),
            tx: Some(NetworkStats {
                total_packets: counters.tx_packets,
                errors: counters.tx_errors,
                drops: counters.tx_drops,
                total_bytes: counters.tx_bytes,
            }),
        }),
        ..ZMetricNetworkInstance::default()
    }
}

fn volume(volume: &VolumeStatus, sample: VolumeGauges) -> ZMetricVolume {
    ZMetricVolume {
        uuid: volume.id.to_string(),
        display_name: volume.name.clone(),
        read_bytes: sample.counters.read_bytes,
        write_bytes: sample.counters.written_bytes,
        read_count: sample.counters.reads,
        write_count: sample.counters.writes,
        total_bytes: volume.max_size_bytes,
        used_bytes: sample.used_bytes,
        free_bytes: volume.max_size_bytes.saturating_sub(sample.used_bytes),
    }
}

fn traffic(traffic: &ControllerTraffic) -> ZedcloudMetric {
    let signed = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    ZedcloudMetric {
        if_name: traffic.interface.clone(),
        failures: traffic.failures,
        success: traffic.successes,
        last_failure: traffic.last_failure.map(Timestamp::from),
        last_success: traffic.last_success.map(Timestamp::from),
        auth_verify_failure: traffic.envelope_failures,
        url_metrics: traffic
            .paths
            .iter()
            .map(|path| UrlcloudMetric {
                url: path.url.clone(),
                try_msg_count: signed(path.tried),
                sent_msg_count: signed(path.answered),
                recv_msg_count: signed(path.answered),
                sent_byte_count: signed(path.sent_bytes),
                recv_byte_count: signed(path.received_bytes),
                total_time_spent: signed(path.milliseconds),
                ..UrlcloudMetric::default()
            })
            .collect(),
    }
}

fn network(name: &str, local: &str, counters: &InterfaceCounters) -> NetworkMetric {
    NetworkMetric {
        i_name: name.to_owned(),
        local_name: local.to_owned(),
        tx_bytes: counters.tx_bytes,
        rx_bytes: counters.rx_bytes,
        tx_drops: counters.tx_drops,
        rx_drops: counters.rx_drops,
        tx_pkts: counters.tx_packets,
        rx_pkts: counters.rx_packets,
        tx_errors: counters.tx_errors,
        rx_errors: counters.rx_errors,
        ..NetworkMetric::default()
    }
}

/// Processor time: `total` in seconds, `total_ns` in nanoseconds; up time is a duration in a stamp's clothes.
fn cpu(total_ns: u64, uptime_seconds: u64) -> AppCpuMetric {
    AppCpuMetric {
        up_time: i64::try_from(uptime_seconds).ok().filter(|s| *s > 0).map(|seconds| Timestamp { seconds, nanos: 0 }),
        total: total_ns / 1_000_000_000,
        system_total: 0,
        total_ns,
    }
}

fn memory(used: u64, total: u64) -> MemoryMetric {
    let free = total.saturating_sub(used);
    let percent = |part: u64| {
        if total == 0 { 0.0 } else { part as f64 * 100.0 / total as f64 }
    };
    MemoryMetric {
        used_mem: mib32(used),
        avail_mem: mib32(free),
        used_percentage: percent(used.min(total)),
        avail_percentage: percent(free),
    }
}

fn mib32(bytes: u64) -> u32 {
    u32::try_from(bytes / MIB).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_model::gauges::{DeviceGauges, DiskCounters};
    use holdfast_model::observed::{AppInterfaceStatus, PortStatus};
    use uuid::Uuid;

    #[test]
    fn fields_that_testers_read_are_filled() {
        let mut observed = Observed::default();
        observed.device.memory_bytes = 1024 * MIB;
        observed.ports.push(PortStatus { name: "eth0".to_owned(), ..PortStatus::default() });
        let [app, volume] = [7, 5].map(Uuid::from_u128);
        observed.apps.push(AppStatus {
            id: app,
            memory_bytes: 128 * MIB,
            interfaces: vec![AppInterfaceStatus { name: "nic".to_owned(), ..AppInterfaceStatus::default() }],
            volumes: vec![volume, Uuid::from_u128(404)],
            ..AppStatus::default()
        });
        observed.instances.push(InstanceStatus::default());
        observed.volumes.push(VolumeStatus {
            id: volume,
            name: "data".to_owned(),
            max_size_bytes: 8 * MIB,
            ..VolumeStatus::default()
        });
        let traffic = InterfaceCounters { rx_bytes: 7, tx_packets: 3, ..InterfaceCounters::default() };
        let counters = DiskCounters { read_bytes: 1, written_bytes: 2, reads: 3, writes: 4 };
        let gauges = Gauges {
            device: DeviceGauges {
                memory_used_bytes: 256 * MIB,
                cpu_total_ns: 2_500_000_000,
                ..DeviceGauges::default()
            },
            ports: [("eth0".to_owned(), traffic)].into(),
            instances: [(Uuid::nil(), traffic)].into(),
            volumes: [(volume, VolumeGauges { used_bytes: 5 * MIB, counters })].into(),
            apps: [(
                app,
                AppGauges {
                    cpu_total_ns: 9,
                    memory_used_bytes: 64 * MIB,
                    interfaces: [("nic".to_owned(), traffic)].into(),
                },
            )]
            .into(),
        };

        let context = Context { now: Some(SystemTime::UNIX_EPOCH), ..Context::default() };
        let message = message(&observed, &gauges, &context);

        let Some(MetricContent::Dm(device)) = message.metric_content else { panic!("no device metric") };
        let memory = device.memory.expect("memory");
        assert_eq!((memory.used_mem, memory.avail_mem), (256, 768));
        assert!((memory.used_percentage - 25.0).abs() < 1e-9);
        assert_eq!(device.network[0].i_name, "eth0");
        assert_eq!(device.network[0].rx_bytes, 7);
        assert_eq!(device.cpu_metric.expect("cpu").total, 2);
        assert_eq!(message.am[0].cpu.expect("cpu").total_ns, 9);
        assert_eq!(message.am[0].memory.expect("memory").used_mem, 64);
        assert_eq!(message.nm[0].network_stats.expect("stats").tx.expect("tx").total_packets, 3);
        assert_eq!((message.am[0].network[0].rx_bytes, message.am[0].network[0].tx_pkts), (7, 3));
        let disks = &message.am[0].disk;
        assert_eq!(disks.len(), 1, "an unknown volume is no disk");
        assert_eq!((disks[0].disk.as_str(), disks[0].provisioned, disks[0].used), ("data", 8, 5));
        let volume = &message.vm[0];
        assert_eq!(volume.used_bytes, 5 * MIB);
        assert_eq!((volume.read_bytes, volume.write_bytes, volume.read_count, volume.write_count), (1, 2, 3, 4));
    }
}
