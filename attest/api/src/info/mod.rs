//! From [`Observed`] to `ZInfoMsg`: one message for each object, keyed so that a newer one replaces an older one.
//!
//! A fault of the config is reported with its object: beside what the device itself observes of it, or alone when the object exists
//! only as a fault. Faults that belong to no object with a message of its own (datastores, networks, the device) are reported as
//! errors of configuration items named `config/<kind>/<id>`.
//!
//! Reading order: this file, `device` (the device's own message), `ports` (its ports), `objects` (all others), `errors` (EVE's
//! `ErrorInfo`), `words` (states as EVE says them).

mod device;
mod errors;
mod objects;
mod ports;
pub(crate) mod words;

use crate::proto::info::{
    ApiCapability, ZInfoApp, ZInfoContentTree, ZInfoMsg, ZInfoNetworkInstance, ZInfoTypes, ZInfoVolume,
    z_info_msg::InfoContent,
};
use holdfast_model::gauges::Gauges;
use holdfast_model::observed::Observed;
use holdfast_model::properties::Properties;
use holdfast_model::trouble::{ObjectKind, Trouble};
use prost_types::Timestamp;
use std::time::SystemTime;

/// Highest level of the API that is really done here. A number claims all lower ones: retry of an update (1), the shutdown
/// command (2), the start delay of apps (3).
pub const API_CAPABILITY: ApiCapability = ApiCapability::StartDelayInSeconds;

/// One mebibyte: the unit of sizes in info and metrics.
pub(crate) const MIB: u64 = 1 << 20;

/// What a report needs beside the observed state.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    /// When the report is made.
    pub now: SystemTime,
    /// Properties in force, to be echoed; `None` before the first config.
    pub properties: Option<&'a Properties>,
    /// The last sample, for sizes; `None` before the first.
    pub gauges: Option<&'a Gauges>,
}

/// What an info message is about. A message replaces an older one of the same key.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InfoKey {
    /// Kind of the object.
    pub kind: InfoKind,
    /// Its id; empty for the device and the blob list.
    pub id: String,
}

/// Kinds of info messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum InfoKind {
    /// The device.
    Device,
    /// An app.
    App,
    /// A network instance.
    NetworkInstance,
    /// A volume.
    Volume,
    /// A content tree.
    Content,
    /// All blobs.
    Blobs,
}

impl InfoKey {
    fn new(kind: InfoKind, id: impl ToString) -> Self {
        Self { kind, id: id.to_string() }
    }
}

/// All messages that describe `observed`, the device first.
#[must_use]
pub fn messages(observed: &Observed, context: Context<'_>) -> Vec<(InfoKey, ZInfoMsg)> {
    let report = Report { observed, context, at: Timestamp::from(context.now) };
    let mut out = vec![(
        InfoKey::new(InfoKind::Device, ""),
        report.message(ZInfoTypes::ZiDevice, InfoContent::Dinfo(report.device())),
    )];

    for app in &observed.apps {
        out.push((
            InfoKey::new(InfoKind::App, app.id),
            report.message(ZInfoTypes::ZiApp, InfoContent::Ainfo(report.app(app))),
        ));
    }
    for instance in &observed.instances {
        let content = InfoContent::Niinfo(report.instance(instance));
        out.push((
            InfoKey::new(InfoKind::NetworkInstance, instance.id),
            report.message(ZInfoTypes::ZiNetworkInstance, content),
        ));
    }
    for volume in &observed.volumes {
        let content = InfoContent::Vinfo(report.volume(volume));
        out.push((InfoKey::new(InfoKind::Volume, volume.id), report.message(ZInfoTypes::ZiVolume, content)));
    }
    for tree in &observed.contents {
        let content = InfoContent::Cinfo(report.content(tree));
        out.push((InfoKey::new(InfoKind::Content, tree.id), report.message(ZInfoTypes::ZiContentTree, content)));
    }
    if observed.contents.iter().any(|tree| !tree.sha256.is_empty()) {
        let content = InfoContent::Binfo(report.blobs());
        out.push((InfoKey::new(InfoKind::Blobs, ""), report.message(ZInfoTypes::ZiBlobList, content)));
    }
    for fault in &observed.faults {
        if let Some((kind, ztype, content)) = report.only_a_fault(fault) {
            let key = InfoKey::new(kind, &fault.on.id);
            if out.iter().all(|(other, _)| other.kind != kind || !other.id.eq_ignore_ascii_case(&key.id)) {
                out.push((key, report.message(ztype, content)));
            }
        }
    }
    out
}

