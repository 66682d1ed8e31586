//! An update that cannot unseal the vault, because its release key was rotated: the controller's escrow opens it, once.
//!
//! The wrong way to see it would be an update that merely works: a vault made anew works too, and one whose key came to lie in clear. So the
//! configuration must come out of the vault, the vault must be reported as sealed, and the next boot must open it with no controller there.

use anyhow::{Context, Result, ensure};
use holdfast_api::proto::info::DataSecAtRestStatus;
use holdfast_format::layout::Part;
use holdfast_format::release::{Kind, PRODUCT, Release};
use holdfast_model::slot::Slot;
use holdfast_scenarios::world::{boot_limit, soon};
use holdfast_scenarios::{Artefacts, World, artefacts, offline, scenario};
use xtask::{assemble, keys};

/// Said by the new version when it cannot unseal.
const ASKED: &str = "the controller is asked for the key in escrow";

#[test]
fn vault_that_a_new_release_key_cannot_unseal_is_recovered_by_escrow_and_sealed_anew() {
    let builder = World::builder("key-rotation").property("timer.update.fallback.no.network", "240");
    scenario(builder, |world| {
        world.power_on()?;
        world.wait_online(boot_limit())?;
        let next = Artefacts::next()?;
        order_rotated(world, &next)?;

        world.wait_console(&format!("slot B, version {}, on trial", next.version), boot_limit())?;
        let asked = world.wait_console(ASKED, boot_limit())?;
        ensure!(asked.text.contains("it was sealed under another release key"), "{}", asked.text);
        world.wait_console("opened with the key from escrow and sealed anew", boot_limit())?;
        world.wait_console("from disk is in force", boot_limit())?;
        world.wait_committed(&next.version, boot_limit())?;
        eprintln!("key-rotation: committed after {:?}", world.age());
        let device = world.wait_device_info("a word about the escrow", soon(), |device| {
            device.data_sec_at_rest_info.as_ref().is_some_and(|vault| vault.info.contains("escrow"))
        })?;
        let vault = device.data_sec_at_rest_info.context("words about the vault")?;
        ensure!(vault.status() == DataSecAtRestStatus::DatasecAtRestEnabled, "{vault:?}");

        opens_by_itself_from_now_on(world)
    });
}

/// The next version under another release key, signed by the present one as the device demands.
fn order_rotated(world: &mut World, next: &Artefacts) -> Result<()> {
    let present = keys::load(&keys::default_folder())?;
    let rotated = keys::load(&world.folder().join("rotated-keys"))?;
    ensure!(present.release_public_pem != rotated.release_public_pem, "both releases have one key");
    let (_, uki) = offline::uki(&next.image, Slot::A)?;
    let uki = assemble::rekey_uki(&uki, 0, &rotated)?;
    let slot = offline::content(&next.image, Part::OsA)?;
    let release = Release { product: PRODUCT.into(), version: next.version.clone(), epoch: 0, kind: Kind::Dev };
    let file = world.files()?.join("rotated.update");
    assemble::write_update(&file, &release, &uki, &slot, &present)?;
    let (sha256, bytes) = artefacts::sha256(&file)?;
    world.update_to_file("rotated.update", &next.version, &sha256, bytes)
}

fn opens_by_itself_from_now_on(world: &mut World) -> Result<()> {
    world.stop_controller();
    world.power_cycle()?;
    world.wait_console("from disk is in force", boot_limit())?;
    ensure!(
        world.console().iter().all(|line| !line.text.contains(ASKED)),
        "the vault was not sealed to the new release key"
    );
    world.start_controller()?;
    let since = world.controller().position();
    world.wait_contact(since, boot_limit())?;
    ensure!(world.attestation()?.accepted, "the device attests as before");
    Ok(())
}
