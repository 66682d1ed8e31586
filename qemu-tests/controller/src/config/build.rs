//! From the friendly document to `EdgeDevConfig`, with the meaning the wire gives each object.

use super::*;
use crate::cipher;
use crate::pki::Identity;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use holdfast_api::proto::common::{
    CipherBlock, DhcpType, EncryptionBlock, IpRange, Ipspec, NetworkType, PhyIoMemberUsage,
    PhyIoType, ZnetStaticDnsEntry,
};
use holdfast_api::proto::config as wire;
use std::collections::HashSet;
use uuid::Uuid;

/// Why a document cannot be sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BuildError {
    /// A name that nothing has.
    #[error("{object}: there is no {kind} named {name:?}")]
    Missing {
        /// What refers to it.
        object: String,
        /// Kind of the missing thing.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// A name twice.
    #[error("{kind} {name:?}: the name is used twice")]
    Twice {
        /// Kind.
        kind: &'static str,
        /// Name.
        name: String,
    },
    /// A value out of range, or two that exclude each other.
    #[error("{object}: {cause}")]
    Value {
        /// Which object.
        object: String,
        /// What is wrong.
        cause: String,
    },
    /// Something is to be encrypted, but not yet possible.
    #[error(
        "{object}: is to be encrypted, but the device has not sent its key-agreement certificate (type 13) yet; the configuration is served once it has"
    )]
    NoDeviceKey {
        /// Which object.
        object: String,
    },
}

/// What the document does not say.
#[derive(Debug)]
pub struct Context<'a> {
    /// UUID of the device.
    pub device: Uuid,
    /// Counts the configurations of this device.
    pub revision: u64,
    /// When this configuration was set, in milliseconds since 1970.
    pub set_at_ms: u64,
    /// Key-agreement certificate of the controller.
    pub ecdh: &'a Identity,
    /// The device's key-agreement key, and its certificate's hash as the device sent it.
    pub device_key: Option<(p256::PublicKey, Vec<u8>)>,
    /// Hash over the controller's certificates.
    pub certs_hash: String,
}

/// The UUID that the object `kind` `name` has on `device`. Kinds: `network`, `datastore`, `image`, `volume`,
/// `network-instance`, `app`.
pub fn object_id(device: Uuid, kind: &str, name: &str) -> Uuid {
    Uuid::new_v5(&device, format!("{kind}/{name}").as_bytes())
}

/// The cipher context of a device: its id changes with either certificate.
const CONTEXT: &str = "context";

/// Makes the wire form.
pub fn build(
    config: &DeviceConfig,
    context: &Context<'_>,
) -> Result<wire::EdgeDevConfig, BuildError> {
    let builder = Builder { config, context };
    let volumes = builder.volumes();
    let names = |kind: &'static str, names: Vec<&String>| -> Result<(), BuildError> {
        let mut seen = HashSet::new();
        match names.into_iter().find(|name| !seen.insert(name.as_str())) {
            Some(name) => Err(BuildError::Twice {
                kind,
                name: name.clone(),
            }),
            None => Ok(()),
        }
    };
    names("port", config.ports.iter().map(|p| &p.label).collect())?;
    names("network", config.networks.iter().map(|n| &n.name).collect())?;
    names(
        "datastore",
        config.datastores.iter().map(|d| &d.name).collect(),
    )?;
    names("image", config.images.iter().map(|i| &i.name).collect())?;
    names("volume", volumes.iter().map(|v| &v.name).collect())?;
    names(
        "network instance",
        config.network_instances.iter().map(|n| &n.name).collect(),
    )?;
    names("app", config.apps.iter().map(|a| &a.name).collect())?;

    let encrypts =
        config.apps.iter().any(|a| a.encrypt) || config.datastores.iter().any(|d| d.encrypt);
    let counter = |counter: u32| {
        (counter > 0).then(|| wire::DeviceOpsCmd {
            counter,
            desired_state: true,
            ops_time: String::new(),
        })
    };
    Ok(wire::EdgeDevConfig {
        id: Some(wire::UuiDandVersion {
            uuid: context.device.to_string(),
            version: context.revision.to_string(),
        }),
        apps: builder.each(&config.apps, |a| builder.app(a, &volumes))?,
        networks: builder.each(&config.networks, |n| builder.network(n))?,
        datastores: builder.each(&config.datastores, |d| builder.datastore(d))?,
        config_items: config
            .properties
            .iter()
            .map(|(key, value)| wire::ConfigItem {
                key: key.clone(),
                value: value.clone(),
            })
            .collect(),
        system_adapter_list: builder.each(&config.ports, |p| builder.system_adapter(p))?,
        device_io_list: config.ports.iter().map(physical_io).collect(),
        network_instances: builder
            .each(&config.network_instances, |n| builder.network_instance(n))?,
        cipher_contexts: match &context.device_key {
            Some((_, hash)) if encrypts => {
                vec![cipher::context(
                    &builder.context_id(),
                    &crate::x509::pem_hash(&context.ecdh.cert.pem),
                    hash,
                )]
            }
            _ => Vec::new(),
        },
        content_info: builder.each(&config.images, |i| builder.content_tree(i))?,
        volumes: builder.each(&volumes, |v| builder.volume(v))?,
        controllercert_confighash: context.certs_hash.clone(),
        maintenance_mode: config.maintenance,
        controller_epoch: config.epoch,
        baseos: config
            .base_os
            .as_ref()
            .map(|b| builder.base_os(b))
            .transpose()?,
        reboot: counter(config.reboot),
        shutdown: counter(config.shutdown),
        device_name: config.device_name.clone(),
        config_timestamp: Some(prost_types::Timestamp {
            seconds: (context.set_at_ms / 1000) as i64,
            nanos: (context.set_at_ms % 1000) as i32 * 1_000_000,
        }),
        ..Default::default()
    })
}