/// The message that says an object is no longer there; `None` for the device and the blob list.
#[must_use]
pub fn gone(key: &InfoKey, device: &uuid::Uuid, now: SystemTime) -> Option<ZInfoMsg> {
    let id = key.id.clone();
    let (ztype, content) = match key.kind {
        InfoKind::Device | InfoKind::Blobs => return None,
        InfoKind::App => (ZInfoTypes::ZiApp, InfoContent::Ainfo(ZInfoApp { app_id: id, ..ZInfoApp::default() })),
        InfoKind::NetworkInstance => {
            let gone = ZInfoNetworkInstance { network_id: id, ..ZInfoNetworkInstance::default() };
            (ZInfoTypes::ZiNetworkInstance, InfoContent::Niinfo(gone))
        }
        InfoKind::Volume => {
            (ZInfoTypes::ZiVolume, InfoContent::Vinfo(ZInfoVolume { uuid: id, ..ZInfoVolume::default() }))
        }
        InfoKind::Content => (
            ZInfoTypes::ZiContentTree,
            InfoContent::Cinfo(ZInfoContentTree { uuid: id, ..ZInfoContentTree::default() }),
        ),
    };
    Some(ZInfoMsg {
        ztype: ztype.into(),
        dev_id: device.to_string(),
        at_time_stamp: Some(Timestamp::from(now)),
        info_content: Some(content),
    })
}

struct Report<'a> {
    observed: &'a Observed,
    context: Context<'a>,
    at: Timestamp,
}

impl Report<'_> {
    fn message(&self, ztype: ZInfoTypes, content: InfoContent) -> ZInfoMsg {
        ZInfoMsg {
            ztype: ztype.into(),
            dev_id: self.observed.device.id.to_string(),
            at_time_stamp: Some(self.at),
            info_content: Some(content),
        }
    }

    /// Everything that is wrong with an object: what is observed of it, then what is wrong with its config, each text once.
    fn all<'b>(&'b self, own: &'b [Trouble], kind: ObjectKind, id: &'b str) -> impl Iterator<Item = &'b Trouble> {
        own.iter().chain(self.faults_of(kind, id).filter(|fault| own.iter().all(|other| other.text != fault.text)))
    }

    /// What is wrong with an object's config.
    fn faults_of<'b>(&'b self, kind: ObjectKind, id: &'b str) -> impl Iterator<Item = &'b Trouble> {
        self.observed.faults.iter().filter(move |t| t.on.kind == kind && t.on.id.eq_ignore_ascii_case(id))
    }

    /// What is observed to be wrong with a part of the device.
    fn device_troubles(&self, kind: ObjectKind) -> impl Iterator<Item = &Trouble> {
        self.observed.device.troubles.iter().filter(move |t| t.on.kind == kind)
    }
}

fn texts(addresses: &[std::net::IpAddr]) -> Vec<String> {
    addresses.iter().map(ToString::to_string).collect()
}

/// A stamp; `None` while the time is not known.
pub(crate) fn stamp(seconds: i64) -> Option<Timestamp> {
    (seconds > 0).then_some(Timestamp { seconds, nanos: 0 })
}

/// What a message says, without the time at which it was made: equal contents need not be sent twice.
#[must_use]
pub fn without_stamp(message: &ZInfoMsg) -> ZInfoMsg {
    let mut message = message.clone();
    message.at_time_stamp = None;
    if let Some(InfoContent::Dinfo(device)) = &mut message.info_content {
        for status in device.system_adapter.iter_mut().flat_map(|adapters| &mut adapters.status) {
            status.last_succeeded = None;
        }
    }
    message
}

#[cfg(test)]
mod tests;
