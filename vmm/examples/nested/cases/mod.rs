//! The scenarios. A file holds one subject: `SCENARIOS` run on the host, `ROLES` are played by its guests.

mod balloon;
mod boot;
mod console;
mod disk;
mod faults;
mod filter;
mod hostile;
mod jail;
mod leaks;
mod lifecycle;
mod net;
mod storm;
mod vsock;
mod whole;

use crate::guest::Role;
use crate::host::Scenario;

/// Everything the test runs, in this order.
pub const SCENARIOS: &[&[Scenario]] = &[
    storm::SCENARIOS,
    boot::SCENARIOS,
    lifecycle::SCENARIOS,
    whole::SCENARIOS,
    net::SCENARIOS,
    vsock::SCENARIOS,
    balloon::SCENARIOS,
    disk::SCENARIOS,
    console::SCENARIOS,
    filter::SCENARIOS,
    hostile::SCENARIOS,
    faults::SCENARIOS,
    jail::SCENARIOS,
    leaks::SCENARIOS,
];
/// Everything a guest can be.
pub const ROLES: &[&[Role]] = &[
    boot::ROLES,
    lifecycle::ROLES,
    whole::ROLES,
    net::ROLES,
    vsock::ROLES,
    balloon::ROLES,
    disk::ROLES,
    console::ROLES,
    hostile::ROLES,
    storm::ROLES,
    filter::ROLES,
];
