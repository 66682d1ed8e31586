//! Apps: each runs in its own virtual machine.

use crate::net::AppInterface;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// A reference from an app to a volume; the order is the disk order, the first is the root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeRef {
    /// The volume.
    pub volume: Uuid,
    /// Must equal the volume's generation.
    pub generation: i64,
    /// Where a container sees it; empty = `/mnt`.
    pub mount_dir: String,
}

/// What user data gives a container: its environment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Environment {
    /// `KEY=VALUE`, in order.
    pub variables: Vec<String>,
    /// What of the user data is not used; empty when all is.
    pub unused: String,
}

/// Reads user data: lines `KEY=VALUE`, comments and empty lines. What cloud-init would take as something else (`#cloud-config`,
/// `#!`, a MIME message) is no environment at all, even where a line of it looks like one.
#[must_use]
pub fn environment(user_data: &str) -> Environment {
    let first = user_data.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default();
    let cloud_init = ["#cloud-", "#!", "#include", "#part-handler", "#upstart-job", "## template:", "Content-Type:"];
    if let Some(kind) = cloud_init.iter().find(|kind| first.starts_with(**kind)) {
        return Environment { variables: Vec::new(), unused: format!("it begins with {kind:?}") };
    }
    let is_name = |name: &str| {
        !name.is_empty()
            && !name.starts_with(|c: char| c.is_ascii_digit())
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
    };
    let lines = user_data.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let (variables, others): (Vec<&str>, Vec<&str>) =
        lines.partition(|line| line.split_once('=').is_some_and(|(name, _)| is_name(name)));
    Environment {
        variables: variables.into_iter().map(str::to_owned).collect(),
        unused: if others.is_empty() { String::new() } else { format!("{} other lines", others.len()) },
    }
}

/// One app instance.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct App {
    /// Its id.
    pub id: Uuid,
    /// Version text of the object.
    pub version: String,
    /// Label; also the app's host name.
    pub name: String,
    /// Run it.
    pub activate: bool,
    /// Virtual CPUs, at least 1.
    pub vcpus: u32,
    /// Guest memory in bytes.
    pub memory_bytes: u64,
    /// Disks in order; the first is the root.
    pub volumes: Vec<VolumeRef>,
    /// Virtual NICs in order.
    pub interfaces: Vec<AppInterface>,
    /// Decoded user data (cloud-config or KEY=VALUE lines); empty when none.
    pub user_data: String,
    /// Restart when it grows.
    pub restart_counter: u32,
    /// Make the root volume's writable layer anew when it grows.
    pub purge_counter: u32,
    /// Wait after device boot.
    pub start_delay_seconds: u32,
    /// No console log collection.
    pub disable_logs: bool,
}

impl std::fmt::Debug for App {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // User data may hold secrets and never reaches a log.
        f.debug_struct("App")
            .field("id", &self.id)
            .field("name", &self.name)
            .field("activate", &self.activate)
            .field("vcpus", &self.vcpus)
            .field("memory_bytes", &self.memory_bytes)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_with_a_name_and_a_value_are_environment_and_a_cloud_config_is_none() {
        let cases: &[(&str, &[&str], &str)] = &[
            ("", &[], ""),
            ("A=1\n# note\n\n  B_2=x=y \n", &["A=1", "B_2=x=y"], ""),
            ("A=1\n2B=3\nhello\n", &["A=1"], "2 other lines"),
            ("\n#cloud-config\nruncmd:\nA=1\n", &[], "it begins with \"#cloud-\""),
            ("#!/bin/sh\nA=1\n", &[], "it begins with \"#!\""),
        ];
        for (text, variables, unused) in cases {
            let found = environment(text);
            assert_eq!(found.variables, *variables, "{text:?}");
            assert_eq!(found.unused, *unused, "{text:?}");
        }
    }
}
