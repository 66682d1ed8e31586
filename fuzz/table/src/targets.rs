//! The table of targets: a name for people, the entry, the seeds, the longest input.

use crate::{extra, seeds};

/// One parser.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Its name: the room and what is parsed.
    pub name: &'static str,
    /// The entry: any bytes, no panic, bounded time.
    pub run: fn(&[u8]),
    /// Samples to begin from; may be empty.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Longest input in bytes.
    pub max_bytes: usize,
}

/// By name.
#[must_use]
pub fn find(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|t| t.name == name)
}

/// Makes the table, and a test for each line of it.
macro_rules! targets {
    ($($name:ident: $run:path, $seeds:path, $max:expr;)*) => {
        /// All of them.
        pub static TARGETS: &[Target] =
            &[$(Target { name: stringify!($name), run: $run, seeds: $seeds, max_bytes: $max },)*];

        #[cfg(test)]
        mod no_input_breaks {
            $(#[test]
            fn $name() {
                crate::runner::check(super::find(stringify!($name)).expect("in the table"));
            })*
        }
    };
}

const K: usize = 1024;

targets! {
    api_attest_response: holdfast_api::fuzz::fuzz_attest_response, seeds::attest_response, 4 * K;
    api_certificates: holdfast_api::fuzz::fuzz_certificates, seeds::envelope, 8 * K;
    api_config: holdfast_api::fuzz::fuzz_config, seeds::config, 8 * K;
    api_envelope: holdfast_api::fuzz::fuzz_envelope, seeds::envelope, 8 * K;
    controller_attest: holdfast_test_controller::attest::fuzz_attest, seeds::attest_request, 4 * K;
    controller_certificate: extra::fuzz_certificate, seeds::certificate, 4 * K;
    controller_client_config_file: holdfast_controller_client::store::fuzz_config_file, seeds::config_file, 8 * K;
    controller_envelope: holdfast_test_controller::envelope::fuzz_envelope, seeds::envelope, 8 * K;
    controller_logs: holdfast_test_controller::logs::fuzz_logs, seeds::logs, 4 * K;
    controller_quote: holdfast_test_controller::tpm::fuzz_quote, seeds::quote, 4 * K;
    fetch_challenge: holdfast_fetch::auth::fuzz_challenge, seeds::challenge, 2 * K;
    fetch_layer: holdfast_fetch::layer::fuzz_layer, seeds::tar, 16 * K;
    fetch_manifest: holdfast_fetch::manifest::fuzz_manifest, seeds::manifest, 8 * K;
    fetch_report: extra::fuzz_fetch_report, seeds::fetch_report, 4 * K;
    fetch_tar: holdfast_fetch::tar::fuzz_tar, seeds::tar, 16 * K;
    format_cmdline: extra::fuzz_cmdline, seeds::cmdline, 2 * K;
    format_gpt: holdfast_format::gpt::fuzz_gpt, seeds::gpt, 40 * K;
    format_payload: holdfast_format::payload::reader::fuzz_payload, seeds::payload, 8 * K;
    format_pe: holdfast_format::pe::fuzz_pe, seeds::pe, 4 * K;
    format_policy: holdfast_format::policy::fuzz_policy, seeds::policy, 4 * K;
    format_release: extra::fuzz_release, seeds::release, 2 * K;
    format_site: holdfast_format::site::fuzz_site, seeds::site, 4 * K;
    guest_account: holdfast_guest::account::fuzz_account, seeds::account, 4 * K;
    guest_dhcp: holdfast_guest::dhcp::fuzz_dhcp, seeds::guest_dhcp, 2 * K;
    guest_document: holdfast_guest::document::fuzz_document, seeds::document, 8 * K;
    identity_vault_header: holdfast_identity::vault::header::fuzz_header, seeds::vault_header, 8 * K;
    netsvc_control: extra::fuzz_netsvc_control, seeds::netsvc_control, 4 * K;
    netsvc_dhcp: holdfast_netsvc::dhcp::fuzz_dhcp, seeds::dhcp, 2 * K;
    netsvc_dhcp_options: extra::fuzz_dhcp_options, seeds::dhcp, 2 * K;
    netsvc_dns: holdfast_netsvc::dns::fuzz_dns, seeds::dns, 2 * K;
    node_guest_report: extra::fuzz_guest_report, seeds::guest_report, K;
    node_names: extra::fuzz_names, seeds::names, K;
    slots_load_option: holdfast_slots::efivars::fuzz_load_option, seeds::load_option, 4 * K;
    slots_state: holdfast_slots::store::fuzz_state, seeds::state, 16 * K;
    supervise_packet: holdfast_supervise::wire::fuzz_packet, seeds::supervise_packet, 8 * K;
    vmm_balloon: holdfast_vmm::virtio::balloon::fuzz_balloon, seeds::rings, 8 * K;
    vmm_block: holdfast_vmm::virtio::block::fuzz_block, seeds::block_rings, 8 * K;
    vmm_config: holdfast_vmm::config::fuzz_config, seeds::vmm_config, 8 * K;
    vmm_config_space: holdfast_vmm::pci::config::fuzz_config_space, seeds::accesses, K;
    vmm_console: holdfast_vmm::virtio::console::fuzz_console, seeds::console, 8 * K;
    vmm_control: holdfast_vmm::control::fuzz_control, seeds::vmm_control, 2 * K;
    vmm_kernel: holdfast_vmm::boot::kernel::fuzz_kernel, seeds::kernel, 8 * K;
    vmm_net: holdfast_vmm::virtio::net::fuzz_net, seeds::net_rings, 8 * K;
    vmm_pci_bus: holdfast_vmm::pci::bus::fuzz_bus, seeds::accesses, 2 * K;
    vmm_rng: holdfast_vmm::virtio::rng::fuzz_rng, seeds::rings, 8 * K;
    vmm_virtio_pci: holdfast_vmm::pci::virtio::fuzz_virtio_pci, seeds::bring_up, 2 * K;
    vmm_vsock: holdfast_vmm::virtio::vsock::fuzz_vsock, seeds::rings, 8 * K;
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::path::{Path, PathBuf};

    /// Crates of the workspace: name as Rust writes it, and folder.
    fn crates(folder: &Path, depth: u32, found: &mut Vec<(String, PathBuf)>) {
        for entry in fs::read_dir(folder).unwrap().flatten() {
            let path = entry.path();
            let name = entry.file_name().to_string_lossy().into_owned();
            if !path.is_dir() || ["target", "src", "fuzz", "out"].contains(&name.as_str()) || name.starts_with('.') {
                continue;
            }
            if let Ok(manifest) = fs::read_to_string(path.join("Cargo.toml"))
                && let Some(name) = manifest.lines().find_map(|l| l.strip_prefix("name = \""))
            {
                found.push((name.trim_end_matches('"').replace('-', "_"), path.clone()));
            }
            if depth > 0 {
                crates(&path, depth - 1, found);
            }
        }
    }

    fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                sources(&path, found);
            } else if path.extension().is_some_and(|e| e == "rs") {
                found.push(path);
            }
        }
    }

    #[test]
    fn every_entry_in_the_tree_is_in_the_table() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap();
        let table = include_str!("targets.rs");
        let mut all = Vec::new();
        crates(root, 1, &mut all);
        assert!(all.len() > 20, "expected the workspace's crates, found {all:?}");
        let (mut entries, mut missing) = (0, Vec::new());
        for (name, folder) in all {
            let mut files = Vec::new();
            sources(&folder.join("src"), &mut files);
            for file in files {
                let source = fs::read_to_string(&file).unwrap();
                for entry in source.lines().filter_map(|l| l.strip_prefix("pub fn fuzz_")?.split('(').next()) {
                    entries += 1;
                    let listed = |l: &str| l.contains(&format!("{name}::")) && l.contains(&format!("::fuzz_{entry},"));
                    if !table.lines().any(listed) {
                        missing.push(format!("{}: fuzz_{entry}", file.display()));
                    }
                }
            }
        }
        assert!(entries >= 36, "expected at least 36 entries in the tree, found {entries}");
        assert!(missing.is_empty(), "expected in the table of fuzz/src/targets.rs: {missing:#?}");
    }

    #[test]
    fn names_are_unique_and_seeds_fit() {
        let mut names: Vec<_> = TARGETS.iter().map(|t| t.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), TARGETS.len());
        for target in TARGETS {
            for seed in (target.seeds)() {
                assert!(!seed.is_empty() && seed.len() <= target.max_bytes, "{}: {} bytes", target.name, seed.len());
            }
        }
    }
}
