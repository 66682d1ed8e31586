//! The configuration of one device as a friendly document, in the words people use, and how it becomes an
//! `EdgeDevConfig` ([`build`]).
//!
//! Objects have names; their UUIDs follow from the device and the name, so the same document always means the same
//! objects. A document with a reference to nothing is refused; a test that wants a broken configuration on the wire
//! builds a good one, breaks the message and sets it raw.

mod apps;
pub mod build;
mod ports;
mod storage;

pub use build::{BuildError, Context, build, object_id};

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

fn yes() -> bool {
    true
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Everything a device is told.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DeviceConfig {
    /// Label of the device.
    pub device_name: String,
    /// Device properties (`timer.config.interval` and the like).
    pub properties: BTreeMap<String, String>,
    /// Ports, that is network interfaces with their use. Default: `eth0`, management and apps, DHCP.
    pub ports: Vec<Port>,
    /// IP settings that ports refer to. Default: `dhcp`.
    pub networks: Vec<Network>,
    /// Where images come from.
    pub datastores: Vec<Datastore>,
    /// Images (content trees).
    pub images: Vec<Image>,
    /// Volumes.
    pub volumes: Vec<Volume>,
    /// Virtual networks of apps.
    pub network_instances: Vec<NetworkInstance>,
    /// Apps.
    pub apps: Vec<App>,
    /// Wanted base OS.
    pub base_os: Option<BaseOs>,
    /// Reboot counter: the device reboots when it grows. 0 sends no command.
    pub reboot: u32,
    /// Shutdown counter: the device stops all apps when it grows. 0 sends no command.
    pub shutdown: u32,
    /// Do not run apps.
    pub maintenance: bool,
    /// When it changes, the device sends all info again.
    pub epoch: i64,
}

impl Default for DeviceConfig {
    fn default() -> Self {
        Self {
            device_name: String::new(),
            properties: BTreeMap::new(),
            ports: vec![Port::management("eth0")],
            networks: vec![Network::dhcp("dhcp")],
            datastores: Vec::new(),
            images: Vec::new(),
            volumes: Vec::new(),
            network_instances: Vec::new(),
            apps: Vec::new(),
            base_os: None,
            reboot: 0,
            shutdown: 0,
            maintenance: false,
            epoch: 0,
        }
    }
}

impl DeviceConfig {
    /// One port with DHCP and properties that make the device quick to answer: what a test starts from.
    pub fn quick() -> Self {
        let properties = [
            ("timer.config.interval", "5"),
            ("timer.metric.interval", "10"),
            ("timer.download.retry", "60"),
            ("newlog.allow.fastupload", "true"),
        ];
        Self { properties: properties.map(|(k, v)| (k.to_owned(), v.to_owned())).into(), ..Self::default() }
    }
}

/// Who may use a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Usage {
    /// The device and apps.
    #[default]
    ManagementAndApps,
    /// Apps only, shared.
    Shared,
    /// One app, directly.
    Dedicated,
    /// Nobody.
    Disabled,
    /// The device only.
    ManagementOnly,
}

/// A network interface and the adapter over it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Port {
    /// Logical label, also the name of the adapter in info and metrics.
    pub label: String,
    /// Kernel's name of the interface; empty: same as the label.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub ifname: String,
    /// PCI address, long form.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub pci: String,
    /// Who may use it.
    #[serde(default)]
    pub usage: Usage,
    /// Name of the network; empty: layer 2 only.
    #[serde(default)]
    pub network: String,
    /// Static address inside the network.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub address: String,
    /// 0..=255, lower is preferred.
    #[serde(default, skip_serializing_if = "is_default")]
    pub cost: u32,
}

impl Port {
    /// A port for the device and its apps, on the network `dhcp`.
    pub fn management(label: &str) -> Self {
        Self {
            label: label.into(),
            ifname: label.into(),
            pci: String::new(),
            usage: Usage::ManagementAndApps,
            network: "dhcp".into(),
            address: String::new(),
            cost: 0,
        }
    }
}

/// IP settings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Network {
    /// Name.
    pub name: String,
    /// DHCP client (true) or static addresses.
    #[serde(default = "yes")]
    pub dhcp: bool,
    /// Subnet, CIDR.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub subnet: String,
    /// Router.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub gateway: String,
    /// Name servers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dns: Vec<String>,
    /// Time server.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub ntp: String,
    /// 0: default; else at least 1280.
    #[serde(default, skip_serializing_if = "is_default")]
    pub mtu: u32,
}

impl Network {
    /// A DHCP client.
    pub fn dhcp(name: &str) -> Self {
        Self {
            name: name.into(),
            dhcp: true,
            subnet: String::new(),
            gateway: String::new(),
            dns: Vec::new(),
            ntp: String::new(),
            mtu: 0,
        }
    }
}

