//! The app document: JSON at the start of the `config` disk, padded with NUL bytes.

use holdfast_model::contract::guest::AppDocument;
use holdfast_model::contract::{self, Document as _, DocumentError};
use std::io::Read;

/// Most arguments, environment entries and mounts together.
const LIMIT_ITEMS: usize = 65_536;

/// The document cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The disk cannot be read.
    #[error("disk config: cannot read it: {0}")]
    Read(std::io::Error),
    /// Not an app document of this build.
    #[error("disk config: {0}")]
    Document(#[from] DocumentError),
    /// A value that cannot be acted upon.
    #[error("app document: {field}: {fault}")]
    Value {
        /// Field of the document.
        field: &'static str,
        /// Expected and found.
        fault: String,
    },
}

/// Reads the document from the `config` disk.
///
/// # Errors
/// See [`Error`].
pub fn read(disk: impl Read) -> Result<AppDocument, Error> {
    let mut bytes = Vec::new();
    disk.take(AppDocument::MAX_BYTES as u64 + 1).read_to_end(&mut bytes).map_err(Error::Read)?;
    parse(&bytes)
}

/// Parses the content of the disk.
///
/// # Errors
/// See [`Error`].
pub fn parse(bytes: &[u8]) -> Result<AppDocument, Error> {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    let document: AppDocument = contract::read(&bytes[..end])?;
    check(&document)?;
    Ok(document)
}

fn check(document: &AppDocument) -> Result<(), Error> {
    let fault = |field, fault: String| Err(Error::Value { field, fault });
    if document.argv.first().is_none_or(String::is_empty) {
        return fault("argv", "no program to run; the image has neither Entrypoint nor Cmd".into());
    }
    if document.argv.len() + document.env.len() + document.mounts.len() > LIMIT_ITEMS {
        return fault("argv, env, mounts", format!("more than {LIMIT_ITEMS} entries"));
    }
    let texts = [&document.hostname, &document.user, &document.cwd, &document.stop_signal];
    if document.argv.iter().chain(&document.env).chain(texts).any(|s| s.contains('\0')) {
        return fault("argv, env, hostname, user, cwd, stop_signal", "holds a NUL character".into());
    }
    if let Some(entry) = document.env.iter().find(|e| e.find('=').is_none_or(|at| at == 0)) {
        return fault("env", format!("expected NAME=value, found {entry:?}"));
    }
    if !document.cwd.is_empty() && !document.cwd.starts_with('/') {
        return fault("cwd", format!("expected an absolute path, found {:?}", document.cwd));
    }
    if let Some(mount) = document
        .mounts
        .iter()
        .find(|m| !m.at.starts_with('/') || m.at.contains('\0') || m.at.split('/').all(str::is_empty))
    {
        return fault("mounts", format!("{}: expected an absolute path below /, found {:?}", mount.disk, mount.at));
    }
    if signal(&document.stop_signal).is_none() {
        return fault("stop_signal", format!("expected a signal's name or number, found {:?}", document.stop_signal));
    }
    Ok(())
}

/// A signal by OCI `StopSignal`: `SIGTERM`, `TERM`, `15`; empty is SIGTERM. Real-time signals as `RTMIN+n` and `RTMAX-n`.
pub fn signal(text: &str) -> Option<i32> {
    if text.is_empty() {
        return Some(libc::SIGTERM);
    }
    if let Ok(number) = text.parse::<i32>() {
        return (1..=libc::SIGRTMAX()).contains(&number).then_some(number);
    }
    let name = text.strip_prefix("SIG").unwrap_or(text);
    let real_time = |offset: &str, sign: char, base: i32| match offset {
        "" => Some(base),
        offset => {
            let distance = offset.strip_prefix(sign)?.parse::<i32>().ok().filter(|n| (0..=30).contains(n))?;
            let number = if sign == '+' { base + distance } else { base - distance };
            (libc::SIGRTMIN()..=libc::SIGRTMAX()).contains(&number).then_some(number)
        }
    };
    if let Some(offset) = name.strip_prefix("RTMIN") {
        return real_time(offset, '+', libc::SIGRTMIN());
    }
    if let Some(offset) = name.strip_prefix("RTMAX") {
        return real_time(offset, '-', libc::SIGRTMAX());
    }
    format!("SIG{name}").parse::<nix::sys::signal::Signal>().ok().map(|s| s as i32)
}

/// Fuzzing entry: any bytes as the content of the disk.
#[doc(hidden)]
pub fn fuzz_document(data: &[u8]) {
    let _ = parse(data);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GOOD: &str = r#"{"version":1,"hostname":"web","argv":["/bin/server","-v"],"env":["A=1","B="],"user":"","cwd":"","stop_signal":"",
        "grace_seconds":10,"mounts":[{"disk":"vol0","at":"/data","read_only":false}]}"#;

    fn padded(text: &str) -> Vec<u8> {
        let mut bytes = text.as_bytes().to_vec();
        bytes.resize(4096, 0);
        bytes
    }

    #[test]
    fn a_padded_document_is_read() {
        let document = read(padded(GOOD).as_slice()).unwrap();
        assert_eq!(document.argv, ["/bin/server", "-v"]);
        assert_eq!(document.mounts[0].at, "/data");
    }

    #[test]
    fn faults_name_the_field() {
        let cases = [
            (r#"["/bin/server","-v"]"#, "[]", "argv"),
            (r#""A=1""#, r#""=1""#, "env"),
            (r#""A=1""#, r#""A""#, "env"),
            (r#""cwd":"""#, r#""cwd":"here""#, "cwd"),
            (r#""/data""#, r#""data""#, "mounts"),
            (r#""/data""#, r#""//""#, "mounts"),
            (r#""stop_signal":"""#, r#""stop_signal":"SIGNONE""#, "stop_signal"),
            ("-v", r"a\u0000b", "NUL"),
            ("hostname", "nohost", "unknown field `nohost`"),
        ];
        for (from, to, expected) in cases {
            assert!(GOOD.contains(from), "{from}");
            let error = parse(&padded(&GOOD.replacen(from, to, 1))).unwrap_err().to_string();
            assert!(error.contains(expected), "{to}: {error}");
        }
    }

    #[test]
    fn an_endless_document_is_refused() {
        assert!(matches!(read(std::io::repeat(b' ')), Err(Error::Document(DocumentError::TooLong { .. }))));
    }

    #[test]
    fn signals_are_names_or_numbers() {
        let cases = [
            ("", Some(15)),
            ("SIGTERM", Some(15)),
            ("QUIT", Some(3)),
            ("9", Some(9)),
            ("SIGRTMIN+3", Some(libc::SIGRTMIN() + 3)),
            ("SIGRTMAX-1", Some(libc::SIGRTMAX() - 1)),
            ("0", None),
            ("-1", None),
            ("65", None),
            ("SIGRTMIN+31", None),
            ("sigterm", None),
        ];
        for (text, expected) in cases {
            assert_eq!(signal(text), expected, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(data in proptest::collection::vec(any::<u8>(), 0..300)) {
            fuzz_document(&data);
        }
    }
}
