//! The table of targets: a name for people, the entry, the seeds, the longest input.

use crate::extra;
use crate::seeds::{controller, fetch, image, network, unit, vmm};

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
    /// Inputs of a test run: what takes about half a second, as tests are built.
    pub inputs: u64,
}

/// By name.
#[must_use]
pub fn find(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|t| t.name == name)
}

/// One input, cut to the longest that the target takes.
///
/// # Panics
/// When there is no such target; and when the target finds something.
pub fn run(name: &str, data: &[u8]) {
    let target = find(name).unwrap_or_else(|| panic!("expected a target of the table, found {name:?}"));
    (target.run)(&data[..data.len().min(target.max_bytes)]);
}

/// Makes the table, and a test for each line of it.
macro_rules! targets {
    ($($name:ident: $run:path, $seeds:path, $max:expr, $inputs:expr;)*) => {
        /// All of them.
        pub static TARGETS: &[Target] =
            &[$(Target { name: stringify!($name), run: $run, seeds: $seeds, max_bytes: $max, inputs: $inputs },)*];

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
/// Inputs for a parser.
const QUICK: u64 = 20_000;
/// Inputs for what makes a machine, or does arithmetic on curves, for each of them.
const DEVICE: u64 = 1_500;

targets! {
    api_attest_response: holdfast_api::fuzz::fuzz_attest_response, controller::attest_response, 4 * K, QUICK;
    api_certificates: holdfast_api::fuzz::fuzz_certificates, controller::envelope, 8 * K, QUICK;
    api_config: holdfast_api::fuzz::fuzz_config, controller::config, 8 * K, QUICK;
    api_envelope: holdfast_api::fuzz::fuzz_envelope, controller::envelope, 8 * K, QUICK;
    controller_attest: holdfast_test_controller::attest::fuzz_attest, controller::attest_request, 4 * K, QUICK;
    controller_certificate: extra::fuzz_certificate, controller::certificate, 4 * K, QUICK;
    controller_client_config_file: holdfast_controller_client::store::fuzz_config_file, controller::config_file, 8 * K, QUICK;
    controller_envelope: holdfast_test_controller::envelope::fuzz_envelope, controller::envelope, 8 * K, QUICK;
    controller_logs: holdfast_test_controller::logs::fuzz_logs, controller::logs, 4 * K, QUICK;
    controller_quote: holdfast_test_controller::tpm::fuzz_quote, controller::quote, 4 * K, QUICK;
    fetch_challenge: holdfast_fetch::auth::fuzz_challenge, fetch::challenge, 2 * K, QUICK;
    fetch_layer: holdfast_fetch::layer::fuzz_layer, fetch::tar, 16 * K, QUICK;
    fetch_manifest: holdfast_fetch::manifest::fuzz_manifest, fetch::manifest, 8 * K, QUICK;
    fetch_report: extra::fuzz_fetch_report, fetch::fetch_report, 4 * K, QUICK;
    fetch_tar: holdfast_fetch::tar::fuzz_tar, fetch::tar, 16 * K, QUICK;
    format_cmdline: extra::fuzz_cmdline, image::cmdline, 2 * K, QUICK;
    format_gpt: holdfast_format::gpt::fuzz_gpt, image::gpt, 40 * K, QUICK;
    format_payload: holdfast_format::payload::reader::fuzz_payload, image::payload, 8 * K, QUICK;
    format_pe: holdfast_format::pe::fuzz_pe, image::pe, 4 * K, QUICK;
    format_policy: holdfast_format::policy::fuzz_policy, image::policy, 4 * K, DEVICE;
    format_release: extra::fuzz_release, image::release, 2 * K, QUICK;
    format_site: holdfast_format::site::fuzz_site, image::site, 4 * K, QUICK;
    guest_account: holdfast_guest::account::fuzz_account, unit::account, 4 * K, QUICK;
    guest_dhcp: holdfast_guest::dhcp::fuzz_dhcp, network::guest_dhcp, 2 * K, QUICK;
    guest_document: holdfast_guest::document::fuzz_document, unit::document, 8 * K, QUICK;
    identity_vault_header: holdfast_identity::vault::header::fuzz_header, image::vault_header, 8 * K, QUICK;
    netsvc_control: extra::fuzz_netsvc_control, network::netsvc_control, 4 * K, QUICK;
    netsvc_dhcp: holdfast_netsvc::dhcp::fuzz_dhcp, network::dhcp, 2 * K, QUICK;
    netsvc_dhcp_options: extra::fuzz_dhcp_options, network::dhcp, 2 * K, QUICK;
    netsvc_dns: holdfast_netsvc::dns::fuzz_dns, network::dns, 2 * K, QUICK;
    node_names: extra::fuzz_names, unit::names, K, QUICK;
    slots_load_option: holdfast_slots::efivars::fuzz_load_option, image::load_option, 4 * K, QUICK;
    slots_state: holdfast_slots::store::fuzz_state, image::state, 16 * K, 10_000;
    supervise_packet: holdfast_supervise::wire::fuzz_packet, unit::supervise_packet, 8 * K, QUICK;
    unit_last_words: extra::fuzz_last_words, unit::last_words, K, QUICK;
    vmm_balloon: holdfast_vmm::virtio::balloon::fuzz_balloon, vmm::rings, 8 * K, DEVICE;
    vmm_block: holdfast_vmm::virtio::block::fuzz_block, vmm::block_rings, 8 * K, DEVICE;
    vmm_config: holdfast_vmm::config::fuzz_config, vmm::config, 8 * K, QUICK;
    vmm_config_space: holdfast_vmm::pci::config::fuzz_config_space, vmm::accesses, K, QUICK;
    vmm_console: holdfast_vmm::virtio::console::fuzz_console, vmm::console, 8 * K, DEVICE;
    vmm_control: holdfast_vmm::control::fuzz_control, vmm::control, 2 * K, QUICK;
    vmm_kernel: holdfast_vmm::boot::kernel::fuzz_kernel, vmm::kernel, 8 * K, 10_000;
    vmm_net: holdfast_vmm::virtio::net::fuzz_net, vmm::net_rings, 8 * K, DEVICE;
    vmm_pci_bus: holdfast_vmm::pci::bus::fuzz_bus, vmm::accesses, 2 * K, DEVICE;
    vmm_rng: holdfast_vmm::virtio::rng::fuzz_rng, vmm::rings, 8 * K, DEVICE;
    vmm_virtio_pci: holdfast_vmm::pci::virtio::fuzz_virtio_pci, vmm::bring_up, 2 * K, 3_000;
    vmm_vsock: holdfast_vmm::virtio::vsock::fuzz_vsock, vmm::rings, 8 * K, DEVICE;
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