/// Kind of an image server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DatastoreKind {
    /// Plain HTTP.
    Http,
    /// HTTPS.
    Https,
    /// OCI registry.
    Registry,
}

/// An image server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Datastore {
    /// Name.
    pub name: String,
    /// Kind.
    pub kind: DatastoreKind,
    /// Host, with scheme and port if they are not the usual ones.
    pub address: String,
    /// Path before every URL.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub path: String,
    /// User, if it asks for one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub user: String,
    /// Password.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub password: String,
    /// Send user and password encrypted for the device.
    #[serde(default, skip_serializing_if = "is_default")]
    pub encrypt: bool,
    /// Extra trust anchors, PEM.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ca_pem: Vec<String>,
}

impl Datastore {
    /// An image server that asks for no password; `ca_pem` are trust anchors besides the device's own.
    pub fn new(name: &str, kind: DatastoreKind, address: &str, ca_pem: &[String]) -> Self {
        Self {
            name: name.into(),
            kind,
            address: address.into(),
            path: String::new(),
            user: String::new(),
            password: String::new(),
            encrypt: false,
            ca_pem: ca_pem.to_vec(),
        }
    }
}

/// Format of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ImageFormat {
    /// OCI image.
    #[default]
    Container,
    /// Raw bytes: a disk, or an update payload.
    Raw,
    /// QEMU's.
    Qcow2,
    /// ISO 9660.
    Iso,
}

/// An image to have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Image {
    /// Name.
    pub name: String,
    /// Name of its datastore.
    pub datastore: String,
    /// Path below the datastore's; `repository:tag` or `repository@sha256:DIGEST` for a registry.
    pub url: String,
    /// Format.
    #[serde(default)]
    pub format: ImageFormat,
    /// SHA-256 of the file or of the manifest, hex; may be empty for a registry.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub sha256: String,
    /// Most bytes; 0: no limit given.
    #[serde(default, skip_serializing_if = "is_default")]
    pub max_size_bytes: u64,
    /// When it grows, a tag is resolved again.
    #[serde(default, skip_serializing_if = "is_default")]
    pub generation: i64,
}

impl Image {
    /// An OCI image by `repository:tag` or `repository@sha256:DIGEST`.
    pub fn container(name: &str, datastore: &str, url: &str) -> Self {
        Self {
            name: name.into(),
            datastore: datastore.into(),
            url: url.into(),
            format: ImageFormat::Container,
            sha256: String::new(),
            max_size_bytes: 0,
            generation: 0,
        }
    }

    /// A file of known digest (hex) and size, such as an update payload.
    pub fn file(name: &str, datastore: &str, url: &str, sha256: &str, size: u64) -> Self {
        Self {
            format: ImageFormat::Raw,
            sha256: sha256.into(),
            max_size_bytes: size,
            ..Self::container(name, datastore, url)
        }
    }
}

/// A volume to have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Volume {
    /// Name.
    pub name: String,
    /// Image it is made from; none: blank.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Size; 0: that of the image.
    #[serde(default, skip_serializing_if = "is_default")]
    pub size_bytes: i64,
    /// When it grows, the volume is made anew.
    #[serde(default, skip_serializing_if = "is_default")]
    pub generation: i64,
    /// Read only.
    #[serde(default, skip_serializing_if = "is_default")]
    pub readonly: bool,
}

/// Kind of a virtual network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NetworkInstanceKind {
    /// Bridge with DHCP, DNS and NAT.
    #[default]
    Local,
    /// Bridge on layer 2 with a port.
    Switch,
}

/// A virtual network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkInstance {
    /// Name.
    pub name: String,
    /// Kind.
    #[serde(default)]
    pub kind: NetworkInstanceKind,
    /// Label of its port; empty: none.
    #[serde(default)]
    pub port: String,
    /// Subnet, CIDR (local).
    #[serde(default)]
    pub subnet: String,
    /// Bridge address; empty: the device takes the first of the subnet.
    #[serde(default)]
    pub gateway: String,
    /// First and last address for apps; none: from the subnet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dhcp_range: Option<(String, String)>,
    /// Name servers behind the forwarder; empty: those of the port.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dns: Vec<String>,
    /// Static names.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub hosts: BTreeMap<String, Vec<String>>,
    /// 0: default.
    #[serde(default, skip_serializing_if = "is_default")]
    pub mtu: u32,
}

