//! Apps with their interfaces and firewall rules.

use super::build::{BuildError, Builder};
use super::{App, FirewallRule, Interface, Mode, Protocol, Volume, VolumeUse};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use holdfast_api::proto::common::EncryptionBlock;
use holdfast_api::proto::config as wire;
use std::collections::BTreeMap;

impl Builder<'_> {
    pub(super) fn app(&self, app: &App, volumes: &[Volume]) -> Result<wire::AppInstanceConfig, BuildError> {
        let object = format!("app {:?}", app.name);
        let wrong = |cause: String| BuildError::Value { object: object.clone(), cause };
        let root = app.image.iter().map(|_| VolumeUse { volume: format!("{}-root", app.name), mount: String::new() });
        let volume_ref_list = root
            .chain(app.volumes.iter().cloned())
            .map(|used| {
                let volume = volumes.iter().find(|v| v.name == used.volume).ok_or_else(|| BuildError::Missing {
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
        let memory = app.memory_mib.checked_mul(1024).ok_or_else(|| wrong("memory_mib is too large".into()))?;
        let text = match (&app.user_data, app.env.is_empty()) {
            (Some(_), false) => return Err(wrong("env and user_data exclude each other".into())),
            (Some(text), true) => text.clone(),
            (None, _) => env_lines(&app.env).map_err(wrong)?,
        };
        let user_data = if text.is_empty() { String::new() } else { STANDARD.encode(text) };
        let (user_data, cipher_data) = if app.encrypt && !user_data.is_empty() {
            let secret = EncryptionBlock { protected_user_data: user_data, ..Default::default() };
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
        let command = |counter: u32| (counter > 0).then(|| wire::InstanceOpsCmd { counter, ops_time: String::new() });
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

    pub(super) fn interface(
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
        let acls = (1..).zip(&interface.rules).map(|(id, rule)| ace(id, rule)).collect();
        Ok(wire::NetworkAdapter {
            name: if interface.name.is_empty() { format!("eth{index}") } else { interface.name.clone() },
            network_id,
            addr: interface.address.clone(),
            mac_address: interface.mac.clone(),
            acls,
            ..Default::default()
        })
    }
}

fn ace(id: i32, rule: &FirewallRule) -> wire::Ace {
    let matches = |list: &[(&str, String)]| {
        list.iter().map(|(kind, value)| wire::AceMatch { r#type: (*kind).to_owned(), value: value.clone() }).collect()
    };
    let drop = || vec![wire::AceAction { drop: true, ..Default::default() }];
    let (matches, actions, name) = match rule {
        FirewallRule::Allow { ip } => (matches(&[("ip", ip.clone())]), Vec::new(), "allow"),
        FirewallRule::Drop { ip } => (matches(&[("ip", ip.clone())]), drop(), "drop"),
        FirewallRule::AllowHost { host } => (matches(&[("host", host.clone())]), Vec::new(), "allow-host"),
        FirewallRule::PortMap { protocol, port, app_port } => {
            let protocol = match protocol {
                Protocol::Tcp => "tcp",
                Protocol::Udp => "udp",
            };
            (
                matches(&[("protocol", protocol.into()), ("lport", port.to_string())]),
                vec![wire::AceAction { portmap: true, app_port: u32::from(*app_port), ..Default::default() }],
                "portmap",
            )
        }
        FirewallRule::Raw { matches, drop: dropped } => (
            matches.iter().map(|(kind, value)| wire::AceMatch { r#type: kind.clone(), value: value.clone() }).collect(),
            if *dropped { drop() } else { Vec::new() },
            "raw",
        ),
    };
    wire::Ace { matches, actions, name: format!("{name}-{id}"), id, dir: 0 }
}

/// KEY=VALUE lines of an environment.
fn env_lines(env: &BTreeMap<String, String>) -> Result<String, String> {
    let mut out = String::new();
    for (key, value) in env {
        if key.is_empty() || key.contains(['=', '\n']) || value.contains('\n') {
            return Err(format!("env {key:?}: names without '=', and no line breaks, are possible"));
        }
        out.push_str(&format!("{key}={value}\n"));
    }
    Ok(out)
}
