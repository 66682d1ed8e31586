//! Log files as the controller takes them (`newlogs`): one gzip member of JSON lines.
//!
//! | part | device log | app log |
//! |---|---|---|
//! | gzip Comment | JSON `{"devID","image","eveVersion"}` | absent |
//! | gzip Name | absent | display name of the app |
//! | lines | JSON, `msgid` a number, `timestamp` an object of `seconds` and `nanos` | the same |
//!
//! The JSON is the plain one of the field names, not protobuf's canonical form: controllers refuse text `msgid`s and
//! RFC 3339 stamps. Lines stay far below the 64 KiB at which controllers stop reading, files below 50 KB compressed.

use flate2::{Compression, GzBuilder};
use serde::Serialize;
use std::collections::BTreeMap;
use std::io::Write;

/// Longest text of one line, in bytes; longer ones are cut. Escaping can make it six times as long, still under 64 KiB.
pub const MAX_CONTENT_BYTES: usize = 10 * 1024;
/// A file is closed before it holds more than this, uncompressed.
pub const MAX_RAW_BYTES: usize = 400 * 1024;
/// A file is split when it comes out larger than this, compressed.
pub const MAX_GZIP_BYTES: usize = 50_000;

/// One log line.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Line {
    /// Lower-case syslog level: `info`, `warning`, `error`, ...
    pub severity: String,
    /// Program or unit.
    pub source: String,
    /// Process id as text.
    pub iid: String,
    /// The text.
    pub content: String,
    /// Grows with each line.
    pub msgid: u64,
    /// Free attributes.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: BTreeMap<String, String>,
    /// When.
    pub timestamp: Stamp,
    /// Source file; may be empty.
    pub filename: String,
    /// Function; may be empty.
    pub function: String,
}

/// Time of a line.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Stamp {
    /// Unix seconds.
    pub seconds: i64,
    /// Nanoseconds within the second.
    pub nanos: i32,
}

/// Whose lines a file holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// The device's own.
    Device {
        /// Its UUID.
        device: String,
        /// Slot it runs from: `IMGA` or `IMGB`.
        image: String,
        /// Version of the OS.
        version: String,
    },
    /// An app's.
    App {
        /// UUID of the app.
        id: String,
        /// Its display name.
        name: String,
    },
}

#[derive(Serialize)]
struct Comment<'a> {
    #[serde(rename = "devID")]
    device: &'a str,
    image: &'a str,
    #[serde(rename = "eveVersion")]
    version: &'a str,
}

/// Packs lines into as few files as the limits allow, in order.
#[must_use]
pub fn pack(origin: &Origin, lines: &[Line]) -> Vec<Vec<u8>> {
    let encoded: Vec<Vec<u8>> = lines.iter().map(encode).collect();
    let mut files = Vec::new();
    let mut rest = encoded.as_slice();
    while !rest.is_empty() {
        let mut raw = 0;
        let fits = rest.iter().take_while(|line| {
            raw += line.len();
            raw <= MAX_RAW_BYTES
        });
        let (now, later) = rest.split_at(fits.count().max(1));
        compress(origin, now, &mut files);
        rest = later;
    }
    files
}

/// One file, or several when it comes out too large.
fn compress(origin: &Origin, lines: &[Vec<u8>], files: &mut Vec<Vec<u8>>) {
    let builder = match origin {
        Origin::Device { device, image, version } => {
            let comment = serde_json::to_string(&Comment { device, image, version }).unwrap_or_default();
            GzBuilder::new().comment(latin1(&comment))
        }
        Origin::App { name, .. } => GzBuilder::new().filename(latin1(name)),
    };
    let mut encoder = builder.write(Vec::new(), Compression::default());
    for line in lines {
        // Writing into memory does not fail.
        let _ = encoder.write_all(line);
    }
    let file = encoder.finish().unwrap_or_default();
    if file.len() > MAX_GZIP_BYTES && lines.len() > 1 {
        let (first, second) = lines.split_at(lines.len() / 2);
        compress(origin, first, files);
        compress(origin, second, files);
    } else {
        files.push(file);
    }
}

