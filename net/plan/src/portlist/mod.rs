//! The list of port configurations: which one the device uses to reach its controller, and when it tries another.
//!
//! A config whose ports do not lead to the controller would be the last one that the device ever gets. So it is given up for the
//! next of the list ([`PortConfigSource`], the preferred first), and tried again later. Pure: who owns a [`PortList`] tells it what
//! each poll of the controller brought, and asks with [`PortList::turn`] whether another configuration is to be applied.
//!
//! ```text
//!               a new config of the controller, from anywhere
//!                                |
//!                                v     no contact for `patience`
//!        +----------------> preferred ---------------------------+
//!        |                      ^                                v
//!        | no contact           | contact for `better`       the next  <--+
//!        | over the last        +---------------------------  usable      | no contact for `test`
//!        +---------------------------------------------------- one -------+
//! ```
//!
//! | wait | value |
//! |---|---|
//! | `patience`: the preferred one has worked before and is not being tried from another that works, or any one that led to the controller since it was applied | twice `timer.port.testinterval` |
//! | `test`: any other | `timer.port.testduration` |
//! | `better` | `timer.port.testbetterinterval` |
//!
//! A single failed poll is no verdict, and without polls there is none. Failures of the remote side are contact ([`Tried`]). While nothing leads to the controller, the preferred one is in use most of the time,
//! so that apps keep their network.

mod overlay;
#[cfg(test)]
mod tests;

pub use overlay::overlay;

use holdfast_model::net::{Layers, PathTest, PortConfig, PortConfigSource, PortConfigs, Tried, Verdict};
use holdfast_model::properties::Properties;
use std::collections::BTreeMap;
use std::time::Duration;

/// One lost packet is no verdict.
const FAILURES: u32 = 2;

/// The time in both clocks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Now {
    /// Monotonic; what waits are measured by.
    pub uptime: Duration,
    /// Seconds since the Unix epoch; only reported.
    pub unix_seconds: i64,
}

/// Waits and choices that the controller may set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rules {
    test: Duration,
    retest: Duration,
    better: Option<Duration>,
    any_ethernet: bool,
}

impl Rules {
    fn of(properties: &Properties) -> Self {
        let seconds = |n: u32| Duration::from_secs(n.into());
        Self {
            test: seconds(properties.port_test_seconds),
            retest: seconds(properties.port_retest_seconds),
            better: Some(seconds(properties.port_better_seconds)).filter(|wait| !wait.is_zero()),
            any_ethernet: properties.fallback_any_ethernet,
        }
    }
}

/// The list, and how the one in use does.
#[derive(Debug, Clone)]
pub struct PortList {
    configs: BTreeMap<PortConfigSource, PortConfig>,
    rules: Rules,
    current: Option<PortConfigSource>,
    /// What the controller sent last of all that led to it.
    worked: Option<Layers>,
    /// When `current` was applied.
    since: Duration,
    /// Last contact since then.
    contact: Option<Duration>,
    /// Failed polls since then and the last contact.
    failures: u32,
    /// `current` is being tried although another one works.
    retest: bool,
    /// `current` got its time anew once, since something changed at its ports.
    extended: bool,
    /// When the controller was last not reached, by adapter of `current`.
    unreached: BTreeMap<String, Duration>,
}

impl PortList {
    /// An empty list. `worked`: what [`PortList::worked`] said before a restart.
    #[must_use]
    pub fn new(worked: Option<Layers>) -> Self {
        Self {
            configs: BTreeMap::new(),
            rules: Rules::of(&Properties::default()),
            current: None,
            worked,
            since: Duration::ZERO,
            contact: None,
            failures: 0,
            retest: false,
            extended: false,
            unreached: BTreeMap::new(),
        }
    }

    /// Takes the properties in force.
    pub fn set_properties(&mut self, properties: &Properties) {
        self.rules = Rules::of(properties);
    }

