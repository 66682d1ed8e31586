//! A key of type `logon` in the calling thread's keyring: the kernel reads it, no program can.

use std::ffi::CString;
use std::io;

use crate::VaultKey;

/// KEY_SPEC_THREAD_KEYRING: the key is gone when the thread is.
const THREAD_KEYRING: i32 = -1;
const KEYCTL_UNLINK: i32 = 9;

/// A key in the keyring, taken out again when dropped. dm-crypt copies it while its table is loaded.
pub struct LogonKey(libc::c_long);

impl LogonKey {
    /// Puts `key` into the keyring of this thread as `logon:<description>`. The description needs a prefix with a colon.
    ///
    /// # Errors
    /// The kernel's: EDQUOT, or ENOSYS without CONFIG_KEYS.
    pub fn add(description: &str, key: &VaultKey) -> io::Result<Self> {
        let description = CString::new(description)?;
        let payload = key.expose();
        // SAFETY: both strings are NUL-terminated, pointer and length describe `payload`; all live through the call.
        let serial = unsafe {
            libc::syscall(
                libc::SYS_add_key,
                c"logon".as_ptr(),
                description.as_ptr(),
                payload.as_ptr(),
                payload.len(),
                THREAD_KEYRING,
            )
        };
        if serial < 0 { Err(io::Error::last_os_error()) } else { Ok(Self(serial)) }
    }
}

impl Drop for LogonKey {
    fn drop(&mut self) {
        // SAFETY: numbers only. A failure leaves the key until the thread ends.
        unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_UNLINK, self.0, THREAD_KEYRING) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_logon_key_is_there_until_dropped_and_cannot_be_read() {
        const KEYCTL_READ: i32 = 11;
        let key = VaultKey::random().unwrap();
        let added = match LogonKey::add("holdfast:test", &key) {
            Ok(added) => added,
            Err(e) => {
                println!("not run: this kernel or sandbox has no keyrings: {e}");
                return;
            }
        };
        let mut buffer = [0u8; 64];
        // SAFETY: pointer and length describe `buffer`.
        let read = unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_READ, added.0, buffer.as_mut_ptr(), buffer.len()) };
        assert!(read < 0 && buffer == [0; 64], "a logon key was read from user space");
    }
}
