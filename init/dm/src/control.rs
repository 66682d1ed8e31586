//! The control node and its ioctls.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::table::Target;
use crate::wire::{self, DeviceNumber, EncodeError, FLAG_BUFFER_FULL, FLAG_READONLY, Listed};

/// The node that devtmpfs makes for a kernel with device-mapper.
pub const CONTROL_NODE: &str = "/dev/mapper/control";

const LIST_DEVICES: u8 = 2;
const DEV_CREATE: u8 = 3;
const DEV_REMOVE: u8 = 4;
const DEV_SUSPEND: u8 = 6;
const DEV_STATUS: u8 = 7;
const TABLE_LOAD: u8 = 9;
const TABLE_STATUS: u8 = 12;

/// A device-mapper operation that failed.
#[derive(Debug, thiserror::Error)]
pub enum DmError {
    /// The control node cannot be opened.
    #[error("device-mapper: cannot open {path}: {source} (is CONFIG_BLK_DEV_DM built into this kernel?)")]
    Open {
        /// The node.
        path: String,
        /// The system's reason.
        source: io::Error,
    },
    /// An ioctl was refused.
    #[error("device-mapper: {operation} of {name:?}: {source}")]
    Ioctl {
        /// Which operation.
        operation: &'static str,
        /// Which device.
        name: String,
        /// The system's reason.
        source: io::Error,
    },
    /// The request does not fit the kernel's format.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// The device exists for the kernel but its node did not appear.
    #[error("device-mapper: {name:?}: expected node {node} within {waited:?}, it is not there")]
    NoNode {
        /// Which device.
        name: String,
        /// The expected node.
        node: String,
        /// How long was waited.
        waited: Duration,
    },
}

/// An open device-mapper control node.
#[derive(Debug)]
pub struct Control(File);

impl Control {
    /// Opens `/dev/mapper/control`. Needs CAP_SYS_ADMIN.
    ///
    /// # Errors
    /// [`DmError::Open`].
    pub fn open() -> Result<Self, DmError> {
        OpenOptions::new()
            .read(true)
            .write(true)
            .open(CONTROL_NODE)
            .map(Self)
            .map_err(|source| DmError::Open { path: CONTROL_NODE.into(), source })
    }

    /// Makes an empty device. `uuid` may be empty.
    ///
    /// # Errors
    /// EBUSY in [`DmError::Ioctl`] when the name is taken.
    pub fn create(&self, name: &str, uuid: &str) -> Result<DeviceNumber, DmError> {
        let answer = self.call(DEV_CREATE, "create", name, wire::encode(name, uuid, 0, &[], 0)?)?;
        Ok(wire::device(&answer))
    }

    /// Loads a table into the device's inactive place; [`Control::resume`] makes it live.
    ///
    /// # Errors
    /// [`DmError::Ioctl`] with the kernel's reason; details are in the kernel log.
    pub fn load(&self, name: &str, readonly: bool, targets: &[Target]) -> Result<(), DmError> {
        let flags = if readonly { FLAG_READONLY } else { 0 };
        self.call(TABLE_LOAD, "table load", name, wire::encode(name, "", flags, targets, 0)?)?;
        Ok(())
    }

    /// Makes the loaded table live.
    ///
    /// # Errors
    /// [`DmError::Ioctl`].
    pub fn resume(&self, name: &str) -> Result<DeviceNumber, DmError> {
        let answer = self.call(DEV_SUSPEND, "resume", name, wire::encode(name, "", 0, &[], 0)?)?;
        Ok(wire::device(&answer))
    }

    /// Removes a device that nobody has open.
    ///
    /// # Errors
    /// EBUSY in [`DmError::Ioctl`] while it is open or mounted, ENXIO when there is none.
    pub fn remove(&self, name: &str) -> Result<(), DmError> {
        self.call(DEV_REMOVE, "remove", name, wire::encode(name, "", 0, &[], 0)?)?;
        Ok(())
    }

