//! What this program can do with a [`VmConfig`]: ranges, and which fields go together.
//!
//! The shape is a contract ([`holdfast_model::contract::vm`]); here is one module for each kind of device whose values need
//! a check. Nothing here touches the host.
#![forbid(unsafe_code)]

use std::collections::HashSet;
use std::fmt;
use std::os::fd::RawFd;

use holdfast_model::contract::vm::{Limits, VmConfig};
use holdfast_model::contract::{self, DocumentError};
use thiserror::Error;

use crate::rate::limit_fault;

/// Most vCPUs of one VM. APIC ids must fit the 8-bit field of the MADT.
pub const MAX_VCPUS: u8 = 64;
/// Least guest memory, MiB: below it no kernel of ours unpacks itself.
pub const MIN_MEMORY_MIB: u32 = 32;
/// Most guest memory, MiB (1 TiB).
pub const MAX_MEMORY_MIB: u32 = 1024 * 1024;
/// Most disks plus network interfaces. Bus 0 has 31 free slots; console, rng, vsock and balloon take four.
pub const MAX_DEVICES: usize = 27;
/// Longest kernel command line, bytes (x86 `COMMAND_LINE_SIZE` less the terminating zero).
pub const MAX_CMDLINE: usize = 2047;

mod console;
mod disk;
mod machine;
mod net;
mod vsock;

pub use machine::check_host_cpus;

/// What is wrong with a configuration.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ConfigError {
    /// The text is not a VM configuration of this version.
    #[error("config: {0}; see `vmm --help` for an example")]
    Document(#[from] DocumentError),
    /// A number is out of its range.
    #[error("config: {field} is {found}, expected {expected}")]
    Range {
        /// Field name.
        field: String,
        /// Value found.
        found: String,
        /// Range in words.
        expected: String,
    },
    /// The same descriptor is named twice.
    #[error("config: {second} uses inherited fd {fd}, which {first} already uses; pass a duplicate")]
    FdTwice {
        /// The descriptor.
        fd: RawFd,
        /// First user.
        first: String,
        /// Second user.
        second: String,
    },
}

/// Parses and checks JSON text.
///
/// # Errors
/// [`ConfigError`] names the field, what was found and what is expected.
pub fn parse(text: &[u8]) -> Result<VmConfig, ConfigError> {
    let config: VmConfig = contract::read(text)?;
    validate(&config)?;
    Ok(config)
}

/// Checks everything that can be checked without touching the host.
///
/// # Errors
/// The first fault found.
pub fn validate(config: &VmConfig) -> Result<(), ConfigError> {
    range("name", &format!("{:?}", config.name), "1 to 64 printable ASCII characters", {
        (1..=64).contains(&config.name.len()) && config.name.bytes().all(|c| c.is_ascii_graphic())
    })?;
    range("vcpus", &config.vcpus, &format!("1 to {MAX_VCPUS}"), (1..=MAX_VCPUS).contains(&config.vcpus))?;
    range(
        "memory_mib",
        &config.memory_mib,
        &format!("{MIN_MEMORY_MIB} to {MAX_MEMORY_MIB}"),
        (MIN_MEMORY_MIB..=MAX_MEMORY_MIB).contains(&config.memory_mib),
    )?;
    machine::validate(config)?;
    range(
        "cmdline",
        &format!("{} bytes", config.cmdline.len()),
        &format!("at most {MAX_CMDLINE} bytes of printable ASCII"),
        config.cmdline.len() <= MAX_CMDLINE && config.cmdline.bytes().all(|c| (0x20..0x7f).contains(&c)),
    )?;
    let devices = config.disks.len() + config.nets.len();
    range("disks + nets", &devices, &format!("at most {MAX_DEVICES}"), devices <= MAX_DEVICES)?;
    let mut ids = HashSet::new();
    for (n, disk) in config.disks.iter().enumerate() {
        disk::validate(disk, &format!("disks[{n}]"), ids.insert(disk.id.as_str()))?;
    }
    for (n, net) in config.nets.iter().enumerate() {
        net::validate(net, &format!("nets[{n}]"), config.vcpus)?;
    }
    if let Some(vsock) = &config.vsock {
        vsock::validate(vsock, "vsock")?;
    }
    if let Some(console) = &config.console {
        console::validate(console, "console")?;
    }
    if let Some(jail) = &config.jail {
        range("jail.uid", &jail.uid, "not 0 (root)", jail.uid != 0)?;
        range("jail.gid", &jail.gid, "not 0 (root)", jail.gid != 0)?;
    }
    fds_are_used_once(config)
}

fn fds_are_used_once(config: &VmConfig) -> Result<(), ConfigError> {
    let fds = config.inherited_fds();
    for (n, (fd, second)) in fds.iter().enumerate() {
        range(second, fd, "a descriptor number from 0 to 1048575", (0..1 << 20).contains(fd))?;
        // Standard streams are duplicated on use and may be shared.
        if *fd > 2
            && let Some((_, first)) = fds[..n].iter().find(|(other, _)| other == fd)
        {
            return Err(ConfigError::FdTwice { fd: *fd, first: first.clone(), second: second.clone() });
        }
    }
    Ok(())
}
fn range(field: &str, found: &dyn fmt::Display, expected: &str, ok: bool) -> Result<(), ConfigError> {
    if ok {
        return Ok(());
    }
    Err(ConfigError::Range { field: field.into(), found: found.to_string(), expected: expected.into() })
}

/// Checks the rate limits of a device.
fn check_limits(name: &str, limits: Option<&Limits>) -> Result<(), ConfigError> {
    match limits.and_then(limit_fault) {
        None => Ok(()),
        Some(fault) => range(&format!("{name}.{}", fault.field), &fault.found, &fault.expected, false),
    }
}

