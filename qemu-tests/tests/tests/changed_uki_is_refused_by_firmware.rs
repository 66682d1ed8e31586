//! A changed byte in the signed part of a slot's UKI: firmware does not start it, and the other slot runs.
//!
//! The wrong way to see it would be that the machine does not come up: a broken kernel does not either. Here firmware must say that it
//! refuses, nothing of the changed UKI may have run, and the machine must come up from the other slot.

use anyhow::{Result, ensure};
use holdfast_format::layout::Part;
use holdfast_scenarios::world::{boot_limit, soon};
use holdfast_scenarios::{World, offline, scenario};
use std::path::Path;

#[test]
fn changed_uki_is_refused_by_firmware_and_the_other_slot_boots() {
    scenario(World::builder("changed-uki").prepare(fill_slot_b), |world| {
        // Once as it is: both slots get their boot entries, A is what is committed.
        world.power_on()?;
        world.wait_online(boot_limit())?;
        world.device.power_cut()?;

        let place = offline::middle_of_uki_section(world.image(), ".linux")?;
        offline::flip_on_disk(&world.device.disk(), world.image(), Part::EspA, place)?;
        let since = world.controller().position();
        world.power_on()?;
        world.until("firmware to refuse the UKI of slot A", boot_limit(), |world| {
            let said = world.device.serial().text();
            Ok(["Access Denied", "Security Violation"].iter().any(|words| said.contains(words)).then_some(()))
        })?;
        world.wait_contact(since, boot_limit())?;
        let device = world.wait_device_info("slot B to run", soon(), |device| {
            device.sw_list.first().is_some_and(|sw| sw.partition_label == "IMGB")
        })?;
        let reason = &device.last_reboot_reason;
        ensure!(reason.contains("slot B runs though slot A is committed"), "reason of the last boot: {reason:?}");
        // Once, for firmware kept the boot order: a second repair could only set what is set already.
        let repairs = world.console().iter().filter(|line| line.text.contains("leaving slot B")).count();
        ensure!(repairs == 1, "{repairs} reboots were spent on bringing slot A back");
        let ran =
            world.console().iter().any(|line| line.stage().is_some_and(|(_, detail)| detail.starts_with("slot A")));
        ensure!(!ran, "the changed UKI has run");
        Ok(())
    });
}

/// Slot B holds what slot A holds.
fn fill_slot_b(image: &Path) -> Result<()> {
    for (from, to) in [(Part::EspA, Part::EspB), (Part::OsA, Part::OsB)] {
        offline::copy_partition(image, from, to)?;
    }
    Ok(())
}
