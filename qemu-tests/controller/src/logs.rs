//! Uploaded logs: one gzip member whose header says whose they are, and one JSON entry per line.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::Read;

/// Most bytes of one compressed upload.
pub const MAX_UPLOAD: usize = 64 * 1024;
/// Most bytes of an unpacked upload.
const MAX_UNPACKED: u64 = 8 << 20;
/// Most bytes of one line.
const MAX_LINE: usize = 64 * 1024;

/// Why an upload was refused; all are answered 400, except size with 413.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum LogError {
    /// Too much.
    #[error("log upload: at most {MAX_UPLOAD} bytes, found {0}")]
    Size(usize),
    /// Not one gzip member.
    #[error("log upload: gzip: {0}")]
    Gzip(String),
    /// A device log without, or with a wrong, comment.
    #[error("log upload: gzip comment: expected JSON with devID, image and eveVersion, found {0}")]
    Comment(String),
    /// An app log without the app's name.
    #[error("log upload: gzip name: expected the app's display name, found none")]
    Name,
    /// A line that is not an entry.
    #[error("log upload: line {line}: {cause}")]
    Line {
        /// Counted from 1.
        line: usize,
        /// What is wrong.
        cause: String,
    },
}

/// Stamp of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stamp {
    /// Seconds since 1970.
    #[serde(default)]
    pub seconds: i64,
    /// Nanoseconds.
    #[serde(default)]
    pub nanos: u32,
}

/// One log line, in the form of the wire. Unknown fields are refused: a field spelled wrongly would be lost silently.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogLine {
    /// Syslog level in lower case.
    #[serde(default)]
    pub severity: String,
    /// Which service wrote it.
    #[serde(default)]
    pub source: String,
    /// Its process, as text.
    #[serde(default)]
    pub iid: String,
    /// The text.
    #[serde(default)]
    pub content: String,
    /// Counts up.
    #[serde(default)]
    pub msgid: u64,
    /// Free labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: BTreeMap<String, String>,
    /// When it was written.
    pub timestamp: Stamp,
    /// Source file.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub filename: String,
    /// Function.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub function: String,
}

/// Whose log it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The device's own.
    Device,
    /// One app's.
    App,
}

/// Header comment of a device log.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Comment {
    /// UUID of the device.
    #[serde(rename = "devID")]
    pub dev_id: String,
    /// Name of the running image.
    pub image: String,
    /// Version of the base OS.
    #[serde(rename = "eveVersion")]
    pub eve_version: String,
}

/// An upload that was understood.
#[derive(Debug, PartialEq, Eq)]
pub struct Upload {
    /// Header of a device log.
    pub comment: Option<Comment>,
    /// Display name in an app log.
    pub app_name: Option<String>,
    /// The lines.
    pub lines: Vec<LogLine>,
}

/// Reads one upload.
pub fn parse(kind: Kind, payload: &[u8]) -> Result<Upload, LogError> {
    if payload.len() > MAX_UPLOAD {
        return Err(LogError::Size(payload.len()));
    }
    let gzip = |cause: String| LogError::Gzip(cause);
    let mut decoder = flate2::bufread::GzDecoder::new(payload);
    let mut text = Vec::new();
    decoder.by_ref().take(MAX_UNPACKED + 1).read_to_end(&mut text).map_err(|error| gzip(error.to_string()))?;
    if text.len() as u64 > MAX_UNPACKED {
        return Err(gzip(format!("more than {MAX_UNPACKED} bytes unpacked")));
    }
    let header = decoder.header().ok_or_else(|| gzip("no header".into()))?;
    // gzip header strings are Latin-1 (RFC 1952 §2.3.1).
    let latin1 = |bytes: &[u8]| bytes.iter().copied().map(char::from).collect::<String>();
    let comment = match (kind, header.comment()) {
        (Kind::App, _) => None,
        (Kind::Device, None) => return Err(LogError::Comment("none".into())),
        (Kind::Device, Some(bytes)) => {
            let text = latin1(bytes);
            Some(serde_json::from_str(&text).map_err(|error| LogError::Comment(format!("{text:?} ({error})")))?)
        }
    };
    let app_name = match (kind, header.filename()) {
        (Kind::Device, _) => None,
        (Kind::App, Some(name)) if !name.is_empty() => Some(latin1(name)),
        (Kind::App, _) => return Err(LogError::Name),
    };
    let rest = decoder.into_inner();
    if !rest.is_empty() {
        return Err(gzip(format!("{} bytes after the first member", rest.len())));
    }
    let lines = text
        .split(|byte| *byte == b'\n')
        .enumerate()
        .filter(|(_, line)| !line.is_empty())
        .map(|(index, line)| {
            let wrong = |cause: String| LogError::Line { line: index + 1, cause };
            if line.len() > MAX_LINE {
                return Err(wrong(format!("at most {MAX_LINE} bytes, found {}", line.len())));
            }
            serde_json::from_slice(line).map_err(|error| wrong(error.to_string()))
        })
        .collect::<Result<_, _>>()?;
    Ok(Upload { comment, app_name, lines })
}

