//! The harness's own promises: a device's memory without power, its watchdog, its firmware.

use holdfast_harness::{Device, secs};
use std::fs;

#[test]
fn firmware_with_secure_boot_and_tpm_starts_and_state_survives_a_power_cut() {
    let mut device = Device::builder("firmware").disk_bytes(8 << 20).memory_mib(256).cpus(1).build().unwrap();
    device.power_on().unwrap();
    assert!(device.power_on().is_err(), "on twice");
    assert!(device.snapshot().is_err(), "a snapshot of a running device");
    device.wait_for("BdsDxe", secs(60)).unwrap();
    device.power_cut().unwrap();
    assert!(!device.is_on());

    let variables = device.folder().join("variables.fd");
    let before = fs::read(&variables).unwrap();
    let tpm = fs::read(device.folder().join("tpm/tpm2-00.permall")).unwrap();
    let snapshot = device.snapshot().unwrap();
    fs::write(&variables, "damaged").unwrap();
    fs::remove_dir_all(device.folder().join("tpm")).unwrap();
    device.restore(&snapshot).unwrap();
    assert_eq!(fs::read(&variables).unwrap(), before);
    assert_eq!(fs::read(device.folder().join("tpm/tpm2-00.permall")).unwrap(), tpm);

    device.power_on().unwrap();
    device.wait_for("BdsDxe", secs(60)).unwrap();
    device.reset().unwrap();
    device.wait_for("BdsDxe", secs(60)).unwrap();
}

#[test]
fn a_device_in_a_given_folder_is_taken_over_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let make = || Device::builder("kept").folder(folder.path()).disk_bytes(1 << 20).tpm(false).build().unwrap();
    let device = make();
    fs::write(device.folder().join("variables.fd"), "mine").unwrap();
    drop(device);
    let device = make();
    assert_eq!(fs::read_to_string(device.folder().join("variables.fd")).unwrap(), "mine");
    assert!(device.disk().is_file());
}

#[test]
fn a_temporary_device_leaves_nothing() {
    let device = Device::builder("gone").disk_bytes(1 << 20).tpm(false).build().unwrap();
    let folder = device.folder().to_owned();
    assert!(folder.is_dir());
    drop(device);
    assert!(!folder.exists());
}

#[test]
fn a_missing_image_is_named() {
    let error = Device::builder("no-image").image("/no/such.img").tpm(false).build().unwrap_err();
    assert!(format!("{error:#}").contains("/no/such.img"));
}

#[test]
fn a_wait_names_the_evidence() {
    let mut device = Device::builder("silent").tpm(false).secure_boot(false).memory_mib(128).cpus(1).start().unwrap();
    let text = format!("{:#}", device.wait_for("never said", secs(1)).unwrap_err());
    for part in ["never said", "serial-1.log", "qmp.log", "disk.qcow2"] {
        assert!(text.contains(part), "{part}: {text}");
    }
}