/// Hardware model of one port.
fn physical_io(port: &Port) -> wire::PhysicalIo {
    let usage = match port.usage {
        Usage::ManagementAndApps => PhyIoMemberUsage::PhyIoUsageMgmtAndApps,
        Usage::Shared => PhyIoMemberUsage::PhyIoUsageShared,
        Usage::Dedicated => PhyIoMemberUsage::PhyIoUsageDedicated,
        Usage::Disabled => PhyIoMemberUsage::PhyIoUsageDisabled,
        Usage::ManagementOnly => PhyIoMemberUsage::PhyIoUsageMgmtOnly,
    };
    let ifname = if port.ifname.is_empty() {
        &port.label
    } else {
        &port.ifname
    };
    let mut phyaddrs = std::collections::HashMap::from([("Ifname".to_owned(), ifname.clone())]);
    if !port.pci.is_empty() {
        phyaddrs.insert("PciLong".into(), port.pci.clone());
    }
    wire::PhysicalIo {
        ptype: PhyIoType::PhyIoNetEth as i32,
        phylabel: port.label.clone(),
        phyaddrs,
        logicallabel: port.label.clone(),
        assigngrp: port.label.clone(),
        usage: usage as i32,
        usage_policy: Some(wire::PhyIoUsagePolicy {
            free_uplink: port.cost == 0,
        }),
        ..Default::default()
    }
}

struct Builder<'a> {
    config: &'a DeviceConfig,
    context: &'a Context<'a>,
}

