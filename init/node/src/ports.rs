//! Which ports the controller is called over: those of the config, or those that the device came to its controller by.
//!
//! A config whose ports do not lead to the controller would be the last one that the device ever gets. So it is left for the network of
//! SITE, else DHCP on all Ethernet ports, and tried again from there. Apps keep what the config's ports give them wherever it is the same.
//!
//! | wait | value | EVE property |
//! |---|---|---|
//! | a config that never worked, without contact | [`TEST`] | `timer.port.testduration` |
//! | a config that has worked, without contact | [`PATIENCE`] | two of `timer.port.testinterval` |
//! | from a fallback that works back to the config | [`BETTER`] | `timer.port.testbetterinterval` |
//!
//! Failures of the remote side (503, connection refused) are no reason to leave anything.

use holdfast_model::desired::Desired;
use holdfast_model::net::{Adapter, Link, Port, PortUsage};
use holdfast_plan::{LinkFact, link_of};
use sha2::{Digest, Sha256};
use std::time::Duration;

/// See the table.
pub const TEST: Duration = Duration::from_secs(30);
/// See the table.
pub const PATIENCE: Duration = Duration::from_secs(600);
/// See the table.
pub const BETTER: Duration = Duration::from_secs(600);
/// One lost packet is no verdict.
const FAILURES: u32 = 2;

/// The part of a config that a test is about.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Config {
    ports: Vec<Port>,
    links: Vec<Link>,
    adapters: Vec<Adapter>,
    hash: String,
}

impl Config {
    /// Of this config.
    #[must_use]
    pub fn of(desired: &Desired) -> Self {
        let Desired { ports, links, adapters, .. } = desired.clone();
        let text = serde_json::to_vec(&(&ports, &links, &adapters)).unwrap_or_default();
        Self { ports, links, adapters, hash: hex::encode(&Sha256::digest(text)[..16]) }
    }

    /// Whether it is the one in `desired`.
    #[must_use]
    pub fn is_of(&self, desired: &Desired) -> bool {
        self.ports == desired.ports && self.links == desired.links && self.adapters == desired.adapters
    }

    /// Names it in the agent's state.
    #[must_use]
    pub fn hash(&self) -> &str {
        &self.hash
    }
}

/// Which ports are in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Using {
    /// Those of the config.
    Configured,
    /// Those that the device came to its controller by.
    Fallback,
}

/// The test of one config's ports. Times are monotonic.
#[derive(Debug, Clone)]
pub struct PortTest {
    using: Using,
    /// Since when.
    since: Duration,
    /// Last contact since then.
    contact: Option<Duration>,
    /// Failed polls since then and the last contact.
    failures: u32,
    /// The config has led to the controller, now or earlier.
    worked: bool,
    /// The config is tried again although the fallback works.
    retest: bool,
}

impl PortTest {
    /// A config comes into force; `worked`: it has led to the controller before.
    #[must_use]
    pub fn new(now: Duration, worked: bool) -> Self {
        Self { using: Using::Configured, since: now, contact: None, failures: 0, worked, retest: false }
    }

    /// Which ports are to be used.
    #[must_use]
    pub fn using(&self) -> Using {
        self.using
    }

    /// The config has led to the controller.
    #[must_use]
    pub fn worked(&self) -> bool {
        self.worked
    }

    /// The controller, or something that stands for it, answered.
    pub fn contact(&mut self, now: Duration) {
        (self.contact, self.failures) = (Some(now), 0);
        if self.using == Using::Configured {
            (self.worked, self.retest) = (true, false);
        }
    }

    /// A poll brought no answer.
    pub fn failed(&mut self) {
        self.failures = self.failures.saturating_add(1);
    }

    /// Time for the other ports? Says so when it is.
    pub fn judge(&mut self, now: Duration) -> Option<&'static str> {
        let silent = now.saturating_sub(self.contact.unwrap_or(self.since));
        let failing = |limit| self.failures >= FAILURES && silent >= limit;
        match self.using {
            Using::Configured => {
                let limit = if self.worked && !self.retest { PATIENCE } else { TEST };
                failing(limit).then(|| {
                    self.switch(Using::Fallback, now);
                    "no contact with the controller over the configured ports: the network of the first boot is used meanwhile"
                })
            }
            Using::Fallback if self.contact.is_some() => (now.saturating_sub(self.since) >= BETTER).then(|| {
                self.switch(Using::Configured, now);
                self.retest = true;
                "the configured ports are tried again"
            }),
            Using::Fallback => failing(TEST).then(|| {
                self.switch(Using::Configured, now);
                "no contact over the network of the first boot either: back to the configured ports"
            }),
        }
    }

    fn switch(&mut self, using: Using, now: Duration) {
        (self.using, self.since, self.contact, self.failures, self.retest) = (using, now, None, 0, false);
    }
}

