//! The document of a program: JSON on the descriptor that `--config-fd` names, or in any file.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::fd::RawFd;

use holdfast_model::contract::{self, Document, DocumentError};
use thiserror::Error;

use crate::fds::{self, FdError};

/// Why there is no document.
#[derive(Debug, Error)]
pub enum ReadError {
    /// The command line is not `--config-fd N`.
    #[error("usage: {program} --config-fd N (N: an inherited descriptor with one {kind})")]
    Usage {
        /// The program's name.
        program: &'static str,
        /// What the document is.
        kind: &'static str,
    },
    /// The descriptor is not open.
    #[error(transparent)]
    Fd(#[from] FdError),
    /// It cannot be read.
    #[error("{kind}: cannot read it: {source}")]
    Io {
        /// What the document is.
        kind: &'static str,
        /// How it failed.
        source: io::Error,
    },
    /// It is not the document that this program reads.
    #[error(transparent)]
    Document(#[from] DocumentError),
}

/// The number after `--config-fd`, when `arguments` (without the program's name) are exactly that.
#[must_use]
pub fn config_fd<S: AsRef<str>>(arguments: &[S]) -> Option<RawFd> {
    match arguments {
        [flag, number] if flag.as_ref() == "--config-fd" => number.as_ref().parse().ok(),
        _ => None,
    }
}

/// Reads the document of `program` from the descriptor that its command line names.
///
/// # Errors
/// [`ReadError`].
pub fn from_command_line<T: Document>(program: &'static str) -> Result<T, ReadError> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let fd = config_fd(&arguments).ok_or(ReadError::Usage { program, kind: T::KIND })?;
    from_fd(fd)
}

/// Reads the document in inherited descriptor `fd`.
///
/// # Errors
/// [`ReadError`].
pub fn from_fd<T: Document>(fd: RawFd) -> Result<T, ReadError> {
    from_file(File::from(fds::adopt(fd, T::KIND)?))
}

/// Reads the document in `file`, from its beginning where it has one (a memfd often comes with its offset at the end).
///
/// # Errors
/// [`ReadError`].
pub fn from_file<T: Document>(mut file: File) -> Result<T, ReadError> {
    let _ = file.rewind();
    let mut text = Vec::new();
    // One byte more than allowed, so that a text of exactly the limit is told from a longer one.
    file.take(T::MAX_BYTES as u64 + 1)
        .read_to_end(&mut text)
        .map_err(|source| ReadError::Io { kind: T::KIND, source })?;
    Ok(contract::read(&text)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_model::contract::guest::AppDocument;
    use std::io::Write as _;

    #[test]
    fn only_the_one_option_is_a_command_line() {
        assert_eq!(config_fd(&["--config-fd", "3"]), Some(3));
        for arguments in [&["--config-fd"][..], &["--config-fd", "x"], &["3"], &["--config-fd", "3", "4"], &[]] {
            assert_eq!(config_fd(arguments), None, "{arguments:?}");
        }
    }

    #[test]
    fn a_file_is_read_from_its_beginning_and_its_version_is_compared() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(br#"{"version": 3}"#).unwrap();
        let error = from_file::<AppDocument>(file).unwrap_err().to_string();
        assert!(error.contains("version 3") && error.contains("version 1"), "{error}");
    }

    #[test]
    fn an_endless_document_is_refused() {
        let endless = File::open("/dev/zero").unwrap();
        let error = from_file::<AppDocument>(endless).unwrap_err();
        assert!(matches!(error, ReadError::Document(DocumentError::TooLong { .. })), "{error}");
    }
}
