//! App instances.

use super::network::optional_address;
use super::{Faults, Named, limits, quoted, read_all, rules, text, uuid};
use crate::cipher::Decryptor;
use crate::proto::config::{
    AppInstanceConfig, EdgeDevConfig, InstanceOpsCmd, NetworkAdapter, VmMode, VolumeRef as WireRef,
};
use base64::{Engine, engine::general_purpose::STANDARD};
use holdfast_model::app::{App, VolumeRef, environment};
use holdfast_model::desired::Desired;
use holdfast_model::net::{Addresses, AppInterface, Mac, Prefix};
use holdfast_model::trouble::ObjectKind;

/// Reads the apps; network instances and volumes must already be in `desired`.
pub(super) fn read(config: &EdgeDevConfig, secrets: &Decryptor<'_>, desired: &mut Desired, faults: &mut Faults) {
    let apps = read_all(
        ObjectKind::App,
        &config.apps,
        faults,
        |wire| Named { id: wire.uuidandversion.as_ref().map_or("", |id| &id.uuid), name: &wire.displayname },
        |wire| {
            app(wire, &config.global_profile, secrets, desired)
                .map(Some)
                .map_err(|text| format!("{text}; the app is not run"))
        },
    );
    desired.apps = apps;
    for wire in &config.apps {
        let id = wire.uuidandversion.as_ref().map_or("", |id| &id.uuid);
        let texts = left_out(wire, desired.apps.iter().find(|app| app.id.to_string().eq_ignore_ascii_case(id)));
        for text in texts {
            faults.warn(ObjectKind::App, id, &wire.displayname, text);
        }
    }
}

/// What is named and left out, while the app runs.
fn left_out(wire: &AppInstanceConfig, app: Option<&App>) -> Vec<String> {
    let mut texts = Vec::new();
    let resources = wire.fixedresources.clone().unwrap_or_default();
    for (name, most, now) in
        [("maxmem", resources.maxmem, resources.memory), ("maxcpus", resources.maxcpus, resources.vcpus)]
    {
        if most != 0 && most != now {
            texts.push(format!(
                "fixedresources.{name} {most}: growing a running app is not supported by this version; it has {now}"
            ));
        }
    }
    let unused = app.map(|app| environment(&app.user_data).unused).unwrap_or_default();
    if !unused.is_empty() {
        texts.push(format!("userData: expected lines KEY=VALUE, {unused}: not supported by this version; ignored"));
    }
    texts
}

fn app(wire: &AppInstanceConfig, profile: &str, secrets: &Decryptor<'_>, desired: &Desired) -> Result<App, String> {
    let id = wire.uuidandversion.clone().unwrap_or_default();
    let resources = wire.fixedresources.clone().unwrap_or_default();
    match VmMode::try_from(resources.virtualization_mode) {
        // Containers run in a VM here too, and every VM boots with virtio devices.
        Ok(VmMode::Pv | VmMode::Hvm | VmMode::Fml | VmMode::Nohyper) => {}
        _ => {
            return Err(format!(
                "virtualization mode: expected 0, 1, 3 or 4, found {} (emulated IDE and e1000 are not there)",
                resources.virtualization_mode
            ));
        }
    }
    if !(1..=limits::VCPUS).contains(&resources.vcpus) {
        return Err(format!("vcpus: expected 1 to {}, found {}", limits::VCPUS, resources.vcpus));
    }
    if let Some(adapter) = wire.adapters.first() {
        return Err(format!("adapter {:?}: assigning devices is not supported by this version", quoted(&adapter.name)));
    }
    if wire.volume_ref_list.is_empty() {
        let old = if wire.drives.is_empty() { "" } else { " (drives, the old form, are not supported)" };
        return Err(format!("volumes: expected at least one, found none{old}"));
    }
    if wire.volume_ref_list.len() > limits::DEVICES || wire.interfaces.len() > limits::DEVICES {
        return Err(format!(
            "expected at most {} volumes and as many interfaces, found {} and {}",
            limits::DEVICES,
            wire.volume_ref_list.len(),
            wire.interfaces.len()
        ));
    }
    let in_profile = wire.profile_list.is_empty() || wire.profile_list.iter().any(|name| name == profile);
    Ok(App {
        id: uuid("id", &id.uuid)?,
        version: text::shown(&id.version),
        name: text::shown(&wire.displayname),
        activate: wire.activate && in_profile,
        vcpus: resources.vcpus,
        memory_bytes: u64::from(resources.memory) * 1024,
        volumes: wire.volume_ref_list.iter().map(|volume| volume_ref(volume, desired)).collect::<Result<_, _>>()?,
        interfaces: wire
            .interfaces
            .iter()
            .map(|nic| interface(nic, desired).map_err(|text| format!("interface {:?}: {text}", quoted(&nic.name))))
            .collect::<Result<_, _>>()?,
        user_data: user_data(wire, secrets)?,
        restart_counter: counter(wire.restart.as_ref()),
        purge_counter: counter(wire.purge.as_ref()),
        start_delay_seconds: wire.start_delay_in_seconds,
        disable_logs: resources.disable_logs,
    })
}

