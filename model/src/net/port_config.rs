//! Port configurations: what the device's own network is by one source, and how well each has led to the controller.

use super::{Adapter, Link, Port};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// The device's own network in its three layers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layers {
    /// Physical ports.
    pub ports: Vec<Port>,
    /// VLANs, bonds and radios over them.
    #[serde(default)]
    pub links: Vec<Link>,
    /// IP endpoints over ports and links.
    pub adapters: Vec<Adapter>,
}

impl Layers {
    /// Some adapter may lead to the controller.
    #[must_use]
    pub fn reach_controller(&self) -> bool {
        self.adapters.iter().any(Adapter::reaches_controller)
    }
}

/// Where a port configuration comes from, the preferred first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PortConfigSource {
    /// The config in force.
    Controller,
    /// The last config that led to the controller, when that is another one.
    Earlier,
    /// The site file, by which the device first reached its controller.
    Site,
    /// DHCP on every Ethernet port.
    LastResort,
}

impl PortConfigSource {
    /// All, the preferred first.
    pub const ALL: [Self; 4] = [Self::Controller, Self::Earlier, Self::Site, Self::LastResort];

    /// In words.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Controller => "the ports of the config",
            Self::Earlier => "the ports of the last config that led to the controller",
            Self::Site => "the ports of the site",
            Self::LastResort => "DHCP on every Ethernet port",
        }
    }
}

/// What is known of a port configuration.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Not tried in its present form.
    #[default]
    Untested,
    /// It led to the controller when it was last in use.
    Works,
    /// It did not.
    Fails,
}

/// How the controller was reached over one adapter. Times are seconds since the Unix epoch, 0 = never; they are those of changes, so
/// that what goes on as it was stays the same value.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathTest {
    /// When it was last reached first after a failure, or at all.
    pub succeeded_seconds: i64,
    /// When it was last not reached first after a success, or at all.
    pub failed_seconds: i64,
    /// Why not; empty when the last attempt succeeded.
    pub error: String,
}

/// A port configuration and its tests. Times are seconds since the Unix epoch, 0 = never, and those of changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortConfig {
    /// Where it comes from.
    pub source: PortConfigSource,
    /// What it is.
    pub layers: Layers,
    /// When it came.
    pub made_seconds: i64,
    /// What is known of it.
    pub verdict: Verdict,
    /// When it last began to lead to the controller.
    pub succeeded_seconds: i64,
    /// When it was last given up.
    pub failed_seconds: i64,
    /// Why it was given up; empty when it was not, or works again.
    pub error: String,
    /// Tests by adapter name.
    pub paths: BTreeMap<String, PathTest>,
}

/// All port configurations, the preferred first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortConfigs {
    /// The one in use, as an index into `list`.
    pub current: usize,
    /// All of them.
    pub list: Vec<PortConfig>,
}

/// A way to the controller.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Uplink {
    /// Name of the adapter; empty = any.
    pub adapter: String,
    /// Kernel interface to bind to (needs the capability to do so); `None` = routing decides.
    pub interface: Option<String>,
    /// Source address; `None` = the kernel chooses.
    pub source: Option<IpAddr>,
}

/// What an attempt to reach the controller brought over one adapter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tried {
    /// Name of the adapter; empty when routing chose.
    pub adapter: String,
    /// Whether the controller, or something that stands for it, answered; else why not. Failures of the remote side (503,
    /// connection refused) are answers: no other adapter would do better.
    pub result: Result<(), String>,
}
