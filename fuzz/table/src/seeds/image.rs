//! Seeds of what is on a disk: partitions, images, what boots.

use super::{Seeds, key, texts};
use holdfast_format::guid::Guid;
use holdfast_format::policy::SignedPolicies;
use holdfast_format::release::{Kind, Release};
use holdfast_format::site::Site;
use holdfast_format::{gpt, payload};
use holdfast_slots::efivars::{HardDrive, LoadOption};
use holdfast_slots::store::tests_support::Memory;
use holdfast_slots::{Image, Record};

/// A partition table's first copy, with what is before it.
#[must_use]
pub fn gpt() -> Seeds {
    let guid = |n| Guid([n; 16]);
    let part = |name: &str, n: u8, first_lba, last_lba| gpt::Partition {
        name: name.into(),
        type_guid: guid(n),
        guid: guid(n + 1),
        first_lba,
        last_lba,
        attributes: 0,
    };
    let table = gpt::Table {
        disk_guid: guid(1),
        disk_bytes: 4 << 20,
        partitions: vec![part("ESP-A", 2, 2048, 4095), part("DATA", 4, 4096, 6143)],
    };
    let Ok(copies) = table.encode() else {
        return vec![];
    };
    let Some(first) = copies.into_iter().min_by_key(|e| e.offset) else {
        return vec![];
    };
    let mut disk = vec![0; usize::try_from(first.offset).unwrap_or(0)];
    disk.extend(first.data);
    vec![disk]
}

/// A PE32+ file with one section.
#[must_use]
pub fn pe() -> Seeds {
    vec![holdfast_format::pe::tiny_pe()]
}

fn release_document() -> Release {
    Release { product: "p".into(), version: "1.0".into(), epoch: 1, kind: Kind::Dev }
}

/// A release document.
#[must_use]
pub fn release() -> Seeds {
    vec![release_document().encode()]
}

/// An update payload, and the manifest alone.
#[must_use]
pub fn payload() -> Seeds {
    let mut out = Vec::new();
    let images = payload::Images { os: &[1; 4096], esp: &[2; 512] };
    match key().map(|key| payload::write(&mut out, &release_document(), images, &key)) {
        Some(Ok(manifest)) => {
            // The entry takes the first half as manifest and the second as chunks.
            let mut json = serde_json::to_vec(&manifest).unwrap_or_default();
            json.resize(json.len().max(out.len()), b' ');
            json.extend_from_within(..);
            vec![out, json]
        }
        _ => vec![],
    }
}

/// A SITE partition, and its document alone.
#[must_use]
pub fn site() -> Seeds {
    let document = r#"{"server":"c.example:443","server_address":"10.0.2.2","root_certs_pem":"-----BEGIN CERTIFICATE-----","onboard_cert_pem":"c",
        "onboard_key_pem":"k","serial":"SN","hosts":[{"name":"a.test","address":"10.0.0.1"}],
        "network":{"interface":"eth0","addressing":{"static":{"address":"10.0.0.2","prefix_len":24,"gateway":"10.0.0.1","dns":["10.0.0.1"]}}}}"#;
    let mut seeds = texts(&[document]);
    if let Ok(site) = serde_json::from_str::<Site>(document)
        && let Ok(bytes) = site.encode()
    {
        seeds.push(bytes);
    }
    seeds
}

/// A `.pcrsig` section.
#[must_use]
pub fn policy() -> Seeds {
    key().map(|key| SignedPolicies::sign(&[5; 32], 3, &key).encode()).into_iter().collect()
}

/// A command line as the UKI carries it.
#[must_use]
pub fn cmdline() -> Seeds {
    let text = format!("quiet slot.root={} slot.blocks=4096 slot.version=1.0 slot.epoch=1 panic=5", "ab".repeat(32));
    vec![text.into_bytes()]
}

/// A `Boot####` variable.
#[must_use]
pub fn load_option() -> Seeds {
    let drive = HardDrive { number: 1, start_lba: 2048, sectors: 262_144, guid: Guid([7; 16]) };
    let option = LoadOption { description: "Holdfast A".into(), drive, file: "\\EFI\\BOOT\\BOOTX64.EFI".into() };
    vec![option.encode()]
}

/// The head of a STATE partition, and its JSON alone.
#[must_use]
pub fn state() -> Seeds {
    let record = Record::initial(holdfast_model::slot::Slot::A, Image { version: "1.0".into(), epoch: 1 });
    let mut store = Memory::new(vec![0; 3 << 20]);
    let mut seeds = vec![serde_json::to_vec(&record).unwrap_or_default()];
    if record.save(&mut store).is_ok() {
        seeds.push(store.bytes[..2048].to_vec());
    }
    seeds
}

/// A vault header is only made with its key; noise with its magic.
#[must_use]
pub fn vault_header() -> Seeds {
    vec![[b"HFVAULT1".as_slice(), &[1; 120]].concat()]
}