    /// The number of an existing device, or `None`.
    ///
    /// # Errors
    /// [`DmError::Ioctl`] for anything but "no such device".
    pub fn find(&self, name: &str) -> Result<Option<DeviceNumber>, DmError> {
        match self.call(DEV_STATUS, "status", name, wire::encode(name, "", 0, &[], 0)?) {
            Ok(answer) => Ok(Some(wire::device(&answer))),
            Err(DmError::Ioctl { source, .. }) if source.raw_os_error() == Some(libc::ENXIO) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// All mapped devices.
    ///
    /// # Errors
    /// [`DmError::Ioctl`].
    pub fn list(&self) -> Result<Vec<Listed>, DmError> {
        let answer = self.call(LIST_DEVICES, "list", "", wire::encode("", "", 0, &[], 60 * 1024)?)?;
        if wire::flags(&answer) & FLAG_BUFFER_FULL != 0 {
            let source = io::Error::other("more devices than fit 60 KiB");
            return Err(DmError::Ioctl { operation: "list", name: String::new(), source });
        }
        Ok(wire::decode_list(&answer))
    }

    /// The status text of each row of the live table; for `verity` it is `V` (all good so far) or `C` (corruption met).
    ///
    /// # Errors
    /// [`DmError::Ioctl`].
    pub fn status(&self, name: &str) -> Result<Vec<String>, DmError> {
        let request = wire::encode(name, "", 0, &[], 4096)?;
        let answer = self.call(TABLE_STATUS, "table status", name, request)?;
        Ok(wire::decode_status(&answer))
    }

    /// Create, load and resume in one; leaves nothing behind when a step fails. Returns the device
    /// after its node in `/dev` is there.
    ///
    /// # Errors
    /// Any [`DmError`].
    pub fn activate(
        &self,
        name: &str,
        uuid: &str,
        readonly: bool,
        targets: &[Target],
    ) -> Result<DeviceNumber, DmError> {
        self.create(name, uuid)?;
        let made = self
            .load(name, readonly, targets)
            .and_then(|()| self.resume(name))
            .and_then(|device| wait_for_node(name, &device.node(), Duration::from_secs(2)).map(|()| device));
        if made.is_err() {
            // The first error is the one that tells; a device that cannot be removed shows in `list`.
            let _ = self.remove(name);
        }
        made
    }

    fn call(&self, number: u8, operation: &'static str, name: &str, mut buffer: Vec<u8>) -> Result<Vec<u8>, DmError> {
        // _IOWR(0xfd, number, struct dm_ioctl): the size in the request is always the header's.
        let request = (3u32 << 30) | ((wire::HEADER_SIZE as u32) << 16) | (0xfd << 8) | u32::from(number);
        // SAFETY: the buffer is writable and at least as long as its own `data_size` field says (set by
        // `wire::encode`), which is what the kernel reads and writes.
        let result = unsafe { libc::ioctl(self.0.as_raw_fd(), request as _, buffer.as_mut_ptr()) };
        if result < 0 {
            let source = io::Error::last_os_error();
            return Err(DmError::Ioctl { operation, name: name.to_owned(), source });
        }
        Ok(buffer)
    }
}

/// devtmpfs makes the node from a kernel thread, so it may be a moment late.
fn wait_for_node(name: &str, node: &Path, limit: Duration) -> Result<(), DmError> {
    let start = Instant::now();
    while !node.exists() {
        if start.elapsed() > limit {
            return Err(DmError::NoNode { name: name.to_owned(), node: node.display().to_string(), waited: limit });
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Needs root and a kernel with device-mapper; says so when it does not run.
    #[test]
    fn a_zero_device_comes_and_goes() {
        let Ok(control) = Control::open() else {
            println!("no {CONTROL_NODE}: not run");
            return;
        };
        let name = format!("holdfast-test-{}", std::process::id());
        let table = [Target { start_sectors: 0, length_sectors: 8, kind: "zero".into(), params: String::new() }];
        let device = control.activate(&name, "", true, &table).unwrap();
        assert!(control.list().unwrap().iter().any(|l| l.name == name && l.device == device));
        control.remove(&name).unwrap();
        assert_eq!(control.find(&name).unwrap(), None);
    }
}