fn counter(command: Option<&InstanceOpsCmd>) -> u32 {
    command.map_or(0, |command| command.counter)
}

fn volume_ref(wire: &WireRef, desired: &Desired) -> Result<VolumeRef, String> {
    let id = uuid("volume", &wire.uuid)?;
    let volume = desired.volumes.iter().find(|volume| volume.id == id);
    let volume = volume.ok_or_else(|| format!("volume {id}: not in the config or it has a fault"))?;
    if volume.generation != wire.generation_count {
        return Err(format!(
            "volume {id}: expected its generation {}, found {}",
            volume.generation, wire.generation_count
        ));
    }
    let mount_dir = text::name("mount directory", &wire.mount_dir)?;
    if !wire.mount_dir.is_empty()
        && (!wire.mount_dir.starts_with('/') || wire.mount_dir.split('/').any(|part| part == ".."))
    {
        return Err(format!(
            "volume {id}: mount directory: expected an absolute path, found {:?}",
            quoted(&wire.mount_dir)
        ));
    }
    Ok(VolumeRef { volume: id, generation: wire.generation_count, mount_dir })
}

fn interface(wire: &NetworkAdapter, desired: &Desired) -> Result<AppInterface, String> {
    let id = uuid("network instance", &wire.network_id)?;
    let instance = desired.instances.iter().find(|instance| instance.id == id);
    let instance = instance.ok_or_else(|| format!("network instance {id}: not in the config or it has a fault"))?;
    let fixed = match optional_address("address", &wire.addr)? {
        None => Addresses::default(),
        Some(ip) => {
            let subnets: Vec<Prefix> =
                instance.v4.map(|s| s.prefix()).into_iter().chain(instance.v6.map(|s| s.prefix())).collect();
            if !subnets.is_empty() && !subnets.iter().any(|subnet| subnet.contains(ip)) {
                let subnets: Vec<String> = subnets.iter().map(Prefix::to_string).collect();
                return Err(format!("address: expected one of {}, found {ip}", subnets.join(" or ")));
            }
            ip.into()
        }
    };
    Ok(AppInterface {
        name: text::name("name", &wire.name)?,
        instance: id,
        fixed,
        mac: if wire.mac_address.is_empty() { None } else { Some(mac(&wire.mac_address)?) },
        rules: rules::rules(&wire.acls)?,
    })
}

fn mac(text: &str) -> Result<Mac, String> {
    let bad = || {
        format!(
            "MAC address: expected six bytes such as 02:16:3e:00:00:01 of a single station, found {:?}",
            quoted(text)
        )
    };
    let mut mac = [0; 6];
    let mut parts = text.split([':', '-']);
    for byte in &mut mac {
        let part = parts.next().filter(|part| part.len() == 2).ok_or_else(bad)?;
        *byte = u8::from_str_radix(part, 16).map_err(|_| bad())?;
    }
    // The lowest bit of the first byte marks a group (IEEE 802 §8.2).
    if parts.next().is_some() || mac[0] & 1 == 1 { Err(bad()) } else { Ok(mac) }
}

/// User data is base64 of a text, in clear or inside a cipher block; what is in clear stands in when decryption fails.
fn user_data(wire: &AppInstanceConfig, secrets: &Decryptor<'_>) -> Result<String, String> {
    let encoded = match wire.cipher_data.as_ref().map(|block| secrets.decrypt(block)) {
        Some(Ok(block)) => block.protected_user_data,
        Some(Err(error)) if wire.user_data.is_empty() => return Err(format!("user data: {error}")),
        _ => wire.user_data.clone(),
    };
    let compact: String = encoded.chars().filter(|c| !c.is_ascii_whitespace()).collect();
    let bytes = STANDARD.decode(compact).map_err(|error| format!("user data: expected base64: {error}"))?;
    if bytes.len() > limits::USER_DATA {
        return Err(format!("user data: expected at most {} bytes, found {}", limits::USER_DATA, bytes.len()));
    }
    String::from_utf8(bytes).map_err(|_| "user data: expected UTF-8 text".to_owned())
}
