//! Payloads that are not what was released: one that ends early, one with a changed byte. Neither is booted; the right one then is taken.
//!
//! The wrong way to see it would be an update that fails for any reason, such as a digest in the configuration that does not fit. So digest
//! and size in the configuration are those of the bad file: the payload's own signature has to find it.

use anyhow::{Result, ensure};
use holdfast_scenarios::world::{boot_limit, soon};
use holdfast_scenarios::{Artefacts, World, artefacts, scenario};
use std::fs;

#[test]
fn truncated_and_altered_updates_are_refused_and_the_right_one_is_taken() {
    scenario(World::builder("bad-update"), |world| {
        let next = Artefacts::next()?;
        let good = fs::read(&next.update)?;
        world.power_on()?;
        world.wait_online(boot_limit())?;

        let half = good.len() / 2;
        let text = refused(world, "short.update", &good[..half], &next)?;
        ensure!(text.contains(&format!("update payload ends after {half} bytes")), "{text}");

        let mut altered = good;
        altered[half] ^= 1;
        let text = refused(world, "altered.update", &altered, &next)?;
        ensure!(text.contains("is not that of the manifest") || text.contains("does not decompress"), "{text}");

        // Only written, not booted: the way on is another scenario's.
        world.update_to(&next)?;
        world.configure(|config| config.base_os.as_mut().expect("it was just set").activate = false)?;
        world.retry_update()?;
        let reports = world.follow_version(&next.version, boot_limit(), |slot| slot.status == "DOWNLOAD_DONE")?;
        ensure!(reports.last().is_some_and(|slot| slot.error.is_empty()), "{reports:#?}");
        still_on_a(world)
    });
}

/// Orders the bad payload; gives the reason that is reported.
fn refused(world: &mut World, name: &str, bytes: &[u8], next: &Artefacts) -> Result<String> {
    let file = world.files()?.join(name);
    fs::write(&file, bytes)?;
    let (sha256, size) = artefacts::sha256(&file)?;
    world.update_to_file(name, &next.version, &sha256, size)?;
    world.retry_update()?;
    let slot = world.wait_slot(&format!("that refuses {name}"), boot_limit(), |slot| {
        slot.status == "FAILED" && slot.error.contains(name)
    })?;
    ensure!(slot.label == "IMGB" && slot.version == next.version, "{slot:?}");
    still_on_a(world)?;
    Ok(slot.error)
}

/// The first version runs, is committed, and the device has not restarted.
fn still_on_a(world: &mut World) -> Result<()> {
    let version = world.artefacts().version.clone();
    world.wait_slot("A, active", soon(), |slot| {
        slot.label == "IMGA" && slot.version == version && slot.state == "active" && slot.status == "UPDATED"
    })?;
    let boots = world.console().iter().filter(|line| line.stage().is_some_and(|(name, _)| name == "state")).count();
    ensure!(boots == 1, "the device booted {boots} times");
    Ok(())
}
