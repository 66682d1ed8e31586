//! A new version of the base OS: ordered, streamed into the other slot, tried, committed; later its slot is damaged.
//!
//! The wrong way to see it would be to look at the end only: a device that writes over its only good image, or commits without a trial, ends
//! up the same. So the reports of the way there are collected, the quote must show the PCR 11 that is computed here from the payload's own
//! image, and the app's counter, which lies in the vault, must go on counting.

use anyhow::{Context, Result, ensure};
use holdfast_api::proto::info::{BootReason, DataSecAtRestStatus};
use holdfast_format::layout::Part;
use holdfast_format::pcr::phase;
use holdfast_scenarios::update::SlotView;
use holdfast_scenarios::webapp::NAME;
use holdfast_scenarios::world::{boot_limit, soon};
use holdfast_scenarios::{Artefacts, World, offline, scenario, secs};

#[test]
fn update_is_tried_and_committed_and_left_when_its_slot_is_damaged() {
    scenario(World::builder("update"), |world| {
        world.power_on()?;
        world.wait_online(boot_limit())?;
        world.deploy_webapp(boot_limit())?;
        let counted = count(world)?;

        is_tried_and_committed(world)?;
        ensure!(count(world)? > counted, "the app's counter did not survive the update");
        damaged_slot_is_left(world)?;
        // The power cut may have taken the app's last count, not those before the update.
        let now = count(world)?;
        ensure!(
            now > counted,
            "the app's counter did not survive the fallback: {counted} before the update, {now} now"
        );
        Ok(())
    });
}

fn is_tried_and_committed(world: &mut World) -> Result<()> {
    let next = Artefacts::next()?;
    world.update_to(&next)?;
    let reports = world.follow_version(&next.version, boot_limit(), |slot| slot.status == "UPDATED")?;

    let steps = [
        ("downloading", at(&reports, "updating", "DOWNLOADING", "DOWNLOAD_INPROGRESS")),
        ("reboot", at(&reports, "updating", "UPDATING", "UPDATE_REBOOTING")),
        ("testing", at(&reports, "inprogress", "UPDATING", "UPDATE_TESTING")),
        ("committed", at(&reports, "active", "UPDATED", "NONE_SUBSTATUS")),
    ];
    for (name, place) in steps {
        ensure!(place.is_some(), "no report of step {name} among {reports:#?}");
    }
    ensure!(steps.is_sorted_by_key(|(_, place)| *place), "reports out of order: {reports:#?}");
    ensure!(reports.iter().all(|r| r.label == "IMGB" && r.error.is_empty()), "{reports:#?}");
    let left: Vec<u32> = reports.iter().filter(|r| r.sub_status == "UPDATE_TESTING").map(|r| r.seconds_left).collect();
    ensure!(
        left.len() > 1 && left.iter().all(|s| *s <= 30) && left.is_sorted_by(|a, b| a >= b),
        "seconds left: {left:?}"
    );

    // The old image stays as a fallback.
    let slots = world.slots()?;
    let old = slots.get(1).context("two slots")?;
    ensure!(old.version == world.artefacts().version && old.label == "IMGA" && old.state == "unused", "{slots:?}");
    eprintln!("update: committed after {:?}", world.age());

    // The new image is what was built, and it has opened the vault: `vault-open` is measured only behind the unsealing.
    let phases = [phase::ENTER_PID1, phase::VAULT_OPEN, phase::READY];
    let expected = offline::predict_pcr11(&next.image, &phases)?;
    world.until("the quote to show the new image", soon(), |world| {
        let quote = world.attestation()?;
        Ok((quote.accepted && quote.pcrs.get(&11) == Some(&expected)).then_some(()))
    })?;
    let device = world.device_info()?.context("a device info")?;
    let vault = device.data_sec_at_rest_info.as_ref().context("words about the vault")?;
    ensure!(vault.status() == DataSecAtRestStatus::DatasecAtRestEnabled, "{vault:?}");
    ensure!(device.last_boot_reason() == BootReason::Update, "last boot: {:?}", device.last_boot_reason());
    // The configuration came out of the vault, before the network was there.
    world.wait_console("from disk is in force", soon())?;
    world.wait_app_state(NAME, "RUNNING", boot_limit())?;
    Ok(())
}

fn damaged_slot_is_left(world: &mut World) -> Result<()> {
    let next = Artefacts::next()?;
    world.device.power_cut()?;
    offline::flip_on_disk(&world.device.disk(), world.image(), Part::OsB, 4 << 20)?;
    let since = world.controller().position();
    world.power_on()?;
    world.wait_console("OS-B: the block of 4096 bytes number 1024 fails verification", boot_limit())?;
    world.wait_contact(since, boot_limit())?;
    let slot = world.wait_slot("of the damaged version with the reason", soon(), |slot| {
        slot.version == next.version && slot.status == "FAILED" && slot.error.contains("number 1024 fails verification")
    })?;
    ensure!(slot.label == "IMGB", "{slot:?}");
    let device = world.wait_device_info("slot A to run for a reason", soon(), |device| {
        device.last_boot_reason() == BootReason::Fallback && device.last_reboot_reason.contains("fails verification")
    })?;
    ensure!(device.sw_list.first().is_some_and(|sw| sw.partition_label == "IMGA"), "{:?}", device.sw_list);
    // It proves itself, and stays although the other version is still what is wanted.
    let old = world.artefacts().version.clone();
    world.wait_committed(&old, boot_limit())?;
    world.wait_slot("that still says why it was left", soon(), |slot| {
        slot.version == next.version && slot.status == "FAILED" && slot.label == "IMGB"
    })?;
    Ok(())
}

/// Place of the first such report.
fn at(reports: &[SlotView], state: &str, status: &str, sub_status: &str) -> Option<usize> {
    reports.iter().position(|r| r.state == state && r.status == status && r.sub_status == sub_status)
}

/// Adds one to the app's counter file.
fn count(world: &mut World) -> Result<u64> {
    let body = world.http_get("/count", secs(240))?;
    body.trim().parse().with_context(|| format!("/count: expected a number, found {body:?}"))
}