/// The config with the addressing of `fallback` (one adapter for each interface that it uses) on its ports. Adapters keep their names and
/// labels, so that network instances find them; interfaces that the config keeps from the host stay so.
#[must_use]
pub fn with_fallback(desired: &Desired, fallback: &Desired, links: &[LinkFact]) -> Desired {
    let mut made = desired.clone();
    for (port, adapter) in fallback.ports.iter().zip(&fallback.adapters) {
        let configured = desired.ports.iter().find(|p| link_of(p, links).as_deref() == Some(port.interface.as_str()));
        let Some(configured) = configured else {
            made.ports.push(port.clone());
            made.adapters.push(adapter.clone());
            continue;
        };
        if matches!(configured.usage, PortUsage::Disabled | PortUsage::Dedicated | PortUsage::None) {
            continue;
        }
        match made.adapters.iter_mut().find(|a| a.on == configured.label) {
            Some(own) => {
                let Adapter { network, v4, v6, dns, domain, mtu, .. } = adapter.clone();
                let Adapter { name, on, cost, labels, .. } = own.clone();
                *own = Adapter { name, on, network, v4, v6, dns, domain, mtu, cost, management: true, labels };
            }
            None => made.adapters.push(Adapter { on: configured.label.clone(), ..adapter.clone() }),
        }
    }
    made
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_model::net::{Addressing4, Addressing6, Static};
    use holdfast_plan::last_resort;
    use uuid::Uuid;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// Polls once in ten seconds from `from` on until the ports change; `reached` says what each poll brings. Gives the time of the change.
    fn run(test: &mut PortTest, from: u64, reached: impl Fn(Using) -> bool) -> Option<u64> {
        for now in (from..from + 2000).step_by(10) {
            let before = test.using();
            if reached(before) {
                test.contact(s(now));
            } else {
                test.failed();
            }
            if test.judge(s(now)).is_some() {
                assert_ne!(test.using(), before);
                return Some(now - from);
            }
        }
        None
    }

    #[test]
    fn a_config_that_never_works_is_left_soon_and_tried_again_from_a_fallback_that_works() {
        let mut test = PortTest::new(s(100), false);
        let only_fallback = |using| using == Using::Fallback;
        assert_eq!(run(&mut test, 100, only_fallback), Some(30));
        assert_eq!(run(&mut test, 130, only_fallback), Some(600));
        assert_eq!(test.using(), Using::Configured);
        assert_eq!(run(&mut test, 730, only_fallback), Some(30));
        // Mended meanwhile.
        assert_eq!(run(&mut test, 760, |_| true), Some(600));
        assert_eq!(run(&mut test, 1360, |_| true), None);
        assert!(test.worked() && test.using() == Using::Configured);
    }

    #[test]
    fn a_config_that_has_worked_is_left_late_and_come_back_to_at_once() {
        let mut test = PortTest::new(s(0), true);
        assert_eq!(run(&mut test, 0, |_| false), Some(600), "as after a reboot while the provider is away");
        assert_eq!(run(&mut test, 600, |_| false), Some(30), "the fallback is no better");
        assert_eq!(test.using(), Using::Configured);
        assert_eq!(run(&mut test, 630, |_| false), Some(600));
    }

    #[test]
    fn a_working_fallback_is_not_left_for_long() {
        let mut test = PortTest::new(s(0), true);
        let only_fallback = |using| using == Using::Fallback;
        assert_eq!(run(&mut test, 0, only_fallback), Some(600));
        assert_eq!(run(&mut test, 600, only_fallback), Some(600));
        assert_eq!(run(&mut test, 1200, only_fallback), Some(30), "though it has worked once");
    }

    #[test]
    fn nothing_is_judged_without_polls_and_one_failure_is_none() {
        let mut test = PortTest::new(s(0), false);
        assert_eq!(test.judge(s(5000)), None);
        test.failed();
        assert_eq!(test.judge(s(5000)), None);
        test.contact(s(5001));
        test.failed();
        assert_eq!(test.judge(s(9000)), None);
        test.failed();
        assert!(test.judge(s(9000)).is_some());
    }

    fn link(name: &str) -> LinkFact {
        LinkFact { name: name.into(), mac: [2; 6], pci: String::new() }
    }

    #[test]
    fn names_and_labels_of_the_config_stay_and_what_is_kept_from_the_host_stays_so() {
        let network = Uuid::from_u128(1);
        let port = |label: &str, interface: &str, usage| Port {
            label: label.into(),
            physical_label: label.into(),
            interface: interface.into(),
            pci: String::new(),
            usage,
        };
        let desired = Desired {
            ports: vec![
                port("up", "eth0", PortUsage::ManagementAndApps),
                port("apps", "eth1", PortUsage::Shared),
                port("given", "eth2", PortUsage::Dedicated),
            ],
            adapters: vec![Adapter {
                name: "uplink".into(),
                on: "up".into(),
                network: Some(network),
                v4: Addressing4::Static(Static { address: [10, 0, 0, 9].into(), prefix_length: 24, gateway: None }),
                v6: Addressing6::None,
                dns: Vec::new(),
                domain: String::new(),
                mtu: None,
                cost: 7,
                management: true,
                labels: vec!["wan".into()],
            }],
            ..Desired::default()
        };
        let links = ["eth0", "eth1", "eth2", "eth3"].map(link);
        let fallback = last_resort(&links);
        let made = with_fallback(&desired, &fallback, &links);
        let view: Vec<_> = made.adapters.iter().map(|a| (a.name.as_str(), a.on.as_str(), a.management)).collect();
        assert_eq!(view, [("uplink", "up", true), ("eth1", "apps", true), ("eth3", "eth3", true)]);
        assert!(made.adapters.iter().all(|a| a.network == fallback.adapters[0].network && a.v4 == Addressing4::Dhcp));
        assert_eq!((made.adapters[0].cost, made.adapters[0].labels.as_slice()), (7, ["wan".to_owned()].as_slice()));
        assert!(Config::of(&desired).is_of(&desired) && !Config::of(&desired).is_of(&made));
        assert_ne!(Config::of(&desired).hash(), Config::of(&made).hash());
    }
}