fn encode(line: &Line) -> Vec<u8> {
    let mut line = line.clone();
    if line.content.len() > MAX_CONTENT_BYTES {
        let end = (0..=MAX_CONTENT_BYTES).rev().find(|end| line.content.is_char_boundary(*end)).unwrap_or(0);
        line.content.truncate(end);
        line.content.push_str(" [cut]");
    }
    let mut json = serde_json::to_vec(&line).unwrap_or_default();
    json.push(b'\n');
    json
}

/// A gzip header string: Latin-1 without NUL (RFC 1952 §2.3.1). What does not fit becomes a question mark.
fn latin1(text: &str) -> Vec<u8> {
    text.chars().map(|c| u8::try_from(u32::from(c)).ok().filter(|byte| *byte != 0).unwrap_or(b'?')).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::read::GzDecoder;
    use proptest::prelude::*;
    use std::io::Read;

    fn device() -> Origin {
        Origin::Device { device: "d".to_owned(), image: "IMGA".to_owned(), version: "1.0".to_owned() }
    }

    fn unpack(file: &[u8]) -> (Option<Vec<u8>>, Option<Vec<u8>>, String) {
        let mut decoder = GzDecoder::new(file);
        let mut text = String::new();
        decoder.read_to_string(&mut text).expect("gzip");
        let header = decoder.header().expect("header");
        (header.comment().map(<[u8]>::to_vec), header.filename().map(<[u8]>::to_vec), text)
    }

    #[test]
    fn device_file_names_device_image_and_version_in_its_comment() {
        let line = Line {
            msgid: 7,
            timestamp: Stamp { seconds: 5, nanos: 6 },
            content: "hello".to_owned(),
            ..Line::default()
        };
        let files = pack(&device(), &[line]);
        let (comment, name, text) = unpack(&files[0]);
        assert_eq!(comment.expect("comment"), br#"{"devID":"d","image":"IMGA","eveVersion":"1.0"}"#);
        assert_eq!(name, None);
        assert_eq!(
            text,
            "{\"severity\":\"\",\"source\":\"\",\"iid\":\"\",\"content\":\"hello\",\"msgid\":7,\
             \"timestamp\":{\"seconds\":5,\"nanos\":6},\"filename\":\"\",\"function\":\"\"}\n"
        );
    }

    #[test]
    fn app_file_names_the_app_even_when_the_name_does_not_fit_the_header() {
        let origin = Origin::App { id: "a".to_owned(), name: "caf\u{e9}\0\u{4e2d}".to_owned() };
        let (comment, name, _) = unpack(&pack(&origin, &[Line::default()])[0]);
        assert_eq!(comment, None);
        assert_eq!(name.expect("name"), b"caf\xe9??");
    }

    #[test]
    fn long_line_is_cut_and_stays_under_the_reader_limit() {
        let content = "\u{1}".repeat(40_000);
        let (_, _, text) = unpack(&pack(&device(), &[Line { content, ..Line::default() }])[0]);
        assert!(text.len() < 64 * 1024, "{}", text.len());
        assert!(text.contains("[cut]"));
    }

    #[test]
    fn incompressible_lines_are_split_into_files_under_the_limit() {
        let mut seed = 1u64;
        let mut noise = || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            format!("{seed:016x}")
        };
        let lines: Vec<Line> = (0..400)
            .map(|msgid| Line { msgid, content: (0..40).map(|_| noise()).collect(), ..Line::default() })
            .collect();
        let files = pack(&device(), &lines);
        assert!(files.len() > 1);
        assert!(files.iter().all(|file| file.len() <= MAX_GZIP_BYTES));
        let all: String = files.iter().map(|file| unpack(file).2).collect();
        assert_eq!(all.lines().count(), 400);
    }

    #[test]
    fn no_lines_make_no_file() {
        assert!(pack(&device(), &[]).is_empty());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn every_line_comes_back_in_order(contents in proptest::collection::vec(".{0,80}", 1..20)) {
            let lines: Vec<Line> = contents.iter().cloned().map(|content| Line { content, ..Line::default() }).collect();
            let text: String = pack(&device(), &lines).iter().map(|file| unpack(file).2).collect();
            let back: Vec<String> = text
                .lines()
                .map(|line| serde_json::from_str::<serde_json::Value>(line).expect("json")["content"].as_str().expect("text").to_owned())
                .collect();
            prop_assert_eq!(back, contents);
        }
    }
}
