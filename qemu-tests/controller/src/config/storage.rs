//! Datastores, images, volumes and the base OS, which is an image too.

use super::build::{BuildError, Builder};
use super::{BaseOs, Datastore, DatastoreKind, Image, ImageFormat, Volume};
use holdfast_api::proto::common::EncryptionBlock;
use holdfast_api::proto::config as wire;

impl Builder<'_> {
    pub(super) fn datastore(&self, store: &Datastore) -> Result<wire::DatastoreConfig, BuildError> {
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
            ds_cert_pem: store.ca_pem.iter().map(|pem| pem.as_bytes().to_vec()).collect(),
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

    pub(super) fn content_tree(&self, image: &Image) -> Result<wire::ContentTree, BuildError> {
        let object = format!("image {:?}", image.name);
        let datastore =
            self.find(&object, "datastore", &image.datastore, self.config.datastores.iter().map(|d| &d.name))?;
        if !image.sha256.is_empty() && (image.sha256.len() != 64 || hex::decode(&image.sha256).is_err()) {
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

    pub(super) fn volume(&self, volume: &Volume) -> Result<wire::Volume, BuildError> {
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
                return Err(BuildError::Value { object, cause: "a blank volume needs size_bytes".into() });
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

    pub(super) fn base_os(&self, base_os: &BaseOs) -> Result<wire::BaseOs, BuildError> {
        let content_tree_uuid =
            self.find("base_os", "image", &base_os.image, self.config.images.iter().map(|i| &i.name))?;
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
