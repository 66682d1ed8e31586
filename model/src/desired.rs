//! What the controller wants the device to be: one tree, made from one config.

use crate::{app::App, base_os::BaseOs, net, properties::Properties, storage, trouble::Trouble};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The whole desired state. Objects that had a fault are absent here, or in their last good form ([`crate::check::keep_last_good`]), and
/// named in `faults`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Desired {
    /// The device's own UUID as the config states it.
    pub device: Uuid,
    /// Revision text of the config (`EdgeDevConfig.id.version`).
    pub revision: String,
    /// Label given by the operator; empty when none.
    pub device_name: String,
    /// Properties with their defaults filled in.
    pub properties: Properties,
    /// Physical ports and what may be done with them.
    pub ports: Vec<net::Port>,
    /// VLANs, bonds and radios over ports.
    pub links: Vec<net::Link>,
    /// IP endpoints over ports and links.
    pub adapters: Vec<net::Adapter>,
    /// Virtual networks for apps.
    pub instances: Vec<net::NetworkInstance>,
    /// Image servers.
    pub datastores: Vec<storage::Datastore>,
    /// Images to have.
    pub contents: Vec<storage::ContentTree>,
    /// Volumes to have.
    pub volumes: Vec<storage::Volume>,
    /// Apps to have.
    pub apps: Vec<App>,
    /// The base OS to run, when the controller states one.
    pub base_os: Option<BaseOs>,
    /// Counter commands of the device.
    pub commands: Commands,
    /// No apps run while set.
    pub maintenance: bool,
    /// Text that changes when the controller's certificates change.
    pub controller_certificates_hash: String,
    /// All info is sent again when this changes.
    pub controller_epoch: i64,
    /// Faults found while converting, each on its object.
    pub faults: Vec<Trouble>,
}

/// Counter commands: act when the counter grows beyond the last one acted on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Commands {
    /// Reboot the device.
    pub reboot: u32,
    /// Stop all apps and stay powered.
    pub shutdown: u32,
}