/// Fuzz entry: uploads of any bytes.
#[doc(hidden)]
pub fn fuzz_logs(data: &[u8]) {
    let _ = parse(Kind::Device, data);
    let _ = parse(Kind::App, data);
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::{Compression, GzBuilder};
    use std::io::Write;

    const LINE: &str =
        r#"{"severity":"info","source":"node","iid":"7","content":"hi","msgid":3,"timestamp":{"seconds":5,"nanos":6}}"#;

    fn gz(builder: GzBuilder, text: &str) -> Vec<u8> {
        let mut encoder = builder.write(Vec::new(), Compression::fast());
        encoder.write_all(text.as_bytes()).expect("memory");
        encoder.finish().expect("memory")
    }

    fn device() -> GzBuilder {
        GzBuilder::new().comment(r#"{"devID":"d","image":"IMGA","eveVersion":"1"}"#)
    }

    #[test]
    fn device_and_app_uploads_are_read() {
        let upload = parse(Kind::Device, &gz(device(), &format!("{LINE}\n{LINE}\n"))).expect("device log");
        assert_eq!(upload.lines.len(), 2);
        assert_eq!(upload.lines[0].content, "hi");
        assert_eq!(upload.comment.expect("comment").image, "IMGA");
        let upload = parse(Kind::App, &gz(GzBuilder::new().filename("web"), LINE)).expect("app log");
        assert_eq!(upload.app_name.as_deref(), Some("web"));
    }

    #[test]
    fn what_the_wire_forbids_is_refused() {
        let canonical_id = LINE.replace("\"msgid\":3", "\"msgid\":\"3\"");
        let canonical_time = LINE.replace(r#"{"seconds":5,"nanos":6}"#, "\"2026-01-01T00:00:00Z\"");
        let misspelt = LINE.replace("severity", "level");
        let long = LINE.replace("hi", &"x".repeat(MAX_LINE));
        for line in [canonical_id.as_str(), &canonical_time, &misspelt, &long, "no json"] {
            let error = parse(Kind::Device, &gz(device(), line)).expect_err(line);
            assert!(matches!(error, LogError::Line { line: 1, .. }), "{error}");
        }
        assert!(matches!(parse(Kind::Device, &gz(GzBuilder::new(), LINE)), Err(LogError::Comment(_))));
        assert!(matches!(parse(Kind::Device, &gz(GzBuilder::new().comment("plain"), LINE)), Err(LogError::Comment(_))));
        assert_eq!(parse(Kind::App, &gz(GzBuilder::new(), LINE)), Err(LogError::Name));
        assert!(matches!(parse(Kind::Device, b"not gzip"), Err(LogError::Gzip(_))));
        let mut twice = gz(device(), LINE);
        twice.extend(gz(device(), LINE));
        assert!(matches!(parse(Kind::Device, &twice), Err(LogError::Gzip(_))));
        assert!(matches!(parse(Kind::Device, &vec![0; MAX_UPLOAD + 1]), Err(LogError::Size(_))));
    }

    #[test]
    fn a_compression_bomb_is_stopped() {
        let bomb = gz(device(), &"\n".repeat(9 << 20));
        assert!(bomb.len() < MAX_UPLOAD);
        assert!(matches!(parse(Kind::Device, &bomb), Err(LogError::Gzip(_))));
    }

    #[test]
    fn any_bytes_are_read_without_panic() {
        let good = gz(device(), LINE);
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x55;
            fuzz_logs(&bad);
            fuzz_logs(&good[..at]);
        }
    }
}
