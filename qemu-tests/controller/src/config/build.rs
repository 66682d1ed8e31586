//! From the friendly document to `EdgeDevConfig`, with the meaning the wire gives each object.

use super::{DeviceConfig, Volume, ports};
use crate::cipher;
use crate::pki::Identity;
use holdfast_api::proto::common::{CipherBlock, EncryptionBlock};
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
pub fn build(config: &DeviceConfig, context: &Context<'_>) -> Result<wire::EdgeDevConfig, BuildError> {
    let builder = Builder { config, context };
    let volumes = builder.volumes();
    let names = |kind: &'static str, names: Vec<&String>| -> Result<(), BuildError> {
        let mut seen = HashSet::new();
        match names.into_iter().find(|name| !seen.insert(name.as_str())) {
            Some(name) => Err(BuildError::Twice { kind, name: name.clone() }),
            None => Ok(()),
        }
    };
    names("port", config.ports.iter().map(|p| &p.label).collect())?;
    names("network", config.networks.iter().map(|n| &n.name).collect())?;
    names("datastore", config.datastores.iter().map(|d| &d.name).collect())?;
    names("image", config.images.iter().map(|i| &i.name).collect())?;
    names("volume", volumes.iter().map(|v| &v.name).collect())?;
    names("network instance", config.network_instances.iter().map(|n| &n.name).collect())?;
    names("app", config.apps.iter().map(|a| &a.name).collect())?;

    let encrypts = config.apps.iter().any(|a| a.encrypt) || config.datastores.iter().any(|d| d.encrypt);
    let counter = |counter: u32| {
        (counter > 0).then(|| wire::DeviceOpsCmd { counter, desired_state: true, ops_time: String::new() })
    };
    Ok(wire::EdgeDevConfig {
        id: Some(wire::UuiDandVersion { uuid: context.device.to_string(), version: context.revision.to_string() }),
        apps: builder.each(&config.apps, |a| builder.app(a, &volumes))?,
        networks: builder.each(&config.networks, |n| builder.network(n))?,
        datastores: builder.each(&config.datastores, |d| builder.datastore(d))?,
        config_items: config
            .properties
            .iter()
            .map(|(key, value)| wire::ConfigItem { key: key.clone(), value: value.clone() })
            .collect(),
        system_adapter_list: builder.each(&config.ports, |p| builder.system_adapter(p))?,
        device_io_list: config.ports.iter().map(ports::physical_io).collect(),
        network_instances: builder.each(&config.network_instances, |n| builder.network_instance(n))?,
        cipher_contexts: match &context.device_key {
            Some((_, hash)) if encrypts => {
                vec![cipher::context(&builder.context_id(), &crate::x509::pem_hash(&context.ecdh.cert.pem), hash)]
            }
            _ => Vec::new(),
        },
        content_info: builder.each(&config.images, |i| builder.content_tree(i))?,
        volumes: builder.each(&volumes, |v| builder.volume(v))?,
        controllercert_confighash: context.certs_hash.clone(),
        maintenance_mode: config.maintenance,
        controller_epoch: config.epoch,
        baseos: config.base_os.as_ref().map(|b| builder.base_os(b)).transpose()?,
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

pub(super) struct Builder<'a> {
    pub(super) config: &'a DeviceConfig,
    pub(super) context: &'a Context<'a>,
}

impl Builder<'_> {
    pub(super) fn each<T, U>(
        &self,
        items: &[T],
        make: impl Fn(&T) -> Result<U, BuildError>,
    ) -> Result<Vec<U>, BuildError> {
        items.iter().map(make).collect()
    }

    pub(super) fn id(&self, kind: &str, name: &str) -> String {
        object_id(self.context.device, kind, name).to_string()
    }

    /// The volumes, with those that apps name in the short form.
    pub(super) fn volumes(&self) -> Vec<Volume> {
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

    /// UUID of a named object that must be among `names`.
    pub(super) fn find<'n>(
        &self,
        object: &str,
        kind: &'static str,
        name: &str,
        mut names: impl Iterator<Item = &'n String>,
    ) -> Result<String, BuildError> {
        if names.any(|known| known == name) {
            Ok(self.id(kind, name))
        } else {
            Err(BuildError::Missing { object: object.into(), kind, name: name.into() })
        }
    }

    /// One context per pair of certificates: a new certificate on either side gives a new id.
    pub(super) fn context_id(&self) -> String {
        let device = self.context.device_key.as_ref().map_or(&[][..], |(_, hash)| hash);
        let controller = crate::x509::pem_hash(&self.context.ecdh.cert.pem);
        self.id(CONTEXT, &format!("{}/{}", hex::encode(device), hex::encode(&controller[..16])))
    }

    pub(super) fn encrypt(&self, object: String, secret: &EncryptionBlock) -> Result<CipherBlock, BuildError> {
        let Some((public, _)) = &self.context.device_key else {
            return Err(BuildError::NoDeviceKey { object });
        };
        let key = cipher::shared_key(self.context.ecdh.secret_key(), public);
        // A random UUID has 122 random bits, and the key is this device's alone: no two blocks share an IV.
        let iv = *Uuid::new_v4().as_bytes();
        Ok(cipher::encrypt(&self.context_id(), &key, iv, secret))
    }

    pub(super) fn object(&self, kind: &str, name: &str) -> wire::UuiDandVersion {
        wire::UuiDandVersion { uuid: self.id(kind, name), version: "1".into() }
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
