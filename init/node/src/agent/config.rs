//! A new config is taken in.

use super::fetching::{fetch_unit, image_file};
use super::{Agent, Leaving};
use crate::last_good;
use crate::parts::app::decide::Runtime;
use crate::{debug, machine};
use holdfast_model::check::keep_last_good;
use holdfast_model::desired::{Commands, Desired};
use holdfast_model::net::RuleAction;
use holdfast_model::observed::BootReason;
use std::collections::BTreeMap;
use std::time::Duration;
use uuid::Uuid;

/// Time that a download job takes to end once it is killed.
const JOB_END: Duration = Duration::from_secs(2);

impl Agent {
    /// Takes a new config in; an object that has a fault now goes on in its form of `last`.
    pub(super) fn apply(&mut self, last: &Desired, mut desired: Desired) {
        keep_last_good(last, &mut desired);
        if let Err(e) = last_good::save(&self.paths, &desired) {
            self.say_once("warning", &format!("what is good of the config is not kept for the next start: {e}"));
        }
        for fault in &desired.faults {
            let text = fault.text.clone();
            self.say_once("error", &text);
        }
        let images = self.paths.clone();
        // The base OS payload streams into the other slot and is no image of an app.
        let wanted: Vec<_> = desired
            .contents
            .iter()
            .filter(|c| desired.base_os.as_ref().is_none_or(|b| b.content != c.id))
            .cloned()
            .collect();
        let stale = self.contents.want(&wanted, &self.store.now.contents, &|k| image_file(&images, &k.sha256).exists());
        for id in stale {
            if let Ok(unit) = fetch_unit(id) {
                let _ = self.supervisor.borrow_mut().stop(&unit, Some(Duration::ZERO));
            }
            // The next job can start once this one is gone.
            if let Some(content) = self.contents.by_id.get_mut(&id) {
                content.retry_at = machine::now() + JOB_END;
            }
        }
        self.follow_commands(desired.commands);
        for app in &desired.apps {
            self.names.insert(app.id, app.name.clone());
            self.store.now.number_of(app.id);
        }
        let running = |id: &Uuid| self.runtimes.get(id).is_some_and(Runtime::has_vm);
        leave(&mut self.leaving, &self.desired, &desired, &running);
        self.desired = desired;
        self.configured = true;
        self.collect_images();
        self.follow_debug_orders();
    }

    /// What the networks are planned for: the config, and apps that left it but still run.
    pub(super) fn networked(&self) -> Desired {
        let mut all = self.desired.clone();
        for (app, instances) in self.leaving.values() {
            all.apps.push(app.clone());
            let missing = instances.iter().filter(|i| self.desired.instances.iter().all(|d| d.id != i.id));
            all.instances.extend(missing.cloned());
        }
        all
    }

    /// Counter commands. They are noted before anything is done, so each runs once, whatever happens meanwhile.
    fn follow_commands(&mut self, Commands { reboot, shutdown }: Commands) {
        if due(&mut self.store.now.shutdown_counter, shutdown) {
            self.store.now.shut_down_in_boot = Some(self.boot.facts.boot_count);
            self.say("info", &format!("all apps are shut down, as the controller ordered (counter {shutdown})"));
        }
        if due(&mut self.store.now.reboot_counter, reboot) {
            let text = format!("reboot ordered by the controller (counter {reboot})");
            self.order_reboot(BootReason::RebootCommand, &text);
        }
    }

    fn follow_debug_orders(&mut self) {
        let orders = &self.desired.properties.unknown;
        for order in debug::due(self.boot.release.kind, orders, &mut self.store.now.debug) {
            // On disk first: an order that was followed is not followed again by the agent that comes after.
            if let Err(e) = self.store.save() {
                return self.say("error", &format!("{order} is not followed: the agent's state cannot be saved: {e}"));
            }
            match order {
                debug::ABORT => {
                    self.say("warning", "aborting, as the controller ordered (debug.node.abort)");
                    std::process::abort();
                }
                debug::RESOURCES => self.say("info", &debug::resources()),
                _ => self.say("info", &debug::memory()),
            }
        }
    }
}

/// True when a counter command is to be followed now; notes it. The first value ever seen is where counting starts, and 0
/// stands for "no command".
fn due(acted: &mut Option<u32>, commanded: u32) -> bool {
    match *acted {
        None => {
            *acted = Some(commanded);
            false
        }
        Some(before) if before != commanded && commanded != 0 => {
            *acted = Some(commanded);
            true
        }
        Some(_) => false,
    }
}

/// Notes the apps that `new` has no more while their VM still runs: without its network the guest could not end in an orderly way.
/// They keep their addresses and lose their port maps, so that a successor can have the ports.
fn leave(leaving: &mut BTreeMap<Uuid, Leaving>, old: &Desired, new: &Desired, running: &dyn Fn(&Uuid) -> bool) {
    leaving.retain(|id, _| new.apps.iter().all(|a| a.id != *id));
    for app in old.apps.iter().filter(|a| new.apps.iter().all(|n| n.id != a.id) && running(&a.id)) {
        let mut app = app.clone();
        for interface in &mut app.interfaces {
            interface.rules.retain(|r| !matches!(r.action, RuleAction::PortMap { .. }));
        }
        let uses = |id: &Uuid| app.interfaces.iter().any(|i| i.instance == *id);
        let instances = old.instances.iter().filter(|i| uses(&i.id)).cloned().collect();
        leaving.insert(app.id, (app, instances));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_command_runs_once_and_the_first_value_orders_nothing() {
        let mut acted = None;
        let followed = [7, 7, 8, 8, 0, 8, 9].map(|commanded| due(&mut acted, commanded));
        assert_eq!(followed, [false, false, true, false, false, false, true]);
        assert_eq!(acted, Some(9));
    }

    #[test]
    fn a_running_app_keeps_its_network_but_not_its_ports_until_it_has_ended() {
        use holdfast_model::{app::App, net};
        let instance = Uuid::from_u128(9);
        let rule = |action| net::Rule {
            id: 1,
            remote: None,
            host: None,
            protocol: Some(net::Protocol::Tcp),
            local_port: Some(8080),
            remote_port: None,
            adapter: String::new(),
            action,
        };
        let interface = net::AppInterface {
            name: "eth0".into(),
            instance,
            fixed: Default::default(),
            mac: None,
            rules: vec![rule(RuleAction::Allow), rule(RuleAction::PortMap { app_port: 80 })],
        };
        let app = App {
            id: Uuid::from_u128(1),
            version: String::new(),
            name: "web".into(),
            activate: true,
            vcpus: 1,
            memory_bytes: 1 << 27,
            volumes: vec![],
            interfaces: vec![interface],
            user_data: String::new(),
            restart_counter: 0,
            purge_counter: 0,
            start_delay_seconds: 0,
            disable_logs: false,
        };
        let old = Desired { apps: vec![app.clone()], ..Desired::default() };
        let new = Desired::default();

        let mut leaving = BTreeMap::new();
        leave(&mut leaving, &old, &new, &|_| false);
        assert!(leaving.is_empty(), "an app that does not run needs no network");
        leave(&mut leaving, &old, &new, &|_| true);
        let (kept, _) = &leaving[&app.id];
        assert_eq!(kept.interfaces[0].rules, [rule(RuleAction::Allow)]);
        leave(&mut leaving, &new, &old, &|_| true);
        assert!(leaving.is_empty(), "wanted again");
    }
}
