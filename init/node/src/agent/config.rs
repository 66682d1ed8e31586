//! A new config is taken in.

use super::Agent;
use super::fetching::{fetch_unit, image_file};
use crate::debug;
use holdfast_model::desired::Desired;
use holdfast_model::observed::BootReason;
use std::time::Duration;

impl Agent {
    /// Takes a new config in.
    pub(super) fn apply(&mut self, desired: Desired) {
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
        let gone = self.contents.want(&wanted, &self.store.now.contents, &|k| image_file(&images, &k.sha256).exists());
        for id in gone {
            if let Ok(unit) = fetch_unit(id) {
                let _ = self.supervisor.borrow_mut().stop(&unit, Some(Duration::ZERO));
            }
        }
        let commands = desired.commands.reboot;
        match self.store.now.reboot_counter {
            Some(acted) if commands != acted && commands != 0 => {
                // Noted before acting: the command runs once, whatever happens meanwhile.
                self.store.now.reboot_counter = Some(commands);
                self.order_reboot(
                    BootReason::RebootCommand,
                    &format!("reboot ordered by the controller (counter {commands})"),
                );
            }
            Some(_) => {}
            None => self.store.now.reboot_counter = Some(commands),
        }
        for app in &desired.apps {
            self.names.insert(app.id, app.name.clone());
            self.store.now.number_of(app.id);
        }
        self.desired = desired;
        self.configured = true;
        self.collect_images();
        self.follow_debug_orders();
    }

    pub(super) fn follow_debug_orders(&mut self) {
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
                _ => self.say("info", &debug::memory()),
            }
        }
    }
}
