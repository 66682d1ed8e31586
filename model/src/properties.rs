//! Device properties (`configItems`) that this device honours, with EVE's defaults.

use serde::{Deserialize, Serialize};

/// Properties in force. Times in seconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Properties {
    /// `timer.config.interval`: longest time between config polls.
    pub config_interval_seconds: u32,
    /// `timer.metric.interval`.
    pub metric_interval_seconds: u32,
    /// `timer.deviceinfo.interval`: device info is sent again after so long even when nothing changed.
    pub device_info_interval_seconds: u32,
    /// `timer.send.timeout`: longest time of a whole request to the controller; 0 = the default.
    pub send_timeout_seconds: u32,
    /// `timer.dial.timeout`: longest time of connecting to the controller; 0 = the default.
    pub dial_timeout_seconds: u32,
    /// `timer.reboot.no.network`: reboot after so long without the controller.
    pub reboot_no_network_seconds: u32,
    /// `timer.update.fallback.no.network`: in a trial, fall back after so long without the controller.
    pub fallback_no_network_seconds: u32,
    /// `timer.test.baseimage.update`: length of the test window of a trial.
    pub test_window_seconds: u32,
    /// `timer.download.retry`.
    pub download_retry_seconds: u32,
    /// `timer.boot.retry`: start a failed app again after so long.
    pub boot_retry_seconds: u32,
    /// `timer.cert.interval`.
    pub certificate_interval_seconds: u32,
    /// `timer.port.testduration`: a port configuration that never worked is given up after so long without the controller.
    pub port_test_seconds: u32,
    /// `timer.port.testinterval`: one that has worked is given up after two of these; a port without contact is tried first again
    /// after one.
    pub port_retest_seconds: u32,
    /// `timer.port.testbetterinterval`: the preferred port configuration is tried again after so long with another that works;
    /// 0 = never.
    pub port_better_seconds: u32,
    /// `network.fallback.any.eth`: DHCP on every Ethernet port is among the port configurations although there are others.
    pub fallback_any_ethernet: bool,
    /// `newlog.allow.fastupload`.
    pub fast_log_upload: bool,
    /// Properties that were given and are not known here, as they came. Images signed with development keys look among them for
    /// `debug.node.abort` (the agent aborts each time its text changes), `debug.memory` and `debug.resources` (one log line about
    /// every host process each time its text changes); see `init/node/src/debug.rs`.
    pub unknown: Vec<(String, String)>,
}

impl Default for Properties {
    fn default() -> Self {
        Self {
            config_interval_seconds: 60,
            metric_interval_seconds: 60,
            device_info_interval_seconds: 600,
            send_timeout_seconds: 120,
            dial_timeout_seconds: 10,
            reboot_no_network_seconds: 7 * 24 * 3600,
            fallback_no_network_seconds: 300,
            test_window_seconds: 600,
            download_retry_seconds: 600,
            boot_retry_seconds: 600,
            certificate_interval_seconds: 24 * 3600,
            port_test_seconds: 30,
            port_retest_seconds: 300,
            port_better_seconds: 600,
            fallback_any_ethernet: false,
            fast_log_upload: false,
            unknown: Vec::new(),
        }
    }
}
