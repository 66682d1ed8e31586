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
use crate::host::{Outcome, Scenario};

/// The scenarios of one file, which share a machine.
pub struct Subject {
    /// The file's name.
    pub name: &'static str,
    pub scenarios: &'static [Scenario],
}

/// Everything the test runs, in this order.
pub const SUBJECTS: &[Subject] = &[
    Subject { name: "storm", scenarios: storm::SCENARIOS },
    Subject { name: "boot", scenarios: boot::SCENARIOS },
    Subject { name: "lifecycle", scenarios: lifecycle::SCENARIOS },
    Subject { name: "whole", scenarios: whole::SCENARIOS },
    Subject { name: "net", scenarios: net::SCENARIOS },
    Subject { name: "vsock", scenarios: vsock::SCENARIOS },
    Subject { name: "balloon", scenarios: balloon::SCENARIOS },
    Subject { name: "disk", scenarios: disk::SCENARIOS },
    Subject { name: "console", scenarios: console::SCENARIOS },
    Subject { name: "filter", scenarios: filter::SCENARIOS },
    Subject { name: "hostile", scenarios: hostile::SCENARIOS },
    Subject { name: "faults", scenarios: faults::SCENARIOS },
    Subject { name: "jail", scenarios: jail::SCENARIOS },
    Subject { name: "leaks", scenarios: leaks::SCENARIOS },
];

/// The scenarios that are asked for: the number of their subject, `subject::name`, and what to run. Asked for are those in
/// whose name stands one of the words between commas; all of them when there is no word.
pub fn wanted(words: &str) -> impl Iterator<Item = (usize, String, fn() -> Outcome)> {
    let words: Vec<String> = words.split(',').map(str::trim).filter(|w| !w.is_empty()).map(str::to_string).collect();
    let all = SUBJECTS.iter().enumerate().flat_map(|(number, subject)| {
        subject.scenarios.iter().map(move |s| (number, format!("{}::{}", subject.name, s.name), s.run))
    });
    all.filter(move |(_, name, _)| words.is_empty() || words.iter().any(|word| name.contains(word.as_str())))
}

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
