//! Datastores, content trees and volumes.

use super::{Faults, Named, quoted, read_all, text, uuid};
use crate::cipher::Decryptor;
use crate::proto::config::{
    ContentTree as WireTree, DatastoreConfig, DsType, EdgeDevConfig, Format, Target, Volume as WireVolume,
    VolumeContentOriginType,
};
use holdfast_model::desired::Desired;
use holdfast_model::storage::{ContentTree, Datastore, DatastoreKind, ImageFormat, Volume, VolumeOrigin};
use holdfast_model::trouble::ObjectKind;

/// Reads datastores, content trees and volumes, in the order in which they refer to each other.
pub(super) fn read(config: &EdgeDevConfig, secrets: &Decryptor<'_>, desired: &mut Desired, faults: &mut Faults) {
    desired.datastores = read_all(
        ObjectKind::Datastore,
        &config.datastores,
        faults,
        |wire| Named { id: &wire.id, name: &wire.fqdn },
        |wire| datastore(wire, secrets).map(Some),
    );
    desired.contents = read_all(
        ObjectKind::Content,
        &config.content_info,
        faults,
        |wire| Named { id: &wire.uuid, name: &wire.display_name },
        |wire| content(wire, &desired.datastores).map(Some),
    );
    desired.volumes = read_all(
        ObjectKind::Volume,
        &config.volumes,
        faults,
        |wire| Named { id: &wire.uuid, name: &wire.display_name },
        |wire| volume(wire, &desired.contents).map(Some),
    );
}

fn datastore(wire: &DatastoreConfig, secrets: &Decryptor<'_>) -> Result<Datastore, String> {
    let kind = match wire.d_type() {
        DsType::DsHttp => DatastoreKind::Http,
        DsType::DsHttps => DatastoreKind::Https,
        DsType::DsContainerRegistry => DatastoreKind::ContainerRegistry,
        _ => {
            return Err(format!(
                "type: expected 1 (HTTP), 2 (HTTPS) or 5 (container registry), found {}; it is not used",
                wire.d_type
            ));
        }
    };
    if wire.fqdn.is_empty() {
        return Err("host: expected a name, found none; it is not used".to_owned());
    }
    // EVE's rule: what is in clear stands in when decryption fails.
    let (user, password) = match wire.cipher_data.as_ref().map(|block| secrets.decrypt(block)) {
        Some(Ok(block)) => (block.ds_api_key, block.ds_password),
        Some(Err(error)) if wire.api_key.is_empty() && wire.password.is_empty() => {
            return Err(format!("credentials: {error}; it is not used"));
        }
        _ => (wire.api_key.clone(), wire.password.clone()),
    };
    let ca_pem = wire
        .ds_cert_pem
        .iter()
        .map(|pem| {
            let pem =
                std::str::from_utf8(pem).map_err(|_| "certificate: expected a PEM text; it is not used".to_owned());
            pem.and_then(|pem| text::secret("certificate", pem))
        })
        .collect::<Result<_, _>>()?;
    Ok(Datastore {
        id: uuid("id", &wire.id)?,
        kind,
        host: text::name("host", &wire.fqdn)?,
        path: text::name("path", &wire.dpath)?,
        user: text::secret("user", &user)?,
        password: text::secret("password", &password)?,
        ca_pem,
    })
}

fn content(wire: &WireTree, datastores: &[Datastore]) -> Result<ContentTree, String> {
    let format = match Format::try_from(wire.iformat) {
        Ok(Format::Raw) => ImageFormat::Raw,
        Ok(Format::Qcow2) => ImageFormat::Qcow2,
        Ok(Format::Container) => ImageFormat::Container,
        _ => ImageFormat::Other(wire.iformat),
    };
    let single = std::slice::from_ref(&wire.ds_id);
    let named = if wire.ds_ids_list.is_empty() { single } else { wire.ds_ids_list.as_slice() };
    let ids = named.iter().map(|id| uuid("datastore", id)).collect::<Result<Vec<_>, _>>()?;
    let usable: Vec<_> = ids.iter().copied().filter(|id| datastores.iter().any(|store| store.id == *id)).collect();
    if usable.is_empty() {
        let ids: Vec<_> = ids.iter().map(ToString::to_string).collect();
        return Err(format!(
            "datastore {}: not in the config or it has a fault; the image is not fetched",
            ids.join(", ")
        ));
    }
    if wire.url.is_empty() {
        return Err("URL: expected a path, found none; the image is not fetched".to_owned());
    }
    let sha256 = wire.sha256.trim().to_ascii_lowercase();
    let optional = sha256.is_empty() && format == ImageFormat::Container;
    if !optional && (sha256.len() != 64 || !sha256.bytes().all(|b| b.is_ascii_hexdigit())) {
        return Err(format!(
            "sha256: expected 64 hexadecimal digits, found {:?}; the image is not fetched",
            quoted(&wire.sha256)
        ));
    }
    Ok(ContentTree {
        id: uuid("id", &wire.uuid)?,
        name: text::shown(&wire.display_name),
        datastores: usable,
        path: text::name("URL", &wire.url)?,
        format,
        sha256,
        max_size_bytes: wire.max_size_bytes,
        generation: wire.generation_count,
    })
}

fn volume(wire: &WireVolume, contents: &[ContentTree]) -> Result<Volume, String> {
    if !matches!(wire.target(), Target::TgtUnknown | Target::Disk) {
        return Err(format!("target: expected 0 or 1 (disk), found {}; the volume is not made", wire.target));
    }
    let max_size_bytes = u64::try_from(wire.maxsizebytes)
        .map_err(|_| format!("size: expected at least 0 bytes, found {}; the volume is not made", wire.maxsizebytes))?;
    let origin = wire.origin.clone().unwrap_or_default();
    let origin = match origin.r#type() {
        VolumeContentOriginType::VcotBlank if max_size_bytes == 0 => {
            return Err("size: a blank volume needs more than 0 bytes; the volume is not made".to_owned());
        }
        VolumeContentOriginType::VcotBlank => VolumeOrigin::Blank,
        VolumeContentOriginType::VcotDownload => {
            let id = uuid("content tree", &origin.download_content_tree_id)?;
            let tree = contents.iter().find(|tree| tree.id == id);
            let tree = tree.ok_or_else(|| {
                format!("content tree {id}: not in the config or it has a fault; the volume is not made")
            })?;
            if let ImageFormat::Other(number) = tree.format {
                return Err(format!(
                    "content tree {id}: format: expected 1 (raw), 3 (qcow2) or 8 (container), found {number}; the volume is not made"
                ));
            }
            VolumeOrigin::Content(id)
        }
        VolumeContentOriginType::VcotUnknown => {
            return Err(format!(
                "origin: expected 1 (blank) or 2 (download), found {}; the volume is not made",
                origin.r#type
            ));
        }
    };
    Ok(Volume {
        id: uuid("id", &wire.uuid)?,
        name: text::shown(&wire.display_name),
        origin,
        generation: wire.generation_count,
        max_size_bytes,
        read_only: wire.readonly,
    })
}