    /// Takes what a source says now; `None` when it says nothing. Only [`PortConfigSource::Controller`],
    /// [`PortConfigSource::Site`] and [`PortConfigSource::LastResort`] say anything: the earlier config is kept by the list.
    pub fn set(&mut self, source: PortConfigSource, layers: Option<Layers>, now: Now) {
        let unchanged = self.configs.get(&source).map(|config| &config.layers) == layers.as_ref();
        if source == PortConfigSource::Controller {
            let earlier = self.worked.clone().filter(|worked| layers.as_ref() != Some(worked));
            self.put(PortConfigSource::Earlier, earlier, Verdict::Works, now);
        }
        if unchanged {
            return;
        }
        let known = source == PortConfigSource::Controller && self.worked == layers;
        self.put(source, layers, if known { Verdict::Works } else { Verdict::Untested }, now);
        if source == PortConfigSource::Controller && self.is_usable(source) {
            self.apply(source, false, now);
        } else if self.current == Some(source) {
            self.restart(now);
        }
    }

    fn put(&mut self, source: PortConfigSource, layers: Option<Layers>, verdict: Verdict, now: Now) {
        match layers {
            None => {
                self.configs.remove(&source);
            }
            Some(layers) if self.configs.get(&source).is_none_or(|config| config.layers != layers) => {
                let config = PortConfig {
                    source,
                    layers,
                    made_seconds: now.unix_seconds,
                    verdict,
                    succeeded_seconds: 0,
                    failed_seconds: 0,
                    error: String::new(),
                    paths: BTreeMap::new(),
                };
                self.configs.insert(source, config);
            }
            Some(_) => {}
        }
    }

    /// Takes what one poll of the controller brought: each adapter that was tried.
    pub fn polled(&mut self, tried: &[Tried], now: Now) {
        let Some(source) = self.current else { return };
        let Some(config) = self.configs.get_mut(&source) else { return };
        for Tried { adapter, result } in tried.iter().filter(|tried| !tried.adapter.is_empty()) {
            let path: &mut PathTest = config.paths.entry(adapter.clone()).or_default();
            match result {
                Ok(()) => {
                    if path.succeeded_seconds == 0 || !path.error.is_empty() {
                        (path.succeeded_seconds, path.error) = (now.unix_seconds, String::new());
                    }
                    self.unreached.remove(adapter);
                }
                Err(text) => {
                    if path.error.is_empty() {
                        (path.failed_seconds, path.error) = (now.unix_seconds, text.clone());
                    }
                    self.unreached.insert(adapter.clone(), now.uptime);
                }
            }
        }
        if !tried.iter().any(|tried| tried.result.is_ok()) {
            self.failures = self.failures.saturating_add(u32::from(!tried.is_empty()));
            return;
        }
        (self.contact, self.failures, self.retest) = (Some(now.uptime), 0, false);
        if config.verdict != Verdict::Works || config.succeeded_seconds == 0 {
            (config.verdict, config.succeeded_seconds, config.error) =
                (Verdict::Works, now.unix_seconds, String::new());
        }
        if source == PortConfigSource::Controller {
            if self.worked.as_ref() != Some(&config.layers) {
                self.worked = Some(config.layers.clone());
            }
            self.configs.remove(&PortConfigSource::Earlier);
        }
    }

    /// Something changed at the ports in use (a cable, a lease): the configuration that is being tried gets its time anew, once.
    pub fn changed(&mut self, now: Now) {
        if self.contact.is_none() && !std::mem::replace(&mut self.extended, true) {
            (self.since, self.failures) = (now.uptime, 0);
        }
    }