impl Builder<'_> {
    fn each<T, U>(
        &self,
        items: &[T],
        make: impl Fn(&T) -> Result<U, BuildError>,
    ) -> Result<Vec<U>, BuildError> {
        items.iter().map(make).collect()
    }

    fn id(&self, kind: &str, name: &str) -> String {
        object_id(self.context.device, kind, name).to_string()
    }

    /// The volumes, with those that apps name in the short form.
    fn volumes(&self) -> Vec<Volume> {
        let mut volumes = self.config.volumes.clone();
        for app in &self.config.apps {
            if let Some(image) = &app.image {
                volumes.push(Volume {
                    name: format!("{}-root", app.name),
                    image: Some(image.clone()),
                    size_bytes: 0,
                    // A purge makes the first volume anew, which the wire says by a new generation.
                    generation: i64::from(app.purge),
                    readonly: false,
                });
            }
        }
        volumes
    }

    fn network(&self, network: &Network) -> Result<wire::NetworkConfig, BuildError> {
        let object = || format!("network {:?}", network.name);
        if network.mtu != 0 && network.mtu < 1280 {
            return Err(BuildError::Value {
                object: object(),
                cause: format!("mtu: expected 0 or at least 1280, found {}", network.mtu),
            });
        }
        if !network.dhcp && network.subnet.is_empty() {
            return Err(BuildError::Value {
                object: object(),
                cause: "a static network needs a subnet".into(),
            });
        }
        let dhcp = if network.dhcp {
            DhcpType::Client
        } else {
            DhcpType::Static
        };
        Ok(wire::NetworkConfig {
            id: self.id("network", &network.name),
            r#type: NetworkType::V4 as i32,
            ip: Some(Ipspec {
                dhcp: dhcp as i32,
                subnet: network.subnet.clone(),
                gateway: network.gateway.clone(),
                ntp: network.ntp.clone(),
                dns: network.dns.clone(),
                ..Default::default()
            }),
            mtu: network.mtu,
            ..Default::default()
        })
    }

    fn system_adapter(&self, port: &Port) -> Result<wire::SystemAdapter, BuildError> {
        let object = || format!("port {:?}", port.label);
        if port.cost > 255 {
            return Err(BuildError::Value {
                object: object(),
                cause: format!("cost: expected 0..=255, found {}", port.cost),
            });
        }
        let network_uuid = if port.network.is_empty() {
            String::new()
        } else {
            self.find(
                &object(),
                "network",
                &port.network,
                self.config.networks.iter().map(|n| &n.name),
            )?
        };
        Ok(wire::SystemAdapter {
            name: port.label.clone(),
            uplink: matches!(port.usage, Usage::ManagementAndApps | Usage::ManagementOnly),
            network_uuid,
            addr: port.address.clone(),
            lower_layer_name: port.label.clone(),
            cost: port.cost,
            ..Default::default()
        })
    }

    /// UUID of a named object that must be among `names`.
    fn find<'n>(
        &self,
        object: &str,
        kind: &'static str,
        name: &str,
        mut names: impl Iterator<Item = &'n String>,
    ) -> Result<String, BuildError> {
        if names.any(|known| known == name) {
            Ok(self.id(kind, name))
        } else {
            Err(BuildError::Missing {
                object: object.into(),
                kind,
                name: name.into(),
            })
        }
    }

    fn datastore(&self, store: &Datastore) -> Result<wire::DatastoreConfig, BuildError> {
        let kind = match store.kind {
            DatastoreKind::Http => wire::DsType::DsHttp,
            DatastoreKind::Https => wire::DsType::DsHttps,
            DatastoreKind::Registry => wire::DsType::DsContainerRegistry,
        };
        let mut out = wire::DatastoreConfig {
            id: self.id("datastore", &store.name),
            d_type: kind as i32,
            fqdn: store.address.clone(),
            dpath: store.path.clone(),
            ds_cert_pem: store
                .ca_pem
                .iter()
                .map(|pem| pem.as_bytes().to_vec())
                .collect(),
            ..Default::default()
        };
        if store.encrypt {
            let secret = EncryptionBlock {
                ds_api_key: store.user.clone(),
                ds_password: store.password.clone(),
                ..Default::default()
            };
            out.cipher_data = Some(self.encrypt(format!("datastore {:?}", store.name), &secret)?);
        } else {
            out.api_key = store.user.clone();
            out.password = store.password.clone();
        }
        Ok(out)
    }

    /// One context per pair of certificates: a new certificate on either side gives a new id.
    fn context_id(&self) -> String {
        let device = self
            .context
            .device_key
            .as_ref()
            .map_or(&[][..], |(_, hash)| hash);
        let controller = crate::x509::pem_hash(&self.context.ecdh.cert.pem);
        self.id(
            CONTEXT,
            &format!("{}/{}", hex::encode(device), hex::encode(&controller[..16])),
        )
    }

    fn encrypt(&self, object: String, secret: &EncryptionBlock) -> Result<CipherBlock, BuildError> {
        let Some((public, _)) = &self.context.device_key else {
            return Err(BuildError::NoDeviceKey { object });
        };
        let key = cipher::shared_key(self.context.ecdh.secret_key(), public);
        // A random UUID has 122 random bits, and the key is this device's alone: no two blocks share an IV.
        let iv = *Uuid::new_v4().as_bytes();
        Ok(cipher::encrypt(&self.context_id(), &key, iv, secret))
    }

    fn content_tree(&self, image: &Image) -> Result<wire::ContentTree, BuildError> {
        let object = format!("image {:?}", image.name);
        let datastore = self.find(
            &object,
            "datastore",
            &image.datastore,
            self.config.datastores.iter().map(|d| &d.name),
        )?;
        if !image.sha256.is_empty()
            && (image.sha256.len() != 64 || hex::decode(&image.sha256).is_err())
        {
            return Err(BuildError::Value {
                object,
                cause: format!("sha256: expected 64 hex digits, found {:?}", image.sha256),
            });
        }
        let format = match image.format {
            ImageFormat::Container => wire::Format::Container,
            ImageFormat::Raw => wire::Format::Raw,
            ImageFormat::Qcow2 => wire::Format::Qcow2,
            ImageFormat::Iso => wire::Format::Iso,
        };
        Ok(wire::ContentTree {
            uuid: self.id("image", &image.name),
            ds_id: datastore.clone(),
            url: image.url.clone(),
            iformat: format as i32,
            sha256: image.sha256.clone(),
            max_size_bytes: image.max_size_bytes,
            display_name: image.name.clone(),
            generation_count: image.generation,
            ds_ids_list: vec![datastore],
            ..Default::default()
        })
    }

    fn volume(&self, volume: &Volume) -> Result<wire::Volume, BuildError> {
        let object = format!("volume {:?}", volume.name);
        let origin = match &volume.image {
            Some(image) => wire::VolumeContentOrigin {
                r#type: wire::VolumeContentOriginType::VcotDownload as i32,
                download_content_tree_id: self.find(
                    &object,
                    "image",
                    image,
                    self.config.images.iter().map(|i| &i.name),
                )?,
            },
            None if volume.size_bytes <= 0 => {
                return Err(BuildError::Value {
                    object,
                    cause: "a blank volume needs size_bytes".into(),
                });
            }
            None => wire::VolumeContentOrigin {
                r#type: wire::VolumeContentOriginType::VcotBlank as i32,
                ..Default::default()
            },
        };
        Ok(wire::Volume {
            uuid: self.id("volume", &volume.name),
            origin: Some(origin),
            generation_count: volume.generation,
            maxsizebytes: volume.size_bytes,
            readonly: volume.readonly,
            display_name: volume.name.clone(),
            target: wire::Target::Disk as i32,
            ..Default::default()
        })
    }

    fn network_instance(
        &self,
        ni: &NetworkInstance,
    ) -> Result<wire::NetworkInstanceConfig, BuildError> {
        let object = format!("network instance {:?}", ni.name);
        let port = if ni.port.is_empty() {
            None
        } else {
            let known = ["uplink", "freeuplink", "all"].contains(&ni.port.as_str())
                || self.config.ports.iter().any(|p| p.label == ni.port);
            if !known {
                return Err(BuildError::Missing {
                    object,
                    kind: "port",
                    name: ni.port.clone(),
                });
            }
            Some(wire::Adapter {
                r#type: PhyIoType::PhyIoNetEth as i32,
                name: ni.port.clone(),
                ..Default::default()
            })
        };
        let local = ni.kind == NetworkInstanceKind::Local;
        if local && ni.subnet.is_empty() {
            return Err(BuildError::Value {
                object,
                cause: "a local network needs a subnet".into(),
            });
        }
        let kind = if local {
            wire::ZNetworkInstType::ZnetInstLocal
        } else {
            wire::ZNetworkInstType::ZnetInstSwitch
        };
        Ok(wire::NetworkInstanceConfig {
            uuidandversion: Some(self.object("network-instance", &ni.name)),
            displayname: ni.name.clone(),
            inst_type: kind as i32,
            activate: true,
            port,
            ip_type: if local {
                wire::AddressType::Ipv4 as i32
            } else {
                wire::AddressType::First as i32
            },
            ip: local.then(|| Ipspec {
                dhcp: DhcpType::Client as i32,
                subnet: ni.subnet.clone(),
                gateway: ni.gateway.clone(),
                dns: ni.dns.clone(),
                dhcp_range: ni.dhcp_range.as_ref().map(|(start, end)| IpRange {
                    start: start.clone(),
                    end: end.clone(),
                }),
                ..Default::default()
            }),
            dns: ni
                .hosts
                .iter()
                .map(|(name, addresses)| ZnetStaticDnsEntry {
                    host_name: name.clone(),
                    address: addresses.clone(),
                })
                .collect(),
            mtu: ni.mtu,
            ..Default::default()
        })
    }

    fn object(&self, kind: &str, name: &str) -> wire::UuiDandVersion {
        wire::UuiDandVersion {
            uuid: self.id(kind, name),
            version: "1".into(),
        }
    }

    fn app(&self, app: &App, volumes: &[Volume]) -> Result<wire::AppInstanceConfig, BuildError> {
        let object = format!("app {:?}", app.name);
        let wrong = |cause: String| BuildError::Value {
            object: object.clone(),
            cause,
        };
        let root = app.image.iter().map(|_| VolumeUse {
            volume: format!("{}-root", app.name),
            mount: String::new(),
        });
        let volume_ref_list = root
            .chain(app.volumes.iter().cloned())
            .map(|used| {
                let volume = volumes
                    .iter()
                    .find(|v| v.name == used.volume)
                    .ok_or_else(|| BuildError::Missing {
                        object: object.clone(),
                        kind: "volume",
                        name: used.volume.clone(),
                    })?;
                Ok(wire::VolumeRef {
                    uuid: self.id("volume", &used.volume),
                    generation_count: volume.generation,
                    mount_dir: used.mount,
                })
            })
            .collect::<Result<Vec<_>, BuildError>>()?;
        if volume_ref_list.is_empty() {
            return Err(wrong("needs an image or a volume".into()));
        }
        if app.memory_mib == 0 || app.vcpus == 0 {
            return Err(wrong("memory_mib and vcpus must be at least 1".into()));
        }
        let memory = app
            .memory_mib
            .checked_mul(1024)
            .ok_or_else(|| wrong("memory_mib is too large".into()))?;
        let text = match (&app.user_data, app.env.is_empty()) {
            (Some(_), false) => return Err(wrong("env and user_data exclude each other".into())),
            (Some(text), true) => text.clone(),
            (None, _) => env_lines(&app.env).map_err(wrong)?,
        };
        let user_data = if text.is_empty() {
            String::new()
        } else {
            STANDARD.encode(text)
        };
        let (user_data, cipher_data) = if app.encrypt && !user_data.is_empty() {
            let secret = EncryptionBlock {
                protected_user_data: user_data,
                ..Default::default()
            };
            (String::new(), Some(self.encrypt(object.clone(), &secret)?))
        } else {
            (user_data, None)
        };
        let mode = match app.mode {
            Mode::Hvm => wire::VmMode::Hvm,
            Mode::Fml => wire::VmMode::Fml,
            Mode::Legacy => wire::VmMode::Legacy,
            Mode::Pv => wire::VmMode::Pv,
            Mode::Nohyper => wire::VmMode::Nohyper,
        };
        let command = |counter: u32| {
            (counter > 0).then(|| wire::InstanceOpsCmd {
                counter,
                ops_time: String::new(),
            })
        };
        Ok(wire::AppInstanceConfig {
            uuidandversion: Some(self.object("app", &app.name)),
            displayname: app.name.clone(),
            fixedresources: Some(wire::VmConfig {
                memory,
                maxmem: memory,
                vcpus: app.vcpus,
                maxcpus: app.vcpus,
                virtualization_mode: mode as i32,
                ..Default::default()
            }),
            activate: app.activate,
            interfaces: app
                .interfaces
                .iter()
                .enumerate()
                .map(|(index, interface)| self.interface(&object, index, interface))
                .collect::<Result<_, _>>()?,
            restart: command(app.restart),
            purge: command(app.purge),
            user_data,
            cipher_data,
            volume_ref_list,
            ..Default::default()
        })
    }

    fn interface(
        &self,
        object: &str,
        index: usize,
        interface: &Interface,
    ) -> Result<wire::NetworkAdapter, BuildError> {
        let network_id = self.find(
            object,
            "network-instance",
            &interface.network,
            self.config.network_instances.iter().map(|n| &n.name),
        )?;
        let acls = (1..)
            .zip(&interface.rules)
            .map(|(id, rule)| ace(id, rule))
            .collect();
        Ok(wire::NetworkAdapter {
            name: if interface.name.is_empty() {
                format!("eth{index}")
            } else {
                interface.name.clone()
            },
            network_id,
            addr: interface.address.clone(),
            mac_address: interface.mac.clone(),
            acls,
            ..Default::default()
        })
    }

    fn base_os(&self, base_os: &BaseOs) -> Result<wire::BaseOs, BuildError> {
        let content_tree_uuid = self.find(
            "base_os",
            "image",
            &base_os.image,
            self.config.images.iter().map(|i| &i.name),
        )?;
        Ok(wire::BaseOs {
            content_tree_uuid,
            retry_update: (base_os.retry > 0).then(|| wire::DeviceOpsCmd {
                counter: base_os.retry,
                desired_state: true,
                ops_time: String::new(),
            }),
            activate: base_os.activate,
            base_os_version: base_os.version.clone(),
        })
    }
}

