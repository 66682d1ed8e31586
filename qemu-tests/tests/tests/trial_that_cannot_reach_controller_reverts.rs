//! A version that boots well but does not reach the controller undoes itself, says why, and is not tried again by itself.
//!
//! The wrong way to see it would be to reset the machine from outside: then firmware alone brings slot A back. Here nothing happens but
//! that no request gets through, and the machine must end the trial itself. That the new version did run is told by its own console lines.

use anyhow::ensure;
use holdfast_api::proto::info::BootReason;
use holdfast_scenarios::world::{boot_limit, soon};
use holdfast_scenarios::{Artefacts, World, scenario, secs};

#[test]
fn trial_that_cannot_reach_the_controller_reverts_and_says_why() {
    let builder = World::builder("no-controller").property("timer.update.fallback.no.network", "60");
    scenario(builder, |world| {
        let next = Artefacts::next()?;
        world.power_on()?;
        world.wait_online(boot_limit())?;
        world.update_to(&next)?;
        world.wait_slot("that is about to be tried", boot_limit(), |slot| {
            slot.version == next.version && slot.sub_status == "UPDATE_REBOOTING"
        })?;
        let rule = world.cut_controller()?;
        world.wait_console(&format!("slot B, version {}, on trial", next.version), boot_limit())?;
        world.wait_console("vault open", boot_limit())?;
        let back = world.wait_console("slot A runs again", secs(60) + boot_limit())?;
        eprintln!("no-controller: back after {:?}: {}", world.age(), back.text);
        let since = world.controller().position();
        ensure!(world.controller().remove_faults(Some(rule)) == 1, "the rule was in force until now");

        world.wait_contact(since, boot_limit())?;
        let failed =
            |slot: &holdfast_scenarios::update::SlotView| slot.version == next.version && slot.status == "FAILED";
        let slot = world.wait_slot("with a failed version", soon(), failed)?;
        // In the words of both slots.
        for words in ["no configuration from the controller within 60 s", "slot A runs again"] {
            ensure!(slot.error.contains(words), "expected {words:?} in {slot:?}");
        }
        let device = world.wait_device_info("the last boot to be a fallback", soon(), |device| {
            device.last_boot_reason() == BootReason::Fallback
        })?;
        ensure!(
            device.last_reboot_reason.contains("no configuration from the controller"),
            "{}",
            device.last_reboot_reason
        );
        let running = world.slots()?.remove(0);
        ensure!(running.label == "IMGA" && running.state == "active" && running.status == "UPDATED", "{running:?}");

        // A new configuration that still wants the version does not start it again ...
        let asked = |world: &World| {
            world.controller().requests().iter().filter(|r| r.seq > since && r.path.ends_with(".update")).count()
        };
        world.configure_and_wait(soon(), |config| config.device_name = "renamed".into())?;
        world.wait_slot("with a failed version", soon(), failed)?;
        ensure!(asked(world) == 0, "the failed version is fetched again");
        // ... the counter does.
        world.retry_update()?;
        world.until("the payload to be fetched again", soon(), |world| Ok((asked(world) > 0).then_some(())))
    });
}
