//! What the controller knows of the device, by kind of report.

use crate::World;
use anyhow::{Context, Result};
use holdfast_api::proto::info::z_info_msg::InfoContent;
use holdfast_api::proto::info::{ZInfoApp, ZInfoDevice, ZInfoNetworkInstance};
use holdfast_test_controller::attest::Report;
use holdfast_test_controller::config::object_id;
use holdfast_test_controller::status::{DeviceStatus, sw_state};
use std::time::Duration;

impl World {
    /// The controller's summary.
    ///
    /// # Errors
    /// When the device has not registered.
    pub fn status(&self) -> Result<DeviceStatus> {
        Ok(self.controller().status(self.uuid()?)?)
    }

    /// The last quote's result.
    ///
    /// # Errors
    /// When the device sent none.
    pub fn attestation(&self) -> Result<Report> {
        self.status()?.attestation.context("the device has sent no quote")
    }

    /// The last device info, if one came.
    ///
    /// # Errors
    /// When the device has not registered.
    pub fn device_info(&self) -> Result<Option<ZInfoDevice>> {
        let all = self.controller().info(self.uuid()?)?;
        Ok(all.into_iter().find_map(|m| match m.info_content {
            Some(InfoContent::Dinfo(d)) => Some(d),
            _ => None,
        }))
    }

    /// Waits for a device info that fits.
    ///
    /// # Errors
    /// At the deadline.
    pub fn wait_device_info(
        &mut self,
        what: &str,
        limit: Duration,
        fits: impl Fn(&ZInfoDevice) -> bool,
    ) -> Result<ZInfoDevice> {
        self.until(what, limit, |world| Ok(world.device_info()?.filter(&fits)))
    }

    /// The last info of an app of the configuration document, if one came.
    ///
    /// # Errors
    /// When the device has not registered.
    pub fn app_info(&self, name: &str) -> Result<Option<ZInfoApp>> {
        let uuid = self.uuid()?;
        let id = object_id(uuid, "app", name).to_string();
        Ok(self.controller().info(uuid)?.into_iter().find_map(|m| match m.info_content {
            Some(InfoContent::Ainfo(app)) if app.app_id == id => Some(app),
            _ => None,
        }))
    }

    /// Whether an app is reported running.
    ///
    /// # Errors
    /// When the device has not registered.
    pub fn app_runs(&self, name: &str) -> Result<bool> {
        Ok(self.app_info(name)?.is_some_and(|app| sw_state(app.state) == "RUNNING"))
    }

    /// Waits for an info of an app that fits.
    ///
    /// # Errors
    /// At the deadline.
    pub fn wait_app(
        &mut self,
        name: &str,
        what: &str,
        limit: Duration,
        fits: impl Fn(&ZInfoApp) -> bool,
    ) -> Result<ZInfoApp> {
        self.until(&format!("app {name}: {what}"), limit, |world| Ok(world.app_info(name)?.filter(&fits)))
    }

    /// Waits until an app is reported in a state such as `RUNNING`.
    ///
    /// # Errors
    /// At the deadline.
    pub fn wait_app_state(&mut self, name: &str, state: &str, limit: Duration) -> Result<ZInfoApp> {
        self.wait_app(name, state, limit, |app| sw_state(app.state) == state)
    }

    /// The last info of a network instance of the configuration document, if one came.
    ///
    /// # Errors
    /// When the device has not registered.
    pub fn network_instance_info(&self, name: &str) -> Result<Option<ZInfoNetworkInstance>> {
        let uuid = self.uuid()?;
        let id = object_id(uuid, "network-instance", name).to_string();
        Ok(self.controller().info(uuid)?.into_iter().find_map(|m| match m.info_content {
            Some(InfoContent::Niinfo(ni)) if ni.network_id == id => Some(ni),
            _ => None,
        }))
    }

    /// Waits for a line of the device's log that contains `text` and came after position `since`.
    ///
    /// # Errors
    /// At the deadline.
    pub fn wait_device_log(&mut self, since: u64, text: &str, limit: Duration) -> Result<String> {
        let uuid = self.uuid()?;
        self.until(&format!("the device to log {text:?}"), limit, |world| {
            let lines = world.controller().device_logs(uuid)?;
            Ok(lines.into_iter().find(|l| l.seq > since && l.line.content.contains(text)).map(|l| l.line.content))
        })
    }

    /// Waits for a line of the app's log that contains `text` and came after position `since`.
    ///
    /// # Errors
    /// At the deadline.
    pub fn wait_app_log(&mut self, name: &str, since: u64, text: &str, limit: Duration) -> Result<String> {
        let uuid = self.uuid()?;
        self.until(&format!("app {name} to log {text:?}"), limit, |world| {
            let lines = world.controller().app_logs(uuid, name)?;
            Ok(lines.into_iter().find(|l| l.seq > since && l.line.content.contains(text)).map(|l| l.line.content))
        })
    }
}