    /// Decides which configuration is to be used from now on; says so when it is another one than before.
    pub fn turn(&mut self, now: Now) -> Option<String> {
        let preferred = self.usable().next()?;
        let Some(current) = self.current.filter(|source| self.is_usable(*source)) else {
            self.apply(preferred, false, now);
            return Some(format!("{} are used", preferred.as_str()));
        };
        let silent = now.uptime.saturating_sub(self.contact.unwrap_or(self.since));
        let trusted = current == preferred && !self.retest && self.worked_before(current);
        let wait = if trusted || self.contact.is_some() { self.rules.retest * 2 } else { self.rules.test };
        if self.failures >= FAILURES && silent >= wait {
            let error = format!("no contact with the controller for {} s", wait.as_secs());
            if let Some(config) = self.configs.get_mut(&current) {
                (config.verdict, config.failed_seconds) = (Verdict::Fails, now.unix_seconds);
                config.error.clone_from(&error);
            }
            let next = self.usable().find(|source| *source > current).unwrap_or(preferred);
            if next == current {
                return None;
            }
            self.apply(next, false, now);
            return Some(format!("{}: {error}; {} are used", current.as_str(), next.as_str()));
        }
        let in_use = now.uptime.saturating_sub(self.since);
        if current != preferred && self.contact.is_some() && self.rules.better.is_some_and(|wait| in_use >= wait) {
            self.apply(preferred, true, now);
            return Some(format!("{} are tried again", preferred.as_str()));
        }
        None
    }

    /// The one to be applied; `None` before the first [`PortList::turn`], or while no source offers anything.
    #[must_use]
    pub fn current(&self) -> Option<&PortConfig> {
        self.configs.get(&self.current?)
    }

    /// What led to the controller, of all that the controller sent, last: to be kept over restarts.
    #[must_use]
    pub fn worked(&self) -> Option<&Layers> {
        self.worked.as_ref()
    }

    /// Whether the controller is reached, by adapter, for [`crate::path::Facts`]. A failure counts for one
    /// `timer.port.testinterval`; then the adapter is tried in its order again.
    #[must_use]
    pub fn reach(&self, now: Now) -> BTreeMap<String, bool> {
        let Some(config) = self.current() else { return BTreeMap::new() };
        let recent = |adapter: &String| {
            let failed = self.unreached.get(adapter);
            failed.is_some_and(|at| now.uptime.saturating_sub(*at) < self.rules.retest)
        };
        config.paths.keys().map(|adapter| (adapter.clone(), !recent(adapter))).collect()
    }

    /// All configurations with their tests, as they are reported.
    #[must_use]
    pub fn report(&self) -> PortConfigs {
        let list: Vec<PortConfig> = self.configs.values().cloned().collect();
        let current = list.iter().position(|config| Some(config.source) == self.current);
        PortConfigs { current: current.unwrap_or(0), list }
    }

    /// Those that may be used, the preferred first.
    fn usable(&self) -> impl Iterator<Item = PortConfigSource> + '_ {
        self.configs.keys().copied().filter(|source| self.is_usable(*source))
    }

    fn is_usable(&self, source: PortConfigSource) -> bool {
        let leads =
            |source: &PortConfigSource| self.configs.get(source).is_some_and(|config| config.layers.reach_controller());
        let mut others = PortConfigSource::ALL.iter().filter(|other| **other != PortConfigSource::LastResort);
        match source {
            PortConfigSource::LastResort => leads(&source) && (self.rules.any_ethernet || !others.any(leads)),
            _ => leads(&source),
        }
    }

    /// It led to the controller some time.
    fn worked_before(&self, source: PortConfigSource) -> bool {
        let Some(config) = self.configs.get(&source) else { return false };
        config.succeeded_seconds > 0
            || config.verdict == Verdict::Works
            || source == PortConfigSource::Controller && self.worked.as_ref() == Some(&config.layers)
    }

    fn apply(&mut self, source: PortConfigSource, retest: bool, now: Now) {
        (self.current, self.retest) = (Some(source), retest);
        self.restart(now);
    }

    fn restart(&mut self, now: Now) {
        (self.since, self.contact, self.failures, self.extended) = (now.uptime, None, 0, false);
        self.unreached.clear();
    }
}
