//! What the machine does when less can be trusted: a changed image, no TPM.
//!
//! The wrong way to see a refused image would be that "nothing came": a machine that hangs would look the same. So the firmware must say that
//! it refuses, and the very same image must come up once the firmware does not look. The wrong way to see a weaker device would be that it
//! works: it must also say what is weaker, where people look for it.

use anyhow::{Context, ensure};
use holdfast_api::proto::info::{DataSecAtRestStatus, HwSecurityModuleStatus};
use holdfast_scenarios::world::{boot_limit, soon};
use holdfast_scenarios::{World, offline, scenario};

/// Text of the UKI that nothing depends on but its signature.
const SECTION: &str = ".osrel";

#[test]
fn changed_uki_is_refused_by_firmware() {
    scenario(World::builder("changed-uki").prepare(|image| offline::spoil_uki(image, SECTION)), |world| {
        world.power_on()?;
        let refusal = world.until("the firmware to refuse the image", boot_limit(), |world| {
            let text = world.device.serial().text();
            let refused = text.lines().find(|l| l.contains("Access Denied") || l.contains("Security Violation"));
            Ok(refused.map(str::to_owned))
        })?;
        eprintln!("firmware: {refusal}");
        ensure!(world.console().is_empty(), "PID 1 runs in spite of that: {:?}", world.console());
        Ok(())
    });
    let unguarded = World::builder("changed-uki-unguarded").secure_boot(false);
    scenario(unguarded.prepare(|image| offline::spoil_uki(image, SECTION)), |world| {
        world.power_on()?;
        world.wait_console("pid1: mounted", boot_limit())?;
        Ok(())
    });
}

#[test]
fn device_without_tpm_works_and_says_what_is_weaker() {
    scenario(World::builder("no-tpm").tpm(false), |world| {
        world.power_on()?;
        world.wait_online(boot_limit())?;
        let info = world.wait_device_info("device info", soon(), |_| true)?;
        ensure!(info.hsm_status() != HwSecurityModuleStatus::Enabled, "a TPM is reported: {}", info.hsm_info);
        let vault = info.data_sec_at_rest_info.context("no word about data at rest")?;
        assert_eq!(vault.status(), DataSecAtRestStatus::DatasecAtRestDisabled, "{}", vault.info);
        ensure!(vault.info.contains("TPM"), "expected a word about the missing TPM, found {:?}", vault.info);
        let said = world.wait_console("node: identity: ", soon())?;
        ensure!(said.text.contains("file") || said.text.contains("clear"), "the console says only: {}", said.text);

        world.deploy_webapp(boot_limit())?;
        // What is sealed to nothing must open again all the same.
        world.power_cycle()?;
        world.http_get("/health", boot_limit())?;
        Ok(())
    });
}
