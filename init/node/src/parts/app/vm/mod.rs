//! From an app to its virtual machine. Here: the plan of one, and what its guest is told; [`unit`]: the VMM's configuration and unit.

pub mod unit;

use anyhow::{Result, bail};
use holdfast_model::app::{App, environment};
use holdfast_model::contract::Version;
use holdfast_model::contract::fetch::ImageConfig;
use holdfast_model::contract::guest::{AppDocument, Mount};
use holdfast_model::net::Mac;
use holdfast_supervise::UnitName;
use sha2::{Digest, Sha256};
use std::path::PathBuf;
use uuid::Uuid;

/// uid of the first app's VMM.
pub const FIRST_UID: u32 = 2000;
/// Grace of the app inside its guest: less than the above, so that the guest can unmount.
const APP_GRACE_SECONDS: u32 = 10;

/// A disk of an app.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Disk {
    /// Container image with its writable layer.
    Container {
        /// The flattened image.
        rootfs: PathBuf,
        /// The writable layer.
        layer: PathBuf,
        /// How to run it.
        image: ImageConfig,
    },
    /// A volume mounted in the guest.
    Volume {
        /// The file.
        file: PathBuf,
        /// Where.
        mount: String,
        /// Read-only.
        read_only: bool,
    },
}

/// A NIC of an app.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nic {
    /// Tap interface.
    pub tap: String,
    /// MAC of the guest's end.
    pub mac: Mac,
    /// MTU in bytes.
    pub mtu: u16,
    /// Queue pairs, 1 to 16 and at most one for each vCPU; the tap is for several queues when there are several.
    pub queue_pairs: u16,
}

/// Everything that a start needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The app.
    pub app: App,
    /// Its number, for the uid.
    pub number: u32,
    /// Disks in order; the first is the container.
    pub disks: Vec<Disk>,
    /// NICs in order.
    pub nics: Vec<Nic>,
}

/// Name of an app's unit.
///
/// # Panics
/// Never: a UUID is a valid part of a unit name.
#[must_use]
pub fn unit_of(app: Uuid) -> UnitName {
    UnitName::new(format!("vmm-{app}")).expect("a UUID has only characters that unit names allow")
}

/// The app of a unit, if it is one's.
#[must_use]
pub fn app_of(unit: &UnitName) -> Option<Uuid> {
    unit.as_str().strip_prefix("vmm-").and_then(|u| u.parse().ok())
}

impl Plan {
    /// Hash of all that a running VM cannot take in: another hash needs a restart.
    #[must_use]
    pub fn tag(&self) -> String {
        let App { vcpus, memory_bytes, user_data, .. } = &self.app;
        let text = format!("{vcpus} {memory_bytes} {user_data} {:?} {:?}", self.disks, self.nics);
        hex::encode(&Sha256::digest(text.as_bytes())[..16])
    }

    /// What the guest's init is told.
    ///
    /// # Errors
    /// When no disk is a container image or the image names no program.
    pub fn document(&self) -> Result<AppDocument> {
        let name = &self.app.name;
        let Some(Disk::Container { image, .. }) = self.disks.first() else {
            bail!("app {name}: expected a container image as first disk");
        };
        let argv: Vec<String> = image.entrypoint.iter().chain(&image.cmd).cloned().collect();
        if argv.is_empty() {
            bail!("app {name}: expected Entrypoint or Cmd in the image, found neither");
        }
        let mut env = image.env.clone();
        env.extend(environment(&self.app.user_data).variables);
        let mounts = self.disks[1..]
            .iter()
            .enumerate()
            .filter_map(|(n, d)| match d {
                Disk::Volume { mount, read_only, .. } => {
                    Some(Mount { disk: format!("vol{n}"), at: mount.clone(), read_only: *read_only })
                }
                Disk::Container { .. } => None,
            })
            .collect();
        Ok(AppDocument {
            version: Version,
            hostname: host_name(name),
            argv,
            env,
            user: image.user.clone(),
            cwd: image.working_dir.clone(),
            stop_signal: image.stop_signal.clone(),
            grace_seconds: APP_GRACE_SECONDS,
            mounts,
        })
    }
}

/// The display name as a host name: letters, digits and hyphens, at most 63.
#[must_use]
pub fn host_name(name: &str) -> String {
    let text: String =
        name.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' }).take(63).collect();
    let text = text.trim_matches('-');
    if text.is_empty() { "app".into() } else { text.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> Plan {
        Plan {
            app: App {
                id: Uuid::from_u128(7),
                version: "1".into(),
                name: "Web Shop_1".into(),
                activate: true,
                vcpus: 1,
                memory_bytes: 64 << 20,
                volumes: vec![],
                interfaces: vec![],
                user_data: "# greeting\nGREETING=hello world\n1BAD=x\nA_B=\n".into(),
                restart_counter: 0,
                purge_counter: 0,
                start_delay_seconds: 0,
                disable_logs: false,
            },
            number: 0,
            disks: vec![
                Disk::Container {
                    rootfs: "/r".into(),
                    layer: "/l".into(),
                    image: ImageConfig {
                        entrypoint: vec!["/bin/web".into()],
                        cmd: vec!["-v".into()],
                        env: vec!["PATH=/bin".into()],
                        user: "www".into(),
                        ..ImageConfig::default()
                    },
                },
                Disk::Volume { file: "/v".into(), mount: "/data".into(), read_only: false },
            ],
            nics: vec![],
        }
    }

    #[test]
    fn the_document_merges_image_and_user_data() {
        let d = plan().document().unwrap();
        assert_eq!(d.argv, ["/bin/web", "-v"]);
        assert_eq!(d.env, ["PATH=/bin", "GREETING=hello world", "A_B="]);
        assert_eq!(d.hostname, "web-shop-1");
        assert_eq!(d.mounts, [Mount { disk: "vol0".into(), at: "/data".into(), read_only: false }]);
    }

    #[test]
    fn an_image_without_a_program_is_refused_by_name() {
        let mut p = plan();
        p.disks[0] = Disk::Container { rootfs: "/r".into(), layer: "/l".into(), image: ImageConfig::default() };
        assert!(p.document().unwrap_err().to_string().contains("Web Shop_1"));
    }

    #[test]
    fn the_tag_changes_with_what_a_running_vm_cannot_take_in() {
        let a = plan();
        let mut b = plan();
        b.app.memory_bytes *= 2;
        let mut c = plan();
        c.app.restart_counter = 9;
        assert_ne!(a.tag(), b.tag());
        assert_eq!(a.tag(), c.tag());
    }

    #[test]
    fn unit_names_lead_back_to_their_app() {
        let id = Uuid::from_u128(0xabcd);
        assert_eq!(app_of(&unit_of(id)), Some(id));
        assert_eq!(app_of(&UnitName::new("node").unwrap()), None);
    }
}