fn ace(id: i32, rule: &FirewallRule) -> wire::Ace {
    let matches = |list: &[(&str, String)]| {
        list.iter()
            .map(|(kind, value)| wire::AceMatch {
                r#type: (*kind).to_owned(),
                value: value.clone(),
            })
            .collect()
    };
    let drop = || {
        vec![wire::AceAction {
            drop: true,
            ..Default::default()
        }]
    };
    let (matches, actions, name) = match rule {
        FirewallRule::Allow { ip } => (matches(&[("ip", ip.clone())]), Vec::new(), "allow"),
        FirewallRule::Drop { ip } => (matches(&[("ip", ip.clone())]), drop(), "drop"),
        FirewallRule::AllowHost { host } => {
            (matches(&[("host", host.clone())]), Vec::new(), "allow-host")
        }
        FirewallRule::PortMap {
            protocol,
            port,
            app_port,
        } => {
            let protocol = match protocol {
                Protocol::Tcp => "tcp",
                Protocol::Udp => "udp",
            };
            (
                matches(&[("protocol", protocol.into()), ("lport", port.to_string())]),
                vec![wire::AceAction {
                    portmap: true,
                    app_port: u32::from(*app_port),
                    ..Default::default()
                }],
                "portmap",
            )
        }
        FirewallRule::Raw {
            matches,
            drop: dropped,
        } => (
            matches
                .iter()
                .map(|(kind, value)| wire::AceMatch {
                    r#type: kind.clone(),
                    value: value.clone(),
                })
                .collect(),
            if *dropped { drop() } else { Vec::new() },
            "raw",
        ),
    };
    wire::Ace {
        matches,
        actions,
        name: format!("{name}-{id}"),
        id,
        dir: 0,
    }
}

