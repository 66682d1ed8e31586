//! Small files that change by atomic replacement, and random bytes.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use holdfast_unit::durable::{self, DurableError};

use crate::IdentityError;

/// Largest file that is read.
const READ_MAX: u64 = 1 << 20;

pub(crate) fn file_error(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> IdentityError {
    let path = path.display().to_string();
    move |source| IdentityError::File { path, action, source }
}

/// The content of a file, or `None` when it is not there.
pub(crate) fn read(path: &Path) -> Result<Option<Vec<u8>>, IdentityError> {
    use std::io::Read as _;
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(file_error(path, "open")(e)),
    };
    let mut bytes = Vec::new();
    file.take(READ_MAX).read_to_end(&mut bytes).map_err(file_error(path, "read"))?;
    Ok(Some(bytes))
}

/// Replaces a file durably, mode 0600; its directory is made when it is missing.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> Result<(), IdentityError> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(dir).map_err(file_error(dir, "make the directory"))?;
    durable::replace(path, bytes, 0o600).map_err(|DurableError { step, path, source }| IdentityError::File {
        path: path.display().to_string(),
        action: step,
        source,
    })
}

/// Fills a buffer from the kernel's random source, which blocks only before it was seeded once.
pub(crate) fn random(buffer: &mut [u8]) -> Result<(), IdentityError> {
    let mut filled = 0;
    while filled < buffer.len() {
        let rest = &mut buffer[filled..];
        // SAFETY: the pointer and the length describe `rest`, which is ours to write.
        let n = unsafe { libc::getrandom(rest.as_mut_ptr().cast(), rest.len(), 0) };
        match usize::try_from(n) {
            Ok(n) => filled += n,
            Err(_) => {
                let e = io::Error::last_os_error();
                if e.kind() != io::ErrorKind::Interrupted {
                    return Err(IdentityError::Random(e));
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replacing_leaves_one_private_file() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sub/key.pem");
        assert!(read(&path).unwrap().is_none());
        replace(&path, b"one").unwrap();
        replace(&path, b"two").unwrap();
        assert_eq!(read(&path).unwrap().unwrap(), b"two");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }
}
