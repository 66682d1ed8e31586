//! A machine without a TPM works, and says what is weaker.
//!
//! The wrong way to see it would be that it works: it must also say what is weaker, where people look for it, and its data partition must open
//! again although nothing seals its key.

use anyhow::{Context, ensure};
use holdfast_api::proto::info::{DataSecAtRestStatus, HwSecurityModuleStatus};
use holdfast_scenarios::world::{boot_limit, soon};
use holdfast_scenarios::{World, scenario};

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