/// KEY=VALUE lines of an environment.
fn env_lines(env: &BTreeMap<String, String>) -> Result<String, String> {
    let mut out = String::new();
    for (key, value) in env {
        if key.is_empty() || key.contains(['=', '\n']) || value.contains('\n') {
            return Err(format!(
                "env {key:?}: names without '=', and no line breaks, are possible"
            ));
        }
        out.push_str(&format!("{key}={value}\n"));
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pki::{Pki, PkiOptions};

    fn demo() -> DeviceConfig {
        let mut app = App::container("web", "webapp", "local", &[(8080, 80)]);
        app.env.insert("GREETING".into(), "hello".into());
        DeviceConfig {
            datastores: vec![Datastore {
                name: "registry".into(),
                kind: DatastoreKind::Registry,
                address: "10.0.2.2:5000".into(),
                path: String::new(),
                user: "u".into(),
                password: "p".into(),
                encrypt: false,
                ca_pem: vec!["PEM".into()],
            }],
            images: vec![Image {
                name: "webapp".into(),
                datastore: "registry".into(),
                url: "demo/webapp:1".into(),
                format: ImageFormat::Container,
                sha256: String::new(),
                max_size_bytes: 0,
                generation: 0,
            }],
            network_instances: vec![NetworkInstance::local("local", "eth0", "10.11.12.0/24")],
            apps: vec![app],
            ..DeviceConfig::quick()
        }
    }

    fn with<T>(
        device_key: Option<(p256::PublicKey, Vec<u8>)>,
        f: impl FnOnce(&Context<'_>) -> T,
    ) -> T {
        let pki = Pki::generate(&PkiOptions::default()).expect("pki");
        f(&Context {
            device: Uuid::from_u128(7),
            revision: 3,
            set_at_ms: 1_500,
            ecdh: &pki.ecdh,
            device_key,
            certs_hash: "h".into(),
        })
    }

    #[test]
    fn the_demo_document_becomes_what_the_wire_describes() {
        let out = with(None, |context| build(&demo(), context)).expect("built");
        let id = |kind: &str, name: &str| object_id(Uuid::from_u128(7), kind, name).to_string();
        assert_eq!(out.id.as_ref().map(|i| i.version.as_str()), Some("3"));
        let port = &out.device_io_list[0];
        assert_eq!(
            (port.ptype, port.usage, port.logicallabel.as_str()),
            (1, 1, "eth0")
        );
        assert_eq!(port.phyaddrs["Ifname"], "eth0");
        let adapter = &out.system_adapter_list[0];
        assert_eq!((adapter.name.as_str(), adapter.uplink), ("eth0", true));
        assert_eq!(adapter.network_uuid, out.networks[0].id);
        assert_eq!(out.networks[0].ip.as_ref().map(|ip| ip.dhcp), Some(4));
        let ni = &out.network_instances[0];
        assert_eq!((ni.inst_type, ni.activate, ni.ip_type), (2, true, 1));
        let ip = ni.ip.as_ref().expect("ip");
        assert_eq!(
            (ip.subnet.as_str(), ip.gateway.as_str()),
            ("10.11.12.0/24", "10.11.12.1")
        );
        let app = &out.apps[0];
        assert_eq!(app.volume_ref_list[0].uuid, id("volume", "web-root"));
        assert_eq!(
            app.fixedresources.as_ref().map(|r| r.memory),
            Some(256 * 1024)
        );
        assert_eq!(app.user_data, STANDARD.encode("GREETING=hello\n"));
        let acls = &app.interfaces[0].acls;
        assert_eq!(acls[0].matches[0].value, "0.0.0.0/0");
        assert!(acls[0].actions.is_empty());
        assert_eq!(acls[1].matches[1].r#type, "lport");
        assert_eq!(acls[1].actions[0].app_port, 80);
        let volume = &out.volumes[0];
        assert_eq!(volume.origin.as_ref().map(|o| o.r#type), Some(2));
        assert_eq!(out.content_info[0].iformat, 8);
        assert_eq!(
            out.content_info[0].ds_ids_list,
            vec![id("datastore", "registry")]
        );
        assert_eq!(out.datastores[0].d_type, 5);
        assert_eq!(
            out.config_timestamp.map(|t| (t.seconds, t.nanos)),
            Some((1, 500_000_000))
        );
        assert!(out.reboot.is_none() && out.cipher_contexts.is_empty());
    }

    #[test]
    fn references_to_nothing_are_named() {
        type Break = fn(&mut DeviceConfig);
        let cases: [(Break, &str); 7] = [
            (
                |c| c.ports[0].network = "x".into(),
                "port \"eth0\": there is no network named \"x\"",
            ),
            (
                |c| c.images[0].datastore = "x".into(),
                "image \"webapp\": there is no datastore",
            ),
            (
                |c| c.apps[0].image = Some("x".into()),
                "volume \"web-root\": there is no image",
            ),
            (
                |c| c.apps[0].interfaces[0].network = "x".into(),
                "app \"web\": there is no network-instance",
            ),
            (
                |c| c.network_instances[0].port = "eth9".into(),
                "there is no port named \"eth9\"",
            ),
            (|c| c.apps.push(c.apps[0].clone()), "used twice"),
            (|c| c.images[0].sha256 = "zz".into(), "64 hex digits"),
        ];
        for (change, text) in cases {
            let mut config = demo();
            change(&mut config);
            let error = with(None, |context| build(&config, context))
                .expect_err(text)
                .to_string();
            assert!(error.contains(text), "{error} lacks {text}");
        }
    }

    #[test]
    fn secrets_wait_for_the_devices_certificate_and_then_are_encrypted() {
        let mut config = demo();
        config.apps[0].encrypt = true;
        config.datastores[0].encrypt = true;
        let error = with(None, |context| build(&config, context));
        assert!(matches!(error, Err(BuildError::NoDeviceKey { .. })));
        let device = p256::SecretKey::from_slice(&[5; 32]).expect("scalar");
        let key = Some((device.public_key(), vec![1; 16]));
        let out = with(key, |context| build(&config, context)).expect("built");
        let context = &out.cipher_contexts[0];
        let block = out.apps[0].cipher_data.as_ref().expect("encrypted");
        assert_eq!(block.cipher_context_id, context.context_id);
        assert_eq!(context.device_cert_hash, vec![1; 16]);
        assert!(out.apps[0].user_data.is_empty() && out.datastores[0].password.is_empty());
        assert_ne!(
            block.initial_value,
            out.datastores[0]
                .cipher_data
                .as_ref()
                .expect("encrypted")
                .initial_value
        );
    }

    #[test]
    fn a_document_with_an_unknown_word_is_refused() {
        assert!(serde_json::from_str::<DeviceConfig>(r#"{"aps":[]}"#).is_err());
        let text = serde_json::to_string(&demo()).expect("json");
        assert_eq!(
            serde_json::from_str::<DeviceConfig>(&text).expect("json"),
            demo()
        );
    }
}
