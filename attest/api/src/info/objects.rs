//! Messages of apps, network instances, volumes, images and blobs, and of objects that exist only as a fault.

use super::errors::{errors, merged};
use super::words::{app_state, instance_kind, load_state};
use super::{InfoKind, Report, stamp, texts};
use crate::proto::info::{
    ContentResources, VolumeResources, ZInfoApp, ZInfoBlob, ZInfoBlobList, ZInfoContentTree, ZInfoNetwork,
    ZInfoNetworkInstance, ZInfoTypes, ZInfoVolume, ZNetworkInstanceState, ZSwState, ZmetIpAssignmentEntry, ZmetVifInfo,
    z_info_msg::InfoContent,
};
use holdfast_model::net::mac_text;
use holdfast_model::observed::{AppStatus, ContentStatus, InstanceStatus, VolumeStatus};
use holdfast_model::trouble::{ObjectKind, Severity, Trouble, worst};
use std::collections::BTreeMap;

impl Report<'_> {
    pub(super) fn app(&self, app: &AppStatus) -> ZInfoApp {
        ZInfoApp {
            app_id: app.id.to_string(),
            app_version: app.version.clone(),
            app_name: app.name.clone(),
            boot_time: stamp(app.boot_time_seconds),
            app_err: errors(self.all(&app.troubles, ObjectKind::App, &app.id.to_string())),
            state: app_state(app.state).into(),
            network: app
                .interfaces
                .iter()
                .map(|nic| ZInfoNetwork {
                    mac_addr: mac_text(nic.mac),
                    dev_name: nic.name.clone(),
                    ip_addrs: texts(&nic.addresses),
                    ipv4_up: nic.addresses.iter().any(std::net::IpAddr::is_ipv4),
                    local_name: nic.tap.clone(),
                    ..ZInfoNetwork::default()
                })
                .collect(),
            volume_refs: app.volumes.iter().map(ToString::to_string).collect(),
            ..ZInfoApp::default()
        }
    }

    pub(super) fn instance(&self, instance: &InstanceStatus) -> ZInfoNetworkInstance {
        let mut assignments: BTreeMap<_, Vec<String>> = BTreeMap::new();
        for (mac, ip) in &instance.assignments {
            assignments.entry(*mac).or_default().push(ip.to_string());
        }
        let state = match (worst(&instance.troubles) == Some(Severity::Error), instance.activated) {
            (true, _) => ZNetworkInstanceState::ZnetinstStateError,
            (false, true) => ZNetworkInstanceState::ZnetinstStateOnline,
            (false, false) => ZNetworkInstanceState::ZnetinstStateInit,
        };
        #[allow(deprecated)]
        ZInfoNetworkInstance {
            network_id: instance.id.to_string(),
            network_version: instance.version.clone(),
            inst_type: instance_kind(instance.kind),
            displayname: instance.name.clone(),
            activated: instance.activated,
            ports: if instance.uplink.is_empty() { Vec::new() } else { vec![instance.uplink.clone()] },
            bridge_name: instance.bridge.clone(),
            bridge_ip_addr: instance.address.map(|ip| ip.to_string()).unwrap_or_default(),
            ip_assignments: assignments
                .into_iter()
                .map(|(mac, ip_address)| ZmetIpAssignmentEntry { mac_address: mac_text(mac), ip_address })
                .collect(),
            vifs: instance
                .interfaces
                .iter()
                .map(|(tap, mac, app)| ZmetVifInfo {
                    vif_name: tap.clone(),
                    mac_address: mac_text(*mac),
                    app_id: app.to_string(),
                })
                .collect(),
            network_err: errors(self.all(&instance.troubles, ObjectKind::NetworkInstance, &instance.id.to_string())),
            state: state.into(),
            ..ZInfoNetworkInstance::default()
        }
    }

    pub(super) fn volume(&self, volume: &VolumeStatus) -> ZInfoVolume {
        let sample = self.context.gauges.and_then(|gauges| gauges.volumes.get(&volume.id));
        let used_bytes = sample.map_or(0, |sample| sample.used_bytes);
        ZInfoVolume {
            uuid: volume.id.to_string(),
            display_name: volume.name.clone(),
            resources: Some(VolumeResources { max_size_bytes: volume.max_size_bytes, cur_size_bytes: used_bytes }),
            state: load_state(volume.state).into(),
            progress_percentage: volume.progress.get(),
            volume_err: merged(self.all(&volume.troubles, ObjectKind::Volume, &volume.id.to_string())),
            generation_count: volume.generation,
            ..ZInfoVolume::default()
        }
    }

    pub(super) fn content(&self, tree: &ContentStatus) -> ZInfoContentTree {
        ZInfoContentTree {
            uuid: tree.id.to_string(),
            display_name: tree.name.clone(),
            sha256: tree.sha256.clone(),
            resources: Some(ContentResources { cur_size_bytes: tree.size_bytes }),
            state: load_state(tree.state).into(),
            progress_percentage: tree.progress.get(),
            err: merged(self.all(&tree.troubles, ObjectKind::Content, &tree.id.to_string())),
            component_sha_list: if tree.sha256.is_empty() { Vec::new() } else { vec![tree.sha256.clone()] },
            ..ZInfoContentTree::default()
        }
    }

    pub(super) fn blobs(&self) -> ZInfoBlobList {
        let with_digest = self.observed.contents.iter().filter(|tree| !tree.sha256.is_empty());
        let blob = with_digest.map(|tree| ZInfoBlob {
            sha256: tree.sha256.clone(),
            resources: Some(ContentResources { cur_size_bytes: tree.size_bytes }),
            state: load_state(tree.state).into(),
            progress_percentage: tree.progress.get(),
            err: merged(&tree.troubles),
            ..ZInfoBlob::default()
        });
        ZInfoBlobList { blob: blob.collect() }
    }

    /// The message of an object that exists only as a fault; `None` for objects reported inside the device's message.
    pub(super) fn only_a_fault(&self, fault: &Trouble) -> Option<(InfoKind, ZInfoTypes, InfoContent)> {
        let (id, name) = (fault.on.id.clone(), fault.on.name.clone());
        let all = || self.faults_of(fault.on.kind, &fault.on.id);
        Some(match fault.on.kind {
            ObjectKind::App => {
                let app = ZInfoApp {
                    app_id: id,
                    app_name: name,
                    app_err: errors(all()),
                    state: ZSwState::Error.into(),
                    ..ZInfoApp::default()
                };
                (InfoKind::App, ZInfoTypes::ZiApp, InfoContent::Ainfo(app))
            }
            ObjectKind::NetworkInstance => {
                let instance = ZInfoNetworkInstance {
                    network_id: id,
                    displayname: name,
                    network_err: errors(all()),
                    state: ZNetworkInstanceState::ZnetinstStateError.into(),
                    ..ZInfoNetworkInstance::default()
                };
                (InfoKind::NetworkInstance, ZInfoTypes::ZiNetworkInstance, InfoContent::Niinfo(instance))
            }
            ObjectKind::Volume => {
                let volume = ZInfoVolume {
                    uuid: id,
                    display_name: name,
                    state: ZSwState::Error.into(),
                    volume_err: merged(all()),
                    ..ZInfoVolume::default()
                };
                (InfoKind::Volume, ZInfoTypes::ZiVolume, InfoContent::Vinfo(volume))
            }
            ObjectKind::Content => {
                let tree = ZInfoContentTree {
                    uuid: id,
                    display_name: name,
                    state: ZSwState::Error.into(),
                    err: merged(all()),
                    ..ZInfoContentTree::default()
                };
                (InfoKind::Content, ZInfoTypes::ZiContentTree, InfoContent::Cinfo(tree))
            }
            ObjectKind::Device
            | ObjectKind::Property
            | ObjectKind::Port
            | ObjectKind::Adapter
            | ObjectKind::Network
            | ObjectKind::Datastore
            | ObjectKind::BaseOs
            | ObjectKind::Attestation
            | ObjectKind::Vault => return None,
        })
    }
}