/// Fuzz entry: arbitrary bytes never panic, and an accepted config survives a round trip.
#[doc(hidden)]
pub fn fuzz_config(data: &[u8]) {
    if let Ok(config) = parse(data) {
        let text = contract::write(&config).expect("what was read can be written");
        assert_eq!(parse(&text).as_ref(), Ok(&config));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_model::contract::vm::{BalloonConfig, FileRef, default_cmdline};
    use holdfast_model::contract::write;
    use proptest::prelude::*;

    const FULL: &str = r#"{
        "version": 1, "name": "web", "vcpus": 2, "memory_mib": 256,
        "kernel": {"path": "/boot/vmlinux"}, "initrd": {"fd": 7}, "cmdline": "quiet",
        "disks": [{"id": "root", "file": {"fd": 8}, "read_only": true}],
        "nets": [{"mac": "02:00:00:00:00:01", "tap": {"fd": 9}, "vhost": {"fd": 10}, "mtu": 1500}],
        "vsock": {"cid": 3, "vhost": {"fd": 12}}, "balloon": {},
        "console": {"ports": [{"name": "agent", "output": {"fd": 13}, "input": {"fd": 13}}]}, "control": {"fd": 11},
        "jail": {"uid": 1000, "gid": 1000}
    }"#;

    fn with(change: impl Fn(&mut serde_json::Value)) -> Result<VmConfig, ConfigError> {
        let mut value: serde_json::Value = serde_json::from_str(FULL).unwrap();
        change(&mut value);
        parse(&serde_json::to_vec(&value).unwrap())
    }

    #[test]
    fn full_config_is_read_with_defaults_filled() {
        let config = parse(FULL.as_bytes()).unwrap();
        assert_eq!(config.kvm, FileRef::Path("/dev/kvm".into()));
        assert_eq!(config.console.as_ref().unwrap().output, FileRef::Fd(1));
        assert_eq!(config.balloon, Some(BalloonConfig::default()));
        assert!(config.rng && config.jail.as_ref().unwrap().pid_namespace);
        assert!(config.disks[0].lock && config.disks[0].limits.is_none());
        assert_eq!(parse(&write(&config).unwrap()).unwrap(), config);
    }

    #[test]
    fn faults_name_the_field() {
        type Change = Box<dyn Fn(&mut serde_json::Value)>;
        let cases: [(&str, Change); 22] = [
            ("vcpus", Box::new(|v| v["vcpus"] = 0.into())),
            ("memory_mib", Box::new(|v| v["memory_mib"] = 0.into())),
            ("name", Box::new(|v| v["name"] = "".into())),
            ("cmdline", Box::new(|v| v["cmdline"] = "a\nb".into())),
            ("disks[0].id", Box::new(|v| v["disks"][0]["id"] = "x".repeat(21).into())),
            ("mac", Box::new(|v| v["nets"][0]["mac"] = "03:00:00:00:00:01".into())),
            ("mtu", Box::new(|v| v["nets"][0]["mtu"] = 10.into())),
            ("jail.uid", Box::new(|v| v["jail"]["uid"] = 0.into())),
            ("vsock.cid", Box::new(|v| v["vsock"]["cid"] = 2.into())),
            ("vsock.cid", Box::new(|v| v["vsock"]["cid"] = u32::MAX.into())),
            ("vsock.vhost", Box::new(|v| v["vsock"]["vhost"]["fd"] = 8.into())),
            ("free", Box::new(|v| v["balloon"]["free"] = true.into())),
            ("colour", Box::new(|v| v["colour"] = "blue".into())),
            ("fd 8", Box::new(|v| v["nets"][0]["tap"]["fd"] = 8.into())),
            ("vmdk", Box::new(|v| v["disks"][0]["format"] = "vmdk".into())),
            (
                "disks[0].limits.ops_per_second is 0",
                Box::new(|v| v["disks"][0]["limits"] = serde_json::json!({"ops_per_second": 0})),
            ),
            (
                "disks[0].limits.burst_bytes is alone, expected to come with bytes_per_second",
                Box::new(|v| v["disks"][0]["limits"] = serde_json::json!({"burst_bytes": 5})),
            ),
            ("speed", Box::new(|v| v["disks"][0]["limits"] = serde_json::json!({"speed": 5}))),
            ("console.ports[0].name", Box::new(|v| v["console"]["ports"][0]["name"] = "serial".into())),
            ("console.ports[0].name", Box::new(|v| v["console"]["ports"][0]["name"] = "a/b".into())),
            (
                "console.ports is 16",
                Box::new(|v| v["console"]["ports"] = vec![serde_json::json!({"name": "p"}); 16].into()),
            ),
            ("console.ports[0].input", Box::new(|v| v["console"]["ports"][0]["input"]["fd"] = 8.into())),
        ];
        for (needle, change) in cases {
            let error = with(change).unwrap_err().to_string();
            assert!(error.contains(needle), "{needle:?} not in {error:?}");
        }
    }

    #[test]
    fn duplicate_disk_ids_are_refused() {
        let error = with(|v| {
            let mut second = v["disks"][0].clone();
            second["file"]["fd"] = 20.into();
            v["disks"].as_array_mut().unwrap().push(second);
        });
        assert!(error.unwrap_err().to_string().contains("disks[1].id"));
    }

    #[test]
    fn default_cmdline_passes_its_own_check() {
        assert!(with(|v| v["cmdline"] = default_cmdline().into()).is_ok());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn arbitrary_text_never_panics(data in proptest::collection::vec(any::<u8>(), 0..200)) {
            fuzz_config(&data);
        }
    }
}
