//! All scenarios, each in a file named by what it shows.

mod changed_uki_is_refused_by_firmware;
mod debian_nginx_runs_from_debians_registry;
mod device_without_tpm;
mod faults;
mod first_boot;
mod power_cuts;
mod trial_that_cannot_reach_controller_reverts;
mod truncated_update_is_refused;
mod update_is_tried_and_committed;
mod vault_that_stays_sealed_is_recovered_by_escrow;