impl NetworkInstance {
    /// A local network over `port` whose gateway is address .1 and whose apps get .2 to .254 of a /24.
    pub fn local(name: &str, port: &str, subnet: &str) -> Self {
        let base = subnet.rsplit_once('.').map_or(subnet, |(base, _)| base);
        Self {
            name: name.into(),
            kind: NetworkInstanceKind::Local,
            port: port.into(),
            subnet: subnet.into(),
            gateway: format!("{base}.1"),
            dhcp_range: Some((format!("{base}.2"), format!("{base}.254"))),
            dns: Vec::new(),
            hosts: BTreeMap::new(),
            mtu: 0,
        }
    }
}

/// Transport protocol of a port map.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
}

/// One firewall rule of an interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum FirewallRule {
    /// Everything to and from a network is allowed.
    Allow {
        /// CIDR; `0.0.0.0/0` is all of IPv4.
        ip: String,
    },
    /// Everything to and from a network is dropped.
    Drop {
        /// CIDR.
        ip: String,
    },
    /// A host and its subdomains are allowed.
    AllowHost {
        /// Name.
        host: String,
    },
    /// A port of the device leads to a port of the app.
    PortMap {
        /// Transport.
        #[serde(default)]
        protocol: Protocol,
        /// Port of the device.
        port: u16,
        /// Port of the app.
        app_port: u16,
    },
    /// The rule of the wire, word by word.
    Raw {
        /// Type and value of each match.
        matches: Vec<(String, String)>,
        /// Drop instead of allow.
        #[serde(default)]
        drop: bool,
    },
}

/// A virtual NIC.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Interface {
    /// Name in metrics; empty: `eth` and its number.
    #[serde(default)]
    pub name: String,
    /// Name of the network instance.
    pub network: String,
    /// Fixed address.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub address: String,
    /// Fixed MAC address.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub mac: String,
    /// Rules; without any everything is dropped.
    #[serde(default)]
    pub rules: Vec<FirewallRule>,
}

/// A disk or folder of an app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeUse {
    /// Name of the volume.
    pub volume: String,
    /// Where a container sees it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub mount: String,
}

/// How an app is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// In a VM.
    #[default]
    Hvm,
    /// In a VM with UEFI firmware.
    Fml,
    /// Old devices.
    Legacy,
    /// Paravirtual.
    Pv,
    /// Container on the host.
    Nohyper,
}

/// An app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct App {
    /// Name.
    pub name: String,
    /// Short form: an image of which a volume `NAME-root` is made as first disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Disks in order; the first is the root.
    #[serde(default)]
    pub volumes: Vec<VolumeUse>,
    /// Memory.
    #[serde(default = "default_memory")]
    pub memory_mib: u32,
    /// Processors.
    #[serde(default = "one")]
    pub vcpus: u32,
    /// Run it.
    #[serde(default = "yes")]
    pub activate: bool,
    /// Virtual NICs in order.
    #[serde(default)]
    pub interfaces: Vec<Interface>,
    /// Environment of a container, sent as KEY=VALUE lines of user data.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// User data as text; not together with `env`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_data: Option<String>,
    /// Send the user data encrypted for the device.
    #[serde(default, skip_serializing_if = "is_default")]
    pub encrypt: bool,
    /// Restart counter.
    #[serde(default, skip_serializing_if = "is_default")]
    pub restart: u32,
    /// Purge counter.
    #[serde(default, skip_serializing_if = "is_default")]
    pub purge: u32,
    /// How it is run.
    #[serde(default)]
    pub mode: Mode,
}

fn default_memory() -> u32 {
    256
}

fn one() -> u32 {
    1
}

impl App {
    /// A container app of one image with one interface on `network`, allowed everything, and port maps.
    pub fn container(name: &str, image: &str, network: &str, port_maps: &[(u16, u16)]) -> Self {
        let mut rules = vec![FirewallRule::Allow { ip: "0.0.0.0/0".into() }];
        rules.extend(port_maps.iter().map(|(port, app_port)| FirewallRule::PortMap {
            protocol: Protocol::Tcp,
            port: *port,
            app_port: *app_port,
        }));
        Self {
            name: name.into(),
            image: Some(image.into()),
            volumes: Vec::new(),
            memory_mib: default_memory(),
            vcpus: 1,
            activate: true,
            interfaces: vec![Interface {
                name: String::new(),
                network: network.into(),
                address: String::new(),
                mac: String::new(),
                rules,
            }],
            env: BTreeMap::new(),
            user_data: None,
            encrypt: false,
            restart: 0,
            purge: 0,
            mode: Mode::Hvm,
        }
    }
}

/// Wanted base OS.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BaseOs {
    /// Name of the image.
    pub image: String,
    /// Version text, equal to the one inside the image.
    pub version: String,
    /// Boot it; false: only download.
    #[serde(default = "yes")]
    pub activate: bool,
    /// When it grows, a version that failed is tried again.
    #[serde(default, skip_serializing_if = "is_default")]
    pub retry: u32,
}
